"""What waits for its commit has a bound."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.store.home import Home, get, name, put
from zstor_local import limits
from zstor_local.errors import AlreadyExists
from zstor_local.model.policy import Policy
from zstor_local.model.record import is_small
from zstor_local.store import coding
from zstor_local.store.caller import Nobody
from zstor_local.store.coding import Coded
from zstor_local.store.commit_room import COMMIT_ROOM_BYTES, CommitRoom, coded_bytes
from zstor_local.store.writes import WriteOptions


@pytest.mark.parametrize(("k", "m"), [(1, 255), (128, 255), (254, 255), (4, 6), (1, 1)])
def test_the_largest_small_object_fits(k: int, m: int) -> None:
    policy = Policy(k, m)
    largest = next(size for size in range(k * limits.SMALL_SHARE_BYTES, 0, -1) if is_small(size, policy))
    assert coded_bytes(largest, policy) <= COMMIT_ROOM_BYTES


async def test_who_waits_has_it_in_order_and_nobody_overtakes() -> None:
    room = CommitRoom(10)
    served: list[str] = []
    go_on = trio.Event()

    async def use(name: str, size: int) -> None:
        async with room.taken(size):
            served.append(name)
            await go_on.wait()

    async with trio.open_nursery() as nursery:
        assert room.take(6)
        for name, size in (("large", 8), ("small", 1), ("last", 9)):
            nursery.start_soon(use, name, size)
            await trio.testing.wait_all_tasks_blocked()
        assert not room.take(1)
        assert served == []
        room.give(6)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(served) == ["large", "small"]
        go_on.set()
    assert served[2:] == ["last"]
    assert room.left == 10


async def test_who_is_cancelled_while_it_waits_is_in_nobodys_way() -> None:
    room = CommitRoom(10)
    assert room.take(6)
    served: list[int] = []

    async def wait(size: int) -> None:
        async with room.taken(size):
            served.append(size)

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as cancelled:
            cancelled.start_soon(wait, 8)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(wait, 4)
            await trio.testing.wait_all_tasks_blocked()
            assert served == []
            cancelled.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert served == [4]
    room.give(6)
    assert room.left == 10


async def test_small_objects_wait_for_room_and_give_it_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    coded = stored = 0

    def code_small(*args: Any) -> Coded:
        nonlocal coded
        assert coded - stored <= 1  # one may have been stored in this turn, and its task goes on later
        coded += 1
        return coding.code_small(*args)

    monkeypatch.setattr("zstor_local.store.writes.code_small", code_small)
    monkeypatch.setattr(CommitRoom.__init__, "__defaults__", (5_000,))  # for one at a time

    async def store_it(number: int) -> None:
        nonlocal stored
        await put(store, str(number), bytes([number]) * 1_000)
        stored += 1

    async with home.open() as store:
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(store_it, number)
        for number in range(30):
            assert await get(store, str(number)) == bytes([number]) * 1_000


async def test_a_value_that_has_no_room_now_is_left_to_those_who_can_wait(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommitRoom.__init__, "__defaults__", (5_000,))
    async with home.open() as store:
        await put(store, "a", b"")
        for _ in range(3):
            first, second = (store.writer.write_value(name(key), bytes(1_000), WriteOptions(), Nobody()) for key in "ab")
            assert second is None
            assert first is not None
            await first
        with pytest.raises(AlreadyExists):
            store.writer.write_value(name("a"), bytes(1_000), WriteOptions(exclusive=True), Nobody())
        assert store.writer.write_value(name("a"), bytes(1_000), WriteOptions(), Nobody()) is not None
