"""The metastore in one SQLite file: WAL, synchronous=FULL, checkpoints only when the committer says so."""

from __future__ import annotations

import logging
import sqlite3
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Final, NoReturn

from zstor_local.metastore.base import (
    REPLACING,
    CommitRefused,
    CommitUnknown,
    Debt,
    Garbage,
    MetastoreClosed,
    MetastoreDamaged,
    MetastoreInUse,
    MetastoreNotOpened,
    Reference,
    Transaction,
)
from zstor_local.metastore.reserve import Reserve
from zstor_local.metastore.sqlite_lookups import SqliteLookups, error_name, primary_code
from zstor_local.model.ids import StoreId, Version
from zstor_local.model.record import Envelope, Kind

FORMAT: Final = 1
BUSY_SECONDS: Final = 5.0  # how long another process may hold the file before we give up

_SCHEMA: Final = """
create table store(
    one integer primary key check (one = 1), format integer not null, store_id blob not null, sequence integer not null,
    reserved integer not null, writer integer not null, objects integer not null, bytes integer not null);
create table record(
    space blob not null, name blob not null, kind integer not null, key_hash blob not null, version blob not null,
    sequence integer not null, sealed blob not null, primary key(space, name)) without rowid;
create table tombstone(
    space blob not null, name blob not null, kind integer not null, key_hash blob not null, version blob not null,
    sequence integer not null, sealed blob not null, primary key(space, name)) without rowid;
create table intent(version blob primary key, shards blob not null) without rowid;
create table garbage(
    shard integer not null, version blob not null, share integer not null, small integer not null,
    primary key(shard, version, share)) without rowid;
create table debt(
    version blob not null, shard integer not null, kind integer not null, share integer not null, space blob not null,
    name blob not null, primary key(version, shard, kind, share, space, name)) without rowid;
create table reference(
    space blob not null, hash blob not null, name blob not null, primary key(space, hash, name)) without rowid;
"""
_INDEXES: Final = {
    "debt_by_shard": "debt(shard)",
    "record_by_version": "record(version) where kind = 1",
    "record_by_sequence": "record(space, sequence)",
    "tombstone_by_sequence": "tombstone(space, sequence)",
}
# Since 0.2: stores that were made before get it when they are opened.
_USAGE_SCHEMA: Final = """
create table if not exists usage(space blob primary key, objects integer not null, bytes integer not null) without rowid;
"""

# Primary result codes that tell of the system and not of what the file holds. For want of room for -shm the second and third come too.
_PERHAPS_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
_SYSTEM: Final = _PERHAPS_FULL | {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOMEM}

log = logging.getLogger("zstor.store")


