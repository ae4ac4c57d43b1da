"""Strays: shares that lie on a shard though no record puts them there, and what the logs say of each.

What was overwritten, deleted, moved or broken off has a row that frees it (`Garbage`). A stray has none: a void took back what a log
had already, a power loss brought back a file that was freed, or the metastore has lost a record. So that nothing is freed that
somebody might want, a stray counts as left behind only if every record of its version that any log holds was never committed, or has a
newer record or a tombstone of its key after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal

from zstor_local.errors import CorruptRecord
from zstor_local.metastore.base import Metastore
from zstor_local.model.ids import NamespaceId, ShareId, Version
from zstor_local.model.record import Envelope, Kind, ObjectRecord
from zstor_local.model.storewide import VoidRecord
from zstor_local.shards.base import Shard, ShardError, ShareMissing
from zstor_local.shards.pool import ShardPool
from zstor_local.store.plausible import no_more_than_written
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.stored import naming, open_object, open_void

PAGE: Final = 500  # shares, or log entries, that one thread call looks at
AT_ONCE: Final = 10_000  # strays that are judged together, by one reading of the logs

Reason = Literal["left_behind", "unknown", "no_record", "foreign"]


@dataclass(frozen=True, slots=True)
class Stray:
    """A share that no record puts on its shard."""

    shard: int
    share: ShareId
    small: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """What the logs say of a stray.

    left_behind: a newer record, a tombstone or a void names it. unknown: a record of it opens, and the metastore knows nothing later of
    its key, whose name is given: the metastore may have lost it. no_record: it says that it is of one of this store's namespaces, but
    no log that can be read has a record of it that opens. foreign: it is not of this store, as far as can be told.
    """

    stray: Stray
    reason: Reason
    space: NamespaceId | None = None
    key: str | None = None


def put_here(rows: Iterable[Envelope], stray: Stray, sealer: RecordSealer) -> bool:
    """Whether one of the rows that name the share's version puts it on its shard. CorruptRecord if one of them does not open."""
    for envelope in rows:
        placement = open_object(sealer, envelope).placement
        if stray.share.index < len(placement) and placement[stray.share.index] == stray.shard:
            return True
    return False


@dataclass(slots=True)
class _Heard:
    """What the logs say of some versions."""

    records: dict[Version, set[Envelope]] = field(default_factory=dict)
    voids: set[VoidRecord] = field(default_factory=set)

    def voided(self, sequence: int) -> bool:
        return any(void.covers(sequence) for void in self.voids)


class Strays:
    """Finding and judging. Everything here blocks: it is the work of a thread, a page at a time."""

    def __init__(
        self, metastore: Metastore, pool: ShardPool, sealer: RecordSealer, has_namespace: Callable[[NamespaceId], bool]
    ) -> None:
        self._metastore = metastore
        self._pool = pool
        self._sealer = sealer
        self._has_namespace = has_namespace
        self._heard = _Heard()

    def pages(self, shard: Shard) -> Iterator[tuple[int, Sequence[Stray]]]:
        """All shares of a shard, in pages: how many were looked at, and the strays among them.

        What is being written now is among them too: judge it again when what was under way is settled.
        """
        for small in (True, False):
            held = no_more_than_written(shard, shard.held(small=small), self._metastore)
            while page := list(islice(held, PAGE)):
                yield len(page), [stray for share in page if not self._wanted(stray := Stray(shard.number, share, small))]

    def _wanted(self, stray: Stray) -> bool:
        try:
            return put_here(naming(self._metastore, stray.share.version), stray, self._sealer)
        except CorruptRecord:
            return True  # a damaged row proves nothing against its shares

    def hear(self, strays: Iterable[Stray]) -> Iterator[int]:
        """Read every log for what it says of these strays; yields how many bytes were read since. `judge` then tells."""
        self._heard = heard = _Heard({stray.share.version: set() for stray in strays})
        for shard in self._pool.opened():
            entries = no_more_than_written(shard, shard.scan(), self._metastore)
            while page := list(islice(entries, PAGE)):
                for scanned in page:
                    self._take(scanned.entry.envelope, heard)
                yield sum(len(scanned.entry.envelope.sealed) + len(scanned.entry.share) for scanned in page)

    def _take(self, envelope: Envelope, heard: _Heard) -> None:
        if envelope.kind is Kind.VOID:
            if (void := open_void(self._sealer, envelope)) is not None:
                heard.voids.add(void)
        elif envelope.kind is Kind.OBJECT and envelope.version in heard.records:
            heard.records[envelope.version].add(envelope)

    def judge(self, strays: Iterable[Stray]) -> list[Judged]:
        """What was heard of each. The metastore is asked for what it has now of their keys: what is no stray by that is left out."""
        return [judged for stray in strays if (judged := self._judge(stray, self._heard)) is not None]

    def _judge(self, stray: Stray, heard: _Heard) -> Judged | None:
        opened: list[tuple[Envelope, ObjectRecord]] = []
        for envelope in heard.records[stray.share.version]:
            try:
                opened.append((envelope, open_object(self._sealer, envelope)))
            except CorruptRecord:
                continue
        if not opened:
            return Judged(stray, "no_record" if self._ours(stray) else "foreign")
        if any(self._put_here_by_its_key(stray, envelope.namespace, record.key) for envelope, record in opened):
            return None
        for envelope, record in sorted(opened, key=lambda each: each[0].sequence, reverse=True):
            if not heard.voided(envelope.sequence) and not self._superseded(envelope, record):
                return Judged(stray, "unknown", envelope.namespace, record.key)
        return Judged(stray, "left_behind")

    def _ours(self, stray: Stray) -> bool:
        """Whether a share without a record says that it is of a namespace that this store has."""
        shard = self._pool.get(stray.shard)
        if shard is None or stray.small:
            return False
        try:
            with closing(shard.open_share(stray.share, small=False)) as reader:
                claimed = reader.claimed_namespace()
        except (ShareMissing, ShardError):
            return False
        return claimed is not None and self._has_namespace(claimed)

    def _put_here_by_its_key(self, stray: Stray, space: NamespaceId, key: str) -> bool:
        """Whether the row of a key puts a share here though nothing was found by its version: a bit that flips in the index by which
        rows are found so is told by nobody, and hides them.
        """
        row = self._metastore.get(space, key)
        if row is None or row.version != stray.share.version:
            return False
        try:
            return put_here([row], stray, self._sealer)
        except CorruptRecord:
            return True

    def _superseded(self, envelope: Envelope, record: ObjectRecord) -> bool:
        """Whether the metastore has something later of the record's key, or the same record with another place for its shares."""
        newest = self._metastore.get(envelope.namespace, record.key) or self._metastore.tombstone(envelope.namespace, record.key)
        return newest is not None and (newest.sequence > envelope.sequence or newest == envelope)
