"""The list of shards: a record of the store, copied to all of them. Committing it is the moment at which a shard counts, or no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import trio

from zstor_local.errors import NotFound
from zstor_local.model.record import NO_VERSION, STORE_WIDE, Envelope, Kind
from zstor_local.model.storewide import ShardEntry, ShardsRecord
from zstor_local.shards.pool import Absent
from zstor_local.store.change import Decision, NewRecord
from zstor_local.store.core import Core
from zstor_local.store.create import SHARDS_ROW
from zstor_local.store.places import Places
from zstor_local.store.presence import NEW

Extra = Callable[[], Decision]  # what is committed together with a new list; called in the committer's thread


class ShardList:
    """What is committed of it, and the pool made what it says."""

    def __init__(self, core: Core, places: Places) -> None:
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._sealer = core.sealer
        self._hasher = core.hasher
        self._places = places

    @property
    def record(self) -> ShardsRecord:
        """The committed one."""
        return self._places.record

    def find(self, shard: str) -> ShardEntry:
        """The shard with this id, or NotFound."""
        for entry in self.record.shards:
            if entry.id == shard:
                return entry
        known = ", ".join(entry.id for entry in self.record.shards)
        raise NotFound(f"there is no shard {shard!r}", hint=f"there are {known}")

    def known(self, uid: bytes) -> ShardEntry | None:
        """The shard whose marker names it, if the store has it."""
        return next((entry for entry in self.record.shards if entry.uid == uid), None)

    async def change(self, change: Callable[[ShardsRecord], ShardsRecord], extra: Extra = Decision) -> None:
        """Commit a new list; what it comes to is done before anything else is decided."""

        def decide(current: Envelope | None) -> Decision:
            if current is None:
                raise AssertionError("a store has its list of shards")
            record = change(ShardsRecord.decode(self._sealer.open(current)))
            shards = [entry.number for entry in record.shards if self._pool.entry(entry.number) is not None]
            # A majority, but for a store that has lost it: replacing its dead shards is what brings it back.
            quorum = max(1, min(len(shards) // 2 + 1, len(self._pool.usable())))
            hashed = self._hasher.key_hash(STORE_WIDE, SHARDS_ROW)
            new = NewRecord(Kind.SHARDS, hashed, NO_VERSION, record.encode(), shards, quorum=quorum, k=quorum)
            more = extra()
            return replace(more, records={**more.records, (STORE_WIDE, SHARDS_ROW): new})

        with trio.CancelScope(shield=True):
            await self._committer.commit(STORE_WIDE, SHARDS_ROW, decide, then=self._apply)

    def _apply(self) -> None:
        """Make the pool what the committed list says."""
        envelope = self._metastore.get(STORE_WIDE, SHARDS_ROW)
        if envelope is None:
            raise AssertionError("a store has its list of shards")
        record = ShardsRecord.decode(self._sealer.open(envelope))
        self._places.record = record
        listed = {entry.number: entry for entry in record.shards}
        for number in self._pool.numbers:
            if number not in listed:
                self._pool.drop(number)
        for number, entry in listed.items():
            if self._pool.get(number) is None or self._pool.entry(number) != entry:
                self._relist(entry)
        self._pool.drain(entry.number for entry in record.shards if entry.draining)

    def _relist(self, entry: ShardEntry) -> None:
        """The shard as it is listed now: opened anew at the next look where something other than its state has changed."""
        shard = self._pool.get(entry.number)
        if shard is not None and replace(shard.entry, draining=entry.draining) == entry:
            return
        self._pool.put(Absent(entry, "missing", NEW))
