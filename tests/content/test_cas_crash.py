"""The power goes at every point of uploads, pins and collections: what was answered holds, the rest happened or did not, and no share
is left over or lacking.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from tests.content.ground import DAY, HOUR, Chunks
from tests.simulation.engines import SimulatedEngines, cell
from tests.simulation.house import STORE, House, policy
from tests.simulation.oracle import BadState, check_logs, check_rows, check_shares
from tests.simulation.outcomes import NOTHING, outcomes
from tests.simulation.world import World, run, run_until_power_loss
from zstor_local.content.cas import Cas, Owner
from zstor_local.errors import NotFound
from zstor_local.formats import unixfs
from zstor_local.store.opening import open_store
from zstor_local.store.sources import BytesSource
from zstor_local.store.store import Store

TOGETHER = House(policy(2, 3), 3)  # one ext4
APART = House(policy(2, 3), 3, kind="xfs")  # a disk for each shard
SMALL, SMALL_2 = b"small" * 20, b"other" * 30
LARGE = random.Random(1).randbytes(140_000)
POINTS = 8  # of each program
LEAVES = random.Random(2).randbytes(unixfs.LEAF_BYTES + 10)
ALICE, BOB = Owner("alice"), Owner("bob", "why")

View = frozenset[tuple[str, tuple[str, ...]]]  # contents and their owners
Act = Callable[[Cas], Awaitable[object]]


def upload(data: bytes, owner: Owner | None = ALICE, *, stream: bool = False) -> Act:
    return lambda cas: cas.upload(Chunks(data) if stream else BytesSource(data), owner)


def pin(data: bytes, owner: Owner) -> Act:
    return lambda cas: cas.keeping.pin(unixfs.content_id(data), owner)


def unpin(data: bytes, owner: Owner, *, forget: bool = False) -> Act:
    return lambda cas: cas.keeping.unpin(unixfs.content_id(data), owner.name, forget=forget)


async def collect(cas: Cas) -> None:
    await cas.keeping.collect()


@dataclass(frozen=True)
class Program:
    """What was done before, how many days ago, and what is done while the power goes, one act after the other."""

    name: str
    house: House
    acts: Sequence[Act]
    before: Sequence[Act] = ()
    days: int = 0

    def __str__(self) -> str:
        return self.name


PROGRAMS = [
    Program("the first content", APART, [upload(SMALL)]),
    Program("small, then known", TOGETHER, [upload(SMALL_2), upload(SMALL_2, BOB), upload(SMALL, None)], [upload(SMALL)]),
    Program("large", APART, [upload(LARGE)], [upload(SMALL)]),
    Program("two leaves from a stream", TOGETHER, [upload(LEAVES, stream=True)], [upload(SMALL)]),
    Program("a stream of what is known", APART, [upload(LARGE, BOB, stream=True)], [upload(LARGE)]),
    Program("pins", APART, [pin(LARGE, BOB), unpin(LARGE, ALICE), unpin(LARGE, BOB, forget=True)], [upload(LARGE)]),
    Program("collection", APART, [collect], [upload(SMALL, None), upload(LARGE, None), upload(SMALL_2)], days=8),
    Program("kept before it is collected", TOGETHER, [upload(LARGE), collect], [upload(LARGE, None), upload(SMALL, None)], days=8),
    Program("stored again after it was collected", APART, [collect, upload(LARGE)], [upload(LARGE, None)], days=8),
]


@dataclass
class Life:
    """How far a life of the daemon came: what could be seen after each act that was answered."""

    views: list[View] = field(default_factory=list)
    begin: int = 0


@asynccontextmanager
async def opened(world: World, house: House) -> AsyncIterator[tuple[Store, Cas]]:
    async with open_store(world.runtime, SimulatedEngines(world), house.config()) as store:
        await trio.testing.wait_all_tasks_blocked()
        yield store, Cas(store)


async def live(world: World, house: House, acts: Sequence[Act], life: Life) -> None:
    async with opened(world, house) as (_, cas):
        life.begin = world.files.points
        life.views.append(await seen(cas))
        for act in acts:
            await act(cas)
            life.views.append(await seen(cas))
        await trio.testing.wait_all_tasks_blocked()


async def seen(cas: Cas) -> View:
    return frozenset([(str(each.id), tuple(pin.owner for pin in each.pins)) async for each in cas.contents.list(None, None, 100)])


async def recovered(world: World, house: House) -> View:
    """What a new life sees, after looking at everything."""
    async with opened(world, house) as (store, cas):
        truth = cell(world, STORE)
        check_logs(store, truth)
        check_rows(store, truth)
        check_shares(store, truth, house, tidy=True)
        async for content in cas.contents.list(None, None, 100):
            await cas.verify(content)
        return await seen(cas)


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_crash_leaves_what_was_answered(program: Program) -> None:
    base = program.house.world()
    run(base, live, base, program.house, program.before, Life())
    base.clock.advance(program.days * DAY * 1_000_000)
    whole, rehearsal = Life(), base.copy()
    rehearsal.files.sites.clear()
    run(rehearsal, live, rehearsal, program.house, program.acts, whole)
    assert len(set(whole.views)) > 1
    for number in some(range(whole.begin + 1, rehearsal.files.points + 1)):
        life, trial = Life(), base.copy()
        trial.files.sites.clear()
        trial.files.crash_at(number)
        assert run_until_power_loss(trial, live, trial, program.house, program.acts, life)
        answered = len(life.views) - 1
        allowed = set(whole.views[answered : answered + 2])
        after = left(trial, number)
        try:
            view = run(after, recovered, after, program.house)
        except BadState as error:
            raise BadState(f"crash at {number} ({trial.files.sites[-1].name}): {error}") from error
        assert view in allowed, f"crash at {number} ({trial.files.sites[-1].name}), after {answered} acts"


def some(points: range) -> list[int]:
    """Crash points drawn by lot, the same each time: those of the store below are swept in tests/simulation."""
    return sorted(random.Random(0).sample(points, min(POINTS, len(points))))


def left(trial: World, number: int) -> World:
    """The world as a SIGKILL leaves it, or one that a power loss may leave, drawn by lot."""
    others = list(outcomes(trial.files.unpinned(), singles=6, subsets=6, seed=number))
    outcome = random.Random(number).choice([NOTHING, *others, None])
    return trial.copy() if outcome is None else trial.crash(outcome)


def test_an_upload_beside_the_collection_of_the_same_content() -> None:
    """In whichever order they come, an upload that was answered is there."""
    for seed in range(5):
        house = House(policy(2, 3), 3, kind="xfs", seed=seed)
        world = house.world()
        run(world, live, world, house, [upload(LARGE, None), upload(SMALL, None)], Life())
        world.clock.advance(8 * DAY * 1_000_000)
        run(world, beside, world, house)


async def beside(world: World, house: House) -> None:
    async with opened(world, house) as (store, cas):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, cas)
            for data in (LARGE, SMALL):
                nursery.start_soon(upload(data, ALICE, stream=data is LARGE), cas)
                nursery.start_soon(upload(data, BOB), cas)
        await trio.testing.wait_all_tasks_blocked()
        for data in (LARGE, SMALL):
            content = cas.contents.find(unixfs.content_id(data))
            assert {pin.owner for pin in content.pins} == {"alice", "bob"}
            await cas.verify(content)
        check_shares(store, cell(world, STORE), house, tidy=True)
        with pytest.raises(NotFound):
            cas.contents.find(unixfs.content_id(b"never"))


def test_a_store_collects_by_itself_an_hour_after_a_start_and_then_once_a_day() -> None:
    world = APART.world()
    kept = {(str(unixfs.content_id(SMALL)), ("alice",))}

    async def days() -> None:
        async with opened(world, APART) as (_, cas), trio.open_nursery() as nursery:
            await upload(SMALL)(cas)
            await upload(SMALL_2, None)(cas)
            world.clock.advance(8 * DAY * 1_000_000)
            nursery.start_soon(cas.keeping.collect_daily)
            await trio.sleep(HOUR - 10)
            assert len(await seen(cas)) == 2
            await trio.sleep(20)
            assert await seen(cas) == kept
            await upload(SMALL_2, None)(cas)
            await trio.sleep(DAY)
            assert len(await seen(cas)) == 2
            world.clock.advance(7 * DAY * 1_000_000)
            await trio.sleep(DAY - 20)
            assert len(await seen(cas)) == 2
            await trio.sleep(20)
            assert await seen(cas) == kept
            nursery.cancel_scope.cancel()

    run(world, days)
