"""Freeing shares that no record names any more: what overwrites, deletes and broken-off writes left, by the rows that say so.

A row goes only when its share is unlinked (or its entry is in the log) and that is durable. Rows of shards that are away wait. A share
of a version that is still named was made elsewhere: it goes only when that one is good, as it may be the last. What cannot go now keeps
nothing behind it waiting.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Final

import trio

from zstor_local.errors import ZstorError
from zstor_local.metastore.base import Garbage
from zstor_local.model.ids import NamespaceId, ShareId, Version
from zstor_local.model.record import STORE_WIDE
from zstor_local.shards.base import Shard, ShardError
from zstor_local.store.change import Decide, Decision
from zstor_local.store.core import Core
from zstor_local.store.several import for_each

BATCH: Final = 500  # rows freed between two commits
AGAIN_SECONDS: Final = 60.0  # after a shard that is there refused, as its disk may have room again; and before the rest is looked at

log = logging.getLogger("zstor.store")


class Freeing:
    """One task for a store; `wake` it when there may be something to free."""

    def __init__(self, core: Core, is_needless: Callable[[Garbage], Awaitable[bool]]) -> None:
        """`is_needless` tells of a share whose version is still named whether it may go."""
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._is_needless = is_needless
        self._woken = trio.Event()
        self._leases: Counter[Version] = Counter()
        self._passed_over: set[Version] = set()  # that have shares to free and are being read
        self._refused = False
        self._untaken: list[tuple[NamespaceId, Decide]] = []  # changes that make rows, and that the metastore did not take
        self._first: dict[int, ShareId] = {}  # by shard, where the rows begin that are looked at next, if not with the first
        self._turn = trio.Lock()  # what one has looked at another one does not free meanwhile
        self.lock = trio.Lock()  # held while shares are freed

    def wake(self) -> None:
        self._woken.set()

    def later(self, space: NamespaceId, decide: Decide) -> None:
        """Have a change committed that makes rows, and that the metastore did not take: its disk may have room again."""
        self._untaken.append((space, decide))
        self.wake()

    @contextmanager
    def lease(self, version: Version) -> Iterator[None]:
        """While it is held, the version's shares are not freed."""
        self._leases[version] += 1
        try:
            yield
        finally:
            self._leases[version] -= 1
            if not self._leases[version]:
                del self._leases[version]
                if version in self._passed_over:
                    self._passed_over.discard(version)
                    self.wake()

    def leased(self, version: Version) -> bool:
        """Whether somebody reads this version now."""
        return version in self._leases

    async def run(self) -> None:
        while True:
            with trio.move_on_after(AGAIN_SECONDS if self._refused or self._first or self._untaken else math.inf):
                await self._woken.wait()
            self._woken, self._refused = trio.Event(), False
            while await self.free_some():
                pass

    async def free_some(self) -> int:
        """Free one batch on every shard that is there. Returns how many shares were freed."""
        async with self._turn:
            await self._make_rows()
            needless = {row for shard in self._pool.opened() for row in await self._needless(shard)}
            async with self.lock:
                return await self._free_batch(needless)

    async def _make_rows(self) -> None:
        untaken, self._untaken = self._untaken, []
        for space, decide in untaken:
            try:
                await self._committer.commit(space, "", decide)
            except ZstorError:
                self._untaken.append((space, decide))

    async def _needless(self, shard: Shard) -> Sequence[Garbage]:
        """Of the next rows of a shard those whose shares nobody needs. None if there are none at all, or where many of versions that
        are named have to stay: to find that out shares are read, so the others have to wait for the next look.
        """
        looked_at, whole = 0, shard.number not in self._first
        while looked_at < BATCH:
            try:
                rows = self._next(shard.number)
                named = await self._named(rows)
            except ZstorError as error:
                log.error("nothing can be freed on shard %s: %s", shard.id, error)
                return []
            needless = [row for row in rows if row not in named and not self._is_read(row)]
            needless += await self._made_elsewhere([row for row in rows if row in named])
            at_end = shard.number not in self._first
            if needless or (at_end and whole):
                return needless
            looked_at, whole = looked_at + len(named), whole or at_end  # then those before where it began
        return []

    async def _named(self, rows: Sequence[Garbage]) -> Set[Garbage]:
        """Those of versions that are still named."""
        if not rows:
            return set()
        return await self._runtime.threads.run(lambda: {row for row in rows if self._metastore.named(row.share.version, 1)})

    async def _made_elsewhere(self, rows: Sequence[Garbage]) -> Sequence[Garbage]:
        """Of rows whose versions are named those whose shares nobody needs."""
        needless: list[Garbage] = []

        async def look(row: Garbage) -> None:
            if not self._is_read(row) and await self._is_needless(row):
                needless.append(row)

        await for_each([row for row in rows if row.small], look)
        for row in rows:
            if not row.small:  # of these each look keeps a worker thread for long
                await look(row)
        return needless

    def _next(self, number: int) -> Sequence[Garbage]:
        """The next rows of a shard."""
        rows = self._metastore.garbage(number, BATCH, self._first.pop(number, None))
        if len(rows) == BATCH:
            last = rows[-1].share
            self._first[number] = ShareId(last.version, last.index + 1)
        return rows

    def _is_read(self, row: Garbage) -> bool:
        """Whether somebody reads that version; the end of that wakes."""
        if self.leased(row.share.version):
            self._passed_over.add(row.share.version)
        return self.leased(row.share.version)

    async def _free_batch(self, needless: Set[Garbage]) -> int:
        freed: list[Garbage] = []
        for shard in self._pool.opened():
            first = min((row.share for row in needless if row.shard == shard.number), default=None)
            if first is None:
                continue
            try:
                rows = self._metastore.garbage(shard.number, BATCH, first)
            except ZstorError as error:
                log.error("nothing can be freed on shard %s: %s", shard.id, error)
                continue
            rows = [row for row in rows if row in needless and not self._is_read(row)]
            for small in (True, False):
                freed += await self._free(shard, [row for row in rows if row.small is small], small=small)
        if freed:
            try:
                await self._committer.commit(STORE_WIDE, "", lambda _: Decision(garbage_freed=freed))
            except ZstorError:
                return 0  # the rows stay; what they name is freed again, which is fine
        return len(freed)

    async def _free(self, shard: Shard, rows: Sequence[Garbage], *, small: bool) -> Sequence[Garbage]:
        """The rows whose shares are durably gone. Small ones are the committer's thread's to free: it owns the log's end."""
        if not rows:
            return []

        def free() -> None:
            shard.free([row.share for row in rows], small=small)
            shard.settle(small=small)

        run = self._runtime.threads.run_commit if small else self._runtime.threads.run
        try:
            await run(free)
        except ShardError:
            self._refused = True
            return []
        return rows
