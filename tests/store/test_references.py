"""References: an ordered set beside an object, and the way back from each to all objects that have it."""

from __future__ import annotations

import pytest
import trio

from tests.store.home import SMALL_AND_LARGE, Home, content, delete, get, name, put
from tests.store.test_committer import Gate, codes, deleting, together, writing
from zstor_local import limits
from zstor_local.errors import Conflict, NotFound, TooLarge
from zstor_local.metastore.base import Reference, Transaction
from zstor_local.store.caller import Nobody
from zstor_local.store.references import References
from zstor_local.store.store import Store
from zstor_local.store.writes import WriteOptions


def use(store: Store) -> References:
    return References(store.core, store.namespaces)


async def append(store: Store, key: str, *references: str) -> list[str]:
    return [*await use(store).append(name(key), references, None, Nobody())]


async def remove(store: Store, key: str, *references: str) -> list[str]:
    return [*await use(store).remove(name(key), references, None, Nobody())]


async def referring(
    store: Store, reference: str, *, after: str | None = None, limit: int = 1_000, namespace: str = "default"
) -> list[str]:
    return [key async for key in use(store).find(namespace, reference, after, limit)]


def having(*references: str) -> WriteOptions:
    return WriteOptions(references=references)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_appended_references_keep_their_order_and_all_else_of_the_object(home: Home, size: int) -> None:
    async with home.open() as store:
        before = await put(store, "a", content(1, size), having("z"))
        assert await append(store, "a", "b", "a") == ["z", "b", "a"]
        after = store.objects.find(name("a"))
        assert after.record.references == ("z", "b", "a")
        assert (after.version, after.record.modified) == (before.version, before.record.modified)
        assert await get(store, "a") == content(1, size)
    async with home.open() as store:
        assert store.objects.find(name("a")).record.references == ("z", "b", "a")
        assert await referring(store, "b") == ["a"]


async def test_doing_it_twice_is_doing_it_once(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"", having("x", "y"))
        for _ in range(2):
            assert await append(store, "a", "z", "x", "z") == ["x", "y", "z"]
        for _ in range(2):
            assert await remove(store, "a", "y", "never there") == ["x", "z"]
        assert [await referring(store, each) for each in "xyz"] == [["a"], [], ["a"]]


async def test_an_append_that_adds_nothing_writes_nothing(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"", having("x"))
        gate = Gate(home)
        await append(store, "a", "x")
        assert [transaction.rows for transaction in gate.commits] == [[]]


async def test_what_is_not_there_has_no_references(home: Home) -> None:
    async with home.open() as store:
        with pytest.raises(NotFound):
            await append(store, "a", "x")
        await put(store, "b", b"")
        with pytest.raises(NotFound):
            await remove(store, "a", "x")
        assert await referring(store, "x") == []
        assert await referring(store, "x", namespace="never-written") == []


async def test_a_change_of_a_version_that_was_left_behind_is_a_conflict(home: Home) -> None:
    async with home.open() as store:
        old = await put(store, "a", b"1")
        await put(store, "a", b"2")
        with pytest.raises(Conflict):
            await use(store).append(name("a"), ["x"], old.version, Nobody())
        assert await referring(store, "x") == []


