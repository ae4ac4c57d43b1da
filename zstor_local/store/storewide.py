"""Store-wide rows: small durable values outside of namespaces (permissions, signing keys, names, settings), by table and name.

A row is a record like any other: sealed, in the metastore, and copied to the logs of all shards, of which a majority must have it
before its commit. So `zstor rebuild` brings every row back. A row that was removed leaves a tombstone and does not come back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from zstor_local import limits
from zstor_local.errors import Conflict, CorruptRecord, TooLarge
from zstor_local.metastore.base import RowName
from zstor_local.model.record import NO_VERSION, STORE_WIDE, Envelope, Kind, Tombstone
from zstor_local.model.storewide import Record, RowRecord
from zstor_local.store.change import Decision, NewRecord
from zstor_local.store.core import Core

_PREFIX: Final = "row/"

log = logging.getLogger("zstor.store")


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as it was committed. `sequence` is the store's and grows with every change, removals too; `changed` in microseconds."""

    name: str
    value: bytes
    sequence: int
    changed: int


Change = Callable[[StoredRow | None], bytes | None]


class StoreWide:
    """The rows of one store. Tables are words of the program, without a slash; names are any text."""

    def __init__(self, core: Core) -> None:
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._committer = core.committer
        self._pool = core.pool
        self._sealer = core.sealer
        self._hasher = core.hasher
        self._suspects = core.suspects

    def get(self, table: str, name: str) -> StoredRow | None:
        """The row as last committed."""
        try:
            envelope = self._metastore.get(STORE_WIDE, _row(table, name))
            return None if envelope is None else self._open(table, envelope)
        except CorruptRecord:
            self._suspects.add(STORE_WIDE, _row(table, name))
            raise

    def scan(self, table: str, prefix: str = "", after: str | None = None, limit: int = limits.LIST_ITEMS) -> Iterator[StoredRow]:
        """Rows whose name begins with the prefix and comes behind `after`, in the order of their UTF-8 bytes. CorruptRecord at one that
        does not open, with its name as `key` in its data.
        """
        behind = None if after is None else _row(table, after)
        for row in self._metastore.scan(STORE_WIDE, _row(table, prefix), behind, limit):
            try:
                yield self._open(table, row.envelope)
            except CorruptRecord as error:
                error.data["key"] = row.name.removeprefix(_row(table, ""))
                self._suspects.add(row.space, row.name)
                raise

    def names(self, table: str, prefix: str = "", after: str | None = None, limit: int = limits.LIST_ITEMS) -> list[str]:
        """The names of the same rows, those included that do not open."""
        behind = None if after is None else _row(table, after)
        found = self._metastore.scan(STORE_WIDE, _row(table, prefix), behind, limit)
        return [row.name.removeprefix(_row(table, "")) for row in found]

    def every_name(self, table: str, prefix: str = "") -> Iterator[str]:
        """All of those names, however many they are."""
        after: str | None = None
        while names := self.names(table, prefix, after):
            yield from names
            after = names[-1]

    def each(self, table: str) -> Iterator[StoredRow]:
        """All rows of a table that open, for work that goes on without the others: a scrub mends them."""
        for name in self.every_name(table):
            try:
                row = self.get(table, name)
            except CorruptRecord as error:
                log.error("a row of the table %s is left out: %s", table, error)
                continue
            if row is not None:
                yield row

    async def put(self, table: str, name: str, value: bytes, *, if_sequence: int | None = None) -> StoredRow:
        """Set the row; durable when this returns. With `if_sequence` only where the row has that one (0: none), else Conflict. Without,
        what was there before does not matter, and need not open.
        """

        def change(current: StoredRow | None) -> bytes:
            sequence = 0 if current is None else current.sequence
            if if_sequence is not None and sequence != if_sequence:
                raise Conflict("the row has changed meanwhile", hint="read it again", current=sequence)
            return value

        row = await self._change(table, name, change, blind=if_sequence is None)
        if row is None:
            raise AssertionError("a row that was put is there")
        return row

    async def remove(self, table: str, name: str) -> None:
        """Remove the row, if it is there; it need not open."""
        await self._change(table, name, lambda current: None, blind=True)

    async def change(self, table: str, name: str, change: Change) -> StoredRow | None:
        """Set the row to what `change` makes of it, None to remove it; nothing happens if that is what it is. Returns the row then.

        `change` runs in the committer's thread and sees what every change before it left: no update is lost. It may raise a ZstorError.
        """
        return await self._change(table, name, change, blind=False)

    async def _change(self, table: str, name: str, change: Change, *, blind: bool) -> StoredRow | None:
        result: StoredRow | None = None

        def decide(_: Envelope | None) -> Decision:
            nonlocal result
            known = True
            try:
                result = self.look(table, name)
            except CorruptRecord:
                if not blind:
                    raise
                known = False
            value = change(result)
            if known and value == (None if result is None else result.value):
                return Decision()
            return Decision(self.removed(table, name) if value is None else self.written(table, name, value))

        committed = await self._committer.commit(STORE_WIDE, _row(table, name), decide)
        if committed.envelope is None:
            return result
        return None if committed.envelope.kind is Kind.TOMBSTONE else self._open(table, committed.envelope)

    # --- For decisions that change rows together with other things: only in the committer's thread, while it decides ---

    def look(self, table: str, name: str) -> StoredRow | None:
        """The row as the changes before left it."""
        envelope = self._committer.view.look(STORE_WIDE, _row(table, name))
        return None if envelope is None else self._open(table, envelope)

    def is_there(self, table: str, name: str) -> bool:
        """Whether the changes before left a row, be it one that does not open."""
        return self._committer.view.look(STORE_WIDE, _row(table, name)) is not None

    def written(self, table: str, name: str, value: bytes) -> Mapping[RowName, NewRecord]:
        """What to put into `Decision.records` to set the row. TooLarge for a value over limits.ROW_BYTES."""
        if len(value) > limits.ROW_BYTES:
            raise TooLarge(f"the value has {len(value)} bytes, {limits.ROW_BYTES} is the limit", limit=limits.ROW_BYTES)
        row = _row(table, name)
        return self._record(row, Kind.ROW, RowRecord(row, value, self._runtime.clock.now()))

    def removed(self, table: str, name: str) -> Mapping[RowName, NewRecord]:
        """What to put into `Decision.records` to remove the row."""
        row = _row(table, name)
        return self._record(row, Kind.TOMBSTONE, Tombstone(row, self._runtime.clock.now()))

    def _record(self, row: str, kind: Kind, record: Record) -> Mapping[RowName, NewRecord]:
        hashed = self._hasher.key_hash(STORE_WIDE, row)
        # k is 1: a rebuild takes the row from a single log.
        new = NewRecord(kind, hashed, NO_VERSION, record.encode(), self._pool.numbers, quorum=self._pool.majority)
        return {(STORE_WIDE, row): new}

    def _open(self, table: str, envelope: Envelope) -> StoredRow:
        record = RowRecord.decode(self._sealer.open(envelope))
        return StoredRow(record.name.removeprefix(_row(table, "")), record.value, envelope.sequence, record.changed)


def _row(table: str, name: str) -> str:
    return f"{_PREFIX}{table}/{name}"
