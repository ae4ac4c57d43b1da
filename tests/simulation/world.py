"""A world from one seed: disks, clock, randomness, threads and scheduler, so that the same seed gives the same history.

world = World(7, mounts=[Mount("/disks/a"), Mount("/disks/b", kind="xfs", capacity=1 << 20)])
run(world, program, world.runtime)          # prepare the old state
for number in itertools.count(1):           # cut the power before each crash point
    trial = world.copy()
    trial.files.crash_at(number)
    lost = run_until_power_loss(trial, program, trial.runtime)
    for outcome in outcomes(trial.files.unpinned()):
        run(after := trial.crash(outcome), verify, after.runtime)
    if not lost:
        break
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar, TypeVarTuple

import blake3
import outcome
import trio
import trio.testing

from tests.simulation.files import SimulatedFiles
from tests.simulation.outcomes import Outcome
from tests.simulation.points import PowerLoss
from zstor_local.runtime import Runtime

T = TypeVar("T")
Args = TypeVarTuple("Args")

START: Final = 1_800_000_000_000_000  # microseconds since 1970: a day in January 2027
_TICK: Final = 1_000


class SimulatedClock:
    """Calendar time that goes on by a millisecond with each reading, and by hand."""

    def __init__(self, start: int = START) -> None:
        self.time = start

    def now(self) -> int:
        self.time += _TICK
        return self.time

    def advance(self, microseconds: int) -> None:
        """Let time pass; a negative number sets the clock back."""
        self.time += microseconds

    def nanoseconds(self) -> int:
        """For the times of inodes: looking does not change it."""
        return self.time * 1_000


class SimulatedRandomness:
    """Bytes that follow from the seed: blake3 of the seed and a counter."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._count = 0

    def bytes(self, count: int) -> bytes:
        self._count += 1
        return blake3.blake3(f"{self._seed}:{self._count}".encode()).digest(length=count)

    def copy(self) -> SimulatedRandomness:
        other = SimulatedRandomness(self._seed)
        other._count = self._count
        return other


class SimulatedThreads:
    """Runs work in place, after letting other tasks go first for a while."""

    def __init__(self, seed: int, workers: int = 2) -> None:
        self._draw = random.Random(seed)
        self._workers = workers

    @property
    def workers(self) -> int:
        return self._workers

    async def run(self, work: Callable[[*Args], T], *args: *Args) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        for _ in range(self._draw.randrange(1, 4)):
            await trio.lowlevel.cancel_shielded_checkpoint()
        return work(*args)

    def start_commit(self, work: Callable[[], T], done: Callable[[outcome.Outcome[T]], object]) -> None:
        async def go() -> None:
            for _ in range(self._draw.randrange(1, 4)):
                await trio.lowlevel.cancel_shielded_checkpoint()
            done(outcome.capture(work))

        trio.lowlevel.spawn_system_task(go)

    async def run_commit(self, work: Callable[[*Args], T], *args: *Args) -> T:
        return await self.run(work, *args)


class SimulatedReadiness:
    """Pipes of this world never make anybody wait for long."""

    async def readable(self, fd: int) -> None:
        await trio.lowlevel.checkpoint()

    async def writable(self, fd: int) -> None:
        await trio.lowlevel.checkpoint()


class Survivor(Protocol):
    """Something durable beside the disks, as the cell of a metastore in memory: what it holds outlives a crash."""

    def copy(self) -> Survivor: ...


@dataclass(frozen=True, slots=True)
class Mount:
    """A disk of a world."""

    path: str
    kind: str = "ext4"
    capacity: int | None = None


class World:
    """A runtime with a seed. There is always a disk at "/"; `survivors` are copied along by name."""

    def __init__(self, seed: int = 0, mounts: Iterable[Mount] = ()) -> None:
        self.seed = seed
        self.clock = SimulatedClock()
        self.randomness = SimulatedRandomness(seed)
        self.files = SimulatedFiles(self.clock.nanoseconds)
        self.survivors: dict[str, Survivor] = {}
        for mount in mounts:
            self.files.mount(mount.path, kind=mount.kind, capacity=mount.capacity)
        self._assemble()

    def point(self, name: str) -> None:
        """A crash point that is no call of Files, as the commit of a simulated metastore: call it before the work."""
        self.files.point(name)

    def copy(self) -> World:
        """The world after SIGKILL, or a base state to try things on: pending changes stay pending, this one stays as it is."""
        return self._follow(self.files.copy)

    def crash(self, outcome: Outcome) -> World:
        """The world after a power loss, when everything is switched on again. This one stays as it is: try other outcomes."""
        return self._follow(lambda now: self.files.crash(outcome, now))

    def moment(self, files: SimulatedFiles) -> World:
        """The world at a crash point, with the files that `watch` handed over there: to be copied or crashed, not to run in."""
        return self._follow(lambda now: files)

    def _follow(self, files: Callable[[Callable[[], int]], SimulatedFiles]) -> World:
        other = World.__new__(World)
        other.seed = self.seed
        other.clock = SimulatedClock(self.clock.time)
        other.randomness = self.randomness.copy()
        other.files = files(other.clock.nanoseconds)
        other.survivors = {name: survivor.copy() for name, survivor in self.survivors.items()}
        other._assemble()
        return other

    def _assemble(self) -> None:
        self.threads = SimulatedThreads(self.seed)
        self.runtime = Runtime(self.files, self.clock, self.randomness, self.threads, SimulatedReadiness())


def run(world: World, work: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
    """Run an async function to its end in this world: deterministic scheduling, time that jumps to the next deadline.

    If the power goes, PowerLoss is raised by itself, out of whatever groups it came in.
    """
    with _scheduling(world.seed):
        try:
            return trio.run(work, *args, clock=trio.testing.MockClock(autojump_threshold=0))
        except BaseExceptionGroup as group:
            if group.subgroup(PowerLoss) is not None:
                raise PowerLoss from group
            raise


def run_until_power_loss(world: World, work: Callable[[*Args], Awaitable[object]], *args: *Args) -> bool:
    """As `run`; True if the power went before the end."""
    try:
        run(world, work, *args)
    except PowerLoss:
        return True
    return False


@contextmanager
def _scheduling(seed: int) -> Iterator[None]:
    """Make trio's scheduler follow the seed. Rests on private names of trio; test_world.py watches over them."""
    import trio._core._run as core

    before, state = core._ALLOW_DETERMINISTIC_SCHEDULING, core._r.getstate()
    core._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    core._r.seed(seed)
    try:
        yield
    finally:
        core._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
        core._r.setstate(state)
