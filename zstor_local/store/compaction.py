"""Compaction of the logs while they are used: one segment at a time, the most dead first; what counts is copied, then the segment goes.

What a log says of a key is its newest entry there, and that never becomes older by compaction. An entry may go if
- its small share, if it has one, is none that a record puts here, or lies elsewhere in the log, or is to be freed and nobody reads it
  (a full log cannot say so), and
- its record is not the newest of its key, and the log holds that newest one: where it does not, that is appended first;
- or it is a tombstone that no shard can need: nobody is owed a record, nothing of its version is still to be freed, and this log has
  nothing older of its key;
- or it frees a share of which nothing lies here any more;
- or it voids sequences of which nothing lies here, and all shards are there and can be read, so that each has been told.
Everything else stays: what is not known, what does not open, and segments in which something is damaged. Where the disk cannot read all
of the other segments, so does whatever buries, frees or voids.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import CorruptRecord, ZstorError
from zstor_local.metastore.base import Metastore
from zstor_local.model.ids import KeyHash, NamespaceId, ShareId, Version
from zstor_local.model.record import STORE_WIDE, Envelope, Kind
from zstor_local.model.storewide import VoidRecord
from zstor_local.shards.base import Entry, ScannedEntry, Segments, Shard, ShardError
from zstor_local.shards.segment import Freed, Located
from zstor_local.store.core import Core
from zstor_local.store.freeing import Freeing
from zstor_local.store.pace import Pace, Spend
from zstor_local.store.rownames import row_name_of
from zstor_local.store.stored import naming, open_void
from zstor_local.store.strays import Stray, put_here

EVERY: Final = 600.0  # seconds between two looks for something to compact
RATE: Final = 20 * limits.MIB  # bytes a second that are read
LEAST_DEAD: Final = 0.5  # of a segment, for compacting it
BATCH: Final = 64  # entries that are copied between two turns of the committer
MANY: Final = 100_000  # rows of garbage: above that no tombstone is looked at

log = logging.getLogger("zstor.store")

_Key = tuple[NamespaceId, KeyHash]


@dataclass(slots=True)
class _Elsewhere:
    """What the other segments of a log hold that the entries of one depend on."""

    newest: set[_Key] = field(default_factory=set)  # keys whose newest record lies there
    keys: set[_Key] = field(default_factory=set)  # keys of which any record lies there
    shares: set[ShareId] = field(default_factory=set)
    sequences: list[int] = field(default_factory=list)
    unread: bool = False  # something lies there that the disk cannot read, now: what buries, frees or voids has to stay


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What to look for in the other segments."""

    keys: frozenset[_Key]
    shares: frozenset[ShareId]
    voids: tuple[VoidRecord, ...]


