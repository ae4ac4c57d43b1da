"""Walks: each object of the range once, in order, both ways, whatever happens to the list meanwhile."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
import trio

from tests.store.home import Home, delete, get, name, put
from tests.store.test_links import behind, put_list, record
from tests.store.test_renaming import rename
from zstor_local.errors import Conflict, CorruptRecord, NotFound
from zstor_local.metastore.base import Row, Transaction
from zstor_local.model.record import Kind, ObjectRecord
from zstor_local.store.caller import Nobody
from zstor_local.store.references import References
from zstor_local.store.store import Store
from zstor_local.store.walk import Position, Route, Walk

FORWARD, BACKWARD = Route(), Route(forward=False)


def use(store: Store) -> Walk:
    return Walk(store.core, store.namespaces)


async def walked(store: Store, start: str, route: Route = FORWARD, position: Position | None = None) -> str:
    return "".join([stored.record.key async for stored in use(store).along(name(start), route, position)])


def tamper(store: Store, record: ObjectRecord) -> None:
    """Put another record into the metastore, as no change of ours would."""
    namespace = store.namespaces.find("default")
    assert namespace is not None
    now = store.metastore.get(namespace.id, record.key)
    assert now is not None
    envelope = store.sealer.seal(Kind.OBJECT, namespace.id, now.key_hash, now.version, now.sequence, record.encode())
    store.metastore.commit(Transaction(store.committer.state, [Row(namespace.id, record.key, envelope)]))


async def test_a_walk_goes_to_the_end_both_ways(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, *"abcde")
        assert await walked(store, "a") == "abcde"
        assert await walked(store, "c") == "cde"
        assert await walked(store, "e", BACKWARD) == "edcba"
        assert await walked(store, "e") == "e"
        await put(store, "x", b"")
        assert await walked(store, "x") == await walked(store, "x", BACKWARD) == "x"
        with pytest.raises(NotFound):
            await walked(store, "nowhere")
    async with home.open() as store:
        assert await walked(store, "a") == "abcde"


async def test_others_have_their_turns_between_large_records(home: Home) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with home.open() as store:
        await put_list(store, *"abcdefghij")
        for key in "abcdefghij":
            await References(store.core, store.namespaces).append(
                name(key), [f"{n:03}" + "x" * 247 for n in range(250)], None, Nobody()
            )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            assert await walked(store, "a") == "abcdefghij"
            nursery.cancel_scope.cancel()
        assert turns >= 5


@pytest.mark.parametrize("low", [None, *"abcde"])
@pytest.mark.parametrize("high", [None, *"abcde"])
@pytest.mark.parametrize("beside", [-1, 0, 1])
async def test_a_range_holds_both_of_its_ends_and_nothing_else(home: Home, low: str | None, high: str | None, beside: int) -> None:
    async with home.open() as store:
        await put_list(store, *"abcde")
        created = {key: record(store, key).created for key in "abcde"}
        start = None if low is None else created[low] + beside
        end = None if high is None else created[high] - beside
        wanted = "".join(key for key, at in created.items() if (start is None or at >= start) and (end is None or at <= end))
        assert await walked(store, "a", Route(True, start, end)) == wanted
        assert await walked(store, "e", Route(False, start, end)) == wanted[::-1]


async def test_a_walk_ends_behind_its_range_without_looking_further(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, *"abcde")
        tamper(store, replace(record(store, "d"), next_key="nowhere"))
        middle = record(store, "c").created
        assert await walked(store, "a", Route(end=middle)) == "abc"
        tamper(store, replace(record(store, "b"), previous_key="nowhere"))
        assert await walked(store, "c", Route(forward=False, start=record(store, "b").created)) == "cb"


# --- Links that do not hold ---


@pytest.mark.parametrize(
    ("key", "forward", "wrong"),
    [
        ("c", True, {"next_key": "nowhere"}),
        ("c", True, {"next_key": "a"}),
        ("c", True, {"next_key": "c"}),
        ("c", True, {"next_key": "e"}),
        ("d", False, {"previous_key": "nowhere"}),
        ("d", False, {"previous_key": "e"}),
        ("d", False, {"previous_key": "a"}),
    ],
)
async def test_a_broken_link_ends_the_walk_and_names_its_key(home: Home, key: str, forward: bool, wrong: dict[str, str]) -> None:
    async with home.open() as store:
        await put_list(store, *"abcde")
        tamper(store, replace(record(store, key), **wrong))  # type: ignore[arg-type]
        seen: list[str] = []
        with pytest.raises(CorruptRecord) as caught:  # noqa: PT012 (what came before it counts)
            async for stored in use(store).along(name("a" if forward else "e"), Route(forward)):
                seen.append(stored.record.key)
        assert caught.value.data["key"] == key
        assert seen == (["a", "b", "c"] if forward else ["e", "d"])


async def test_a_link_that_only_one_end_has_is_broken(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, *"abc")
        tamper(store, replace(record(store, "b"), previous_key=None))
        with pytest.raises(CorruptRecord) as caught:
            await walked(store, "a")
        assert caught.value.data["key"] == "a"


# --- Lists that change ---


async def test_what_comes_while_a_walk_is_on_its_way_is_seen_and_what_goes_is_not(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, *"abcd")
        seen = ""
        async for stored in use(store).along(name("a"), FORWARD):
            seen += stored.record.key
            if stored.record.key == "b":
                await delete(store, "c")
            if stored.record.key == "d" and len(seen) < 5:
                await put(store, "e", b"", behind("d"))
        assert seen == "abd"  # e came after d had said that nothing follows
        assert await walked(store, "a") == "abde"


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ("delete c", "abde"),
        ("delete b", "abcde"),
        ("rename b", "abcde"),
        ("rename c", "abcde"),
        ("write c", "abcde"),
        ("delete d", "abce"),
    ],
)
async def test_a_walk_that_was_interrupted_goes_on_where_it_was(home: Home, change: str, seen: str) -> None:
    async with home.open() as store:
        await put_list(store, *"abcde")
        walk = use(store).along(name("a"), FORWARD)
        first = [await anext(walk), await anext(walk)]
        await walk.aclose()
        position = Position.at(first[-1], FORWARD)
        verb, key = change.split()
        if verb == "delete":
            await delete(store, key)
        elif verb == "rename":
            await rename(store, key, key.upper())
        else:
            await put(store, key, b"new")
        assert ("ab" + await walked(store, "a", FORWARD, position)).lower() == seen


async def test_a_walk_that_has_lost_its_place_says_so(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, *"abcd")
        position = Position("b", record(store, "b").created, "c")
        await delete(store, "b")
        await delete(store, "c")
        with pytest.raises(Conflict) as caught:
            await walked(store, "a", FORWARD, position)
        assert caught.value.data["key"] == "b"


async def test_a_key_that_was_deleted_and_written_again_is_not_the_object_that_was_left(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, *"abcd")
        position = Position("b", record(store, "b").created, "c")
        await delete(store, "b")
        await put(store, "b", b"")
        assert await walked(store, "a", FORWARD, position) == "cd"


async def test_walkers_and_writers_do_not_disturb_each_other(home: Home) -> None:
    async with home.open() as store:
        await put_list(store, *(f"{number:02}" for number in range(60)))
        stays = {f"{number:02}" for number in range(0, 60, 3)}

        async def change() -> None:
            for number in range(60):
                key = f"{number:02}"
                if key not in stays:
                    await (delete(store, key) if number % 3 == 1 else rename(store, key, f"x{key}"))

        async def look(route: Route, start: str) -> None:
            for _ in range(10):
                keys = []
                created = []
                async for stored in use(store).along(name(start), route):
                    keys.append(stored.record.key)
                    created.append(stored.record.created)
                    await trio.lowlevel.checkpoint()
                assert stays <= set(keys)
                assert created == sorted(set(created), reverse=not route.forward)

        await put(store, "end", b"", behind("59"))
        stays.add("end")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            nursery.start_soon(look, FORWARD, "00")
            nursery.start_soon(look, BACKWARD, "end")


async def test_a_walk_over_ten_thousand_objects_holds_flat_memory(home: Home) -> None:
    count = 10_000
    async with home.open() as store:
        await put(store, "0", b"value")
        first = store.objects.find(name("0"))
        namespace = store.namespaces.find("default")
        assert namespace is not None
        rows = []
        for number in range(count):
            linked = replace(
                first.record,
                key=str(number),
                created=first.record.created + number,
                previous_key=str(number - 1) if number else None,
                next_key=str(number + 1) if number + 1 < count else None,
            )
            sealed = store.sealer.seal(Kind.OBJECT, namespace.id, namespace.key_hash(linked.key), first.version, 1, linked.encode())
            rows.append(Row(namespace.id, linked.key, sealed))
        store.metastore.commit(Transaction(store.committer.state, rows))
        del rows
        seen = 0
        tracemalloc.start()
        try:
            async for stored in use(store).along(name("0"), FORWARD):
                assert stored.record.key == str(seen)
                seen += 1
                if seen == 100:
                    tracemalloc.reset_peak()
                    before = tracemalloc.get_traced_memory()[0]
            grown = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        assert seen == count
        assert grown < 300_000
        assert await get(store, "9999") == b"value"
