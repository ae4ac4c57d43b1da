"""What the SQLite metastore is asked: one connection's queries, and what their rows are."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import pairwise
from typing import Any, Final, TypeVar

from zstor_local import limits
from zstor_local.errors import DAMAGED_ROW_HINT, IoError, ZstorError
from zstor_local.metastore.base import Debt, Garbage, IndexDamaged, Intent, MetastoreDamaged, Owed, Row, RowName, StoreState, Usage
from zstor_local.model.ids import ID_BYTES, KeyHash, NamespaceId, ReferenceHash, ShareId, Version
from zstor_local.model.record import KINDS, Envelope, Kind

_ROW: Final = "kind, space, key_hash, version, sequence, sealed"
_SEQUENCE: Final = 4  # its place among them
_AT_ONCE: Final = 500  # values in one query
# Each of the two comes in the order of its index, so they are merged as they are read: records may be large, and are not sorted.
CHANGES: Final = f"""
select name, {_ROW} from record where space=?1 and sequence>?2
union all select name, {_ROW} from tombstone where space=?1 and sequence>?2
order by sequence limit ?3"""  # noqa: S608 (constants)
_ENVELOPE_TYPES: Final[list[type]] = [bytes, bytes, bytes, bytes, int]
SqlRow = tuple[Any, ...]  # what sqlite3 returns: the schema gives each column its type, unless the file is damaged

T = TypeVar("T")


class SqliteLookups:
    """See the laws of metastore.base.Lookups."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._asking = threading.Lock()

    def state(self) -> StoreState:
        rows = self._all("select sequence, reserved, writer, objects, bytes from store", ())
        if not rows:
            raise MetastoreDamaged("the metastore has lost its counters")
        return _parsed(StoreState, rows)[0]

    def usage(self, space: NamespaceId) -> Usage:
        rows = self._all("select objects, bytes from usage where space=?", (space,))
        return _parsed(_usage, rows)[0] if rows else Usage()

    def usages(self) -> dict[NamespaceId, Usage]:
        found = _parsed(lambda space, *usage: (NamespaceId(bytes(space)), _usage(*usage)), self._all("select * from usage", ()))
        return dict(found)

    def get(self, space: NamespaceId, name: str) -> Envelope | None:
        return self._envelope(f"select {_ROW} from record where space=? and name=?", (space, name.encode()))  # noqa: S608 (constants)

    def tombstone(self, space: NamespaceId, name: str) -> Envelope | None:
        return self._envelope(f"select {_ROW} from tombstone where space=? and name=?", (space, name.encode()))  # noqa: S608

    def scan(self, space: NamespaceId, prefix: str, after: str | None, limit: int | None) -> list[Row]:
        beginning = prefix.encode()
        low = beginning if after is None else max(beginning, after.encode() + b"\0")
        query = f"select name, {_ROW} from record where space=? and name>=? {'and name<?' if prefix else ''} order by name limit ?"  # noqa: S608
        behind = (beginning[:-1] + bytes([beginning[-1] + 1]),) if prefix else ()  # also of what is no UTF-8 and shows the damage
        return _parsed(lambda *row: _row(space, *row), self._some(query, (space, low, *behind, _most(limit))))

    def named(self, version: Version, limit: int | None = None) -> list[RowName]:
        rows = self._all("select space, name from record where version=? and kind=1 limit ?", (version, _most(limit)))
        return _parsed(lambda space, name: (NamespaceId(bytes(space)), str(name, "utf-8")), rows)

    def leads_to(self, row: Row) -> bool:
        name = (row.space, row.name.encode())
        by_version = "select 1 from record indexed by record_by_version where version=? and kind=1 and space=? and name=?"
        by_sequence = "select 1 from record indexed by record_by_sequence where sequence=? and space=? and name=?"
        return bool(self._all(by_version, (row.envelope.version, *name)) and self._all(by_sequence, (row.envelope.sequence, *name)))

    def changes(self, space: NamespaceId, since: int, limit: int) -> list[Row]:
        rows = self._some(CHANGES, (space, since, limit))
        known = [row for row in rows if type(row[1 + _SEQUENCE]) is int]  # what is no number comes behind all numbers
        sequences = [since, *(row[1 + _SEQUENCE] for row in known)]
        if any(before >= sequence for before, sequence in pairwise(sequences)):
            raise IndexDamaged
        return _parsed(lambda *row: _row(space, *row), known)

    def newest(self, space: NamespaceId, sequences: Sequence[int]) -> set[int]:
        found: set[int] = set()
        for start in range(0, len(sequences), _AT_ONCE):
            asked = sequences[start : start + _AT_ONCE]
            places = ",".join("?" * len(asked))
            for table in ("record", "tombstone"):
                query = f"select sequence from {table} where space=? and sequence in ({places})"  # noqa: S608 (constants)
                found.update(_parsed(int, self._all(query, (space, *asked))))
        return found

    def referring(self, space: NamespaceId, reference: ReferenceHash, after: str | None, limit: int) -> list[str]:
        rows = self._all(
            "select name from reference where space=? and hash=? and name>? order by name limit ?",
            (space, reference, b"" if after is None else after.encode(), limit),
        )
        return _parsed(lambda name: str(name, "utf-8"), rows)

    def intents(self) -> Sequence[Intent]:
        return _parsed(_intent, self._all("select version, shards from intent", ()))

    def garbage(self, shard: int, limit: int | None = None, first: ShareId | None = None) -> Sequence[Garbage]:
        version, index = (b"", 0) if first is None else (first.version, first.index)
        columns = "select shard, version, share, small from garbage"
        query = f"{columns} where shard=? and (version, share) >= (?, ?) order by version, share limit ?"
        return _parsed(_garbage, self._all(query, (shard, version, index, _most(limit))))

    def garbage_count(self) -> int:
        return int(self._all("select count(*) from garbage", ())[0][0])

    def debts(self, shard: int | None = None, limit: int | None = None, after: Debt | None = None) -> Sequence[Debt]:
        columns = "select shard, kind, space, name, version, share from debt"
        if shard is None:
            return _parsed(_debt, self._all(columns, ()))
        order = "version, kind, share, space, name"  # as the index of shards has them
        last = (b"", -1, -1, b"", b"") if after is None else (after.version, after.kind, after.index, after.space, after.name.encode())
        query = f"{columns} where shard=? and ({order}) > (?, ?, ?, ?, ?) order by {order} limit ?"
        return _parsed(_debt, self._all(query, (shard, *last, _most(limit))))

    def debts_count(self) -> int:
        return int(self._all("select count(*) from debt", ())[0][0])

    def debts_of(self, version: Version) -> Sequence[Debt]:
        return _parsed(_debt, self._all("select shard, kind, space, name, version, share from debt where version=?", (version,)))

    def _all(self, query: str, values: tuple[object, ...]) -> list[SqlRow]:
        try:
            with self._asking:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _not_read(error) from error

    def _some(self, query: str, values: tuple[object, ...]) -> list[SqlRow]:
        """The first of the rows, which end with a record: as many as may be in memory."""
        try:
            with self._asking, closing(self._db.execute(query, values)) as cursor:
                rows: list[SqlRow] = []
                size = 0
                while size < limits.ROWS_BYTES and (row := cursor.fetchone()) is not None:
                    rows.append(row)
                    size += len(row[-1]) if isinstance(row[-1], bytes) else 0
                return rows
        except sqlite3.Error as error:
            raise _not_read(error) from error

    def _envelope(self, query: str, values: tuple[object, ...]) -> Envelope | None:
        rows = self._all(query, values)
        return _parsed(_envelope, rows)[0] if rows else None


