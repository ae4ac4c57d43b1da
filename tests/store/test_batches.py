"""Work on small objects: what several want done is one thread call, and each has its own outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.store.home import Home
from zstor_local.errors import NotFound
from zstor_local.shards.base import Shard
from zstor_local.shards.pool import ShardPool
from zstor_local.store.batches import FAR, Batches
from zstor_local.store.reading import BATCH_US


class Threads:
    """Calls that wait until they are let go on; `calls` began."""

    def __init__(self) -> None:
        self.calls = 0
        self.go_on = trio.Event()
        self.workers = 2

    async def run(self, work: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        self.calls += 1
        with trio.CancelScope(shield=True):
            await self.go_on.wait()
        return work(*args)


class Clock:
    def __init__(self) -> None:
        self.time = 0

    def now(self) -> int:
        return self.time


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def batches(home: Home, threads: Threads, clock: Clock) -> Batches:
    far = cast(Shard, SimpleNamespace(number=9, on_disk=None, entry=SimpleNamespace(draining=False)))
    return Batches(replace(home.runtime(), threads=cast(Any, threads), clock=clock), ShardPool([far], []))


async def test_what_comes_while_a_batch_runs_is_the_next_one(batches: Batches, threads: Threads) -> None:
    results: list[int] = []

    async def ask(number: int) -> None:
        results.append(await batches.run([0, 1], lambda: number))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(ask, number)
        await trio.testing.wait_all_tasks_blocked()
        assert threads.calls == 1
        threads.go_on.set()
    assert sorted(results) == [*range(50)]
    assert threads.calls == 2
    await ask(50)  # and who comes when nothing runs waits for nobody
    assert threads.calls == 3


async def test_an_error_is_told_to_the_one_whose_work_it_ended(batches: Batches, threads: Threads) -> None:
    threads.go_on.set()
    outcomes: dict[int, str] = {}

    def work(number: int) -> str:
        if number % 3 == 0:
            raise NotFound(f"no {number}")
        return f"found {number}"

    async def ask(number: int) -> None:
        try:
            outcomes[number] = await batches.run([0], lambda: work(number))
        except NotFound as error:
            outcomes[number] = error.message

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, number)
    assert outcomes == {number: f"{'found' if number % 3 else 'no'} {number}" for number in range(20)}


async def test_a_call_takes_no_more_than_its_time_and_the_rest_goes_on(batches: Batches, threads: Threads, clock: Clock) -> None:
    threads.go_on.set()
    done: list[int] = []

    def work(number: int) -> None:
        clock.time += BATCH_US // 2
        done.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(21):
            nursery.start_soon(batches.run, [0], lambda number=number: work(number))
    assert sorted(done) == [*range(21)]
    assert threads.calls >= 11  # the first was alone, and none of the others took more than two


async def test_while_disks_are_slow_there_are_as_many_batches_as_workers(batches: Batches, threads: Threads, clock: Clock) -> None:
    done: list[int] = []
    begun: list[int] = []

    def work(number: int) -> None:
        clock.time += BATCH_US if number < 10 else 0
        done.append(number)

    async def next_calls() -> None:
        """What runs now ends, and what begins then waits."""
        threads.go_on.set()
        threads.go_on = trio.Event()
        before = threads.calls
        await trio.testing.wait_all_tasks_blocked()
        begun.append(threads.calls - before)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(batches.run, [0], lambda number=number: work(number))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(4):
            await next_calls()
        assert (begun, len(done)) == ([1, 2, 2, 2], 6)
        threads.go_on.set()
    assert sorted(done) == [*range(8)]
    threads.go_on, calls = trio.Event(), threads.calls
    async with trio.open_nursery() as nursery:
        for number in range(10, 20):
            nursery.start_soon(batches.run, [0], lambda number=number: work(number))
        await trio.testing.wait_all_tasks_blocked()
        threads.go_on.set()
    assert threads.calls - calls == 2


async def ask(batches: Batches, done: list[str], name: str, scope: trio.CancelScope | None = None) -> None:
    """Have a name noted; a scope is one that the test cancels."""
    with scope or trio.CancelScope():
        await batches.run([0], lambda: done.append(name))


async def test_who_is_cancelled_keeps_nobody_waiting(batches: Batches, threads: Threads) -> None:
    done: list[str] = []
    scopes = {name: trio.CancelScope() for name in ("first", "waiting", "other", "last")}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, batches, done, "first", scopes["first"])
        await trio.testing.wait_all_tasks_blocked()
        for name in ("waiting", "other", "last"):
            nursery.start_soon(ask, batches, done, name, scopes[name])
            await trio.testing.wait_all_tasks_blocked()
        scopes["waiting"].cancel()  # its work has not begun, and never does
        await trio.testing.wait_all_tasks_blocked()
        scopes["first"].cancel()  # its work ends before that acts
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        threads.go_on.set()
    assert done == ["first", "other", "last"]
    assert threads.calls == 2


async def test_whose_turn_it_is_to_run_a_batch_may_be_cancelled(batches: Batches, threads: Threads) -> None:
    done: list[str] = []
    scope = trio.CancelScope()

    async def first() -> None:
        await ask(batches, done, "first")
        scope.cancel()  # it is told that its turn has come, and is yet to run

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, batches, done, "cancelled", scope)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, batches, done, "last")
        await trio.testing.wait_all_tasks_blocked()
        threads.go_on.set()
    assert done == ["first", "last"]


async def test_a_batch_that_has_begun_is_waited_for_by_all_whose_work_is_in_it(batches: Batches, threads: Threads) -> None:
    done: list[str] = []
    ended = trio.Event()
    scope = trio.CancelScope()

    async def cancelled() -> None:
        await ask(batches, done, "cancelled", scope)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, batches, done, "first")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, batches, done, "other")
        nursery.start_soon(cancelled)
        await trio.testing.wait_all_tasks_blocked()
        threads.go_on.set()
        threads.go_on = trio.Event()
        await trio.testing.wait_all_tasks_blocked()
        assert threads.calls == 2
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
        threads.go_on.set()
    assert sorted(done) == ["cancelled", "first", "other"]


async def test_what_asks_another_machine_is_a_call_by_itself_and_few_are_at_once(batches: Batches, threads: Threads) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(3 * FAR):
            nursery.start_soon(batches.run, [0, 9], lambda: None)
        nursery.start_soon(batches.run, [0], lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        assert threads.calls == FAR + 1
        threads.go_on.set()
    assert threads.calls == 3 * FAR + 1
