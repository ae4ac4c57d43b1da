"""A metastore in memory, for simulated worlds: the same laws, durable as far as the world that holds its `Cell` says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field

from zstor_local import limits
from zstor_local.metastore.base import (
    REPLACING,
    CommitUnknown,
    Debt,
    Garbage,
    Intent,
    MetastoreClosed,
    Reference,
    Row,
    RowName,
    StoreState,
    Transaction,
    Usage,
)
from zstor_local.model.ids import NamespaceId, ReferenceHash, ShareId, StoreId, Version
from zstor_local.model.record import Envelope, Kind

_Name = tuple[NamespaceId, str]


def _some(rows: Sequence[Row]) -> list[Row]:
    """As many of the first as may be in memory."""
    size = 0
    found: list[Row] = []
    for row in rows:
        if size >= limits.ROWS_BYTES:
            break
        found.append(row)
        size += len(row.envelope.sealed)
    return found


def _place(debt: Debt) -> tuple[Version, int, int, NamespaceId, bytes]:
    """What debts of one shard are in the order of."""
    return debt.version, debt.kind, debt.index, debt.space, debt.name.encode()


@dataclass(slots=True)
class Cell:
    """What would be on the disk. `copy` it to keep a state."""

    store_id: StoreId
    state: StoreState = field(default_factory=StoreState)
    records: dict[_Name, Envelope] = field(default_factory=dict)
    tombstones: dict[_Name, Envelope] = field(default_factory=dict)
    intents: dict[Version, Intent] = field(default_factory=dict)
    garbage: dict[tuple[int, Version, int], Garbage] = field(default_factory=dict)
    debts: dict[Debt, None] = field(default_factory=dict)
    references: dict[Reference, None] = field(default_factory=dict)
    usage: dict[NamespaceId, Usage] = field(default_factory=dict)

    def copy(self) -> Cell:
        other = copy(self)
        for name in ("records", "tombstones", "intents", "garbage", "debts", "references", "usage"):
            setattr(other, name, dict(getattr(self, name)))
        return other


class MemoryMetastore:
    """See the laws of metastore.base.Metastore. `around_commit` is called before and after a commit takes effect."""

    kind = "memory"

    def __init__(self, cell: Cell, around_commit: Callable[[str], None] = lambda moment: None) -> None:
        self.cell = cell
        self._around_commit = around_commit
        self._open = True
        self._whole = threading.Lock()  # readers in other threads see no half of a transaction

    @property
    def store_id(self) -> StoreId:
        return self.cell.store_id

    @property
    def writable(self) -> bool:
        return self._open

    @property
    def committed(self) -> MemoryMetastore:
        return self

    def state(self) -> StoreState:
        return self.cell.state

    def usage(self, space: NamespaceId) -> Usage:
        return self.cell.usage.get(space, Usage())

    def usages(self) -> dict[NamespaceId, Usage]:
        with self._whole:
            return dict(self.cell.usage)

    def get(self, space: NamespaceId, name: str) -> Envelope | None:
        return self.cell.records.get((space, name))

    def tombstone(self, space: NamespaceId, name: str) -> Envelope | None:
        return self.cell.tombstones.get((space, name))

    def scan(self, space: NamespaceId, prefix: str, after: str | None, limit: int | None) -> list[Row]:
        with self._whole:
            found = [Row(*row, envelope) for row, envelope in self.cell.records.items() if row[0] == space]
        wanted = [row for row in found if row.name.startswith(prefix) and (after is None or row.name.encode() > after.encode())]
        return _some(sorted(wanted, key=lambda row: row.name.encode())[:limit])

    def named(self, version: Version, limit: int | None = None) -> list[RowName]:
        with self._whole:
            found = list(self.cell.records.items())
        return [row for row, envelope in found if envelope.version == version and envelope.kind is Kind.OBJECT][:limit]

    def leads_to(self, row: Row) -> bool:
        return True

    def changes(self, space: NamespaceId, since: int, limit: int) -> list[Row]:
        with self._whole:
            everything = [*self.cell.records.items(), *self.cell.tombstones.items()]
        found = [Row(*row, envelope) for row, envelope in everything if row[0] == space and envelope.sequence > since]
        return _some(sorted(found, key=lambda row: row.envelope.sequence)[:limit])

    def newest(self, space: NamespaceId, sequences: Sequence[int]) -> set[int]:
        with self._whole:
            everything = [*self.cell.records.items(), *self.cell.tombstones.items()]
        return {envelope.sequence for row, envelope in everything if row[0] == space}.intersection(sequences)

    def referring(self, space: NamespaceId, reference: ReferenceHash, after: str | None, limit: int) -> list[str]:
        with self._whole:
            references = list(self.cell.references)
        found = sorted(each.name.encode() for each in references if (each.space, each.hash) == (space, reference))
        return [name.decode() for name in found if after is None or name > after.encode()][:limit]

    def intents(self) -> Sequence[Intent]:
        return list(self.cell.intents.values())

    def garbage(self, shard: int, limit: int | None = None, first: ShareId | None = None) -> Sequence[Garbage]:
        found = (garbage for garbage in self.cell.garbage.values() if garbage.shard == shard)
        rows = sorted(found, key=lambda garbage: garbage.share)
        return [garbage for garbage in rows if first is None or garbage.share >= first][:limit]

    def garbage_count(self) -> int:
        return len(self.cell.garbage)

    def debts(self, shard: int | None = None, limit: int | None = None, after: Debt | None = None) -> Sequence[Debt]:
        if shard is None:
            return [*self.cell.debts]
        found = sorted((debt for debt in self.cell.debts if debt.shard == shard), key=_place)
        return [debt for debt in found if after is None or _place(debt) > _place(after)][:limit]

    def debts_count(self) -> int:
        return len(self.cell.debts)

    def debts_of(self, version: Version) -> Sequence[Debt]:
        return [debt for debt in self.cell.debts if debt.version == version]

    def commit(self, transaction: Transaction) -> None:
        if not self._open:
            raise MetastoreClosed("the metastore failed before")
        try:
            self._around_commit("before")
            with self._whole:
                self._apply(transaction)
            self._around_commit("after")
        except OSError as error:
            self._open = False
            raise CommitUnknown("the metastore failed") from error

    def _apply(self, transaction: Transaction) -> None:
        cell = self.cell
        cell.state = transaction.state
        for row in transaction.rows:
            name = (row.space, row.name)
            dead = row.envelope.kind is Kind.TOMBSTONE
            (cell.tombstones if dead else cell.records)[name] = row.envelope
            if row.envelope.kind in REPLACING:
                (cell.records if dead else cell.tombstones).pop(name, None)
        cell.intents.update((intent.version, intent) for intent in transaction.intents)
        for version in transaction.intents_done:
            cell.intents.pop(version, None)
        for garbage in transaction.garbage_freed:
            cell.garbage.pop(_garbage_key(garbage), None)
        cell.garbage.update((_garbage_key(garbage), garbage) for garbage in transaction.garbage)
        for debt in transaction.debts_paid:
            cell.debts.pop(debt, None)
        cell.debts.update((debt, None) for debt in transaction.debts)
        for reference in transaction.references_gone:
            cell.references.pop(reference, None)
        cell.references.update((reference, None) for reference in transaction.references)
        for space, more in transaction.usage.items():
            cell.usage[space] = cell.usage.get(space, Usage()) + more

    def mend_indexes(self) -> None:
        """There are none."""

    def checkpoint(self) -> None:
        pass

    def close(self) -> None:
        self._open = False


def _garbage_key(garbage: Garbage) -> tuple[int, Version, int]:
    return garbage.shard, garbage.share.version, garbage.share.index
