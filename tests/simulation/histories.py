"""Histories: several lives of a daemon with clients at work all the while, disks that go and come back, fail, fill up and rot, and the
power that is cut; what every client was told must fit on one line, key by key, and in the end everything must be there.

    python -m tests.simulation.histories 12345        # that seed again, told step by step
    python -m tests.simulation.histories --soak 1000  # so many new ones, and figures
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final, get_args

import pytest
import trio
import trio.testing

from tests.simulation.account import name
from tests.simulation.engines import COMMIT, SimulatedEngines, cell
from tests.simulation.house import STORE, House, policy
from tests.simulation.linearizable import ABSENT, Kind, Operation, line
from tests.simulation.oracle import BadState, check_logs, check_rows, check_shares
from tests.simulation.outcomes import ALL, NOTHING, Outcome, Subset
from tests.simulation.points import Where, under
from tests.simulation.sweep import first_error
from tests.simulation.world import World, run, run_until_power_loss
from zstor_local import limits
from zstor_local.errors import AlreadyExists, Conflict, NotFound, OutcomeUnknown, ZstorError
from zstor_local.model.ids import Version
from zstor_local.store.caller import Nobody
from zstor_local.store.faults import StoreFault
from zstor_local.store.objects import WriteOptions
from zstor_local.store.opening import open_store
from zstor_local.store.rebuild import rebuild
from zstor_local.store.sources import BytesSource
from zstor_local.store.store import Store

TROUBLE: Final = ("out", "back", "error", "full", "read error", "short", "rot", "metastore", "clock", "rotate", "nothing")
CLIENTS: Final = 4
KINDS: Final[Sequence[Kind]] = get_args(Kind)
HOUSES: Final = (
    House(policy(2, 4), 4, kind="xfs"),
    House(policy(2, 4), 5, kind="ext4"),
    House(policy(2, 4), 4, kind="one:ext4"),
    House(policy(3, 5), 6, kind="xfs"),
    House(policy(1, 3), 3, kind="xfs"),
)

Mutate = Callable[[World], None]


def intact(world: World) -> None:
    """The mutation that changes nothing."""


@dataclass(slots=True)
class History:
    """What happened in one seed's world."""

    seed: int
    operations: list[Operation] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    now: int = 0
    asked: int = 0
    hash: str = ""

    def number(self) -> int:
        self.asked += 1
        return self.asked

    def tick(self) -> int:
        self.now += 1
        return self.now

    def note(self, event: str) -> None:
        self.events.append(f"{self.tick():>6} {event}")


