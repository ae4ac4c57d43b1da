"""Looking at the shares of one version: which of them are there, and whether each of their blocks opens."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Literal

from zstor_local.model.ids import ShareId
from zstor_local.model.policy import Policy
from zstor_local.model.record import ObjectRecord
from zstor_local.runtime import Runtime
from zstor_local.shards.base import ShardError, ShareMissing
from zstor_local.shards.pool import ShardPool
from zstor_local.store.batches import Batches
from zstor_local.store.caller import Caller
from zstor_local.store.shares import ShareBad, ShareState, VersionShares

CHUNKS_AT_ONCE = 8  # in one thread call

Status = Literal["optimal", "valid", "invalid"]


@dataclass(frozen=True, slots=True)
class Checked:
    """The state of each share, by index. optimal: all are good; valid: at least k; invalid: fewer."""

    status: Status
    states: Sequence[ShareState]

    @classmethod
    def of(cls, states: Sequence[ShareState], policy: Policy) -> Checked:
        good = states.count("ok")
        return cls("optimal" if good == len(states) else "valid" if good >= policy.k else "invalid", states)

    def without(self, owed: Set[int], policy: Policy) -> Checked:
        """The same, but that those which look good are missing: nobody knows whether they outlast a power loss."""
        return Checked.of(["missing" if index in owed and state == "ok" else state for index, state in enumerate(self.states)], policy)


class Checker:
    """Looks at shares, in worker threads; changes nothing."""

    def __init__(self, runtime: Runtime, pool: ShardPool, batches: Batches) -> None:
        self._runtime = runtime
        self._pool = pool
        self._batches = batches

    async def check(self, record: ObjectRecord, shares: VersionShares, caller: Caller, *, fast: bool = False) -> Checked:
        """Look at every share: whether it is there and long enough (`fast`), or open each of its blocks."""
        states: list[ShareState] = []
        if record.small and self._batches.is_near(record.placement):
            states = await self._batches.run(record.placement, partial(self._small_states, record, shares, fast))
        else:  # other machines are asked one after the other, and a cancel acts between them
            for index in range(record.policy.m):
                states.append(await self.share_state(record, shares, index, fast=fast))
                caller.progress(index + 1, record.policy.m)
        return Checked.of(states, record.policy)

    async def share_state(self, record: ObjectRecord, shares: VersionShares, index: int, *, fast: bool = False) -> ShareState:
        """Look at one of them."""
        if record.small:
            return await self._batches.run([record.placement[index]], partial(self._small_state, record, shares, index, fast))
        try:
            await self._runtime.threads.run(self._look, record, shares, index)
            if not fast:
                chunks = range(len(await self._runtime.threads.run(shares.table)))
                for first in chunks[::CHUNKS_AT_ONCE]:
                    await self._runtime.threads.run(self._open_blocks, shares, index, chunks[first : first + CHUNKS_AT_ONCE])
        except ShareBad as bad:
            return await self._runtime.threads.run(self._fault, shares, index, bad)
        return "ok"

    def _small_states(self, record: ObjectRecord, shares: VersionShares, fast: bool) -> list[ShareState]:
        return [self._small_state(record, shares, index, fast) for index in range(record.policy.m)]

    def _small_state(self, record: ObjectRecord, shares: VersionShares, index: int, fast: bool) -> ShareState:
        try:
            self._look(record, shares, index, whole=fast)  # else the last byte is read with its block
            if not fast:
                self._open_blocks(shares, index, range(len(shares.table())))
        except ShareBad as bad:
            return self._fault(shares, index, bad)
        return "ok"

    def _fault(self, shares: VersionShares, index: int, bad: ShareBad) -> ShareState:
        return "stale" if bad.state == "corrupt" and self._is_stale(shares, index) else bad.state

    def _look(self, record: ObjectRecord, shares: VersionShares, index: int, *, whole: bool = True) -> None:
        """The share is there, on a shard that is there, and if that is asked reaches to its last byte."""
        shard = self._pool.readable(record.placement[index])
        if shard is None:
            raise shares.away(index)
        if shard.check() in ("missing", "failed"):
            raise ShareBad("unreachable")
        reader = shares.reader(index)
        try:
            if not record.share_bytes:
                if not shard.has(ShareId(shares.version, index), small=record.small):
                    raise ShareBad("missing")
            elif whole and not len(reader.read(record.share_bytes - 1, 1)):
                raise ShareBad("corrupt")
        except ShareMissing:
            raise ShareBad("missing") from None
        except ShardError as error:
            raise shares.told(index, error) from None
        if record.table_blob:
            shares.sealed_table(index)

    def _open_blocks(self, shares: VersionShares, index: int, chunks: range) -> None:
        for chunk in chunks:
            shares.block(index, chunk)

    def _is_stale(self, shares: VersionShares, index: int) -> bool:
        """Another version's share lies where this one's should."""
        try:
            claimed = shares.reader(index).claimed_version()
        except (ShareBad, ShareMissing, ShardError):
            return False
        return claimed is not None and claimed != shares.version
