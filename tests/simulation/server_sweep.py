"""The crash sweep of a shard server's storage: programs, the states that crashes of them leave, and what must hold there."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final

import pytest

from tests.shardserver.server import NAMESPACE
from tests.simulation.indexes import indexes
from tests.simulation.oracle import BadState
from tests.simulation.outcomes import NOTHING, outcomes
from tests.simulation.servers import OTHER, Life, Promises, living
from tests.simulation.sweep import Mutate, first_error, intact
from tests.simulation.world import World, run
from zstor_local import limits

Work = Callable[[Life], Awaitable[None]]
EVERY: Final = range(1, 21)
KEPT: Final = range(4, 21, 4)
AGAIN: Final = 6  # was freed, and is here again
EXTRA: Final = 4  # outcomes of a power loss, beside that nothing is left


@dataclass(frozen=True, slots=True)
class Program:
    """What is done in a life of the server, after lives that did `before`; the sweep begins with its start."""

    name: str
    work: Work
    before: tuple[Work, ...] = ()

    def __str__(self) -> str:
        return self.name


# --- What is done ---


async def nothing(life: Life) -> None:
    """No work."""


async def fill(life: Life) -> None:
    """Several segments, of which three quarters are freed; two large shares."""
    for number in EVERY:
        life.append(number)
    life.append(50, namespace=OTHER)
    life.free(*(number for number in EVERY if number not in KEPT))
    life.append(AGAIN)
    for number in (60, 61):
        life.put(number)
    life.describe(NAMESPACE, "photos")


async def fill_unevenly(life: Life) -> None:
    """A segment with too little dead in it, and one that is dead, but for what says so of both."""
    for number in range(1, 8):
        life.append(number)
    life.append(10)
    life.append(11, freed=(3,))
    life.append(12, freed=(10, 11))
    for number in (13, 14, 15, 16):
        life.append(number)
    life.free(12, 13, 14)


async def append(life: Life) -> None:
    life.append(30, 31)
    life.append(32, freed=(31, 4))
    life.append(4)


async def append_to_new_namespaces(life: Life) -> None:
    life.append_to({NAMESPACE: (30,), OTHER: (31,)})
    life.append_to({NAMESPACE: (32,), OTHER: (33,)}, freed=(30, 31))


async def put(life: Life) -> None:
    life.put(60, edition=1)
    life.put(70, namespace=OTHER)
    life.put(71)


async def free_large(life: Life) -> None:
    life.free_large(60)
    life.put(60)
    life.free_large(60, 61)


async def compact(life: Life) -> None:
    if not await life.compact():
        raise BadState("nothing was compacted")


async def compact_on_and_on(life: Life) -> None:
    await life.compact()
    life.free(8, AGAIN)
    life.append(40, 41, 1)
    await life.compact()
    life.free(40, 41, 12)
    life.append(8)
    await life.compact()


async def fill_and_free(life: Life) -> None:
    """Segments full of shares, and one that says of all of them that they were freed."""
    for number in range(1, 15):
        life.append(number)
    life.free(*range(1, 15))


async def compact_what_says_so(life: Life) -> None:
    """First the shares go, then what says that they were freed."""
    await compact(life)
    life.append(40, 41, 42)
    life.free(40, 41, 42)
    await compact(life)


async def compact_what_was_superseded(life: Life) -> None:
    life.supersede(*(number for number in EVERY if number % 3))
    await compact(life)
    life.append(40, 41)
    life.supersede(*EVERY, 41)
    life.free(8, AGAIN)
    await life.compact()


async def tell(life: Life) -> None:
    life.describe(NAMESPACE, "photos")
    life.put_letter(b"for a day")
    life.describe(OTHER, "photos")
    life.describe(NAMESPACE, "mail")
    life.put_letter(b"for another day")


async def retire(life: Life) -> None:
    life.retire(NAMESPACE)
    life.append(30)


PROGRAMS: Final = (
    Program("first start", append),
    Program("start", nothing, (fill,)),
    Program("append", append, (fill,)),
    Program("append to new namespaces", append_to_new_namespaces, (nothing,)),
    Program("put large shares", put, (fill,)),
    Program("put the first large shares", put, (nothing,)),
    Program("free large shares", free_large, (fill,)),
    Program("compact", compact, (fill,)),
    Program("compact what is unevenly dead", compact, (fill_unevenly,)),
    Program("compact on and on", compact_on_and_on, (fill,)),
    Program("compact what says of shares that they were freed", compact_what_says_so, (fill_and_free,)),
    Program("compact what was superseded", compact_what_was_superseded, (fill,)),
    Program("tell names and letters", tell, (append,)),
    Program("retire a namespace", retire, (fill,)),
)


@contextmanager
def small_segments() -> Iterator[None]:
    """Logs whose segments are soon full, and an index that is soon written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SEGMENT_BYTES", 1 << 13)
        patch.setattr(limits, "SEGMENT_STEP_BYTES", 1 << 11)
        patch.setattr("zstor_local.shards.log_index.FLUSH_AT", 3)
        patch.setattr("zstor_local.shardserver.volume.RESERVE_BYTES", 1 << 12)
        yield


