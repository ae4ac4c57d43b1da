"""What is known of a space's large shares without opening each: size and namespace by name, in an SQLite file.

It can be thrown away (`index_file.py`): the files tell the same. It may lack some and name some that are gone, after a crash or where
the disk was full.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from zstor_local.index_file import DAMAGE, IndexFormat, give_up, is_damage, open_index, transaction
from zstor_local.model.ids import NamespaceId

_FORMAT: Final = IndexFormat(
    index="the index of large shares",
    number=1,
    tables="create table share(name text primary key, size integer not null, namespace blob not null) without rowid",
)

log = logging.getLogger("zstor.shardserver")


class LargeIndex:
    """One for a space. Any thread may call it; none of it fails. The start after damage was met begins it anew."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._db = open_index(path, _FORMAT)

    def known(self, part: str) -> dict[str, tuple[int, NamespaceId]]:
        """Size and namespace of shares whose names begin so."""
        with self._lock:
            try:
                rows = self._db.execute("select name, size, namespace from share where name >= ? and name < ?", (part, f"{part}g"))
                return {name: _checked(size, namespace) for name, size, namespace in rows}
            except DAMAGE as error:
                log.warning("the index of large shares cannot be read: %s", error)
                give_up(self._db)
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
                with transaction(self._db):
                    self._db.executemany(statement, rows)
            except sqlite3.Error as error:
                log.warning("the index of large shares was not written: %s", error)
                if is_damage(error):
                    give_up(self._db)

    def close(self) -> None:
        with self._lock:
            self._db.close()


def _checked(size: object, namespace: object) -> tuple[int, NamespaceId]:
    if not isinstance(size, int) or not isinstance(namespace, bytes):
        raise TypeError("a size or a namespace is damaged")
    return size, NamespaceId(namespace)
