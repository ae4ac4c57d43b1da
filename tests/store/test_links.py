"""Linked objects: both ends of a link change in one transaction, and no order of changes tears a list."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.store.home import SMALL_AND_LARGE, Home, content, delete, freed, get, name, put, small_shares
from tests.store.test_committer import Gate, codes, deleting, together, writing
from zstor_local.errors import Conflict, InvalidParams, NotEnoughShards, NotFound
from zstor_local.metastore.base import Owed
from zstor_local.model.policy import Policy
from zstor_local.model.record import ObjectRecord
from zstor_local.store.links import Previous
from zstor_local.store.store import Store
from zstor_local.store.writes import WriteOptions


def behind(previous: str) -> WriteOptions:
    return WriteOptions(previous=Previous(previous))


def record(store: Store, key: str) -> ObjectRecord:
    return store.objects.find(name(key)).record


async def put_list(store: Store, *keys: str) -> None:
    for number, key in enumerate(keys):
        await put(store, key, key.encode(), behind(keys[number - 1]) if number else None)


def check_list(store: Store, keys: Sequence[str]) -> None:
    """The objects are one list in this order, both ways, and each was created later than the one before."""
    records = [record(store, key) for key in keys]
    assert [each.next_key for each in records] == [*keys[1:], None]
    assert [each.previous_key for each in records] == [None, *keys[:-1]]
    created = [each.created for each in records]
    assert created == sorted(set(created))


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_link_has_two_ends_also_after_a_restart(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, size))
        linked = await put(store, "b", content(2, size), behind("a"))
        assert linked.record.previous_key == "a"
        check_list(store, ["a", "b"])
    async with home.open() as store:
        check_list(store, ["a", "b"])
        assert (await get(store, "a"), await get(store, "b")) == (content(1, size), content(2, size))
        assert small_shares(store) + len(home.share_files()) == 6


async def test_both_ends_are_one_transaction(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1")
        gate = Gate(home)
        await put(store, "b", b"2", behind("a"))
        assert [{row.name for row in transaction.rows} for transaction in gate.commits] == [{"a", "b"}]


async def test_linking_leaves_the_predecessors_version_and_bytes_alone(home: Home) -> None:
    async with home.open() as store:
        before = await put(store, "a", b"1", WriteOptions(references=["r"], user={"u": 1}))
        await put(store, "b", b"2", behind("a"))
        after = store.objects.find(name("a"))
        assert after.version == before.version
        assert after.envelope.sequence > before.envelope.sequence
        assert (after.record.references, after.record.user, after.record.modified) == (("r",), {"u": 1}, before.record.modified)
        assert await get(store, "a") == b"1"


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_second_successor_is_a_conflict_and_changes_nothing(home: Home, size: int) -> None:
    async with home.open() as store:
        await put_list(store, "a", "b")
        with pytest.raises(Conflict) as caught:
            await put(store, "c", content(1, size), behind("a"))
        assert caught.value.data["current"] == "b"
        with pytest.raises(NotFound):
            store.objects.find(name("c"))
        check_list(store, ["a", "b"])
        await freed(store)
        assert home.share_files() == []


async def test_of_two_successors_in_one_group_one_is_refused(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"")
        outcomes = await together(home, store, [writing("b", b"", behind("a")), writing("c", b"", behind("a"))])
        assert codes(outcomes) == ["ok", "conflict"]
        check_list(store, ["a", "b"])


async def test_the_previous_key_must_be_there(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"", namespace="elsewhere")
        with pytest.raises(NotFound, match="'a' to follow"):
            await put(store, "b", b"", behind("a"))


async def test_an_object_does_not_follow_itself(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"")
        with pytest.raises(InvalidParams):
            await put(store, "a", b"", behind("a"))


async def test_a_predecessor_named_by_its_version_must_still_have_it(home: Home) -> None:
    async with home.open() as store:
        old = await put(store, "a", b"1")
        new = await put(store, "a", b"2")
        with pytest.raises(Conflict) as caught:
            await put(store, "b", b"", WriteOptions(previous=Previous("a", old.version)))
        assert caught.value.data["current"] == new.version.hex()
        await put(store, "b", b"", WriteOptions(previous=Previous("a", new.version)))
        check_list(store, ["a", "b"])


async def test_overwriting_keeps_links_and_place(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, "a", "b", "c")
        for key in "abc":
            created = record(store, key).created
            await put(store, key, b"another")
            assert record(store, key).created == created
        await put(store, "b", b"with the link it has", behind("a"))
        check_list(store, ["a", "b", "c"])
        assert await get(store, "b") == b"with the link it has"


@pytest.mark.parametrize(("deleted", "left"), [("a", "bcd"), ("b", "acd"), ("c", "abd"), ("d", "abc")])
async def test_deleting_joins_the_neighbours(home: Home, deleted: str, left: str) -> None:
    async with home.open() as store:
        await put_list(store, *"abcd")
        gate = Gate(home)
        await delete(store, deleted)
        assert len(gate.commits[0].rows) == len(set(deleted) | (set("abcd") & {chr(ord(deleted) - 1), chr(ord(deleted) + 1)}))
        check_list(store, left)
    async with home.open() as store:
        check_list(store, left)


async def test_neighbours_may_be_deleted_in_one_group(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, *"abcde")
        assert codes(await together(home, store, [deleting("c"), deleting("b"), deleting("d")])) == ["ok"] * 3
        check_list(store, "ae")


async def test_a_deleted_key_comes_back_without_its_links(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, *"abc")
        await delete(store, "b")
        await put(store, "b", b"new")
        check_list(store, "ac")
        check_list(store, "b")
        await put(store, "b", b"at the end", behind("c"))
        check_list(store, "acb")


async def test_an_older_object_becomes_younger_than_its_predecessor(home: Home) -> None:
    async with home.open() as store:
        await put(store, "b", b"")
        await put(store, "a", b"")
        await put(store, "b", b"", behind("a"))
        check_list(store, "ab")


async def test_an_object_with_a_predecessor_does_not_get_another(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, "a", "b")
        await put(store, "c", b"")
        with pytest.raises(Conflict):
            await put(store, "b", b"", behind("c"))
        check_list(store, "ab")


async def test_lists_never_become_rings(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, "a", "b", "c")
        with pytest.raises(Conflict):
            await put(store, "a", b"", behind("c"))
        check_list(store, "abc")


async def test_a_younger_list_may_be_joined_to_an_older_one(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, "a", "b")
        await put_list(store, "c", "d")
        with pytest.raises(Conflict):
            await put(store, "a", b"", behind("d"))
        await put(store, "c", b"", behind("b"))
        check_list(store, "abcd")


async def test_with_too_few_shards_a_list_does_not_grow_and_may_shrink(home: Home) -> None:
    home.policy = Policy(2, 3, chunk_size=home.policy.chunk_size)
    async with home.open() as store:
        await put_list(store, "a", "b")
        home.take_away(0)
        with pytest.raises(NotEnoughShards):
            await put(store, "c", b"", behind("b"))
        check_list(store, "ab")
        await delete(store, "a")  # is never refused for want of shards
        check_list(store, "b")
        owed = [debt for debt in store.metastore.debts(0) if debt.kind is Owed.RECORD]
        assert {debt.name for debt in owed} == {"a", "b"}


async def test_a_write_and_the_link_to_it_in_one_group_still_owe_its_shares(home: Home) -> None:
    home.policy = Policy(2, 4, chunk_size=home.policy.chunk_size)
    async with home.open() as store:
        await put(store, "a", b"")
        home.take_away(3)
        # The second change rewrites a's record, of the version that the first one made.
        outcomes = await together(home, store, [writing("a", b"new"), writing("b", b"", behind("a"))])
        assert codes(outcomes) == ["ok", "ok"]
        found = store.objects.find(name("a"))
        assert {(debt.kind, debt.shard) for debt in store.metastore.debts_of(found.version)} == {(Owed.RECORD, 3), (Owed.SHARE, 3)}
        assert (found.owed, found.shares_owed) == (1, 1)
