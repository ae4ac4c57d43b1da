"""What a rebuild knows so far, in a temporary file of SQLite's own: the memory it takes does not grow with the store.

Records lie in it as Envelope.pack gives them. Rows are only ever put behind the others; each question sorts them once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from zstor_local.metastore.base import Debt, Owed, Reference, Row
from zstor_local.model.ids import NamespaceId, ReferenceHash, Version
from zstor_local.model.record import STORE_WIDE, Envelope, Kind

_TABLES: Final = ("found", "found_store_wide", "chosen", "reference", "debt")
_SCHEMA: Final = """
create table found(key blob, sequence blob, holders blob, record blob);
create table found_store_wide(key blob, sequence blob, holders blob, record blob);
create table chosen(turn integer, space blob, name blob, sequence blob, record blob);
create table reference(space blob, hash blob, name blob);
create table debt(version blob, shard integer, kind integer, share integer, space blob, name blob);
"""

FoundRow = tuple[bytes, bytes, bytes, bytes]  # as the table has it
Copies = Mapping[bytes, int]  # a record, and the set of those that hold it: bit n for the n-th shard


def version_of(record: bytes) -> Version:
    return Version(record[33:49])


def sequence_of(record: bytes) -> bytes:
    """The sequence, big-endian: as the bytes, so the numbers sort."""
    return record[56:48:-1]


def _turn(record: bytes) -> int:
    """Objects first: as long as there is no tombstone in a metastore, none is looked for. A namespace has one record of each name."""
    return 2 if record[1:17] == STORE_WIDE else 1 if record[0] == Kind.TOMBSTONE else 0


class Scratch:
    """The tables of one rebuild."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript("pragma journal_mode=off; pragma synchronous=off;")
        self._db.executescript(_SCHEMA)
        self._db.execute("begin")

    def clear(self) -> None:
        for table in _TABLES:
            self._db.execute(f"delete from {table}")  # noqa: S608 (a constant)

    def close(self) -> None:
        self._db.close()

    # --- What the logs hold ---

    def put(self, copies: Copies, width: int) -> None:
        """Records that were found, and where; a set of holders takes `width` bytes. The same may be put again, of other holders."""
        of_spaces: list[FoundRow] = []
        store_wide: list[FoundRow] = []
        for record, holders in copies.items():
            row = record[1:33], record[56:48:-1], holders.to_bytes(width, "little"), record
            (store_wide if record[1:17] == STORE_WIDE else of_spaces).append(row)
        self._db.executemany("insert into found values(?, ?, ?, ?)", of_spaces)
        self._db.executemany("insert into found_store_wide values(?, ?, ?, ?)", store_wide)

    def above(self, sequence: int) -> Iterator[Envelope]:
        """Records with a higher sequence, the highest first."""
        query = (
            "select record, sequence from found where sequence > ?1 union all "
            "select record, sequence from found_store_wide where sequence > ?1 order by 2 desc"
        )
        for record, _ in self._db.execute(query, (sequence.to_bytes(8, "big"),)):
            yield Envelope.parse(record)

    def found(self, *, store_wide: bool, count: int = 500) -> Iterator[list[FoundRow]]:
        """What was put, key by key, each key's newest record first, so many at once: the store's rows, or those of namespaces."""
        table = "found_store_wide" if store_wide else "found"
        return self._batches(f"select key, sequence, holders, record from {table} order by key, sequence desc, rowid desc", count)  # noqa: S608

    # --- What counts of it ---

    def choose(self, rows: Iterable[tuple[str, bytes]]) -> None:
        """Records that count, with their row's name."""
        self._db.executemany(
            "insert into chosen values(?, ?, ?, ?, ?)",
            [(_turn(record), record[1:17], name.encode(), sequence_of(record), record) for name, record in rows],
        )

    def refer(self, references: Iterable[Reference]) -> None:
        self._db.executemany(
            "insert into reference values(?, ?, ?)", [(each.space, each.hash, each.name.encode()) for each in references]
        )

    def owe(self, debts: Iterable[Debt]) -> None:
        self._db.executemany(
            "insert into debt values(?, ?, ?, ?, ?, ?)",
            [(each.version, each.shard, each.kind, each.index, each.space, each.name.encode()) for each in debts],
        )

    def rows(self, count: int) -> Iterator[list[Row]]:
        """What was chosen, in the metastore's order, so many at once. Of two records under one name the later comes later."""
        for found in self._batches("select space, name, record from chosen order by turn, space, name, sequence", count):
            yield [Row(NamespaceId(space), name.decode(), Envelope.parse(record)) for space, name, record in found]

    def references(self, count: int) -> Iterator[list[Reference]]:
        for found in self._batches("select space, hash, name from reference order by space, hash, name", count):
            yield [Reference(NamespaceId(space), ReferenceHash(hashed), name.decode()) for space, hashed, name in found]

    def debts(self, count: int) -> Iterator[list[Debt]]:
        for found in self._batches("select shard, kind, space, name, version, share from debt order by version, shard, share", count):
            yield [
                Debt(shard, Owed(kind), NamespaceId(space), name.decode(), Version(version), share)
                for shard, kind, space, name, version, share in found
            ]

    def _batches(self, query: str, count: int) -> Iterator[list[Any]]:
        rows = self._db.execute(query)
        while found := list(islice(rows, count)):
            yield found
