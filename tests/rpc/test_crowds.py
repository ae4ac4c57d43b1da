"""Who is slow harms nobody else: room that others wait for is given back, and who holds it while nobody waits is served."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from tests.rpc.conftest import Client, World, crowd, error_type, request
from tests.rpc.test_connection import Gate
from tests.troubled_files import TroubledFiles, troubled_runtime
from zstor_local import limits
from zstor_local.errors import Conflict, ZstorError
from zstor_local.rpc.budget import Budget, Room
from zstor_local.rpc.call import Call
from zstor_local.rpc.intake import CALL_BYTES
from zstor_local.rpc.methods.pages import page_of
from zstor_local.store.jobs import Jobs

LARGE = "x" * 400_000  # more than is read at once, and than the kernel buffers


@pytest.fixture
def gate(world: World) -> Gate:
    return Gate(world)


@contextmanager
def all_taken(budget: Budget, *, but: int = 0) -> Iterator[None]:
    """Others hold everything but so much."""
    room = Room(budget, budget.left)
    size = budget.left - but
    room.hold(size)
    yield
    room.give(size)


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)


# --- Input ---


async def test_no_more_is_read_while_there_is_no_room_for_it(world: World, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SMALL_MESSAGE_BYTES", 2 * CALL_BYTES)
    for number in range(10):
        gate.open(str(number))
    async with world.serving() as server, world.client() as client:
        await client.request("hold", ["x"], id="x")
        await client.request("hold", ["y"], id="y")
        await gate.until_started(2)
        with all_taken(server.dispatcher.inputs):
            for number in range(10):
                await client.request("hold", [str(number)], id=number)
            await settle()
            assert sorted(gate.started) == ["x", "y"]
            gate.open("x")
            gate.open("y")
            assert sorted([(await client.reply())["id"] for _ in range(12)], key=str) == sorted(["x", "y", *range(10)], key=str)
        assert server.dispatcher.inputs.left == limits.INPUT_BUDGET_BYTES


@pytest.mark.parametrize("plain", [True, False])
async def test_small_calls_need_no_room(world: World, gate: Gate, plain: bool) -> None:
    async with world.serving() as server, world.client() as client:
        with all_taken(server.dispatcher.inputs):
            gate.open("a")
            assert await (client.result("rpc.ping") if plain else client.result("hold", ["a"])) == ("pong" if plain else "a")


async def test_a_large_message_comes_when_there_is_room_for_it(world: World, gate: Gate) -> None:
    gate.open(LARGE)
    async with world.serving() as server, world.client() as client:
        async with trio.open_nursery() as nursery:
            with all_taken(server.dispatcher.inputs):
                nursery.start_soon(client.send, request("hold", [LARGE]) + "\n")
                await settle()
                assert not gate.started
            assert (await client.reply())["result"] == LARGE
        assert server.dispatcher.inputs.left == limits.INPUT_BUDGET_BYTES


async def test_what_calls_were_given_counts_until_they_have_ended(world: World, gate: Gate) -> None:
    async with world.serving() as server, world.client() as client:
        await client.send(request("hold", [LARGE], id=1) + " " * 1_000_000 + "\n")
        await gate.until_started(1)
        await settle()
        assert 0 <= limits.INPUT_BUDGET_BYTES - server.dispatcher.inputs.left - len(LARGE) < 10_000  # white space is not kept
        gate.open(LARGE)
        assert (await client.reply())["id"] == 1
        assert server.dispatcher.inputs.left == limits.INPUT_BUDGET_BYTES


async def test_a_connection_that_ends_gives_all_of_it_back(world: World, gate: Gate) -> None:
    async with world.serving() as server:
        async with world.client() as client:
            await client.request("hold", [LARGE])
            await gate.until_started(1)
            await client.send('{"a":"' + LARGE)
            await settle()
            assert server.dispatcher.inputs.left < limits.INPUT_BUDGET_BYTES - limits.MESSAGE_BYTES
        while server.connections:
            await settle()
        assert server.dispatcher.inputs.left == limits.INPUT_BUDGET_BYTES


async def test_half_a_message_that_stalls_is_given_up_when_others_wait(world: World, mock_clock: trio.testing.MockClock) -> None:
    async with world.serving() as server, world.client() as client:
        await client.send('{"a":"' + LARGE)
        await settle()
        for _ in range(10):
            await client.send("x")
            await settle()
            mock_clock.jump(limits.CROWDED_SECONDS)  # nobody waits: it may take its time
            await settle()
        assert not client.received
        async with crowd(server.dispatcher.inputs, mock_clock):
            reply = await client.reply()
            assert (reply["id"], error_type(reply)) == (None, "busy")
        assert server.dispatcher.inputs.left == limits.INPUT_BUDGET_BYTES
        await client.send('"}\n')
        assert await client.result("rpc.ping") == "pong"


async def test_half_a_message_that_keeps_coming_is_taken_though_others_wait(
    world: World, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CROWDED_BYTES_PER_SECOND", 1_000)
    async with world.serving() as server, world.client() as client:
        await client.send('{"a":"' + LARGE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Room(server.dispatcher.inputs).until, lambda: False)
            for _ in range(6):
                await client.send("x" * 10_000)
                await settle()
                mock_clock.jump(limits.CROWDED_SECONDS)
                await settle()
            await client.send('"}\n')
            assert error_type(await client.reply()) == "invalid_request"
            nursery.cancel_scope.cancel()


async def test_calls_that_wait_behind_others_give_way(
    world: World, gate: Gate, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CALLS_PER_CONNECTION", 1)
    async with world.serving() as server, world.client() as client:
        await client.request("hold", ["runs"], id="runs")
        await client.request("hold", [LARGE], id="waits")
        await client.request("hold", ["small"], id="small")
        await settle()
        async with crowd(server.dispatcher.inputs, mock_clock):
            reply = await client.reply()
            assert (reply["id"], error_type(reply)) == ("waits", "busy")
            assert limits.INPUT_BUDGET_BYTES - server.dispatcher.inputs.left == pytest.approx(2 * CALL_BYTES, rel=0.1)
        gate.open("runs")
        gate.open("small")
        assert [(await client.reply())["result"] for _ in range(2)] == ["runs", "small"]
        assert server.dispatcher.inputs.left == limits.INPUT_BUDGET_BYTES


async def test_what_a_job_was_given_counts_until_it_has_ended(world: World) -> None:
    go_on = trio.Event()

    @world.registry.method("long", long=True)
    async def long(call: Call, /, value: str) -> None:
        """Run until the test lets go."""
        await go_on.wait()

    jobs = Jobs(troubled_runtime(TroubledFiles()))
    async with trio.open_nursery() as nursery:
        await nursery.start(jobs.run)
        world.jobs = jobs
        async with world.serving() as server, world.client() as client:
            budget = server.dispatcher.inputs
            job = await client.result("long", {"value": LARGE, "_meta": {"detach": True}})
            assert isinstance(job, dict)
            await settle()
            assert limits.INPUT_BUDGET_BYTES - budget.left == pytest.approx(len(LARGE), rel=0.1)
            go_on.set()
            while jobs.get(str(job["job"])).running:
                await settle()
            assert budget.left == limits.INPUT_BUDGET_BYTES
        nursery.cancel_scope.cancel()


async def test_who_waits_for_a_descriptor_holds_no_room(world: World) -> None:
    go_on = trio.Event()

    @world.registry.method("take")
    async def take(call: Call, /, value: str) -> None:
        """Take the descriptor."""
        os.close(call.take_fd(0))
        await go_on.wait()

    async with world.serving() as server, world.client() as client:
        reader, writer = os.pipe()
        message = request("take", [LARGE]) + "\n"
        await client.send_with(message[:1].encode(), [reader])
        await client.send(message[1:])
        await settle()
        assert server.dispatcher.inputs.left == limits.INPUT_BUDGET_BYTES
        go_on.set()
        assert (await client.reply())["result"] is None
        os.close(reader)
        os.close(writer)


# --- Replies ---


@pytest.fixture
def large(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Large replies, one of which fills what there is for them."""
    monkeypatch.setattr(limits, "REPLY_BUDGET_BYTES", 5_000_000)
    monkeypatch.setattr(limits, "CROWDED_BYTES_PER_SECOND", 10_000)

    @world.registry.method("large")
    async def large_(call: Call, /) -> str:
        """Ask for room, then answer."""
        await call.reply_room(3_900_000)
        return "x" * 3_900_000

    @world.registry.method("piece")
    def piece(call: Call, /) -> str:
        """A part of a batch's answer."""
        return "x" * 40_000

    @world.registry.method("unasked")
    async def unasked(call: Call, /) -> str:
        """Answer much without having asked."""
        return LARGE

    return world


