"""Indexes in SQLite files that can be thrown away: what they tell can be read again, slower, from what they are an index of.

So a file that is damaged, or of another format, is no error: it is begun anew, and where the disk refuses even that, the index lives in
memory. What is written in one transaction (WAL, synchronous=NORMAL) is there as a whole or not at all: after a power loss an index is
older, never wrong.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

DAMAGE: Final = (sqlite3.Error, struct.error, TypeError, ValueError)  # what may be raised where a damaged index is read

_GIVEN_UP: Final = 0  # as the format; that of a new file too, but a new one has no tables

log = logging.getLogger("zstor.index")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFormat:
    """What is in such a file. Whoever changes its tables gives it another number, from 1 on."""

    index: str  # what the index is called in the daemon's log
    number: int
    tables: str  # SQL that makes them
    older: Mapping[int, str] = field(default_factory=dict)  # formats that are taken over, and the SQL that does it


def open_index(path: str, form: IndexFormat, check: Callable[[sqlite3.Connection], object] | None = None) -> sqlite3.Connection:
    """The index at `path`, which may be ":memory:". Begun anew where it is no index of this format, was given up, or where `check`
    raises one of DAMAGE; in memory where no file can be made.

    Threads may take turns with the connection. It begins no transaction by itself.
    """
    try:
        return _open(path, form, check)
    except DAMAGE as error:
        log.info("%s is begun anew: %s", form.index, error)
        remove_index(path)
    try:
        return _open(path, form, check)
    except DAMAGE as error:
        log.warning("%s is kept in memory, as its file cannot be made: %s", form.index, error)
        return _open(":memory:", form, check)


def _open(path: str, form: IndexFormat, check: Callable[[sqlite3.Connection], object] | None) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=normal")
        found = db.execute("pragma user_version").fetchone()[0]
        if found != form.number:
            is_new = found == _GIVEN_UP and not db.execute("select count(*) from sqlite_schema").fetchone()[0]
            change = form.tables if is_new else form.older.get(found)
            if change is None:
                raise sqlite3.DatabaseError("it has another format, or was found damaged before")
            db.executescript(f"begin; {change}; pragma user_version={form.number}; commit;")
        if check is not None:
            check(db)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that is written meanwhile, or nothing of it."""
    db.execute("begin immediate")
    try:
        yield
        db.execute("commit")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite may have done it already
            db.execute("rollback")
        raise


def is_damage(error: Exception) -> bool:
    """Whether what a write raised tells of damage: not of a full disk, nor of somebody else who holds the file."""
    return not isinstance(error, sqlite3.OperationalError)


def give_up(db: sqlite3.Connection) -> None:
    """Have the next start begin this index anew. In a transaction that is taken back this is too."""
    with suppress(sqlite3.Error):
        db.execute(f"pragma user_version={_GIVEN_UP}")


def remove_index(path: str) -> None:
    """Take the file away, with what SQLite keeps beside it."""
    for name in (path, f"{path}-wal", f"{path}-shm"):
        with suppress(OSError):
            os.unlink(name)