class SqliteMetastore(SqliteLookups):
    """See the laws of metastore.base.Metastore."""

    kind = "sqlite"

    def __init__(self, path: str, *, busy_seconds: float = BUSY_SECONDS, reserve: Reserve | None = None) -> None:
        """Open an existing metastore. MetastoreDamaged if it is not one or its format is newer, MetastoreInUse if it is locked,
        MetastoreNotOpened if the system refuses.

        On a full disk the reserve is given up for a commit that adds no object.
        """
        self._reserve = reserve
        self._open = True
        opened: list[sqlite3.Connection] = []
        try:
            opened.append(_connect(path, busy_seconds))
            opened.append(_connect(path, busy_seconds))
            self._writer, reader = opened
            super().__init__(reader)
            if not self._writer.execute("select 1 from sqlite_master where name = 'usage'").fetchone():
                self._writer.executescript(_USAGE_SCHEMA)
            reader.execute("pragma query_only=on")
            row = reader.execute("select format, store_id from store").fetchone()
            if row is None or row[0] != FORMAT:
                raise MetastoreDamaged(f"the metastore has format {row and row[0]}, this version reads {FORMAT}")
            # Each stays false once there were some in this life.
            self._no_debts = not self._all("select 1 from debt limit 1", ())
            self._no_tombstones = not self._all("select 1 from tombstone limit 1", ())
        except BaseException as error:
            for db in opened:
                db.close()
            if isinstance(error, sqlite3.Error):
                raise _not_opened(error) from error
            raise
        self._store_id = StoreId(row[1])
        self._committed = SqliteLookups(self._writer)

    @classmethod
    def create(cls, path: str, store_id: StoreId, transactions: Iterable[Transaction] = ()) -> None:
        """Make a metastore with these transactions in it, durable when this returns (the directory entry is the caller's to sync); or
        CommitUnknown. The file alone is the metastore then.

        The indexes are made when the rows are there: that sorts each of them once.
        """
        try:
            with closing(_connect(path, BUSY_SECONDS, new=True)) as db:
                db.executescript(_SCHEMA + _USAGE_SCHEMA)
                db.execute("insert into store values(1, ?, ?, 0, 0, 0, 0, 0)", (FORMAT, store_id))
            with closing(cls(path)) as metastore:
                for transaction in transactions:
                    metastore.commit(transaction)
                for name, columns in _INDEXES.items():
                    metastore._writer.execute(f"create index {name} on {columns}")
                metastore._writer.execute("pragma wal_checkpoint(truncate)").fetchone()
        except sqlite3.Error as error:
            raise CommitUnknown(f"the metastore cannot be made: {error_name(error)}") from error

    @property
    def store_id(self) -> StoreId:
        return self._store_id

    @property
    def writable(self) -> bool:
        return self._open

    @property
    def committed(self) -> SqliteLookups:
        return self._committed

    def debts_of(self, version: Version) -> Sequence[Debt]:
        return [] if self._no_debts else super().debts_of(version)  # every read and overwrite asks

    def commit(self, transaction: Transaction) -> None:
        if not self._open:
            raise MetastoreClosed("the metastore failed before; restart the daemon")
        if transaction.debts:
            self._no_debts = False
        if self._reserve is not None and self._reserve.given_up:
            self._reserve.keep()  # the disk may be full again before the next checkpoint
        try:
            self._commit(transaction)
        except CommitRefused as error:
            if not error.no_space or self._reserve is None or self._adds(transaction) or not self._reserve.give_up():
                raise
            self._commit(transaction)

    def _commit(self, transaction: Transaction) -> None:
        try:
            self._transact(partial(self._apply, transaction))
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_CORRUPT_INDEX or not self._rolled_back():
                self._give_up(error)
            self.mend_indexes()
            with self._giving_up():
                self._transact(partial(self._apply, transaction))

    def mend_indexes(self) -> None:
        log.error("a part of the metastore's indexes is damaged: they are made anew")
        try:
            self._transact(lambda: [self._writer.execute(f"reindex {name}") for name in _INDEXES])
        except sqlite3.Error as error:
            if primary_code(error) != sqlite3.SQLITE_CORRUPT or not self._rolled_back():
                self._give_up(error)
            # It has read rows that nobody asked for: what lies elsewhere goes on.
            raise CommitRefused("there is more damage than in its indexes", no_space=False) from error

    def _transact(self, change: Callable[[], object]) -> None:
        self._writer.execute("begin immediate")
        change()
        self._writer.execute("commit")

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._give_up(error)

    def _adds(self, transaction: Transaction) -> bool:
        """Whether there is more in the store after it: the reserve is for deletes, and for what keeps the house."""
        before, after = self.state(), transaction.state
        return bool(transaction.intents) or after.objects > before.objects or after.bytes > before.bytes

    def _apply(self, transaction: Transaction) -> None:
        db, state = self._writer, transaction.state
        db.execute(
            "update store set sequence=?, reserved=?, writer=?, objects=?, bytes=?",
            (state.sequence, state.reserved, state.writer, state.objects, state.bytes),
        )
        # Of a row that is written twice the last counts.
        self._put_rows({(row.space, row.name.encode()): row.envelope for row in transaction.rows})
        if transaction.intents:
            db.executemany("insert into intent values(?, ?)", [(i.version, _pack(i.shards)) for i in transaction.intents])
        if transaction.intents_done:
            db.executemany("delete from intent where version=?", [(version,) for version in transaction.intents_done])
        if transaction.garbage_freed:
            db.executemany(
                "delete from garbage where shard=? and version=? and share=?", [_garbage_row(g)[:3] for g in transaction.garbage_freed]
            )
        if transaction.garbage:
            db.executemany("insert or replace into garbage values(?, ?, ?, ?)", [_garbage_row(g) for g in transaction.garbage])
        if transaction.debts_paid:
            db.executemany(
                "delete from debt where version=? and shard=? and kind=? and share=? and space=? and name=?",
                [_debt_row(d) for d in transaction.debts_paid],
            )
        if transaction.debts:
            db.executemany("insert or replace into debt values(?, ?, ?, ?, ?, ?)", [_debt_row(d) for d in transaction.debts])
        if transaction.references_gone:
            db.executemany(
                "delete from reference where space=? and hash=? and name=?", [_reference_row(r) for r in transaction.references_gone]
            )
        if transaction.references:
            db.executemany("insert or replace into reference values(?, ?, ?)", [_reference_row(r) for r in transaction.references])
        for space, more in transaction.usage.items():
            db.execute(
                "insert into usage values(?1, ?2, ?3) on conflict(space) do update set objects=objects+?2, bytes=bytes+?3",
                (space, more.objects, more.bytes),
            )

    def _put_rows(self, newest: Mapping[tuple[bytes, bytes], Envelope]) -> None:
        """Records, each in the place of its row's tombstone, and tombstones in the place of records."""
        for table, other, buried in (("record", "tombstone", False), ("tombstone", "record", True)):
            rows = [(*at, envelope) for at, envelope in newest.items() if (envelope.kind is Kind.TOMBSTONE) is buried]
            if not rows:
                continue
            if buried:
                self._no_tombstones = False
            self._writer.executemany(
                f"insert or replace into {table} values(?, ?, ?, ?, ?, ?, ?)",
                [(space, name, e.kind, e.key_hash, e.version, e.sequence, e.sealed) for space, name, e in rows],
            )
            if other == "tombstone" and self._no_tombstones:
                continue
            self._writer.executemany(
                f"delete from {other} where space=? and name=?",  # noqa: S608 (constants)
                [(space, name) for space, name, envelope in rows if envelope.kind in REPLACING],
            )

    def _rolled_back(self) -> bool:
        try:
            if self._writer.in_transaction:
                self._writer.execute("rollback")
        except sqlite3.Error:
            return False
        return True

    def _give_up(self, error: sqlite3.Error) -> NoReturn:
        """A full disk is refused and can be tried again once rolled back; after anything else the file is not trusted any more."""
        rolled_back = self._rolled_back()
        if rolled_back and self._lacks_room(error):
            raise CommitRefused("the disk of the metastore is full", no_space=True) from error
        if primary_code(error) == sqlite3.SQLITE_BUSY and rolled_back:
            raise CommitRefused("another process holds the metastore", no_space=False) from error
        self._open = False
        raise CommitUnknown(f"the metastore failed: {error_name(error)}") from error

    def _lacks_room(self, error: sqlite3.Error) -> bool:
        """Whether a write was refused for want of room and nothing else. SQLite says of a quota what it says of a disk that fails."""
        if primary_code(error) == sqlite3.SQLITE_FULL:
            return True
        failed = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_WRITE
        return failed and self._reserve is not None and self._reserve.is_needed()

    def checkpoint(self) -> None:
        """Move the WAL into the file once it is long. The WAL keeps its room: allocated room is what makes FULL fast.

        Where the file has no room to grow all stays in the WAL.
        """
        if not self._open:
            return
        if self._reserve is not None:
            self._reserve.keep()
        try:
            self._writer.execute("pragma wal_checkpoint(passive)").fetchone()
        except sqlite3.Error as error:
            if self._lacks_room(error):
                return
            self._open = False
            raise CommitUnknown(f"the metastore failed in a checkpoint: {error_name(error)}") from error

    def close(self) -> None:
        self._open = False
        with suppress(sqlite3.Error):
            self._db.close()
            self._writer.close()


