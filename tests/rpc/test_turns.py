"""No client keeps the others waiting with what takes long: its calls go on in later turns of the event loop."""

from __future__ import annotations

import gc

import pytest
import trio
import trio.testing

from tests.rpc.conftest import World, request
from zstor_local import limits
from zstor_local.rpc.call import Call
from zstor_local.rpc.registry import Soon
from zstor_local.rpc.turns import TURN_SECONDS, Turns


@pytest.mark.parametrize("kind", ["where it is read", "in a task", "queued"])
async def test_costly_calls_of_one_client_do_not_keep_another_waiting(
    world: World, mock_clock: trio.testing.MockClock, kind: str
) -> None:
    called = 0
    gate = trio.Event()
    queued = limits.CALLS_PER_CONNECTION if kind == "queued" else 0

    def take_long() -> None:
        nonlocal called
        called += 1
        mock_clock.jump(TURN_SECONDS)

    @world.registry.method("at_once")
    def at_once(call: Call, /) -> None:
        """Take long where the request is read."""
        take_long()

    @world.registry.method("in_a_task")
    async def in_a_task(call: Call, /) -> None:
        """Take long before anything is waited for."""
        take_long()

    @world.registry.method("held")
    async def held(call: Call, /) -> None:
        """Keep the calls behind it waiting."""
        await gate.wait()

    costly = request("in_a_task" if kind == "in a task" else "at_once", id=2)
    async with world.serving(), world.client() as many, world.client() as other:
        await other.call("rpc.ping")
        await many.send("\n".join([request("held")] * queued + [costly] * limits.CALLS_PER_CONNECTION) + "\n")
        if queued:
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
        while not called:
            await trio.lowlevel.checkpoint()
        assert (await other.call("rpc.ping"))["result"] == "pong"
        assert called <= limits.CALLS_PER_CONNECTION // 2
        for _ in range(queued + limits.CALLS_PER_CONNECTION):
            await many.reply()
        assert called == limits.CALLS_PER_CONNECTION


async def test_what_waits_when_its_client_leaves_warns_nobody(world: World, mock_clock: trio.testing.MockClock) -> None:
    called = ended = 0

    async def go_on() -> None:
        nonlocal ended
        ended += 1

    @world.registry.method("take_long")
    def take_long(call: Call, /) -> Soon[None]:
        """Take long where the request is read, and go on then."""
        nonlocal called
        called += 1
        mock_clock.jump(TURN_SECONDS)
        return go_on()

    async with world.serving():
        async with world.client() as many:
            await many.send("\n".join([request("take_long", id=2)] * limits.CALLS_PER_CONNECTION) + "\n")
            while called < 2:
                await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
    gc.collect()  # then a coroutine that nobody awaited says so
    assert ended < called


async def test_no_client_goes_on_twice_before_all_others() -> None:
    turns = Turns()
    went: list[str] = []

    async def go(client: str) -> None:
        await turns.next(client)
        went.append(client)

    async with trio.open_nursery() as nursery:
        for client in "aaaabbbcc":
            nursery.start_soon(go, client)
    first, behind = went[0], went[1:]  # nobody waited yet when the first came
    while behind:
        waiting = {*behind}
        assert {*behind[: len(waiting)]} == waiting
        behind = behind[len(waiting) :]
    assert first in "abc"
    assert sorted(went) == [*"aaaabbbcc"]


async def test_who_is_gone_while_it_waits_is_passed_over() -> None:
    turns = Turns()
    went: list[str] = []

    async def go(client: str) -> None:
        await turns.next(client)
        went.append(client)

    async with trio.open_nursery() as nursery, trio.open_nursery() as given_up:
        nursery.start_soon(go, "a")
        given_up.start_soon(go, "b")
        given_up.start_soon(go, "b")
        await trio.lowlevel.checkpoint()
        given_up.cancel_scope.cancel()
    await turns.next("c")
    assert went.count("a") == 1