def _most(limit: int | None) -> int:
    """A limit as SQLite has it: a negative one is none."""
    return -1 if limit is None else limit


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; SQLITE_MISUSE for errors that the Python module raises by itself."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)) & 0xFF


def error_name(error: sqlite3.Error) -> str:
    return str(getattr(error, "sqlite_errorname", type(error).__name__))


def _not_read(error: sqlite3.Error) -> ZstorError:
    if primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return MetastoreDamaged(f"a part of the metastore cannot be read: {error_name(error)}")
    return IoError(
        f"the metastore cannot be read: {error_name(error)}", hint="see whether its disk is there; `zstor status` tells more"
    )


def _parsed(parse: Callable[..., T], rows: Iterable[SqlRow]) -> list[T]:
    """Each row as a value; MetastoreDamaged if columns hold what this program never writes."""
    try:
        return [parse(*row) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MetastoreDamaged("a row of the metastore holds what was never written", DAMAGED_ROW_HINT) from None


def _envelope(kind: int, space: bytes, key_hash: bytes, version: bytes, sequence: int, sealed: bytes) -> Envelope:
    # Every read and write of a small object comes through here: the types are looked at in one go.
    if [type(space), type(key_hash), type(version), type(sealed), type(sequence)] != _ENVELOPE_TYPES or sequence < 0:
        raise ValueError
    return Envelope(KINDS[kind], NamespaceId(space), KeyHash(key_hash), Version(version), sequence, sealed)


def _row(space: bytes, name: bytes, *columns: object) -> Row:
    try:
        return Row(NamespaceId(space), name.decode(), _envelope(*columns))  # type: ignore[arg-type]  # checked there
    except (ValueError, KeyError, TypeError):
        sequence = columns[_SEQUENCE]
        known = sequence if type(sequence) is int and sequence >= 0 else 0
        nothing = Envelope(Kind.OBJECT, NamespaceId(space), KeyHash(bytes(ID_BYTES)), Version(bytes(ID_BYTES)), known, b"")
        return Row(NamespaceId(space), name.decode(), nothing)


def _must_be(kind: type, *values: object) -> None:
    if not all(isinstance(value, kind) for value in values):
        raise TypeError


def _usage(objects: int, size: int) -> Usage:
    _must_be(int, objects, size)
    return Usage(objects, size)


def _intent(version: bytes, shards: bytes) -> Intent:
    _must_be(bytes, version, shards)
    return Intent(Version(version), _unpack(shards))


def _garbage(shard: int, version: bytes, share: int, small: int) -> Garbage:
    _must_be(bytes, version)
    _must_be(int, shard, share, small)
    return Garbage(shard, ShareId(Version(version), share), bool(small))


def _debt(shard: int, kind: int, space: bytes, name: bytes, version: bytes, index: int) -> Debt:
    _must_be(bytes, space, version)
    _must_be(int, shard, index)
    return Debt(shard, Owed(kind), NamespaceId(space), name.decode(), Version(version), index)


def _unpack(shards: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(shards[at : at + 2], "little") for at in range(0, len(shards), 2))