# --- The sweep ---


@dataclass(frozen=True, slots=True)
class State:
    """What a crash left, and what may and must be found there."""

    world: World
    promises: Promises

    def copy(self) -> State:
        return State(self.world.copy(), self.promises.copy())


@dataclass(frozen=True, slots=True)
class Moment:
    """A crash point as it is reached. `torn`: in the middle of its write."""

    number: int
    torn: bool
    state: State


def live(state: State, work: Work) -> None:
    """A whole life of the server. BadState for whatever goes wrong."""

    async def server() -> None:
        with living(state.world, state.promises) as life:
            await work(life)

    try:
        run(state.world, server)
    except Exception as error:
        cause = first_error(error)
        raise cause if isinstance(cause, BadState) else BadState(f"{type(cause).__name__}: {cause}") from error
    if left := state.world.files.open_descriptors():
        raise BadState(f"{len(left)} descriptors were left open")


@cache
def base(program: Program) -> State:
    start = State(World(), Promises())
    for work in program.before:
        live(start, work)
    return start.copy()


def states(program: Program, mutate: Mutate) -> Iterator[tuple[str, State]]:
    """Every different state that a kill or a power loss at a crash point, in a write or after the end may leave."""
    trial = base(program).copy()
    mutate(trial.world)
    moments: list[Moment] = []
    files = trial.world.files
    files.watch(lambda seen, torn: moments.append(Moment(files.points, torn, State(trial.world.moment(seen), trial.promises.copy()))))
    live(trial, program.work)
    sites = files.sites
    moments.append(Moment(files.points + 1, False, trial))
    seen: set[tuple[object, ...]] = set()
    for moment in moments:
        site = sites[moment.number - 1].name if moment.number <= len(sites) else "the end"
        for what, world in left(moment.state.world, moment.number):
            look = world.files.digest(), repr(indexes(world).commits), moment.state.promises.state()
            if look not in seen:
                seen.add(look)
                how = "torn" if moment.torn else "stopped"
                yield f"{program}, {how} at {moment.number} ({site}), {what}", State(world, moment.state.promises.copy())


def left(world: World, number: int) -> Iterator[tuple[str, World]]:
    others = list(outcomes(world.files.unpinned(), singles=6, subsets=6, seed=number))[1:]
    for outcome in [NOTHING, *random.Random(number).sample(others, min(EXTRA, len(others)))]:
        lost = world.crash(outcome)
        indexes(lost).lose(number)
        yield repr(outcome), lost
    killed = world.copy()
    yield "killed", killed
    if number % 3 == 0:
        bare = world.copy()
        indexes(bare).commits.clear()
        yield "killed, its indexes thrown away", bare


def sweep(program: Program, mutate: Mutate = intact) -> int:
    """Examine every state. Returns how many there were; raises the first BadState."""
    count = 0
    for where, state in states(program, mutate):
        count += 1
        try:
            examine(state, thoroughly=count % 3 == 0)
        except BadState as error:
            raise BadState(f"{where}: {error}") from error
    return count


def examine_once(state: State) -> None:
    """What must be there is."""

    async def look(life: Life) -> None:
        life.observe()

    live(state, look)


def examine(state: State, *, thoroughly: bool) -> None:
    """What must be there is; it is the same after another crash at once, and after further work and a crash behind that."""
    crashed: list[State] = []

    async def look(life: Life) -> None:
        life.observe()
        crashed.append(State(life.world.crash(NOTHING), life.promises.copy()))

    async def look_and_go_on(life: Life) -> None:
        life.observe()
        life.append_to({NAMESPACE: (80, 81), OTHER: (82,)}, freed=(81,))
        life.put(83)
        await life.compact()
        life.describe(NAMESPACE, "goes on")
        crashed.append(State(life.world.crash(NOTHING), life.promises.copy()))

    live(state, look)
    live(crashed[0], look)
    indexes_are_of_no_need(state)
    if thoroughly:
        live(state, look_and_go_on)
        live(crashed[2], look)


def indexes_are_of_no_need(state: State) -> None:
    """Made anew they tell the same."""
    told: list[object] = []

    async def tell(life: Life) -> None:
        told.append(life.known())

    live(state.copy(), tell)
    bare = state.copy()
    indexes(bare.world).commits.clear()
    live(bare, tell)
    if told[0] != told[1]:
        raise BadState(f"the indexes tell {told[0]}, made anew {told[1]}")
