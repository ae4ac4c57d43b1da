"""What is known of a space's large shares without opening each: size and namespace by name, in an SQLite file.

It can be thrown away: the files tell the same. It may lack some and name some that are gone, after a crash or where the disk was full.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from zstor_local.model.ids import NamespaceId

FORMAT: Final = 1

_SCHEMA: Final = f"""
create table share(name text primary key, size integer not null, namespace blob not null) without rowid;
pragma user_version={FORMAT};
"""

log = logging.getLogger("zstor.shardserver")


class LargeIndex:
    """One for a space. Any thread may call it; none of it fails."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        try:
            self._db = _opened(path)
        except sqlite3.Error:
            for name in (path, f"{path}-wal", f"{path}-shm"):
                with suppress(OSError):
                    os.unlink(name)
            self._db = _opened_or_in_memory(path)

    def known(self, part: str) -> dict[str, tuple[int, NamespaceId]]:
        """Size and namespace of shares whose names begin so."""
        with self._lock:
            try:
                rows = self._db.execute("select name, size, namespace from share where name >= ? and name < ?", (part, f"{part}g"))
                return {name: (size, NamespaceId(namespace)) for name, size, namespace in rows}
            except sqlite3.Error as error:
                log.warning("the index of large shares cannot be read: %s", error)
                return {}

    def put(self, shares: Iterable[tuple[str, int, NamespaceId]]) -> None:
        """These are there."""
        self._change("insert or replace into share values(?, ?, ?)", shares)

    def drop(self, names: Iterable[str]) -> None:
        """These are not, or not for sure."""
        self._change("delete from share where name = ?", ((name,) for name in names))

    def _change(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        with self._lock:
            try:
                with self._db:
                    self._db.executemany(statement, rows)
            except sqlite3.Error as error:
                log.warning("the index of large shares was not written: %s", error)

    def close(self) -> None:
        with self._lock:
            self._db.close()


def _opened(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=normal")
        version = db.execute("pragma user_version").fetchone()[0]
        if version == 0 and not db.execute("select count(*) from sqlite_schema").fetchone()[0]:
            db.executescript(_SCHEMA)
        elif version != FORMAT:
            raise sqlite3.DatabaseError("an index of another format")
    except BaseException:
        db.close()
        raise
    return db


def _opened_or_in_memory(path: str) -> sqlite3.Connection:
    try:
        return _opened(path)
    except sqlite3.Error as error:
        log.warning("the index of large shares is kept in memory, as its file cannot be made: %s", error)
        return _opened(":memory:")
