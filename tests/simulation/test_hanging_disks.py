"""A shard's disk that does not answer: the others go on, and when it answers it gets what it missed."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio.testing

from tests.simulation.engines import SimulatedEngines
from tests.simulation.house import House, policy
from tests.simulation.outcomes import NOTHING
from tests.simulation.points import under
from tests.simulation.test_losses import put
from tests.simulation.world import Mount, World, run
from zstor_local.errors import ZstorError
from zstor_local.model.ids import ObjectName
from zstor_local.shards.base import ShardState
from zstor_local.store.caller import Nobody
from zstor_local.store.opening import open_store
from zstor_local.store.store import Store

APART = House(policy(2, 4), 4, kind="xfs")
SMALL, LARGE = b"small", bytes(300_000)


FOURTH = "/disks/3"


def live(world: World, work: Callable[[World, Store], Awaitable[None]], house: House = APART) -> None:
    async def program() -> None:
        async with open_store(world.runtime, SimulatedEngines(world), house.config()) as store:
            await trio.testing.wait_all_tasks_blocked()
            await work(world, store)
            await trio.testing.wait_all_tasks_blocked()

    run(world, program)


def state(store: Store) -> ShardState:
    """Of the shard whose disk hangs."""
    return store.pool.state(0)


async def check(store: Store, key: str) -> str:
    await trio.testing.wait_all_tasks_blocked()  # until what is owed is paid
    return (await store.shares_health.check(store.objects.find(ObjectName("default", key)), Nobody())).status


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_writes_and_reads_go_on(data: bytes) -> None:
    async def work(world: World, store: Store) -> None:
        await put(store, "before", data)
        world.files.hang(under(APART.root(0)))
        await put(store, "meanwhile", data)
        assert state(store) == "failed"
        assert store.pool.reason(0) == "the disk does not answer"
        await store.presence.look()
        assert state(store) == "failed"
        world.files.answer()
        await store.presence.look()
        assert state(store) == "ok"
        assert [await check(store, key) for key in ("before", "meanwhile")] == ["optimal", "optimal"]

    live(APART.world(), work)


def test_one_that_hangs_at_a_start_comes_later() -> None:
    async def begin(world: World, store: Store) -> None:
        await put(store, "a", SMALL)

    async def work(world: World, store: Store) -> None:
        assert state(store) == "failed"
        await put(store, "b", SMALL)
        world.files.answer()
        await store.presence.look()
        assert state(store) == "ok"
        assert [await check(store, key) for key in "ab"] == ["optimal", "optimal"]

    world = APART.world()
    live(world, begin)
    world.files.hang(under(APART.root(0)))
    live(world, work)


def hang_in_the_flush(world: World) -> None:
    there = under(APART.root(0))
    world.files.hang(lambda path: there(path) and world.files.sites[-1].name.endswith("pwritev"))


def test_one_that_hung_in_a_flush_comes_back() -> None:
    async def work(world: World, store: Store) -> None:
        await put(store, "before", SMALL)
        hang_in_the_flush(world)
        await put(store, "meanwhile", SMALL)
        world.files.answer()
        await store.presence.look()
        assert state(store) == "ok"
        assert await check(store, "meanwhile") == "optimal"

    live(APART.world(), work)


def test_a_flush_that_failed_unheard_keeps_it_away_until_a_restart() -> None:
    async def work(world: World, store: Store) -> None:
        await put(store, "before", SMALL)
        hang_in_the_flush(world)
        await put(store, "meanwhile", SMALL)
        world.files.fail("fdatasync", under(APART.root(0)), errno.EIO)
        world.files.answer()
        for _ in range(2):
            await store.presence.look()
            assert state(store) == "failed"

    async def later(world: World, store: Store) -> None:
        assert state(store) == "ok"
        assert await check(store, "meanwhile") == "optimal"

    world = APART.world()
    live(world, work)
    live(world, later)


THREE = House(policy(2, 3), 3, kind="xfs")


def added_after_a_hang(call: int, *, fails: bool) -> tuple[World, bool]:
    """A shard is added while its disk hangs from its `call`-th call on, and again when the disk has answered, where syncs that hung may
    have failed. Returns what a power loss leaves then, and whether there were so many calls.
    """
    world = World(mounts=[*(Mount(THREE.root(number), kind="xfs") for number in range(3)), Mount(FOURTH, kind="xfs")])
    there, files = under(FOURTH), world.files
    left: list[World] = []

    async def work(world: World, store: Store) -> None:
        await put(store, "a", LARGE)
        begin = files.asked
        files.hang(lambda path: files.asked - begin >= call and there(path))
        with suppress(ZstorError):
            await store.membership.add(f"{FOURTH}/s", None)
        reached.append(bool(files.held))
        if fails:
            for sync in ("fsync", "fsync_directory", "fdatasync"):
                files.fail(sync, there, errno.EIO, times=None)
        files.answer()
        files.heal()
        await store.presence.look()
        if len(store.pool.numbers) == 3:
            await store.membership.add(f"{FOURTH}/s", None)
        left.append(world.crash(NOTHING))

    reached: list[bool] = []
    live(world, work, THREE)
    return left[0], reached[0]


@pytest.mark.parametrize("fails", [False, True], ids=["done late", "failed late"])
def test_a_shard_that_was_added_after_its_disk_hung_survives_a_power_loss(fails: bool) -> None:
    async def work(world: World, store: Store) -> None:
        assert set(store.pool.states().values()) == {"ok"}
        await put(store, "b", LARGE)
        assert [await check(store, key) for key in "ab"] == ["optimal", "optimal"]

    reached, call = True, 0
    while reached:
        call += 1
        left, reached = added_after_a_hang(call, fails=fails)
        live(left, work, THREE)
    assert call > 20
