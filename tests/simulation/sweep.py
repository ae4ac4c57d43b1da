"""The crash sweep: stop a program at every one of its crash points, try what a power loss may leave there, and look at the store.

A `Program` is a piece of a daemon's life with its client. `sweep` runs it, and at each crash point takes the world as it is in that
moment; each different state that a power loss there may leave is handed to `examine`: a BadState is what a sweep is after.
"""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Final

import pytest
import trio.testing

from tests.simulation.account import Account, Client, Value
from tests.simulation.engines import SimulatedEngines, cell
from tests.simulation.house import STORE, House
from tests.simulation.oracle import BadState, check_logs, check_rows, check_shares, live_records
from tests.simulation.outcomes import NOTHING, outcomes
from tests.simulation.points import Site, under
from tests.simulation.world import World, run_until_power_loss
from zstor_local import limits
from zstor_local.errors import ZstorError
from zstor_local.metastore.base import Owed
from zstor_local.model.ids import Version
from zstor_local.runtime import Runtime
from zstor_local.store.coding import new_version
from zstor_local.store.opening import open_store
from zstor_local.store.store import Store

Work = Callable[[Client], Awaitable[object]]
SMALL_PROBE: Final = {"probe": b"goes on"}
PROBES: Final = {**SMALL_PROBE, "large probe": bytes(140_000)}


