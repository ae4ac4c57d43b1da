"""What goes wrong in a history, and what the daemon is asked to do meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from typing import Final

import pytest
import trio
import trio.testing

from tests.simulation.clients import OTHER, Clients
from tests.simulation.content import PAGE
from tests.simulation.engines import COMMIT
from tests.simulation.ground import Ground
from tests.simulation.points import Where, under
from zstor_local.errors import ZstorError
from zstor_local.model.ids import ShareId
from zstor_local.shards.base import Segments, Shard
from zstor_local.shards.pool import ShardPool
from zstor_local.store.caller import Nobody
from zstor_local.store.jobs import Job
from zstor_local.store.pace import unpaced
from zstor_local.store.store import Store

LONG: Final = 100.0  # seconds after which nobody waits any more for upkeep to come to its end


class Trouble:
    """Comes every few seconds of a life, of the kinds that the weights name."""

    def __init__(self, ground: Ground, weights: Mapping[str, int]) -> None:
        self._ground = ground
        self._weights = {kind: each * (1 if kind == "back" else ground.draw.choice([0, 1, 1, 4])) for kind, each in weights.items()}

    async def run(self) -> None:
        ground = self._ground
        while True:
            await trio.sleep(ground.draw.choice([0.5, 2, 5]))
            what = ground.draw.choices([*self._weights], [*self._weights.values()])[0] if any(self._weights.values()) else "back"
            getattr(self, f"_{what}".replace(" ", "_"))(ground.draw.choice(ground.disks))
            ground.history.counts[f"trouble: {what}"] += 1

    def _out(self, _: str) -> None:
        ground = self._ground
        if ground.apart:
            gone = ground.draw.sample(ground.disks, ground.draw.choice([1, 1, 2, ground.draw.randrange(1, ground.house.shards)]))
            ground.history.note(f"gone: {', '.join(gone)}")
            for disk in gone:
                ground.world.files.take_out(disk)

    def _back(self, _: str) -> None:
        self._ground.history.note("every disk is back")
        self._ground.put_back()

    def _hang(self, disk: str) -> None:
        """A disk does not answer until every disk is back, and does then what it was asked."""
        if self._ground.apart:
            self._ground.history.note(f"hangs: {disk}")
            self._ground.world.files.hang(under(disk))

    def _error(self, disk: str, code: int = errno.EIO) -> None:
        ground = self._ground
        operation = ground.draw.choice(["pwritev", "fdatasync", "syncfs", "fsync", "fsync_directory", "rename", "open", "allocate"])
        where = under(disk) if ground.draw.random() < 0.6 else self._any_disk
        if operation == "fsync_directory":
            where = self._weak_disk
        if operation == "open":
            ground.unread.update(ground.disks)
        self._fail(operation, where, code)

    def _full(self, disk: str) -> None:
        """A disk is full, for once or for long."""
        if self._ground.draw.random() < 0.5:
            self._error(disk, errno.ENOSPC)
            return
        for operation in ("pwritev", "allocate"):
            self._fail(operation, under(disk), errno.ENOSPC, times=40)

    def _crowded(self, _: str) -> None:
        """Something else fills a disk, but for so much, until every disk is back."""
        ground = self._ground
        disk, left = ground.draw.choice(ground.mounts), ground.draw.choice([0, 10_000, 100_000, 1_000_000])
        ground.history.note(f"only {left} bytes are left on {disk}")
        ground.world.files.fill(disk, left)

    def _read_only(self, _: str) -> None:
        """As a file system that found an error in itself is mounted."""
        disk = self._ground.draw.choice(self._ground.mounts)
        self._ground.history.note(f"read-only: {disk}")
        self._ground.world.files.set_read_only(disk)

    def _read_error(self, disk: str) -> None:
        self._ground.unread.add(disk)
        self._fail(self._ground.draw.choice(["pread", "preadv", "preadv_nowait", "open"]), under(disk), errno.EIO)

    def _bad_page(self, _: str) -> None:
        self._ground.hide_pages(self._ground.draw.choice([0.1, 0.5]))

    def _short(self, disk: str) -> None:
        draw = self._ground.draw
        self._ground.world.files.shorten(draw.choice(["pwritev", "pread", "preadv"]), under(disk), draw.randrange(1, 200), times=3)

    def _metastore(self, _: str) -> None:
        """Its disk is full and it refuses, or nobody knows what came of a commit."""
        draw = self._ground.draw
        operation = f"{COMMIT} {draw.choice(['before', 'after'])}".rpartition(":")[2]
        self._fail(operation, lambda path: True, draw.choice([errno.EIO, errno.ENOSPC]))

    def _clock(self, _: str) -> None:
        self._ground.world.clock.advance(self._ground.draw.randrange(-(10**13), 10**13))

    def _copy(self, _: str) -> None:
        self._ground.copy_shard()

    def _rot(self, _: str) -> None:
        """A bit flips on the one disk that rots, or it cannot read a page: one share of each object may be bad, and one log."""
        ground, root = self._ground, self._ground.rotten
        if root is None:
            return
        files = ground.world.files
        try:
            found = [f"{root}/{part}/{each}" for part in ("log", "shares") for each in files.list(f"{root}/{part}")]
            paths = [path for path in found if path.endswith(".log")]
            paths += [f"{path}/{each}" for path in found if not path.endswith(".log") for each in files.list(path)]
            path = ground.draw.choice(paths)
            data = files.contents(path)
            at = ground.draw.randrange(len(data.rstrip(b"\0")))
        except (OSError, IndexError, ValueError):
            return
        ground.flipped = True
        hides_a_segment = path.endswith(".log") and at < PAGE  # of a log that has no other one nothing is left: the shard has failed
        if not hides_a_segment and ground.draw.random() < 0.5:
            ground.history.note(f"a page of {path} cannot be read any more, at {at}")
            ground.history.counts["a bad page"] += 1
            files.spoil(path, at)
            return
        ground.history.note(f"a bit flips in {path} at {at}")
        files.damage(path, at, bytes([data[at] ^ 1 << ground.draw.randrange(8)]))

    def _fail(self, operation: str, where: Where, code: int, times: int | None = None) -> None:
        times = times or self._ground.draw.choice([1, 2, 3, 8])
        self._ground.history.note(f"{operation} will fail {times} times with {errno.errorcode[code]}")
        self._ground.world.files.fail(operation, where, code, times=times)

    def _weak_disk(self, path: str) -> bool:
        """Asked when a sync of a directory is about to fail."""
        struck = under(self._ground.weak)(path)
        self._ground.failed_sync |= struck
        return struck

    def _any_disk(self, path: str) -> bool:
        return any(under(disk)(path) for disk in self._ground.disks)


class Upkeep:
    """What is asked of the daemon beside reads and writes, one after the other; each may be what the power is cut in."""

    def __init__(self, ground: Ground, clients: Clients, weights: Mapping[str, int]) -> None:
        self._ground = ground
        self._clients = clients
        self._weights = {kind: each * ground.draw.choice([0, 1, 1, 4]) for kind, each in weights.items()}
        self._pause = ground.draw.choice([(0,), (0, 0.5, 3)])
        self._cut = ground.draw.choice([0.0, 0.05, 0.2])
        # Whether shards are removed by force also where fewer stay than objects have shares: not where a bit may flip in the last one.
        self._few = ground.draw.random() < 0.3 and ground.rotten is None
        if self._few:
            self._weights["remove"] = sum(self._weights.values()) + 1

    async def run(self, store: Store) -> None:
        """Until it is cancelled."""
        ground = self._ground
        if not any(self._weights.values()):
            return
        for _ in range(ground.draw.randrange(1, 8)):
            await trio.sleep(ground.draw.choice(self._pause))
            what = ground.draw.choices([*self._weights], [*self._weights.values()])[0]
            work: Callable[[Store], Awaitable[object]] = getattr(self, f"_{what}".replace(" ", "_"))
            if ground.draw.random() < self._cut:
                ground.crash_soon()
            ground.history.counts[f"upkeep: {what}"] += 1
            ground.history.note(f"begins: {what}")
            with self._running(what), trio.move_on_after(LONG), suppress(ZstorError):
                await work(store)
                ground.history.note(f"ended: {what}")

    @contextmanager
    def _running(self, what: str) -> Iterator[None]:
        try:
            yield
        finally:
            self._ground.history.counts[f"power cut in: {what}"] += self._ground.world.files.dead

    async def _compact(self, store: Store) -> None:
        await compact_some(self._ground, store)

    async def _scrub(self, store: Store) -> None:
        await scrub(store)

    async def _repair(self, store: Store) -> None:
        await store.repair_all.run(Nobody())

    async def _collect(self, store: Store) -> None:
        await store.collect.everything(Nobody(), dry_run=False, accept_loss=False, spend=unpaced)

    async def _add(self, store: Store) -> None:
        """Now and then a place that the store has: a shard that is being drained is taken back."""
        taken_back = self._ground.exchanged is None and self._ground.draw.random() < 0.2
        if place := self._ground.draw.choice(self._ground.disks) if taken_back else spare_disk(self._ground, store):
            await store.membership.add(place, None)

    async def _replace(self, store: Store) -> None:
        if len(store.places.record.shards) > 1 and (spare := spare_disk(self._ground, store)):
            await store.membership.replace(self._shard(store), spare, Nobody())

    async def _remove(self, store: Store) -> None:
        """Now and then two at the same moment."""
        draw = self._ground.draw
        force = draw.random() < (0.7 if self._few else 0.3)
        if staying(store) <= self._ground.house.policy.m and not (self._few and force):
            return
        chosen = [self._shard(store) for _ in range(draw.choice([1, 1, 2]))] if len(store.places.record.shards) > 1 else []

        async def remove(shard: str) -> None:
            with suppress(ZstorError):
                await store.membership.remove(shard, Nobody(), force=force)

        async with trio.open_nursery() as nursery:
            for shard in sorted({*chosen}):
                nursery.start_soon(remove, shard)

    async def _rotate(self, store: Store) -> None:
        await ended((await store.rotation.rotate())[0])

    async def _rewrite(self, store: Store) -> None:
        self._clients.rewritten = True
        await ended(await store.rewriting.start(self._ground.draw.choice(["default", OTHER])))

    def _shard(self, store: Store) -> str:
        """Any but the first: a rebuild begins at a place that the configuration names."""
        return self._ground.draw.choice([entry.id for entry in store.places.record.shards if entry.number])


def spare_disk(ground: Ground, store: Store) -> str | None:
    """A disk that no shard lies on; none while two are exchanged, as a shard is looked for where it was added."""
    if ground.exchanged is not None:
        return None
    used = [store.places.place(entry) for entry in store.places.record.shards]
    free = [disk for disk in ground.disks if not any(map(under(disk), used))]
    return ground.draw.choice(free) if free else None


def staying(store: Store) -> int:
    """How many shards the store has that are not being drained."""
    return sum(not entry.draining for entry in store.places.record.shards)


async def compact_some(ground: Ground, store: Store) -> None:
    """The segments that are dead enough, of all logs or of some, or a part of those: which they are depends on what else lies in them,
    and on where the last compaction was broken off. Now and then all that may go goes while a disk cannot read a part of its log.
    """
    if ground.draw.random() < 0.3:
        ground.hide_pages(0.3)
        while await store.compaction.compact(unpaced, least=0.001):
            pass
        return
    least, part = ground.draw.choice([0.001, 0.001, 0.3, 0.5]), ground.draw.choice([0.3, 1.0])
    shards = store.pool.opened()
    chosen = ground.draw.sample(shards, ground.draw.randrange(1, len(shards) + 1)) if shards else []
    survey = store.compaction._survey

    def survey_some(segments: Segments, number: int, unwanted: Set[ShareId]) -> tuple[float, int]:
        return survey(segments, number, unwanted) if ground.draw.random() < part else (0.0, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.compaction, "_pool", _Some(store.pool, chosen))
        patch.setattr(store.compaction, "_survey", survey_some)
        await store.compaction.compact(unpaced, least=least)


async def compacted(ground: Ground, store: Store) -> None:
    """The same in a store at rest; then every disk can read all of its log again."""
    await trio.testing.wait_all_tasks_blocked()
    await compact_some(ground, store)
    await trio.testing.wait_all_tasks_blocked()
    ground.heal(all_disks=True)


class _Some:
    """A pool of which only some shards are looked at."""

    def __init__(self, pool: ShardPool, chosen: Sequence[Shard]) -> None:
        self._pool = pool
        self._chosen = chosen

    def opened(self) -> Sequence[Shard]:
        return self._chosen

    def __getattr__(self, name: str) -> object:
        return getattr(self._pool, name)


async def ended(job: Job) -> None:
    while job.running:
        await job.news().wait()


async def scrub(store: Store) -> None:
    """A pass, to its end."""
    await store.scrub.start()
    while store.scrub.status().state != "idle":
        await store.scrub.news().wait()
