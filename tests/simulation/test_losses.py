"""Every way to lose what may be lost, and every mix-up of two shares: read exact, found, repaired to optimal.

All patterns of at most m - k of m shares for every 1 ≤ k ≤ m ≤ 8: 1,793 of them, of small shares (in logs) and of large ones (files).
"""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import combinations

import pytest
import trio.testing

from tests.simulation.account import name
from tests.simulation.engines import SimulatedEngines
from tests.simulation.house import House, policy, small_limits
from tests.simulation.points import under
from tests.simulation.programs import value
from tests.simulation.world import World, run
from zstor_local.errors import Unreadable
from zstor_local.model.ids import ObjectName, ShareId
from zstor_local.shards.directory import DirectoryShard
from zstor_local.store.caller import Nobody
from zstor_local.store.opening import open_store
from zstor_local.store.sources import BytesSource
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import WriteOptions

CODES = [(k, m) for m in range(1, 9) for k in range(1, m + 1)]
SMALL = value(700, 1)
SOME = 16  # absences in a store: a shard that comes back looks through all segments of its log, and begins one more


@pytest.fixture(autouse=True, scope="module")
def small_shares() -> Iterator[None]:
    with small_limits():
        yield


def in_store(house: House, work: Callable[[World, Store], Awaitable[None]]) -> None:
    world = house.world()

    async def program() -> None:
        async with open_store(world.runtime, SimulatedEngines(world), house.config()) as store:
            store.on_bad_shares = lambda stored, states: None  # nothing mends what these tests break but they themselves
            await work(world, store)
            await trio.testing.wait_all_tasks_blocked()

    run(world, program)


async def put(store: Store, key: str, data: bytes, namespace: str = "default") -> Stored:
    return await store.writer.write(ObjectName(namespace, key), BytesSource(data), WriteOptions(), Nobody())


def place(world: World, store: Store, stored: Stored, index: int) -> tuple[str, int, int]:
    """The file that a share lies in, where it begins there, and its length."""
    number = stored.record.placement[index]
    shard = store.pool.get(number)
    assert isinstance(shard, DirectoryShard)
    if stored.record.small:
        found = store.index.find(number, ShareId(stored.version, index))
        assert found is not None
        return shard.log.path(found.segment), found.offset, found.length
    version = stored.version.hex()
    path = f"{shard.url}/shares/{version[:2]}/{version}.{index}"
    return path, 0, len(world.files.contents(path))


def lose(world: World, store: Store, stored: Stored, index: int) -> None:
    """A large share's file is gone; a small share has one bit flipped."""
    path, offset, length = place(world, store, stored, index)
    if stored.record.small:
        at = offset + index % length
        world.files.damage(path, at, bytes([world.files.contents(path)[at] ^ 1]))
    else:
        world.files.unlink(path)


def large(k: int) -> bytes:
    """An object just large enough for share files, which begin at 4 KiB here."""
    return value(4_100 * k, 2)


def patterns(k: int, m: int) -> list[tuple[int, ...]]:
    return [lost for count in range(m - k + 1) for lost in combinations(range(m), count)]


def test_all_patterns_are_tried() -> None:
    assert sum(len(patterns(k, m)) for k, m in CODES) == sum(m * 2 ** (m - 1) for m in range(1, 9)) == 1_793


@pytest.mark.parametrize(("k", "m"), CODES)
def test_every_loss_is_survived_and_repaired(k: int, m: int) -> None:
    async def work(world: World, store: Store) -> None:
        for key, data in (("small", SMALL), ("large", large(k))):
            stored = await put(store, key, data)
            assert stored.record.small is (key == "small")
            for lost in patterns(k, m):
                for index in lost:
                    lose(world, store, stored, index)
                checked = await store.shares_health.check(stored, Nobody())
                assert [index for index, state in enumerate(checked.states) if state != "ok"] == [*lost]
                assert await store.objects.read(store.objects.find(name(key))) == data, lost
                stored = (await store.shares_health.repair(stored, Nobody())).stored
                assert (await store.shares_health.check(stored, Nobody())).status == "optimal", lost

    in_store(House(policy(k, m), m, kind="xfs"), work)


@pytest.mark.parametrize(("k", "m"), CODES)
def test_every_absence_is_survived_and_one_more_is_told(k: int, m: int) -> None:
    house = House(policy(k, m), m, kind="xfs")

    async def work(tries: Sequence[tuple[int, ...]], data: bytes, world: World, store: Store) -> None:
        stored = await put(store, "key", data)
        for lost in tries:
            for index in lost:
                world.files.fail("*", under(house.root(stored.record.placement[index])), errno.EIO, times=None)
            if len(lost) <= m - k:
                assert await store.objects.read(store.objects.find(name("key"))) == data, lost
            else:
                with pytest.raises(Unreadable):
                    await store.objects.read(store.objects.find(name("key")))
            world.files.heal()
            await store.presence.look()

    tries = [*patterns(k, m), *combinations(range(m), m - k + 1)]
    for data in (SMALL, large(k)):
        for first in range(0, len(tries), SOME):
            in_store(house, partial(work, tries[first : first + SOME], data))


@pytest.mark.parametrize("size", [700, 40_000])
def test_every_swap_of_two_shares_is_found(size: int) -> None:
    """Within an object, between objects of one namespace, and between namespaces; all of one size."""
    k, m = 2, 4

    def value(size: int, seed: int) -> bytes:
        return random.Random(seed).randbytes(size)

    async def work(world: World, store: Store) -> None:
        objects = [
            await put(store, "one", value(size, 1)),
            await put(store, "other", value(size, 2)),
            await put(store, "third", value(size, 3), "elsewhere"),
        ]
        shares = [(stored, index) for stored in objects for index in range(m)]
        tried = 0
        for first, second in combinations(shares, 2):
            tried += 1
            swap(world, store, first, second)
            for stored, index in (first, second):
                states = (await store.shares_health.check(stored, Nobody())).states
                assert states[index] in ("corrupt", "stale"), (states, index)
                found = store.objects.find(ObjectName(stored.namespace, stored.record.key))
                assert await store.objects.read(found) == value(size, 1 + objects.index(stored))
            swap(world, store, first, second)
        assert tried == 66
        for stored in objects:
            assert (await store.shares_health.check(stored, Nobody())).status == "optimal"

    in_store(House(policy(k, m), m, kind="xfs"), work)


def swap(world: World, store: Store, first: tuple[Stored, int], second: tuple[Stored, int]) -> None:
    """Each share's bytes lie where the other's were."""
    (path, offset, length), (other_path, other_offset, other_length) = place(world, store, *first), place(world, store, *second)
    assert length == other_length
    data = world.files.contents(path)[offset : offset + length]
    other = world.files.contents(other_path)[other_offset : other_offset + other_length]
    assert data != other
    world.files.damage(path, offset, other)
    world.files.damage(other_path, other_offset, data)
