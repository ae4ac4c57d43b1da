"""Names: numbers that only grow, compare-and-set, watchers, and what a restart and a rebuild bring back."""

from __future__ import annotations

import pytest
import trio

from tests.store.home import Home
from tests.store.test_committer import Gate
from zstor_local import limits
from zstor_local.content.names import Names
from zstor_local.errors import Conflict, InvalidParams, NotFound, TooLarge
from zstor_local.store.store import Store


def use(store: Store) -> Names:
    return Names(store.rows)


async def test_a_name_has_its_newest_value_and_a_number_that_grows(home: Home) -> None:
    async with home.open() as store:
        names = use(store)
        assert [(await names.update("n", value)).seq for value in (b"a", b"b", b"")] == [1, 2, 3]
        found = names.fetch("n")
        assert (found.value, found.seq) == (b"", 3)
        assert found.updated > 0
    async with home.open() as store:
        assert use(store).fetch("n") == found


async def test_the_same_value_again_is_a_change(home: Home) -> None:
    async with home.open() as store:
        names = use(store)
        await names.update("n", b"locked")
        assert (await names.update("n", b"locked", if_seq=1)).seq == 2
        with pytest.raises(Conflict):  # two who want the same by the same number: one gets it
            await names.update("n", b"locked", if_seq=1)


async def test_a_stale_number_is_a_conflict_that_tells_the_current_one(home: Home) -> None:
    async with home.open() as store:
        names = use(store)
        await names.update("n", b"a")
        await names.update("n", b"b", if_seq=1)
        for stale in (0, 1, 3):
            with pytest.raises(Conflict) as caught:
                await names.update("n", b"lost", if_seq=stale)
            assert caught.value.data["current"] == 2
            with pytest.raises(Conflict):
                await names.delete("n", if_seq=stale)
        with pytest.raises(Conflict) as caught:
            await names.update("new", b"", if_seq=1)
        assert caught.value.data["current"] == 0
        assert names.fetch("n").value == b"b"


async def test_a_deleted_name_is_gone_and_keeps_its_number(home: Home) -> None:
    async with home.open() as store:
        names = use(store)
        await names.update("n", b"a")
        assert await names.delete("n") == 2
        with pytest.raises(NotFound):
            names.fetch("n")
        with pytest.raises(NotFound):
            await names.delete("n")
        with pytest.raises(Conflict):  # the name of before, not the one of now
            await names.update("n", b"b", if_seq=1)
    async with home.open() as store:
        names = use(store)
        assert (await names.update("n", b"c", if_seq=0)).seq == 3
        await names.delete("n")
        assert (await names.update("n", b"d", if_seq=4)).seq == 5


async def test_nobodys_change_is_lost(home: Home) -> None:
    async with home.open() as store:
        names = use(store)
        await names.update("counter", b"0")

        async def count(times: int) -> None:
            while times:
                found = names.fetch("counter")
                await trio.lowlevel.checkpoint()
                try:
                    await names.update("counter", b"%d" % (int(found.value) + 1), if_seq=found.seq)
                except Conflict:
                    continue
                times -= 1

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(count, 5)
        assert (names.fetch("counter").value, names.fetch("counter").seq) == (b"40", 41)


async def test_a_change_wakes_everybody_who_watches_this_name(home: Home) -> None:
    async with home.open() as store:
        names = use(store)
        woken: list[int] = []

        async def wait(number: int, *, task_status: trio.TaskStatus[None]) -> None:
            with names.watch("n") as eye:
                news = eye.news()
                task_status.started()
                await news.wait()
                woken.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                await nursery.start(wait, number)
            await names.update("another", b"")
            assert woken == []
            await names.update("n", b"")
        assert sorted(woken) == list(range(20))
        with names.watch("n") as eye:
            news = eye.news()
            await names.delete("n")
            assert news.is_set()
            assert not eye.news().is_set()


async def test_names_are_listed_in_order_without_the_deleted_ones(home: Home) -> None:
    async with home.open() as store:
        names = use(store)
        for name in ("b/2", "a", "b/1", "ü", "b/3", "b/4"):
            await names.update(name, name.encode())
        await names.delete("b/2")
        await names.delete("b/3")
        assert [each.name async for each in names.list("", None, 100)] == ["a", "b/1", "b/4", "ü"]
        assert [each.name async for each in names.list("b/", None, 1)] == ["b/1"]
        assert [each.name async for each in names.list("b/", "b/1", 1)] == ["b/4"]
        assert [each.value async for each in names.list("b/", "b/4", 9)] == []


async def test_others_have_their_turns_while_deleted_names_are_passed_over(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.content.names.SCAN_ROWS", 1)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with home.open() as store:
        names = use(store)
        for number in range(10):
            await names.update(f"{number}", b"")
            await names.delete(f"{number}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            assert [each async for each in names.list("", None, 100)] == []
            nursery.cancel_scope.cancel()
        assert turns >= 5


async def test_what_is_no_name_or_too_large_or_a_logs_is_refused(home: Home) -> None:
    async with home.open() as store:
        names = use(store)
        for name in ("", "a\0b", "\ud800"):
            with pytest.raises(InvalidParams, match="a name"):
                await names.update(name, b"")
        with pytest.raises(TooLarge):
            await names.update("x" * (limits.KEY_BYTES + 1), b"")
        with pytest.raises(TooLarge):
            await names.update("n", bytes(limits.NAME_VALUE_BYTES + 1))
        assert (await names.update("n", bytes(limits.NAME_VALUE_BYTES))).seq == 1
        with pytest.raises(InvalidParams, match="heads of logs"):
            await names.update("log/default", b"")
        with pytest.raises(InvalidParams, match="heads of logs"):
            await names.delete("log/default")


async def test_an_update_is_one_commit(home: Home) -> None:
    async with home.open() as store:
        gate = Gate(home)
        await use(store).update("n", b"a")
        assert len(gate.commits) == 1


async def test_a_rebuild_brings_names_back_with_their_numbers(home: Home) -> None:
    async with home.open() as store:
        names = use(store)
        for value in (b"a", b"b", b"c"):
            await names.update("kept", value)
        await names.update("gone", b"x")
        await names.delete("gone")
    report = home.rebuild()
    assert report.loss == []
    async with home.open() as store:
        names = use(store)
        assert (names.fetch("kept").value, names.fetch("kept").seq) == (b"c", 3)
        assert [each.name async for each in names.list("", None, 9)] == ["kept"]
        with pytest.raises(Conflict):
            await names.update("gone", b"", if_seq=1)
        assert (await names.update("gone", b"", if_seq=0)).seq == 3
