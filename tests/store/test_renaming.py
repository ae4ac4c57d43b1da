"""Rename and copy: other keys for the same version, without a byte moved, and shares that live as long as one key names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.home import SMALL_AND_LARGE, Home, content, delete, freed, get, keys, name, put, share_places, small_shares
from tests.store.test_committer import Change, codes, deleting, together, writing
from tests.store.test_links import behind, check_list, put_list
from tests.store.test_references import having, referring
from zstor_local.errors import AlreadyExists, Conflict, NotEnoughShards, NotFound
from zstor_local.metastore.base import Owed, RowName
from zstor_local.model.ids import Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import Kind
from zstor_local.store.caller import Nobody
from zstor_local.store.renaming import Renaming
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored


def use(store: Store) -> Renaming:
    return Renaming(store.core, store.namespaces, store.freeing)


async def rename(store: Store, key: str, new_key: str, *, exclusive: bool = False, if_version: Version | None = None) -> Stored:
    return await use(store).rename(name(key), new_key, if_version, Nobody(), exclusive=exclusive)


async def copy(store: Store, key: str, new_key: str, *, exclusive: bool = False, if_version: Version | None = None) -> Stored:
    return await use(store).copy(name(key), new_key, if_version, Nobody(), exclusive=exclusive)


def renaming(key: str, new_key: str) -> Change:
    return lambda store: rename(store, key, new_key)


def copying(key: str, new_key: str) -> Change:
    return lambda store: copy(store, key, new_key)


def shares(home: Home, store: Store) -> int:
    return small_shares(store) + len(home.share_files())


async def consistent(home: Home, store: Store) -> None:
    """The store counts its objects right, and holds the shares of the versions that they name and no others."""
    await freed(store)
    found = [store.objects.find(name(key)) for key in await keys(store)]
    assert store.committer.state.objects == len(found)
    assert store.committer.state.bytes == sum(each.record.size for each in found)
    assert shares(home, store) == 3 * len({each.version for each in found})
    assert store.metastore.garbage_count() == 0


# --- Rename ---


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_renamed_object_is_the_same_under_another_key(home: Home, size: int) -> None:
    async with home.open() as store:
        before = await put(store, "a", content(1, size), having("r"))
        writes = home.files.calls["pwritev"] + home.files.calls["rename"]
        after = await rename(store, "a", "b")
        assert (after.version, after.record.created, after.record.modified) == (
            before.version,
            before.record.created,
            before.record.modified,
        )
        assert home.files.calls["pwritev"] + home.files.calls["rename"] - writes == 3  # one entry in each log
        await consistent(home, store)
    async with home.open() as store:
        assert await keys(store) == ["b"]
        assert await get(store, "b") == content(1, size)
        assert await referring(store, "r") == ["b"]
        await consistent(home, store)
        await delete(store, "b")
        await consistent(home, store)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_rename_replaces_what_has_the_key(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, size), having("r"))
        await put(store, "b", content(2, 700_000), having("s"))
        with pytest.raises(AlreadyExists):
            await rename(store, "a", "b", exclusive=True)
        await rename(store, "a", "b")
        assert await get(store, "b") == content(1, size)
        assert (await referring(store, "r"), await referring(store, "s")) == (["b"], [])
        await consistent(home, store)


async def test_a_rename_to_its_own_key_changes_nothing(home: Home) -> None:
    async with home.open() as store:
        before = await put(store, "a", b"1")
        assert await rename(store, "a", "a") == before
        assert await copy(store, "a", "a") == before
        with pytest.raises(AlreadyExists):
            await rename(store, "a", "a", exclusive=True)
        await consistent(home, store)


async def test_what_is_not_there_cannot_be_renamed_or_copied(home: Home) -> None:
    async with home.open() as store:
        for change in (rename, copy):
            with pytest.raises(NotFound):
                await change(store, "a", "b")
        old = await put(store, "a", b"1")
        await put(store, "a", b"2")
        for change in (rename, copy):
            with pytest.raises(NotFound):
                await change(store, "c", "b")
            with pytest.raises(Conflict):
                await change(store, "a", "b", if_version=old.version)
        assert await keys(store) == ["a"]


@pytest.mark.parametrize("key", "abc")
async def test_a_renamed_object_keeps_its_place_in_the_list(home: Home, key: str) -> None:
    async with home.open() as store:
        await put_list(store, *"abc")
        await rename(store, key, "new")
        check_list(store, [each if each != key else "new" for each in "abc"])


@pytest.mark.parametrize(
    ("key", "new_key", "left"),
    [("a", "b", "bcd"), ("b", "a", "acd"), ("a", "c", "cbd"), ("c", "a", "bad"), ("b", "d", "adc"), ("d", "a", "bca")],
)
async def test_a_rename_within_a_list_takes_the_other_out(home: Home, key: str, new_key: str, left: str) -> None:
    async with home.open() as store:
        await put_list(store, *"abcd")
        await rename(store, key, new_key)
        check_list(store, left)
        assert await get(store, new_key) == key.encode()
        await consistent(home, store)


async def test_a_rename_out_of_one_list_onto_another(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, *"abc")
        await put_list(store, *"xyz")
        await rename(store, "b", "y")
        check_list(store, "ayc")
        check_list(store, "xz")


# --- Copy ---


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
@pytest.mark.parametrize("first", "ab")
async def test_a_copy_lives_as_long_as_one_key_names_it(home: Home, size: int, first: str) -> None:
    async with home.open() as store:
        original = await put(store, "a", content(1, size), having("r"))
        made = await copy(store, "a", "b")
        assert made.version == original.version
        assert made.record.references == ("r",)
        assert await referring(store, "r") == ["a", "b"]
        await consistent(home, store)
        await delete(store, first)
        await consistent(home, store)
        other = "b" if first == "a" else "a"
    async with home.open() as store:
        assert await get(store, other) == content(1, size)
        assert await referring(store, "r") == [other]
        await put(store, other, b"new")
        await consistent(home, store)
        assert await get(store, other) == b"new"


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_an_overwrite_of_one_copy_leaves_the_other(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, size))
        await copy(store, "a", "b")
        await copy(store, "b", "c")
        await put(store, "a", content(2, size))
        assert (await get(store, "b"), await get(store, "c")) == (content(1, size), content(1, size))
        await consistent(home, store)
        await copy(store, "a", "b")
        await copy(store, "a", "c")
        await consistent(home, store)
        assert await get(store, "c") == content(2, size)


async def test_a_copy_onto_a_linked_object_keeps_the_links(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, *"abc")
        await put(store, "x", b"new")
        await copy(store, "x", "b")
        await copy(store, "b", "y")
        check_list(store, "abc")
        check_list(store, "y")
        assert await get(store, "b") == b"new"


async def test_one_of_many_copies_goes_without_a_look_at_the_others(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await put(store, "a", b"1")
        for number in range(20):
            await copy(store, "a", f"copy{number:02}")
        committed = store.metastore.committed
        named, looked_at = committed.named, list[int]()

        def counted(version: Version, limit: int | None = None) -> list[RowName]:
            found = named(version, limit)
            looked_at.append(len(found))
            return found

        monkeypatch.setattr(committed, "named", counted)
        for number in range(20):
            await delete(store, f"copy{number:02}")
        assert max(looked_at) <= 3
        assert store.metastore.garbage_count() == 0
        await delete(store, "a")
        await freed(store)
        assert shares(home, store) == 0


async def test_an_exclusive_copy_replaces_nothing(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1")
        await put(store, "b", b"2")
        with pytest.raises(AlreadyExists):
            await copy(store, "a", "b", exclusive=True)
        assert await get(store, "b") == b"2"


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ([copying("a", "b"), deleting("a")], "b"),
        ([copying("a", "b"), writing("a", b"new"), deleting("b")], "a"),
        ([copying("a", "b"), deleting("b"), deleting("a")], ""),
        ([renaming("a", "b"), renaming("b", "c")], "c"),
        ([renaming("a", "b"), renaming("b", "a")], "a"),
        ([copying("a", "b"), renaming("a", "c"), deleting("b")], "c"),
        ([deleting("a"), copying("a", "b")], ""),
        ([copying("a", "b"), renaming("b", "a")], "a"),
    ],
)
async def test_changes_of_one_group_see_each_other(home: Home, size: int, changes: list[Change], left: str) -> None:
    async with home.open() as store:
        await put(store, "first", b"")
        await put(store, "a", content(1, size))
        await together(home, store, changes)
        await delete(store, "first")
        assert await keys(store) == list(left)
        for key in left:
            assert await get(store, key) in (content(1, size), b"new")
        await consistent(home, store)


async def test_a_change_that_builds_on_one_that_failed_fails_too(home: Home) -> None:
    home.policy = Policy(2, 3, chunk_size=home.policy.chunk_size)
    async with home.open() as store:
        await put(store, "first", b"")
        await put(store, "a", content(1, 700_000))

        def away() -> None:
            home.take_away(0)

        # The copy fails: it needs three shards. The delete, which would free the shares that the copy holds, must not count on it.
        outcomes = await together(home, store, [copying("a", "b"), deleting("a")], while_waiting=away)
        assert codes(outcomes) == ["not_enough_shards", "conflict"]
        await home.return_to(store, 0)
        assert await get(store, "a") == content(1, 700_000)
        await delete(store, "a")
        await delete(store, "first")
        await consistent(home, store)


# --- Readers, and shards that are away ---


async def test_one_who_reads_by_the_old_key_reads_to_the_end(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        await rename(store, "a", "b")
        await freed(store)
        assert await store.objects.read(stored) == content(1, 700_000)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
@pytest.mark.parametrize("change", [rename, copy])
async def test_a_shard_that_was_away_gets_its_share_whatever_the_key_is_by_then(home: Home, size: int, change: object) -> None:
    home.policy = Policy(2, 4, chunk_size=home.policy.chunk_size)
    async with home.open() as store:
        home.take_away(3)
        stored = await put(store, "a", content(1, size))
        assert (stored.owed, stored.shares_owed) == (1, 1)
        made = await (rename if change is rename else copy)(store, "a", "b")
        assert (made.owed, made.shares_owed) == (1, 1)
        if change is copy:
            await delete(store, "a")
        assert Owed.SHARE in {debt.kind for debt in store.metastore.debts_of(stored.version)}
        await home.return_to(store, 3)
        await store.mending.mend()
        found = store.objects.find(name("b"))
        assert (found.owed, found.shares_owed) == (0, 0)
        assert store.metastore.debts_count() == 0
        for place in share_places(store, found):
            assert len(place.read()) == found.record.share_bytes


async def test_with_too_few_shards_nothing_is_renamed(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1")
        home.take_away(0)
        for change in (rename, copy):
            with pytest.raises(NotEnoughShards):
                await change(store, "a", "b")
        await home.return_to(store, 0)
        assert await keys(store) == ["a"]


async def test_a_repair_tells_all_keys_where_the_shares_are(home: Home) -> None:
    home.shards, home.policy = 4, Policy(2, 3, chunk_size=home.policy.chunk_size)
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        await copy(store, "a", "b")
        home.take_away(stored.record.placement[0])
        await store.shares_health.repair(store.objects.find(name("a")), Nobody())
        one, other = store.objects.find(name("a")).record, store.objects.find(name("b")).record
        assert one.placement == other.placement != stored.record.placement


async def test_a_renamed_linked_object_is_followed(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, "a", "b")
        await rename(store, "b", "c")
        await put(store, "d", b"", behind("c"))
        check_list(store, "acd")


async def test_no_log_has_the_end_of_a_rename_without_its_beginning(tmp_path: Path) -> None:
    """A power loss may leave it in any one log. If the metastore goes too, a rebuild must find the object under one of the keys."""
    home = Home(tmp_path, Policy(2, 3), shards=6)
    async with home.open() as store:
        await put(store, "old", b"value")
        await put(store, "taken", b"other")
        renamed = [await rename(store, "old", "new"), await rename(store, "taken", "free")]
        for number in store.pool.numbers:
            shard = store.pool.get(number)
            assert shard is not None
            heard = [scanned.entry.envelope for scanned in shard.scan()]
            for stored in renamed:
                ours = [envelope for envelope in heard if envelope.version == stored.version][-2:]
                assert [(each.kind, each.key_hash == stored.envelope.key_hash) for each in ours] == [
                    (Kind.OBJECT, True),
                    (Kind.TOMBSTONE, False),
                ]
