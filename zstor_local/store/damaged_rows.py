"""Rows of the metastore whose record does not open, and what brings them back: the copies in the shards' logs.

A copy counts if it opens, is of the row's key and bears the row's sequence, and no log that can be read has something later of that key
that was not voided. What it says is sealed anew, in a change that leaves alone what is another row by then. A row of which no log has
such a copy stays as it is, and so does one that is not called what its record says, and the record of the older master keys, which only
rotation.py seals.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

import trio

from zstor_local.errors import CorruptRecord
from zstor_local.metastore.base import IndexDamaged, Row, RowName
from zstor_local.model.ids import KeyHash, NamespaceId, ObjectName
from zstor_local.model.record import STORE_WIDE, Envelope, Kind, ObjectRecord
from zstor_local.model.storewide import VoidRecord
from zstor_local.shards.base import Shard, ShardError
from zstor_local.shards.pool import ShardPool
from zstor_local.store.change import Decision, NewRecord
from zstor_local.store.core import Core
from zstor_local.store.namespaces import Namespaces, row_name
from zstor_local.store.pace import Spend, unpaced
from zstor_local.store.plausible import no_more_than_written
from zstor_local.store.rownames import row_name_of
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.stored import open_void

PAGE: Final = 200  # rows, or entries of a log, that one thread call looks at
AT_ONCE: Final = 10_000  # rows that are looked for by one reading of the logs
BATCH: Final = 100  # rows brought back by one change
NAMED: Final = 100  # rows that stay damaged and are told one by one; further ones are counted

log = logging.getLogger("zstor.store")


def renewed(sealer: RecordSealer, pool: ShardPool, envelope: Envelope) -> NewRecord:
    """The same record, to be sealed again, and with it the data key that it wraps; its copies go where a rebuild looks for them.
    CorruptRecord.
    """
    plain = sealer.open(envelope)
    copies, k = pool.numbers, pool.majority
    if envelope.kind is Kind.OBJECT:
        keys, record = sealer.keys(envelope.namespace), ObjectRecord.decode(plain)
        plain = replace(record, wrapped_key=keys.wrap(keys.unwrap(record.wrapped_key))).encode()
        copies, k = sorted({*record.placement}), record.policy.k
    return NewRecord(envelope.kind, envelope.key_hash, envelope.version, plain, copies, k=k)


@dataclass(slots=True)
class Damage:
    """What came of rows that do not open: how many were brought back and how many stay, and the first of those."""

    mended: int = 0
    stay: int = 0
    first: list[Row] = field(default_factory=list)

    def take(self, mended: int, stay: Sequence[Row]) -> None:
        self.mended += mended
        self.stay += len(stay)
        self.first += stay[: NAMED - len(self.first)]


class DamagedRows:
    """The use case. `on_mended` is called when rows were brought back."""

    def __init__(self, core: Core, namespaces: Namespaces, *, on_mended: Callable[[], None]) -> None:
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._sealer = core.sealer
        self._namespaces = namespaces
        self._on_mended = on_mended

    async def mend_all(self, spend: Spend) -> Damage:
        """Open every record there is, tombstones and the store's own too, and bring back those that do not open."""
        damage = Damage()
        for space in self._every_space():
            since = 0
            damaged: list[Row] = []
            while rows := await self._behind(space, since, damage):
                since = rows[-1].envelope.sequence
                damaged += await self._runtime.threads.run(self._closed, rows)
                if len(damaged) >= AT_ONCE:
                    await self.mend(damaged, damage, spend)
                    damaged = []
                await spend(sum(len(row.envelope.sealed) for row in rows))
            await self.mend(damaged, damage, spend)
        return damage

    async def _behind(self, space: NamespaceId, since: int, damage: Damage) -> list[Row]:
        """The next rows and tombstones in the order of their sequences, where need be by indexes that are made anew."""
        with suppress(IndexDamaged):
            return await self._runtime.threads.run(self._metastore.changes, space, since, PAGE)
        await self._committer.mend_indexes()
        damage.take(1, ())
        return await self._runtime.threads.run(self._metastore.changes, space, since, PAGE)

    async def mend_object(self, name: ObjectName) -> None:
        """Bring back what a key needs to be found: its namespace's row and its own, where they do not open."""
        await self.mend_rows([(STORE_WIDE, row_name(name.namespace))])
        if (namespace := self._namespaces.find(name.namespace)) is not None:
            await self.mend_rows([(namespace.id, name.key)])

    async def mend_rows(self, names: Sequence[RowName]) -> None:
        """Bring back those of these rows that do not open, by one reading of the logs."""
        rows = await self._runtime.threads.run(self._rows, names)
        await self.mend(await self._runtime.threads.run(self._closed, rows), Damage(), unpaced)

    def _rows(self, names: Sequence[RowName]) -> list[Row]:
        rows: list[Row] = []
        for space, name in names:
            with suppress(CorruptRecord):  # a part of the metastore's file that cannot be read: no row can be told from it
                rows += [row for row in self._metastore.scan(space, name, None, 1) if row.name == name]
        return rows

    async def mend(self, rows: Sequence[Row], damage: Damage, spend: Spend) -> None:
        """Bring back what can be of rows that do not open, by one reading of the logs, and add to `damage` what came of it."""
        moved = [row for row in rows if self._name_in(row.envelope) is not None]
        damage.take(0, moved)  # nobody finds it by its own name, nor can be sure to find it by this one to take it away
        rows = [row for row in rows if row not in moved]
        if not rows:
            return
        copies = await self._hear(rows, spend)
        for start in range(0, len(rows), BATCH):
            with trio.CancelScope(shield=True):
                await self._bring_back(rows[start : start + BATCH], copies)
        stay = [row for row in rows if self._is_still(row, self._newest)]
        mended = len(rows) - len(stay)
        damage.take(mended, stay)
        log.warning("of %d records that did not open %d were brought back from the shards' logs", len(rows), mended)
        if mended:
            self._on_mended()

    async def _bring_back(self, rows: Sequence[Row], copies: _Copies) -> None:
        def decide(_: Envelope | None) -> Decision:
            records: dict[RowName, NewRecord] = {}
            for row in rows:
                copy = copies.of(row)
                if copy is not None and self._is_still(row, self._committer.view.newest):
                    with suppress(CorruptRecord):
                        records[row.space, row.name] = renewed(self._sealer, self._pool, copy)
            return Decision(records)

        await self._committer.commit(rows[0].space, "", decide)

    def _every_space(self) -> Iterator[NamespaceId]:
        yield STORE_WIDE
        yield from self._namespaces.ids()  # only now, as a namespace's own row may have been brought back

    def _closed(self, rows: Sequence[Row]) -> list[Row]:
        """Those that do not open, or hold another row's record: what a row is called may be what was damaged."""
        return [row for row in rows if self._name_in(row.envelope) != row.name]

    def _name_in(self, envelope: Envelope) -> str | None:
        """The row that a record says it is of; None if it does not open."""
        try:
            return row_name_of(envelope.kind, self._sealer.open(envelope))
        except CorruptRecord:
            return None

    def _newest(self, space: NamespaceId, name: str) -> Envelope | None:
        return self._metastore.get(space, name) or self._metastore.tombstone(space, name)

    def _is_still(self, row: Row, look: Callable[[NamespaceId, str], Envelope | None]) -> bool:
        """Whether the row is as it was found."""
        try:
            return look(row.space, row.name) == row.envelope
        except CorruptRecord:
            return True  # not only what its columns hold is damaged

    # --- The logs ---

    async def _hear(self, rows: Sequence[Row], spend: Spend) -> _Copies:
        copies = _Copies()
        for row in rows:
            copies.want(row, self._namespaces.hasher.key_hash(row.space, row.name))
            if row.space == STORE_WIDE and row.name.startswith(row_name("")):  # what namespaces of before 0.2 lie under
                copies.want(row, self._namespaces.hasher.key_hash(row.space, row.name.removeprefix(row_name(""))))
        for shard in self._pool.opened():
            reading = self._read(shard, copies)
            try:
                while (size := await self._runtime.threads.run(next, reading, None)) is not None:
                    await spend(size)
            except ShardError as error:
                log.warning("copies of records cannot be looked for on shard %s: %s", shard.id, error)
        return copies

    def _read(self, shard: Shard, copies: _Copies) -> Iterator[int]:
        """A log, a page at a time; yields the bytes that were read."""
        entries = no_more_than_written(shard, shard.scan(), self._metastore)
        while page := list(islice(entries, PAGE)):
            for scanned in page:
                self._take(scanned.entry.envelope, copies)
            yield sum(len(scanned.entry.envelope.sealed) + len(scanned.entry.share) for scanned in page)

    def _take(self, envelope: Envelope, copies: _Copies) -> None:
        if envelope.kind is Kind.VOID:
            if (void := open_void(self._sealer, envelope)) is not None:
                copies.voids.add(void)
        elif envelope.kind is not Kind.KEYS and (wanted := copies.wanted.get((envelope.namespace, envelope.key_hash))) is not None:
            name = self._name_in(envelope)
            for row in wanted:
                if row.name == name:
                    copies.take(row, envelope)


class _Copies:
    """What the logs have of some rows, at their sequences and later."""

    def __init__(self) -> None:
        self.wanted: dict[tuple[NamespaceId, KeyHash], list[Row]] = defaultdict(list)  # by what their entries in logs bear
        self.voids: set[VoidRecord] = set()
        self._same: dict[RowName, Envelope] = {}
        self._later: dict[RowName, set[int]] = defaultdict(set)

    def want(self, row: Row, hashed: KeyHash) -> None:
        self.wanted[row.space, hashed].append(row)

    def take(self, row: Row, envelope: Envelope) -> None:
        if envelope.sequence == row.envelope.sequence:
            self._same[row.space, row.name] = envelope
        elif envelope.sequence > row.envelope.sequence:
            self._later[row.space, row.name].add(envelope.sequence)

    def of(self, row: Row) -> Envelope | None:
        """The copy that counts, if there is one."""
        at = (row.space, row.name)
        same = self._same.get(at)
        if same is None or self._voided(same.sequence) or not all(map(self._voided, self._later.get(at, ()))):
            return None
        return same

    def _voided(self, sequence: int) -> bool:
        return any(void.covers(sequence) for void in self.voids)