async def take_slowly(client: Client, clock: trio.testing.MockClock, size: int, *, times: int) -> None:
    """So many bytes in each period, and more than the kernel sees as nothing."""
    for _ in range(times):
        for _ in range(-(-size // 65_536)):
            await client.stream.receive_some(min(size, 65_536))
        await settle()
        clock.jump(limits.CROWDED_SECONDS)
        await settle()


async def test_a_slow_reader_gives_way_to_others(large: World, mock_clock: trio.testing.MockClock) -> None:
    async with large.serving() as server, large.client() as slow, large.client() as other:
        await slow.request("large")
        await settle()
        await take_slowly(slow, mock_clock, 40_000, times=20)
        assert server.connections == 2  # nobody waited
        await other.request("large")
        await settle()
        await take_slowly(slow, mock_clock, 40_000, times=2)
        with trio.fail_after(60):
            assert len(await other.line()) > 3_900_000
        assert server.connections == 1


async def test_who_holds_room_behind_small_replies_that_it_does_not_take_gives_way(
    large: World, mock_clock: trio.testing.MockClock
) -> None:
    @large.registry.method("little")
    def little(call: Call, /) -> str:
        """A little."""
        return "x" * 5_000

    async with large.serving() as server, large.client() as slow, large.client() as other:
        for _ in range(80):  # more than the kernel buffers, fewer than run at once beyond that
            await slow.request("little")
        await slow.request("large")
        await settle()
        assert server.dispatcher.replies.left < limits.REPLY_BUDGET_BYTES - 3_900_000
        await other.request("large")
        await settle()
        await take_slowly(slow, mock_clock, 20_000, times=4)
        assert server.connections == 1
        assert len(await other.line()) > 3_900_000


async def test_who_takes_enough_is_kept_though_others_wait(large: World, mock_clock: trio.testing.MockClock) -> None:
    async with large.serving() as server, large.client() as slow, large.client() as other:
        await slow.request("large")
        await settle()
        await other.request("large")
        await settle()
        await take_slowly(slow, mock_clock, 300_000, times=8)
        assert server.connections == 2


async def test_a_page_keeps_no_room_but_for_what_it_holds(world: World) -> None:
    left: list[int] = []

    async def numbers() -> AsyncGenerator[int, None]:
        for number in range(3):
            yield number

    async with world.serving() as server, world.client() as client:

        @world.registry.method("numbers")
        async def numbers_(call: Call, /, limit: int) -> list[int]:
            """As many of them."""
            page, _ = await page_of(call, numbers(), limit, lambda number: 100)
            left.append(limits.REPLY_BUDGET_BYTES - server.dispatcher.replies.left)
            return page

        for limit in (5, 2):
            assert await client.result("numbers", [limit]) == [0, 1, 2][:limit]
    assert left == [300, 200]


async def test_large_replies_wait_for_room_though_nobody_asked_for_it(large: World) -> None:
    async with large.serving() as server, large.client() as other:
        budget = server.dispatcher.replies
        with all_taken(budget, but=100_000):
            await other.request("unasked")
            await settle()
            assert not other.received
            assert budget.left == 100_000
            async with large.client() as small:
                assert await small.result("rpc.ping") == "pong"
        assert len(await other.line()) > len(LARGE)
        assert budget.left == limits.REPLY_BUDGET_BYTES


async def test_a_batchs_answer_waits_for_room_and_is_sent_before_the_end(large: World) -> None:
    async with large.serving() as server, large.client() as client:
        with all_taken(server.dispatcher.replies):
            await client.send("[" + ",".join(request("piece", id=number) for number in range(4)) + "]\n")
            await client.half_close()
            await settle()
            assert server.connections == 1
            assert limits.BATCH_BUDGET_BYTES - server.dispatcher.batches.left > 4 * 40_000
        assert len(await client.rest()) > 4 * 40_000
        while server.connections:
            await settle()
        assert server.dispatcher.replies.left == limits.REPLY_BUDGET_BYTES
        assert server.dispatcher.batches.left == limits.BATCH_BUDGET_BYTES


async def test_a_batch_that_waited_for_room_gives_its_own_back(large: World) -> None:
    async with large.serving() as server, large.client() as client:
        with all_taken(server.dispatcher.replies):
            await client.send("[" + ",".join(request("piece", id=number) for number in range(4)) + "]\n")
            await settle()
        assert len(await client.line()) > 4 * 40_000
        await settle()
        assert server.dispatcher.batches.left == limits.BATCH_BUDGET_BYTES
        assert server.connections == 1


async def test_a_connection_that_stops_closes_behind_a_batch_that_waited_for_room(large: World) -> None:
    async with large.serving() as server, large.client() as client:
        with all_taken(server.dispatcher.replies):
            await client.send("[" + ",".join(request("piece", id=number) for number in range(4)) + "]\n")
            await settle()
            server.stop()
            await settle()
            assert server.connections == 1
        with trio.fail_after(60):
            assert len(await client.rest()) > 4 * 40_000


async def test_an_error_that_was_answered_keeps_nothing_that_its_call_was_given(world: World) -> None:
    raised: list[ZstorError] = []

    @world.registry.method("refuse")
    async def refuse(call: Call, /, value: str) -> None:
        """Fail, of something else."""
        try:
            raise ValueError
        except ValueError as cause:
            error = Conflict("no")
            raised.append(error)
            raise error from cause

    async with world.serving(), world.client() as client:
        assert error_type(await client.error("refuse", [LARGE])) == "conflict"
    assert (raised[0].__traceback__, raised[0].__cause__, raised[0].__context__) == (None, None, None)
