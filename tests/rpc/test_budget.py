"""What all connections together may hold of replies."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing

from tests.rpc.conftest import World, error_type, request
from zstor_local import limits
from zstor_local.rpc.answer import Answer, Ending
from zstor_local.rpc.budget import Budget, Room
from zstor_local.rpc.call import Call
from zstor_local.rpc.descriptors import Descriptors
from zstor_local.rpc.outbox import Outbox
from zstor_local.store.commit_room import COMMIT_ROOM_BYTES
from zstor_local.store.stream_budget import STREAM_BUDGET_BYTES


def test_nobody_takes_more_than_is_left_for_others() -> None:
    budget = Budget(100)
    first, second = Room(budget), Room(budget)
    assert first.take(50)
    assert not first.take(1)
    assert second.take(25)
    assert not second.take(1)
    assert budget.left == 25


def test_all_budgets_together_leave_the_daemon_what_it_takes_itself() -> None:
    rpc = limits.INPUT_BUDGET_BYTES + limits.REPLY_BUDGET_BYTES + limits.BATCH_BUDGET_BYTES
    assert rpc + STREAM_BUDGET_BYTES + COMMIT_ROOM_BYTES <= 210 * limits.MIB  # of 250 MiB


def test_a_client_alone_has_room_for_the_largest_there_is() -> None:
    receiving, reading, collecting = map(Budget, (limits.INPUT_BUDGET_BYTES, limits.REPLY_BUDGET_BYTES, limits.BATCH_BUDGET_BYTES))
    message = Room(receiving)
    message.hold(limits.MESSAGE_BYTES)
    assert Room(receiving).take(limits.MESSAGE_BYTES)  # another's comes while its calls run
    assert Room(reading).take(limits.MESSAGE_BYTES)
    assert Room(collecting).take(limits.MESSAGE_BYTES)


def test_a_connection_takes_so_much_at_most() -> None:
    room = Room(Budget(100), 20)
    assert room.take(20)
    assert not room.take(1)


async def test_who_wants_much_is_not_passed_by_for_ever(mock_clock: trio.testing.MockClock) -> None:
    budget = Budget(100, patience=1)
    holding, much, little = Room(budget), Room(budget), Room(budget)
    assert holding.take(40)
    took: list[str] = []

    async def wait(name: str, room: Room, size: int) -> None:
        await room.until(lambda: room.take(size))
        took.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "much", much, 70)
        await trio.testing.wait_all_tasks_blocked()
        assert little.take(20)  # for a moment
        little.give(20)
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait, "little", little, 20)
        await trio.testing.wait_all_tasks_blocked()
        assert took == []
        holding.give(40)
        await trio.testing.wait_all_tasks_blocked()
        assert took == ["much", "little"]


async def test_who_holds_much_has_to_give_some_back_before_its_turn_comes(mock_clock: trio.testing.MockClock) -> None:
    """Else a client that takes nothing would keep out all others, with what it wants beside what it has."""
    budget = Budget(100, patience=1)
    holding, other = Room(budget), Room(budget)
    assert holding.take(40)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(holding.until, lambda: holding.take(30))
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1)
        assert other.take(20)
        nursery.cancel_scope.cancel()


async def test_whose_turn_it_was_and_who_is_gone_keeps_nobody_out(mock_clock: trio.testing.MockClock) -> None:
    budget = Budget(100, patience=1)
    holding, much, little = Room(budget), Room(budget), Room(budget)
    assert holding.take(40)
    async with trio.open_nursery() as nursery:
        gone = trio.CancelScope()
        nursery.start_soon(_wait_in, gone, much)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1)
        nursery.start_soon(little.until, lambda: little.take(20))
        await trio.testing.wait_all_tasks_blocked()
        assert little.held == 0
        gone.cancel()
    assert little.held == 20


async def _wait_in(scope: trio.CancelScope, room: Room) -> None:
    with scope:
        await room.until(lambda: room.take(70))


def test_what_is_there_already_counts_and_goes_with_its_connection() -> None:
    budget = Budget(100)
    gone, other = Room(budget), Room(budget)
    gone.hold(120)
    assert not other.take(1)
    gone.close()
    gone.give(120)
    assert budget.left == 100
    assert other.take(50)


async def test_whoever_waits_hears_of_what_others_give_back() -> None:
    budget = Budget(100)
    first, second, third = (Room(budget) for _ in range(3))
    first.hold(100)
    served = []

    async def want(room: Room, size: int) -> None:
        while not room.take(size):
            await room.wait()
        served.append(size)

    async with trio.open_nursery() as nursery:
        for room, size in ((second, 20), (second, 61), (third, 22), (third, 70)):
            nursery.start_soon(want, room, size)
            await trio.testing.wait_all_tasks_blocked()
        first.give(100)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(served) == [20, 22]
        second.give(20)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(served) == [20, 22, 61]
        second.close()
        third.give(22)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(served) == [20, 22, 61, 70]
    assert not budget.crowd


async def test_what_a_client_has_yet_to_take_counts() -> None:
    ours, theirs = trio.socket.socketpair()
    budget = Budget(10_000_000)
    box = Outbox(ours, None, Room(budget))
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run)
            for _ in range(3):
                box.push(b"x" * 1_000_000)
            await trio.testing.wait_all_tasks_blocked()
            assert 2_000_000 < 10_000_000 - budget.left < 3_000_000  # the kernel has the rest
            received = 0
            while received < 3_000_000:
                received += len(await theirs.recv(1 << 20))
            await trio.testing.wait_all_tasks_blocked()
            assert budget.left == 10_000_000
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("plain", [True, False])
async def test_nothing_is_begun_for_a_client_that_has_much_to_take(world: World, plain: bool) -> None:
    begun = 0

    def large() -> str:
        nonlocal begun
        begun += 1
        return "x" * 2 * limits.SEND_QUEUE_BYTES

    if plain:

        @world.registry.method("large")
        def large_(call: Call, /) -> str:
            """Answer much at once."""
            return large()
    else:

        @world.registry.method("large")
        async def large_soon(call: Call, /) -> str:
            """Answer much."""
            return large()

    async with world.serving(), world.client() as client, world.client() as other:
        for number in range(5):
            await client.request("large", id=number)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert await other.result("rpc.ping") == "pong"
        assert begun == 1
        assert sorted([(await client.reply())["id"] for _ in range(5)], key=str) == [0, 1, 2, 3, 4]
        assert begun == 5


async def test_batches_that_are_collected_take_no_more_than_their_budget(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BATCH_BUDGET_BYTES", 500_000)
    last, waiting = trio.Event(), list[Call]()

    @world.registry.method("piece")
    def piece(call: Call, /) -> str:
        """A part of a large answer."""
        return "x" * 100_000

    @world.registry.method("last")
    async def last_(call: Call, /) -> None:
        """Keep the batch from being answered."""
        waiting.append(call)
        await last.wait()

    batch = ",".join(request("piece" if number else "last", id=number) for number in range(5))
    async with world.serving(), world.client() as first, world.client() as second:
        for number, client in enumerate((first, second), 1):
            await client.send(f"[{batch}]\n")
            while len(waiting) < number:
                await trio.testing.wait_all_tasks_blocked()
        last.set()
        answers = [json.loads(await client.line()) for client in (first, second)]
    refused = [[error_type(reply) for reply in answer if "error" in reply] for answer in answers]
    assert refused == [["too_large"] * 2, ["too_large"] * 3]  # and what is shorter than the error is given


def test_one_reply_of_a_batch_comes_whatever_others_hold() -> None:
    """It was told that it is too large, which it is not."""
    budget = Budget(1_000_000)
    Room(budget).hold(990_000)
    answer = Answer(Ending(line=True), Descriptors([]), calls=2, room=Room(budget))
    large = b'"' + b"x" * limits.SMALL_REPLY_BYTES + b'"'
    assert answer.add(1, large) is None
    whole = json.loads(answer.add(2, large) or b"")
    assert len(whole[0]) == limits.SMALL_REPLY_BYTES
    assert error_type(whole[1]) == "too_large"