@contextmanager
def small_world() -> Iterator[None]:
    """Logs whose segments are soon full, so that new ones are begun on the way; all large shares of a shard in one directory."""

    def in_one_directory(runtime: Runtime, last_given: int) -> Version:
        return Version(b"\xab" + new_version(runtime, last_given)[1:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SEGMENT_BYTES", 1 << 14)
        patch.setattr("zstor_local.store.writes.new_version", in_one_directory)
        yield


async def nothing(client: Client) -> None:
    """No work."""


@dataclass(slots=True)
class Run:
    """A world in which a program runs or ran, with its client's account. `begin` is the last crash point before the work."""

    world: World
    account: Account
    begin: int = 0

    def copy(self) -> Run:
        return Run(self.world.copy(), self.account.copy(), self.begin)


def unchanged(start: Run) -> Run:
    """The default of `Program.between`."""
    return start


@dataclass(frozen=True, slots=True)
class Program:
    """A life of the daemon in which `work` is done, after lives that did `before`, one each.

    The sweep begins with the work, or with the daemon's start if `from_start`; without `before` that start makes the store.
    `between` may change what lies there after `before`: take a disk out, cut the power.
    """

    name: str
    house: House
    work: Work = nothing
    before: tuple[Work, ...] = ()
    from_start: bool = False
    between: Callable[[Run], Run] = unchanged

    def __str__(self) -> str:
        return self.name


@cache
def base(program: Program) -> Run:
    """The state that a program begins in."""
    start = Run(program.house.world(), Account())
    for work in program.before:
        live(start, program.house, work)
        start.world.files.sites.clear()
    return program.between(start).copy()


Mutate = Callable[[World], None]


def intact(world: World) -> None:
    """The mutation that changes nothing."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A crash point as it is reached, or the end: what a power loss would find there. `torn`: in the middle of its write."""

    number: int
    torn: bool
    run: Run


def rehearse(program: Program, mutate: Mutate = intact, moments: list[Moment] | None = None) -> tuple[int, Sequence[Site]]:
    """The program without any disturbance: the last crash point that is not to be swept, and all that it passes. The moments of all
    crash points and of the end are added to a list.
    """
    trial = base(program).copy()
    mutate(trial.world)
    if moments is not None:
        files = trial.world.files
        files.watch(lambda seen, torn: moments.append(Moment(files.points, torn, Run(trial.world.moment(seen), trial.account.copy()))))
    try:
        live(trial, program.house, program.work)
    except Exception as error:
        raise BadState(f"{program} does not even work undisturbed: {first_error(error)}") from error
    if left := trial.world.files.open_descriptors():
        raise BadState(f"{len(left)} descriptors were left open")
    if moments is not None:
        moments.append(Moment(trial.world.files.points + 1, False, trial))
    return 0 if program.from_start else trial.begin, trial.world.files.sites


@cache
def sites_of(program: Program) -> frozenset[str]:
    """The sites that the sweep of this program reaches."""
    begin, sites = rehearse(program)
    return frozenset(site.name for site in sites[begin:])


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
    """What to try at each crash point: the loss of everything unpinned always, and so many other outcomes of `outcomes`, drawn by lot;
    SIGKILL and torn writes unless not wanted.
    """

    extra: int = 2
    killed: bool = True
    torn: bool = True


SHALLOW: Final = Depth(0, killed=False, torn=False)


def states(program: Program, depth: Depth, mutate: Mutate = intact) -> Iterator[tuple[str, Run]]:
    """Every different state that a SIGKILL or a power loss before a crash point, in a write or after the end may leave."""
    moments: list[Moment] = []
    begin, sites = rehearse(program, mutate, moments)
    seen: set[tuple[object, ...]] = set()
    for moment in moments:
        if moment.number <= begin or (moment.torn and not depth.torn):
            continue
        site = sites[moment.number - 1].name if moment.number <= len(sites) else "end"
        account = moment.run.account
        for what, world in _left(moment.run.world, depth, moment.number):
            state = what == KILLED, fingerprint(world), account.state()
            if state not in seen:
                seen.add(state)
                how = "torn" if moment.torn else "stopped"
                yield f"{program}, {how} at {moment.number} ({site}), {what}", Run(world, account.copy())


KILLED: Final = "killed"


def _left(world: World, depth: Depth, number: int) -> Iterator[tuple[str, World]]:
    yield repr(NOTHING), world.crash(NOTHING)
    if depth.killed:
        yield KILLED, world.copy()
    if depth.extra:
        others = list(outcomes(world.files.unpinned(), singles=6, subsets=6, seed=number))[1:]
        for outcome in random.Random(number).sample(others, min(depth.extra, len(others))):
            yield repr(outcome), world.crash(outcome)


def fingerprint(world: World) -> tuple[str, str]:
    """Equal for worlds that look equal to a daemon."""
    return world.files.digest(), repr(cell(world, STORE)) if STORE in world.survivors else ""


def sweep(program: Program, depth: Depth, mutate: Mutate = intact) -> int:
    """Examine every state. Returns how many there were; raises the first BadState."""
    count = 0
    recovered: set[tuple[object, ...]] = set()
    for where, state in states(program, depth, mutate):
        count += 1
        try:
            examine(state, program.house, thoroughly=count % 4 == 0, recovered=recovered)
        except BadState as error:
            raise BadState(f"{where}: {error}") from error
    return count


# --- Looking at a state ---


def examine(
    state: Run,
    house: House,
    *,
    thoroughly: bool,
    tidy: bool = True,
    faulty: bool = False,
    recovered: set[tuple[object, ...]] | None = None,
) -> None:
    """Recover, and see that every promise holds: old or new, whole, with all of its redundancy, nothing left over, logs that agree;
    and that the choice stays the same after another crash at once and, `thoroughly`, after a clean stop and after further writes.
    `tidy`: no share is left over. `faulty`: a sync failed. What it should have made durable no later one does, so that after a power
    loss freed shares may be there again, and new ones gone with the directory that they lay in: neither is looked at. `recovered`: what
    was there after the crash at once in earlier examinations; many states recover to the same one, and it is looked at once.
    """
    account, world = state.account.copy(), state.world
    crashed: list[World] = []

    async def first(client: Client) -> None:
        for key, value in (await client.observe()).items():
            if not account.allows(key, value):
                raise BadState(f"{key} has {_show(value)}")
            account.chosen(key, value)
        crashed.append(world.crash(NOTHING))
        await check(client, world, house, tidy=tidy)

    async def last(client: Client) -> None:
        await again(client)
        await check(client, crashed[1], house, tidy=not faulty)

    async def again(client: Client) -> None:
        for key, value in (await client.observe()).items():
            if not account.allows(key, value):
                raise BadState(f"{key} has {_show(value)} now, another value than after the first recovery")

    async def go_on(client: Client) -> None:
        await again(client)
        for key, value in SMALL_PROBE.items() if faulty else PROBES.items():
            answer = await client.put(key, value)
            if isinstance(answer, ZstorError):
                raise BadState(f"the store takes no writes any more: {answer}")
        crashed.append(world.crash(NOTHING))

    _daemon(world, house, account, first)
    look = fingerprint(crashed[0]), account.state()
    if recovered is None or look not in recovered:
        _daemon(crashed[0], house, account, again)
        if recovered is not None:
            recovered.add(look)
    if thoroughly:
        house.put_back(world)
        _daemon(world, house, account, go_on)
        _daemon(crashed[1], house, account, last)


def _daemon(world: World, house: House, account: Account, work: Work) -> None:
    """A life in which nothing may go wrong."""
    try:
        if live(Run(world, account), house, work):
            raise BadState("the power went twice")
    except Exception as error:
        cause = first_error(error)
        if isinstance(cause, BadState):
            raise cause from None
        raise BadState(f"{type(cause).__name__}: {cause}") from error


def first_error(error: BaseException) -> BaseException:
    """The first error in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def check(client: Client, world: World, house: House, *, tidy: bool) -> None:
    """The oracles on a store at rest: what was read before may have been found bad, and is being mended."""
    await trio.testing.wait_all_tasks_blocked()
    truth = cell(world, STORE)
    check_logs(client.store, truth)
    check_rows(client.store, truth)
    check_shares(client.store, truth, house, tidy=tidy)
    await check_redundancy(client, world, house)


async def check_redundancy(client: Client, world: World, house: House) -> None:
    """Every object can be read whole with all shards gone that may be gone: as many as are not needed, and are not owed a share."""
    store, files = client.store, world.files
    truth = cell(world, STORE)
    roots = {shard.number: shard.url for shard in store.pool.opened()}
    for version, record in live_records(store, truth):
        owed = {debt.shard for debt in truth.debts if debt.version == version and debt.kind is Owed.SHARE}
        holders = [number for number in record.placement if number in roots.keys() - owed]
        spare = len(holders) - record.policy.k
        expected = await client.get(record.key)
        for out in combinations(holders, max(spare, 0)):
            for number in out:
                files.fail("*", under(roots[number]), errno.EIO, times=None)
            try:
                if await client.get(record.key) != expected:
                    raise BadState(f"without shards {out} {record.key} has other bytes")
            finally:
                files.heal()


def _show(value: Value) -> str:
    return "nothing" if value is None else f"{len(value)} bytes {value[:8].hex()}"