class _Simulation:
    def __init__(self, seed: int, mutate: Mutate, house: House | None = None) -> None:
        self.draw = random.Random(seed)
        self.history = History(seed)
        self.house = house or self.draw.choice(HOUSES)
        self.world = House(self.house.policy, self.house.shards, self.house.kind, seed).world()
        mutate(self.world)
        # After swarm testing (Groce, 2012): each history has some kinds of trouble often and others not at all.
        self.weights = [1 if what in ("back", "nothing") else self.draw.choice([0, 1, 1, 4]) for what in TROUBLE]
        self.keys = "abcdef"[: self.draw.choice([1, 3, 6])]
        self.hurry = self.draw.choice([(0,), (0, 0.01, 1), (0.01, 1, 3, 10)])
        self.values: dict[bytes, int] = {}
        self.versions: dict[int, Version] = {}
        self.unsettled: list[Operation] = []  # of which nobody was told; they may come to light up to the next start
        self.rotten = self.draw.randrange(self.house.shards) if self.draw.random() < 0.4 else None
        self.weak = self.draw.randrange(self.house.shards) if self.rotten is None else self.rotten
        self.failed_sync = False

    def run(self) -> History:
        history = self.history
        lives = self.draw.randrange(3, 6)
        for life in range(lives):
            history.counts["lives"] += 1
            if self._live():
                history.counts["power cuts"] += 1
                outcomes: list[Outcome] = [NOTHING, ALL, Subset(self.draw.randrange(1 << 30)), Subset(life)]
                outcome = self.draw.choice(outcomes)
                history.note(f"the power went; {outcome}")
                self.world = self.world.crash(outcome)
            elif self.draw.random() < 0.3:
                history.note("killed")
                self.world = self.world.copy()
            self._heal(all_disks=self.draw.random() < 0.5)
            if self.draw.random() < 0.4:
                self._look()
        self._look()
        self._judge()
        history.hash = self.world.files.history()
        return history

    # --- A life ---

    def _live(self) -> bool:
        """One life of the daemon and its clients. True if the power went."""
        world, draw = self.world, self.draw
        if draw.random() < 0.6:
            world.files.crash_at(world.files.points + draw.choice([20, 60, 200, 600]) + draw.randrange(100), torn=draw.random() < 0.5)

        async def daemon() -> None:
            try:
                async with open_store(world.runtime, SimulatedEngines(world), self.house.config()) as store:
                    self._settled()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._trouble, store)
                        async with trio.open_nursery() as clients:
                            for _ in range(CLIENTS):
                                clients.start_soon(self._client, store)
                        nursery.cancel_scope.cancel()
            finally:
                world.files.heal()

        try:
            return run_until_power_loss(world, daemon)
        except Exception as error:
            raise BadState(f"the daemon died: {first_error(error)!r}") from error

    def _settled(self) -> None:
        """The store is open: what nobody was told of has happened by now, or never does."""
        now = self.history.tick()
        for operation in self.unsettled:
            operation.end = now
        self.unsettled.clear()

    async def _client(self, store: Store) -> None:
        for _ in range(self.draw.randrange(6, 16)):
            await trio.sleep(self.draw.choice(self.hurry))
            await self._operation(store, self.draw.choice(self.keys))

    async def _operation(self, store: Store, key: str) -> None:
        kind = self.draw.choices(KINDS, [8, 6, 1, 3, 2, 1])[0]
        history = self.history
        operation = Operation(history.number(), key, kind, history.tick())
        data = b""
        if kind in ("put", "create", "swap"):
            operation.value = operation.number
            data = self._bytes(operation.number)
        version: Version | None = None
        if kind in ("swap", "delete if"):
            operation.expected = self.draw.choice([0, *self.versions][-4:])
            version = self.versions.get(operation.expected, Version(bytes(16)))
        history.operations.append(operation)
        self.unsettled.append(operation)
        try:
            await self._ask(store, operation, data, version)
        except (AlreadyExists, Conflict) as error:
            if isinstance(error, Conflict) and "builds on failed" in error.message:
                self._forget(operation, error)  # it was not its condition that failed
                return
            operation.done = False
        except NotFound:
            if kind == "get":
                operation.value, operation.done = ABSENT, True
            else:
                operation.done = False
        except OutcomeUnknown as error:
            history.counts[error.type] += 1
            return
        except ZstorError as error:
            self._forget(operation, error)
            return
        operation.end = history.tick()
        history.counts[operation.kind] += 1
        self.unsettled.remove(operation)

    async def _ask(self, store: Store, operation: Operation, data: bytes, version: Version | None) -> None:
        key, kind = operation.key, operation.kind
        if kind == "get":
            seen = await store.objects.read(store.objects.find(name(key)))
            if bytes(seen) not in self.values:
                raise BadState(f"{key} has bytes that nobody wrote")
            operation.value = self.values[bytes(seen)]
        elif kind in ("delete", "delete if"):
            await store.objects.delete(name(key), version, Nobody())
        else:
            options = WriteOptions(if_version=version, exclusive=kind == "create")
            stored = await store.objects.write(name(key), BytesSource(data), options, Nobody())
            self.versions[operation.number] = stored.version
        operation.done = True

    def _forget(self, operation: Operation, error: ZstorError) -> None:
        """It was refused, and so certainly did not happen."""
        self.history.counts[f"refused: {error.type}"] += 1
        self.history.operations.remove(operation)
        self.unsettled.remove(operation)

    def _bytes(self, number: int) -> bytes:
        """Bytes of their own for each write; now and then as many as have share files."""
        size = self.draw.choice([8, 50, 400, 3_000, 30_000])
        data = number.to_bytes(8) + random.Random(number).randbytes(size - 8)
        self.values[data] = number
        return data

    # --- Trouble ---

    async def _trouble(self, store: Store) -> None:
        files, draw = self.world.files, self.draw
        while True:
            await trio.sleep(draw.choice([0.5, 2, 5]))
            root = self.house.root(draw.randrange(self.house.shards))
            what = draw.choices(TROUBLE, self.weights)[0]
            if what == "out":
                self._take_out(draw.sample(range(self.house.shards), draw.randrange(1, self.house.shards)))
            elif what == "back":
                self._put_back()
            elif what in ("error", "full"):
                operation = draw.choice(["pwritev", "fdatasync", "syncfs", "fsync", "fsync_directory", "rename", "open", "allocate"])
                where = under(root) if draw.random() < 0.6 else self._any_disk
                if operation == "fsync_directory":  # no later sync makes up for it: a name may be gone, on this one disk
                    self.failed_sync, where = True, under(self.house.root(self.weak))
                self._fail(operation, where, errno.ENOSPC if what == "full" else errno.EIO)
            elif what == "read error":
                self._fail(draw.choice(["pread", "open"]), under(root), errno.EIO)
            elif what == "short":
                files.shorten(draw.choice(["pwritev", "pread"]), under(root), draw.randrange(1, 200), times=3)
            elif what == "rot":
                self._rot()
            elif what == "metastore":
                self._fail(
                    f"{COMMIT} {draw.choice(['before', 'after'])}".rpartition(":")[2],
                    lambda path: True,
                    draw.choice([errno.EIO, errno.ENOSPC]),
                )
            elif what == "clock":
                self.world.clock.advance(draw.randrange(-(10**13), 10**13))
            elif what == "rotate":
                self.history.note("the master key is rotated")
                with suppress(ZstorError):
                    await store.rotation.rotate()
            self.history.counts[f"trouble: {what}"] += what != "nothing"

    def _fail(self, operation: str, where: Where, code: int) -> None:
        times = self.draw.choice([1, 2, 3, 8])
        self.history.note(f"{operation} will fail {times} times with {errno.errorcode[code]}")
        self.world.files.fail(operation, where, code, times=times)

    def _any_disk(self, path: str) -> bool:
        return any(under(self.house.root(number))(path) for number in range(self.house.shards))

    def _take_out(self, numbers: Sequence[int]) -> None:
        if not (self.house.kind or "").startswith("one:"):
            self.history.note(f"gone: disk {', '.join(map(str, numbers))}")
            for number in numbers:
                self.house.take_out(self.world, number)

    def _put_back(self) -> None:
        self.history.note("every disk is back")
        self.house.put_back(self.world)

    def _rot(self) -> None:
        """A bit flips on the one disk that rots: one share of each object may be bad, and one log."""
        if self.rotten is None:
            return
        files = self.world.files
        root = self.house.root(self.rotten)
        try:
            found = [f"{root}/{part}/{each}" for part in ("log", "shares") for each in files.list(f"{root}/{part}")]
            paths = [path for path in found if path.endswith(".log")]
            paths += [f"{path}/{each}" for path in found if not path.endswith(".log") for each in files.list(path)]
            path = self.draw.choice(paths)
            data = files.contents(path)
            at = self.draw.randrange(len(data.rstrip(b"\0")))
        except (OSError, IndexError, ValueError):
            return
        self.history.note(f"a bit flips in {path} at {at}")
        files.damage(path, at, bytes([data[at] ^ 1 << self.draw.randrange(8)]))

    def _look(self) -> None:
        """Everything heals, and all must be there; now and then from the shards alone."""
        self._heal(all_disks=True)
        if self.draw.random() < 0.8:
            self._quiet_life()
            if self.rotten is None and self.draw.random() < 0.4:
                self._rebuild()
        self._quiet_life()

    def _heal(self, *, all_disks: bool) -> None:
        self.world.files.heal()
        if all_disks:
            self._put_back()

    # --- Judgement ---

    def _quiet_life(self) -> None:
        """All disks are there and nothing fails: every key is read, the store takes writes, and the oracles look at what is there."""
        world, history = self.world, self.history

        async def daemon() -> None:
            async with open_store(world.runtime, SimulatedEngines(world), self.house.config()) as store:
                self._settled()
                await trio.testing.wait_all_tasks_blocked()
                for key in self.keys:
                    await self._must_read(store, key)
                await store.objects.write(name("last"), BytesSource(b"life goes on"), WriteOptions(), Nobody())
                await trio.testing.wait_all_tasks_blocked()
                truth = cell(world, STORE)
                check_rows(store, truth)
                if self.rotten is None:
                    check_logs(store, truth)
                    if not self.failed_sync:
                        check_shares(store, truth, self.house, tidy=True)
                        await self._without_spare_disks(store)

        try:
            run(world, daemon)
        except Exception as error:
            raise BadState(f"in the end: {first_error(error)!r}") from error
        history.note("a quiet life")

    async def _must_read(self, store: Store, key: str) -> None:
        operation = Operation(self.history.number(), key, "get", self.history.tick())
        try:
            await self._ask(store, operation, b"", None)
        except NotFound:
            operation.value, operation.done = ABSENT, True
        except ZstorError as error:
            raise BadState(f"{key} cannot be read any more: {error}") from error
        operation.end = self.history.tick()
        self.history.operations.append(operation)

    async def _without_spare_disks(self, store: Store) -> None:
        """All that may be lost is lost, in each way: what is not owed still reads the same."""
        owed = {debt.version for debt in cell(self.world, STORE).debts}
        for key in self.keys:
            try:
                stored = store.objects.find(name(key))
            except NotFound:
                continue
            if stored.version in owed:
                continue
            expected = await store.objects.read(stored)
            for out in combinations(stored.record.placement, self.house.policy.m - self.house.policy.k):
                for number in out:
                    self.world.files.fail("*", under(self.house.root(number)), errno.EIO, times=None)
                try:
                    if await store.objects.read(stored) != expected:
                        raise BadState(f"without the disks {out} {key} has other bytes")
                finally:
                    self.world.files.heal()

    def _rebuild(self) -> None:
        """The metastore is lost, and made anew from the shards."""
        self.history.counts["rebuilds"] += 1
        world = self.world
        try:
            report = rebuild(world.runtime, SimulatedEngines(world), self.house.config(), accept_loss=False, progress=lambda *_: None)
        except StoreFault as error:
            raise BadState(f"the rebuild is refused: {error}") from error
        self.history.note(f"rebuilt {report.objects} objects")

    def _judge(self) -> None:
        for key in self.keys:
            operations = [operation for operation in self.history.operations if operation.key == key]
            if line(operations) is None:
                listed = "\n".join(map(str, _shortest(operations)))
                raise BadState(f"what clients were told of {key!r} fits on no line:\n{listed}")