class Compaction:
    """One task for a store; `wake` it when much has been freed, or a disk is full."""

    def __init__(self, core: Core, freeing: Freeing) -> None:
        self._core = core
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._sealer = core.sealer
        self._freeing = freeing
        self._pace = Pace(RATE)
        self._woken = trio.Event()
        self._turn = trio.Lock()
        self._in_vain: dict[tuple[int, int], float] = {}  # segments that held less that is dead than it seemed, and how much it seemed

    def wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        while True:
            with trio.move_on_after(EVERY):
                await self._woken.wait()
            self._woken = trio.Event()
            await self.compact(self._pace.spend)

    async def compact(self, spend: Spend, *, least: float = LEAST_DEAD) -> int:
        """Compact every segment of which at least that part is dead. Returns how many segments went."""
        removed = 0
        async with self._turn:
            for shard in self._pool.opened():
                try:
                    removed += await self._compact_shard(shard, spend, least)
                except (ShardError, ZstorError) as error:
                    log.warning("the log of shard %s was not compacted: %s", shard.id, error)
        if removed:
            self._freeing.wake()
        return removed

    async def _compact_shard(self, shard: Shard, spend: Spend, least: float) -> int:
        segments = shard.segments()
        if segments is None or shard.check() not in ("ok", "full") or self._committer.failure is not None:
            return 0
        found: list[tuple[float, int]] = []
        unwanted = await self._runtime.threads.run(self._unwanted, shard.number)
        for number in await self._runtime.threads.run(segments.sealed):
            dead, size = await self._runtime.threads.run(self._survey, segments, number, unwanted)
            await spend(size)
            if dead >= least and dead > self._in_vain.get((shard.number, number), 0.0):
                found.append((dead, number))
        removed = 0
        for dead, number in sorted(found, reverse=True):
            if await self._compact_segment(shard.number, segments, number, spend, least):
                removed += 1
                self._in_vain.pop((shard.number, number), None)
            else:
                self._in_vain[shard.number, number] = dead
        return removed

    # --- What is dead, at a glance ---

    def _survey(self, segments: Segments, number: int, unwanted: Set[ShareId]) -> tuple[float, int]:
        """The part of a segment that seems dead, and its bytes. A segment without entries is all dead, a damaged one not at all."""
        entries = segments.read(number)
        if entries is None:
            return 0.0, limits.SEGMENT_BYTES
        total = sum(located.end - located.offset for located in entries)
        current = self._current(entries)
        if self._metastore.debts_count() == 0:  # tombstones may have had their time
            current -= {envelope.sequence for envelope in _envelopes(entries) if _is_tombstone(envelope)}
        live = (
            each
            for each in entries
            if _sequence(each) in current or (segments.lies_at(number, each) and _small_share(each) not in unwanted)
        )
        return (1.0 if not total else 1 - sum(each.end - each.offset for each in live) / total), total

    def _current(self, entries: Sequence[Located]) -> set[int]:
        """The sequences of entries that are the newest of their rows, with what is not committed yet."""
        asked: dict[NamespaceId, list[int]] = {}
        for envelope in _envelopes(entries):
            asked.setdefault(envelope.namespace, []).append(envelope.sequence)
        return {sequence for space, sequences in asked.items() for sequence in self._metastore.newest(space, sequences)}

    # --- One segment ---

    def _unwanted(self, shard: int) -> Set[ShareId]:
        """The small shares that are to be freed there, as the metastore has it now, but for those that somebody reads."""
        rows = self._metastore.garbage(shard, MANY)
        return {row.share for row in rows if row.small and not self._freeing.leased(row.share.version)}

    async def _compact_segment(self, shard: int, segments: Segments, number: int, spend: Spend, least: float) -> bool:
        entries = await self._runtime.threads.run(segments.read, number)
        if entries is None:
            return False
        wanted = await self._runtime.threads.run(self._wanted, entries)
        elsewhere, unread = _Elsewhere(), segments.unread()
        walk = _Walk(self._metastore, segments.all_but(number), wanted, elsewhere)
        while (size := await self._runtime.threads.run(walk.step)) is not None:
            await spend(size)
        elsewhere.unread = segments.unread() != unread
        unwanted = await self._runtime.threads.run(self._unwanted, shard)
        work = await self._runtime.threads.run(_Segment, self._core, shard, segments, number, unwanted, entries, elsewhere)
        dead = await self._runtime.threads.run(work.dead_bytes, entries)
        total = sum(located.end - located.offset for located in entries)
        if total and dead < least * total:
            return False
        for start in range(0, len(entries), BATCH):
            batch = entries[start : start + BATCH]
            await self._runtime.threads.run_commit(work.carry, batch)
            await spend(sum(located.end - located.offset for located in batch))
        await self._runtime.threads.run_commit(work.finish)
        return True

    def _wanted(self, entries: Sequence[Located]) -> _Wanted:
        keys = frozenset((envelope.namespace, envelope.key_hash) for envelope in _envelopes(entries) if envelope.kind is not Kind.VOID)
        shares = frozenset(located.item.share for located in entries if isinstance(located.item, Freed))
        opened = (open_void(self._sealer, envelope) for envelope in _envelopes(entries) if envelope.kind is Kind.VOID)
        return _Wanted(keys, shares, tuple(void for void in opened if void is not None))


