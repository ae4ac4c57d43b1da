"""Streams have so much memory, and who stalls while others want a place loses its own."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from zstor_local import limits
from zstor_local.errors import Busy
from zstor_local.model.policy import Policy
from zstor_local.store import stream_budget
from zstor_local.store.caller import Nobody
from zstor_local.store.stream_budget import STREAM_BUFFERS, StreamBudget

POLICY = Policy(2, 3)
STREAM = STREAM_BUFFERS * POLICY.chunk_size


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> StreamBudget:
    """For two streams."""
    monkeypatch.setattr(stream_budget, "STREAM_BUDGET_BYTES", 2 * STREAM)
    return StreamBudget()


class Streams:
    """Some that wait for their other end, or work."""

    def __init__(self, budget: StreamBudget) -> None:
        self.budget = budget
        self.ended: list[str] = []

    async def run(self, name: str, *, stall: bool) -> None:
        try:
            with self.budget.take(POLICY) as turn:
                if stall:
                    with turn.waiting():
                        await trio.sleep_forever()
                await trio.sleep_forever()
        except Busy:
            self.ended.append(name)


async def test_who_stalls_loses_its_place_only_when_others_want_it(budget: StreamBudget, mock_clock: trio.testing.MockClock) -> None:
    streams = Streams(budget)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: streams.run("first", stall=True))
        nursery.start_soon(lambda: streams.run("second", stall=True))
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(limits.CROWDED_SECONDS)
        with pytest.raises(Busy), budget.take(POLICY):  # a chunk may take longer
            pass
        mock_clock.jump(1_000)
        await trio.testing.wait_all_tasks_blocked()
        assert streams.ended == []
        with budget.take(POLICY):
            await trio.testing.wait_all_tasks_blocked()
            assert len(streams.ended) == 1
            with budget.take(POLICY):
                await trio.testing.wait_all_tasks_blocked()
                assert len(streams.ended) == 2
                with pytest.raises(Busy), budget.take(POLICY):
                    pass
        nursery.cancel_scope.cancel()


async def test_who_waits_for_our_own_work_keeps_its_place(budget: StreamBudget, mock_clock: trio.testing.MockClock) -> None:
    streams = Streams(budget)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: streams.run("first", stall=False))
        nursery.start_soon(lambda: streams.run("second", stall=False))
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1_000)
        with pytest.raises(Busy), budget.take(POLICY):
            pass
        assert streams.ended == []
        nursery.cancel_scope.cancel()


async def test_who_stalls_and_holds_what_others_want_makes_way(budget: StreamBudget, mock_clock: trio.testing.MockClock) -> None:
    class Holder(Nobody):
        has_reply_room = True

    with budget.take(POLICY) as turn, turn.waiting():
        mock_clock.jump(1_000)
        budget.make_way()
        await trio.lowlevel.checkpoint()  # it would be cancelled here
    ended = False
    try:
        with budget.take(POLICY, Holder()) as turn, turn.waiting():
            budget.make_way()
            await trio.lowlevel.checkpoint()
            mock_clock.jump(1_000)
            budget.make_way()
            await trio.sleep(1)
    except Busy:
        ended = True
    assert ended


async def test_nobody_is_ended_where_that_would_not_be_enough(budget: StreamBudget, mock_clock: trio.testing.MockClock) -> None:
    with budget.take(POLICY, beginning=True) as turn, turn.waiting(), budget.take(POLICY):
        mock_clock.jump(1_000)
        with pytest.raises(Busy), budget.take(POLICY, kept_bytes=1):
            pass
        await trio.lowlevel.checkpoint()  # it would be cancelled here


async def test_a_beginning_takes_little_and_grows_if_it_can(budget: StreamBudget) -> None:
    with budget.take(POLICY), budget.take(POLICY, beginning=True) as turn:
        with pytest.raises(Busy), budget.take(POLICY):
            pass
        with budget.take(POLICY, beginning=True), pytest.raises(Busy):
            turn.grow()
        turn.grow()
        with pytest.raises(Busy), budget.take(POLICY, beginning=True):
            pass
    with budget.take(POLICY), budget.take(POLICY):
        pass