def _shortest(operations: Sequence[Operation]) -> list[Operation]:
    """The first operations, in the order of their answers, that fit on no line by themselves."""
    ordered = sorted(operations, key=lambda operation: operation.begin)
    for count in range(1, len(ordered) + 1):
        if line(ordered[:count]) is None:
            return ordered[:count]
    return ordered


class Found(AssertionError):
    """A seed whose history is not what was promised."""


def history(seed: int, mutate: Mutate = intact, house: House | None = None, *, told: bool = False) -> History:
    """The history of a seed, judged; Found if it breaks a promise. In a certain house if one is given."""
    simulation = _Simulation(seed, mutate, house)
    try:
        with small_limits():
            return simulation.run()
    except BadState as error:
        raise Found(f"seed {seed}: {error}\n\nagain: python -m tests.simulation.histories {seed}") from error
    finally:
        if told:
            happened = [*simulation.history.events, *(f"{each.begin:>6} {each}" for each in simulation.history.operations)]
            sys.stdout.write("\n".join(sorted(happened, key=lambda each: int(each.split()[0]))) + "\n")


@contextmanager
def small_limits() -> Iterator[None]:
    """Logs whose segments are soon full, and share files of a few KiB: the same paths for less work."""
    level = logging.getLogger("zstor").level
    logging.getLogger("zstor").setLevel(logging.CRITICAL + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SEGMENT_BYTES", 1 << 14)
        patch.setattr(limits, "SMALL_SHARE_BYTES", 1 << 12)
        try:
            yield
        finally:
            logging.getLogger("zstor").setLevel(level)


def soak(count: int, first: int) -> int:
    """So many seeds, and what they came to."""
    total: Counter[str] = Counter()
    failed: list[int] = []
    begin = time.monotonic()
    for seed in range(first, first + count):
        try:
            done = history(seed)
        except Found as error:
            failed.append(seed)
            sys.stdout.write(f"{error}\n")
        else:
            total += done.counts
            total["operations"] += len(done.operations)
        if (seed - first + 1) % 100 == 0:
            sys.stdout.write(f"{seed - first + 1} histories, {len(failed)} broken, {time.monotonic() - begin:.0f} s\n")
            sys.stdout.flush()
    for what, number in sorted(total.items()):
        sys.stdout.write(f"{number:>10,}  {what}\n")
    sys.stdout.write(f"{count} histories from seed {first}: {len(failed)} broken {failed or ''}\n")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--soak", type=int, metavar="COUNT")
    given = parser.parse_args()
    if given.soak:
        return soak(given.soak, int.from_bytes(os.urandom(6)) if given.seed is None else given.seed)
    if given.seed is None:
        parser.error("give a seed, or --soak COUNT")
    try:
        done = history(given.seed, told=True)
    except Found as error:
        sys.stdout.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{done.hash}: {len(done.operations)} operations fit on a line\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
