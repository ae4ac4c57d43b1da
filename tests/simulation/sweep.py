"""The crash sweep: stop a program at every one of its crash points, try what a power loss may leave there, and look at the store.

A `Program` is a piece of a daemon's life with its client. `sweep` runs it once for each crash point, cuts the power there, and
hands each different state that this may leave to `examine`: a BadState is what a sweep is after.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Final

import trio.testing

from tests.simulation.account import Account, Client, Value
from tests.simulation.engines import SimulatedEngines, cell
from tests.simulation.house import STORE, House
from tests.simulation.oracle import BadState, check_logs, check_shares, live_records
from tests.simulation.outcomes import NOTHING, outcomes
from tests.simulation.points import Site, under
from tests.simulation.world import World, run_until_power_loss
from zstor_local.errors import ZstorError
from zstor_local.metastore.base import Owed
from zstor_local.store.store import Store, open_store

Work = Callable[[Client], Awaitable[object]]
PROBE: Final = "probe"


async def nothing(client: Client) -> None:
    """No work."""


@dataclass(frozen=True, slots=True)
class Program:
    """A life of the daemon in which `work` is done, after lives that did `before`, one each.

    The sweep begins with the work, or with the daemon's start if `from_start`; without `before` that start makes the store.
    `between` may change the world after `before`, as nobody sees: take a disk out, stop a program half-way.
    """

    name: str
    house: House
    work: Work
    before: tuple[Work, ...] = ()
    from_start: bool = False
    between: Callable[[World], None] = lambda world: None

    def __str__(self) -> str:
        return self.name


@dataclass(slots=True)
class Run:
    """A world in which a program runs or ran, with its client's account; `begin` and `end` are its first and last crash points."""

    world: World
    account: Account
    begin: int = 0
    end: int = 0

    def copy(self) -> Run:
        return Run(self.world.copy(), self.account.copy(), self.begin, self.end)


@cache
def base(program: Program) -> Run:
    """The state that a program begins in."""
    start = Run(program.house.world(), Account())
    for work in program.before:
        live(start, program.house, work)
    program.between(start.world)
    return start.copy()


@cache
def reference(program: Program) -> tuple[Run, tuple[Site, ...]]:
    """The program without any disturbance, and the crash points that it passes (all of them, from the daemon's start on)."""
    done = base(program).copy()
    live(done, program.house, program.work)
    done.end = done.world.files.points
    if program.from_start:
        done.begin = 0
    if open_descriptors := done.world.files.open_descriptors():
        raise BadState(f"{len(open_descriptors)} descriptors were left open")
    return done, tuple(done.world.files.sites)


@asynccontextmanager
async def opened(world: World, house: House) -> AsyncIterator[Store]:
    """The store, after everything that its start set going has come to rest."""
    async with open_store(world.runtime, SimulatedEngines(world), house.config()) as store:
        await trio.testing.wait_all_tasks_blocked()
        yield store


def live(trial: Run, house: House, work: Work) -> bool:
    """A life of the daemon, from start to stop. True if the power went."""

    async def daemon() -> None:
        async with opened(trial.world, house) as store:
            trial.begin = trial.world.files.points
            await work(Client(store, trial.account))
            await trio.testing.wait_all_tasks_blocked()

    return run_until_power_loss(trial.world, daemon)


# --- States ---


@dataclass(frozen=True, slots=True)
class Depth:
    """How many outcomes of a power loss to try at each crash point, beside nothing and all: see `outcomes`."""

    singles: int = 2
    subsets: int = 2


def states(program: Program, depth: Depth, mutate: Callable[[World], None] = lambda world: None) -> Iterator[tuple[str, Run]]:
    """Every different state that a SIGKILL or a power loss before a crash point, in a write or after the end may leave."""
    done, sites = reference(program)
    seen: set[tuple[object, ...]] = set()
    for number in range(done.begin + 1, done.end + 2):
        for torn in (False, True):
            if torn and (number > done.end or not sites[number - 1].name.endswith("pwritev")):
                continue
            trial = base(program).copy()
            mutate(trial.world)
            trial.world.files.crash_at(number, torn=torn)
            if live(trial, program.house, program.work) != (number <= done.end):
                raise BadState(f"crash point {number} of {program} never came")
            where = (
                f"{program}, {'torn' if torn else 'stopped'} at {number} ({sites[number - 1].name if number <= done.end else 'end'})"
            )
            for what, world in _left(trial.world, depth, number):
                state = what == "killed", world.files.digest(), repr(cell_of(world)), trial.account.state()
                if state not in seen:
                    seen.add(state)
                    yield f"{where}, {what}", Run(world, trial.account.copy())