class _Walk:
    """Over the other segments, a stretch in each step."""

    def __init__(
        self, metastore: Metastore, entries: Iterator[tuple[ScannedEntry | Freed, int]], wanted: _Wanted, found: _Elsewhere
    ) -> None:
        self._metastore = metastore
        self._entries = entries
        self._wanted = wanted
        self._found = found

    def step(self) -> int | None:
        """Look at the next entries. Returns their bytes; None at the end."""
        seen = size = 0
        asked: dict[NamespaceId, dict[int, _Key]] = {}
        for item, length in self._entries:
            seen, size = seen + 1, size + length
            if isinstance(item, ScannedEntry):
                self._look(item, asked)
            if seen == BATCH * 8:
                break
        for space, sequences in asked.items():
            for sequence in self._metastore.newest(space, [*sequences]):
                self._found.newest.add(sequences[sequence])
        return size if seen else None

    def _look(self, item: ScannedEntry, asked: dict[NamespaceId, dict[int, _Key]]) -> None:
        envelope = item.entry.envelope
        key = envelope.namespace, envelope.key_hash
        if key in self._wanted.keys and envelope.kind is not Kind.VOID:
            self._found.keys.add(key)
            asked.setdefault(envelope.namespace, {})[envelope.sequence] = key
        if item.entry.share_index is not None:
            share = ShareId(envelope.version, item.entry.share_index)
            if share in self._wanted.shares:
                self._found.shares.add(share)
        if any(void.covers(envelope.sequence) for void in self._wanted.voids):
            self._found.sequences.append(envelope.sequence)