def _connect(path: str, busy_seconds: float, *, new: bool = False) -> sqlite3.Connection:
    uri = f"file:{urllib.parse.quote(path)}?mode={'rwc' if new else 'rw'}"
    db = sqlite3.connect(uri, isolation_level=None, check_same_thread=False, timeout=busy_seconds, uri=True)
    try:
        if not new and db.execute("pragma schema_version").fetchone()[0] == 0:
            raise sqlite3.DatabaseError("the file is empty")  # SQLite would begin a database in it
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=full")
        db.execute("pragma wal_autocheckpoint=0")
        db.execute("pragma trusted_schema=off")
    except BaseException:
        db.close()
        raise
    return db


def _not_opened(error: sqlite3.Error) -> Exception:
    if primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return MetastoreInUse("another process holds the metastore")
    if primary_code(error) in _SYSTEM:
        return MetastoreNotOpened(f"the metastore cannot be opened: {error}", no_space=primary_code(error) in _PERHAPS_FULL)
    return MetastoreDamaged(f"the metastore cannot be read: {error}")


def _garbage_row(garbage: Garbage) -> tuple[int, bytes, int, bool]:
    return garbage.shard, garbage.share.version, garbage.share.index, garbage.small


def _reference_row(reference: Reference) -> tuple[bytes, bytes, bytes]:
    return reference.space, reference.hash, reference.name.encode()


def _debt_row(debt: Debt) -> tuple[bytes, int, int, int, bytes, bytes]:
    return debt.version, debt.shard, debt.kind, debt.index, debt.space, debt.name.encode()


def _pack(shards: tuple[int, ...]) -> bytes:
    return b"".join(number.to_bytes(2, "little") for number in shards)