def _left(world: World, depth: Depth, number: int) -> Iterator[tuple[str, World]]:
    yield "killed", world.copy()
    for outcome in outcomes(world.files.unpinned(), singles=depth.singles, subsets=depth.subsets, seed=number):
        yield repr(outcome), world.crash(outcome)


def cell_of(world: World) -> object:
    return cell(world, STORE) if STORE in world.survivors else None


def sweep(program: Program, depth: Depth = Depth(), mutate: Callable[[World], None] = lambda world: None) -> int:
    """Examine every state. Returns how many there were; raises the first BadState."""
    count = 0
    for where, state in states(program, depth, mutate):
        count += 1
        try:
            examine(state, program.house)
        except BadState as error:
            raise BadState(f"{where}: {error}") from error
    return count


# --- Looking at a state ---


def examine(state: Run, house: House) -> None:
    """Recover, and see that every promise holds: old or new, whole, with all of its redundancy, nothing left over, logs that agree;
    and that the choice stays the same after a clean stop as after another crash at once, whatever is written next.
    """
    account, world = state.account.copy(), state.world
    crashed: list[World] = []

    async def first(client: Client) -> None:
        for key, value in (await client.observe()).items():
            if not account.allows(key, value):
                raise BadState(f"{key} has {_show(value)}")
            account.chosen(key, value)
        crashed.append(world.crash(NOTHING))
        check_logs(client.store, cell(world, STORE))
        check_shares(client.store, cell(world, STORE), house)
        await check_redundancy(client, world, house)

    async def again(client: Client) -> None:
        for key, value in (await client.observe()).items():
            if not account.allows(key, value):
                raise BadState(f"{key} has {_show(value)} now, another value than after the first recovery")

    async def go_on(client: Client) -> None:
        await again(client)
        answer = await client.put(PROBE, b"goes on")
        if isinstance(answer, ZstorError):
            raise BadState(f"the store takes no writes any more: {answer}")
        crashed.append(crashed[0].crash(NOTHING))

    _daemon(world, house, account, first)
    _daemon(world, house, account, again)
    _daemon(crashed[0], house, account, go_on)
    account.chosen(PROBE, b"goes on")
    _daemon(crashed[1], house, account, again)


def _daemon(world: World, house: House, account: Account, work: Work) -> None:
    """A life in which nothing may go wrong."""
    try:
        if live(Run(world, account), house, work):
            raise BadState("the power went twice")
    except Exception as error:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, BadState):
            raise error from None
        raise BadState(f"{type(error).__name__}: {error}") from error


async def check_redundancy(client: Client, world: World, house: House) -> None:
    """Every object can be read whole with all shards gone that may be gone: as many as are not needed, and are not owed a share."""
    store, files = client.store, world.files
    truth = cell(world, STORE)
    present = {shard.number for shard in store.pool.opened()}
    for version, record in live_records(store, truth):
        owed = {debt.shard for debt in truth.debts if debt.version == version and debt.kind is Owed.SHARE}
        holders = [number for number in record.placement if number in present - owed]
        spare = len(holders) - record.policy.k
        expected = await client.get(record.key)
        for out in combinations(holders, max(spare, 0)):
            for number in out:
                files.fail("*", under(house.root(number)), errno.EIO, times=None)
            try:
                if await client.get(record.key) != expected:
                    raise BadState(f"without shards {out} {record.key} has other bytes")
            finally:
                files.heal()


def _show(value: Value) -> str:
    return "nothing" if value is None else f"{len(value)} bytes {value[:8].hex()}"
