"""Freeing shares that no record names any more: what overwrites, deletes and broken-off writes left, by the rows that say so.

A row goes only when its share is unlinked (or its entry is in the log) and that is durable. Rows of shards that are away wait. A share
of a version that is still named was made elsewhere: it goes only when that one is good, as it may be the last.
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
from zstor_local.model.ids import Version
from zstor_local.model.record import STORE_WIDE
from zstor_local.shards.base import Shard, ShardError
from zstor_local.store.change import Decision
from zstor_local.store.core import Core

BATCH: Final = 500  # rows freed between two commits
AGAIN_SECONDS: Final = 60.0  # after a shard that is there refused: its disk may have room again

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
        self._turn = trio.Lock()  # what one has looked at another one does not free meanwhile
        self.lock = trio.Lock()  # held while shares are freed

    def wake(self) -> None:
        self._woken.set()

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
            with trio.move_on_after(AGAIN_SECONDS if self._refused else math.inf):
                await self._woken.wait()
            self._woken, self._refused = trio.Event(), False
            while await self.free_some():
                pass

    async def free_some(self) -> int:
        """Free one batch on every shard that is there. Returns how many shares were freed."""
        async with self._turn:
            needless = {row for shard in self._pool.opened() for row in await self._needless(shard)}
            async with self.lock:
                return await self._free_batch(needless)

    async def _needless(self, shard: Shard) -> Sequence[Garbage]:
        """Of the next rows of a shard those whose shares nobody needs."""
        try:
            rows = self._metastore.garbage(shard.number, BATCH)
            if not rows:
                return rows
            named = await self._runtime.threads.run(lambda: {row for row in rows if self._metastore.named(row.share.version)})
        except ZstorError as error:
            log.error("nothing can be freed on shard %s: %s", shard.id, error)
            return []
        return [row for row in rows if row not in named or (not self.leased(row.share.version) and await self._is_needless(row))]

    async def _free_batch(self, needless: Set[Garbage]) -> int:
        freed: list[Garbage] = []
        for shard in self._pool.opened():
            try:
                rows = self._metastore.garbage(shard.number, BATCH)
            except ZstorError as error:
                log.error("nothing can be freed on shard %s: %s", shard.id, error)
                continue
            read = {row.share.version for row in rows if self.leased(row.share.version)}
            self._passed_over |= read
            for small in (True, False):
                todo = [row for row in rows if row.small is small and row.share.version not in read and row in needless]
                freed += await self._free(shard, todo, small=small)
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