async def test_an_object_has_no_more_references_than_the_limit(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REFERENCES", 3)
    async with home.open() as store:
        await put(store, "a", b"", having("x", "y"))
        assert await append(store, "a", "z") == ["x", "y", "z"]
        with pytest.raises(TooLarge) as caught:
            await append(store, "a", "x", "one too many")
        assert caught.value.data["limit"] == 3
        assert store.objects.find(name("a")).record.references == ("x", "y", "z")


async def test_as_many_and_as_long_references_as_may_be(home: Home) -> None:
    everything = [f"{number:05}".rjust(limits.REFERENCE_BYTES, "r") for number in range(limits.REFERENCES)]
    async with home.open() as store:
        await put(store, "a", b"")
        assert len(await append(store, "a", *everything)) == limits.REFERENCES
        assert len(await append(store, "a", everything[0])) == limits.REFERENCES
    async with home.open() as store:
        assert store.objects.find(name("a")).record.references == tuple(everything)
        assert await referring(store, everything[-1]) == ["a"]
        assert await remove(store, "a", *everything[1:]) == everything[:1]
        assert await referring(store, everything[-1]) == []


async def test_an_overwrite_drops_them_unless_it_says_otherwise(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1", having("x"))
        await put(store, "a", b"2", WriteOptions(keep_references=True))
        assert await referring(store, "x") == ["a"]
        await put(store, "a", b"3", having("y"))
        assert (await referring(store, "x"), await referring(store, "y")) == ([], ["a"])
        await put(store, "a", b"4")
        assert store.objects.find(name("a")).record.references == ()
        assert await referring(store, "y") == []


async def test_a_deleted_object_is_not_found_by_its_references(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"", having("x"))
        await put(store, "b", b"", having("x"))
        await delete(store, "a")
        assert await referring(store, "x") == ["b"]


async def test_keys_are_found_in_pages_in_the_order_of_their_bytes(home: Home) -> None:
    everything = sorted((f"key{number}" for number in range(120)), key=str.encode)
    async with home.open() as store:
        async with trio.open_nursery() as nursery:
            for key in everything:
                nursery.start_soon(put, store, key, b"", having("x", key))
        await put(store, "elsewhere", b"", having("x"), namespace="other")
        found: list[str] = []
        while page := await referring(store, "x", after=found[-1] if found else None, limit=50):
            found += page
        assert found == everything
        assert await referring(store, "key7") == ["key7"]


async def test_others_have_their_turns_between_large_records(home: Home) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with home.open() as store:
        for number in range(10):
            await put(store, f"{number}", b"", WriteOptions(references=["r", *(f"{each:03}" + "x" * 247 for each in range(250))]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            assert len(await referring(store, "r")) == 10
            nursery.cancel_scope.cancel()
        assert turns >= 5


async def test_changes_of_one_group_end_as_the_last_says(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"", having("x"))
        changes = [writing("a", b"1"), writing("a", b"2", having("x")), writing("b", b"", having("x")), deleting("b")]
        assert codes(await together(home, store, changes)) == ["ok"] * 4
        assert await referring(store, "x") == ["a"]


async def test_two_appends_at_once_are_both_there(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"")
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(append, store, "a", str(number))
        assert sorted(store.objects.find(name("a")).record.references, key=int) == [str(number) for number in range(20)]


async def test_the_metastore_does_not_say_what_a_reference_is(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"", having("the secret reference"))
    for file in home.metastore.parent.glob("metastore*"):
        assert b"the secret reference" not in file.read_bytes()


async def test_a_row_that_somebody_put_into_the_index_finds_nothing(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"", having("x"))
        await put(store, "b", b"")
        namespace = store.namespaces.find("default")
        assert namespace is not None
        forged = [Reference(namespace.id, namespace.reference_hash("x"), key) for key in ("b", "c")]
        store.metastore.commit(Transaction(store.committer.state, references=forged))
        assert await referring(store, "x") == ["a"]


async def test_keys_that_have_lost_the_reference_do_not_end_a_page(home: Home) -> None:
    """As they may between the question and the look at each: who lists would take a short page for the last one."""
    async with home.open() as store:
        for key in "adef":
            await put(store, key, b"", having("x"))
        namespace = store.namespaces.get("default")
        gone = [Reference(namespace.id, namespace.reference_hash("x"), key) for key in "bc"]
        store.metastore.commit(Transaction(store.committer.state, references=gone))
        assert await referring(store, "x", limit=3) == ["a", "d", "e"]
        assert await referring(store, "x", after="e", limit=3) == ["f"]