class _Segment:
    """One segment being compacted. `carry` and `finish` are the committer's thread's: nothing is committed while they look and copy."""

    def __init__(
        self,
        core: Core,
        shard: int,
        segments: Segments,
        number: int,
        unwanted: Set[ShareId],
        entries: Sequence[Located],
        elsewhere: _Elsewhere,
    ) -> None:
        self._metastore = core.metastore
        self._committer = core.committer
        self._sealer = core.sealer
        self._pool = core.pool
        self._shard = shard
        self._segments = segments
        self._number = number
        self._unwanted = unwanted
        self._dropped = [share for share in map(_small_share, entries) if share is not None and share in unwanted]
        self._elsewhere = elsewhere
        self._here: dict[_Key, list[int]] = {}  # the sequences of each key in this segment
        for envelope in _envelopes(entries):
            self._here.setdefault((envelope.namespace, envelope.key_hash), []).append(envelope.sequence)
        self._current = {
            sequence for key, sequences in self._here.items() for sequence in self._metastore.newest(key[0], sequences)
        }  # when the walk was done: what was the newest then and is not now is kept
        self._told: set[_Key] = set()  # keys whose newest record was appended on the way
        self._settled = self._nothing_is_owed()
        self._pending = self._to_be_freed()

    def dead_bytes(self, entries: Sequence[Located]) -> int:
        return sum(located.end - located.offset for located in entries if self._keep(located, look_only=True) is None)

    def carry(self, batch: Sequence[Located]) -> None:
        """Copy of a stretch what counts now."""
        items: list[ScannedEntry | Freed] = []
        for located in batch:
            kept = self._keep(located, look_only=False)
            if kept is not None:
                items += kept
        if items:
            self._segments.copy(items)

    def finish(self) -> None:
        """Make the copies durable, then take the segment away, and what only the metastore knows to be gone with it."""
        self._segments.flush()
        self._segments.remove(self._number, self._dropped)

    def _keep(self, located: Located, *, look_only: bool) -> Sequence[ScannedEntry | Freed] | None:
        """What is to be copied for an entry; None for nothing."""
        item = located.item
        if isinstance(item, Freed):
            there = self._elsewhere.unread or item.share in self._elsewhere.shares
            return [item] if there and not self._segments.holds(item.share) else None
        envelope = item.entry.envelope
        share = _small_share(located)
        if (self._segments.lies_at(self._number, located) or self._is_missed(share)) and not self._may_go(share):
            return [item]
        bare = item if item.entry.share_index is None else ScannedEntry(Entry(envelope), item.committed)
        if envelope.kind is Kind.VOID:
            return None if self._void_is_done(envelope) else [bare]
        key = envelope.namespace, envelope.key_hash
        if self._metastore.newest(envelope.namespace, [envelope.sequence]):
            return None if self._may_be_forgotten(envelope, key) else [bare]
        if envelope.sequence in self._current:
            return [bare]
        if key in self._elsewhere.newest or key in self._told or any(sequence in self._current for sequence in self._here[key]):
            return None
        return self._replaced(envelope, key, bare, look_only=look_only)

    def _is_missed(self, share: ShareId | None) -> bool:
        """Whether a record puts a share here that the index does not know: its disk could not be read when the index was made."""
        if share is None or self._segments.holds(share):
            return False
        try:
            return put_here(naming(self._metastore, share.version), Stray(self._shard, share, small=True), self._sealer)
        except CorruptRecord:
            return True

    def _may_go(self, share: ShareId | None) -> bool:
        """Whether a share is to be freed whatever becomes of others: not one that was made elsewhere, which may be the last."""
        return share is not None and share in self._unwanted and not self._metastore.named(share.version, 1)

    def _replaced(self, envelope: Envelope, key: _Key, bare: ScannedEntry, *, look_only: bool) -> Sequence[ScannedEntry] | None:
        """The newest record of the row in place of one of which this log never heard the end."""
        try:
            name = row_name_of(envelope.kind, self._sealer.open(envelope))
        except CorruptRecord:
            return [bare]
        newest = self._metastore.get(envelope.namespace, name) or self._metastore.tombstone(envelope.namespace, name)
        if newest is None or newest.sequence <= envelope.sequence:
            return [bare]
        if look_only:
            return None
        self._told.add(key)
        return [ScannedEntry(Entry(newest), self._committer.state.sequence)]

    def _may_be_forgotten(self, envelope: Envelope, key: _Key) -> bool:
        """Whether a tombstone buries nothing any more, on any shard."""
        return (
            _is_tombstone(envelope)
            and self._settled
            and self._pending is not None
            and envelope.version not in self._pending
            and not self._elsewhere.unread
            and key not in self._elsewhere.keys
            and len(self._here[key]) == 1
        )

    def _void_is_done(self, envelope: Envelope) -> bool:
        void = open_void(self._sealer, envelope)
        if void is None or self._elsewhere.unread or not self._everybody_has_heard():
            return False
        here = (sequence for sequences in self._here.values() for sequence in sequences if sequence != envelope.sequence)
        return not any(map(void.covers, (*self._elsewhere.sequences, *here)))

    def _everybody_has_heard(self) -> bool:
        """Not where a log cannot be read: what lies there was not looked at when it was opened, or is what it was told."""
        logs = (shard.segments() for shard in self._pool.opened())
        return (
            self._committer.all_told
            and all(self._pool.state(number) == "ok" for number in self._pool.numbers)
            and not any(segments.unread() for segments in logs if segments is not None)
        )

    def _nothing_is_owed(self) -> bool:
        return self._metastore.debts_count() == 0

    def _to_be_freed(self) -> set[Version] | None:
        """The versions of which shares are still to be freed; None if they are too many."""
        if self._metastore.garbage_count() > MANY:
            return None
        return {row.share.version for number in self._pool.numbers for row in self._metastore.garbage(number, MANY)}


def _is_tombstone(envelope: Envelope) -> bool:
    """Whether it is one that may be forgotten some day; those of the store's own rows are few and stay."""
    return envelope.kind is Kind.TOMBSTONE and envelope.namespace != STORE_WIDE


def _small_share(located: Located) -> ShareId | None:
    """The small share that comes with an entry's record."""
    if isinstance(located.item, Freed) or located.item.entry.share_index is None:
        return None
    return ShareId(located.item.entry.envelope.version, located.item.entry.share_index)


def _sequence(located: Located) -> int | None:
    """The sequence of an entry's record."""
    return located.item.entry.envelope.sequence if isinstance(located.item, ScannedEntry) else None


def _envelopes(entries: Sequence[Located]) -> Iterator[Envelope]:
    for located in entries:
        if isinstance(located.item, ScannedEntry):
            yield located.item.entry.envelope
