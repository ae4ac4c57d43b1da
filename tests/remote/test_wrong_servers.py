"""Shard servers that are dead, stopped, or lie: reads are exact, other requests go on, repair heals when they are well again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

from tests.remote.house import CHUNK, House, housing
from tests.remote.liar import LIES, STORING
from tests.shardserver.server import LIMIT
from tests.store.home import content, get, name, put
from zstor_local.model.policy import Policy
from zstor_local.shards.http.ask import Deadlines
from zstor_local.store.caller import Nobody

SMALL, LARGE = content(1, 9_000), content(2, 3 * CHUNK + 1_000)
POLICY = Policy(2, 3, chunk_size=CHUNK)


async def healthy(house: House, key: str) -> None:
    """Wait until the object is whole again."""
    store = house.store
    with trio.fail_after(LIMIT):
        await house.settle()
        while True:
            stored = store.objects.find(name(key))
            await store.shares_health.repair(stored, Nobody())
            checked = await store.shares_health.check(store.objects.find(name(key)), Nobody())
            if checked.status == "optimal":
                return
            await house.settle()


async def check_reads(house: House) -> None:
    store = house.store
    with trio.fail_after(LIMIT):
        assert await get(store, "small") == SMALL
        assert await get(store, "large") == LARGE
        assert await get(store, "large", offset=CHUNK - 5, length=10) == LARGE[CHUNK - 5 : CHUNK + 5]


# A server that hangs is given up after seconds, not tens of them; those that are well answer in milliseconds.
SHORT = Deadlines(request=2.0, durable=3.0)


async def test_reads_are_exact_whatever_a_server_lies(tmp_path: Path) -> None:
    async with housing(tmp_path, near=2, servers=0, liar=True, policy=POLICY) as house:
        assert house.liar is not None
        await put(house.store, "small", SMALL)
        await put(house.store, "large", LARGE)
        for lie in sorted(LIES.keys() - STORING):
            house.liar.lie, before = lie, house.liar.told
            for key in ("small", "large"):  # each share is asked for, wherever it lies
                checked = await house.store.shares_health.check(house.store.objects.find(name(key)), Nobody())
                assert checked.status == "valid", lie
            assert house.liar.told > before, lie
            await check_reads(house)
            house.liar.lie = None
            with trio.fail_after(LIMIT):
                await house.settle()
        for key in ("small", "large"):
            await healthy(house, key)


async def test_a_server_that_stores_nothing_is_found_out(tmp_path: Path) -> None:
    async with housing(tmp_path, near=3, servers=0, liar=True, policy=Policy(2, 4, chunk_size=CHUNK)) as house:
        assert house.liar is not None
        await put(house.store, "before", SMALL)
        house.liar.lie = "not_stored"
        stored = await put(house.store, "large", LARGE)
        assert stored.owed, "the share that was not stored is owed"
        for number in range(40):  # of small ones one in sixteen is read back; whatever it says, the others hold them
            await put(house.store, f"small{number}", SMALL)
            if house.store.health != "ok":
                break
        house.liar.lie = None
        assert await get(house.store, "large") == LARGE
        await healthy(house, "large")
        await healthy(house, "small0")
        assert await get(house.store, "small0") == SMALL


async def test_a_killed_and_a_stopped_server_harm_nobody(tmp_path: Path) -> None:
    async with housing(tmp_path, near=4, servers=2, policy=Policy(3, 6, chunk_size=CHUNK), deadlines=SHORT) as house:
        store = house.store
        await put(store, "small", SMALL)
        await put(store, "large", LARGE)
        killed, stopped = house.servers
        stopped.signal(signal.SIGSTOP)
        await check_reads(house)
        killed.kill()
        await check_reads(house)
        # Writes go on with the four that are there: the quorum is k + 1.
        with trio.fail_after(LIMIT):
            written = await put(store, "later", LARGE)
            assert written.owed == 2
            assert await get(store, "later") == LARGE
            await store.writer.delete(name("small"), None, Nobody())
        stopped.signal(signal.SIGCONT)
        again = type(killed)(killed.data, [tmp_path / "trust.json"], f"unix:{killed.socket}")
        try:
            await healthy(house, "later")
            await healthy(house, "large")
            assert await get(store, "later") == LARGE
        finally:
            again.stop()


async def test_reads_with_too_few_servers_end_with_a_typed_error_in_time(tmp_path: Path) -> None:
    from zstor_local.errors import NotEnoughShards, OutcomeUnknown, Unreadable

    async with housing(tmp_path, near=0, servers=3, policy=POLICY) as house:
        await put(house.store, "small", SMALL)
        await put(house.store, "large", LARGE)
        for server in house.servers[:2]:
            server.kill()
        with trio.fail_after(LIMIT):
            for key in ("small", "large"):
                with pytest.raises(Unreadable):
                    await get(house.store, key)
            with pytest.raises((NotEnoughShards, OutcomeUnknown)):
                await put(house.store, "more", SMALL)


async def test_a_deadline_of_the_caller_ends_a_read_that_hangs(tmp_path: Path) -> None:
    async with housing(tmp_path, near=0, servers=3, policy=POLICY) as house:
        await put(house.store, "large", LARGE)
        for server in house.servers:
            server.signal(signal.SIGSTOP)
        with trio.move_on_after(0.5) as scope:
            await get(house.store, "large")
        assert scope.cancelled_caught
        for server in house.servers:
            server.signal(signal.SIGCONT)
        with trio.fail_after(LIMIT):
            assert await get(house.store, "large") == LARGE
