"""What is noted of a log while all of it is looked at, in a temporary file of SQLite's own: a log may be long, and a file that somebody
made may have any number of blocks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from zstor_local.errors import IoError
from zstor_local.formats.cid import Cid, from_binary

_CACHE_KIB: Final = 16 * 1_024
_SCHEMA: Final = """
create table seen(hash blob primary key, seq text not null) without rowid;
create table place(digest blob primary key, offset integer not null, length integer not null) without rowid;
create table page(cid blob not null);
"""

Place = tuple[int, int]  # where a block begins in its file, and how long it is


class Scratch:
    """The notes of one look. Threads may take turns with it."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.executescript(f"pragma journal_mode=off; pragma synchronous=off; pragma cache_size=-{_CACHE_KIB}; {_SCHEMA}")
        self._db.execute("begin")

    def close(self) -> None:
        self._db.close()

    def first(self, local_hash: bytes, seq: int) -> int:
        """The number of the entry that this local hash was seen at first: this one's, if it was not."""
        try:
            self._db.execute("insert into seen values(?, ?)", (local_hash, str(seq)))  # text: a page may name any number
        except sqlite3.IntegrityError:
            return int(self._db.execute("select seq from seen where hash=?", (local_hash,)).fetchone()[0])
        return seq

    def put_places(self, places: Iterable[tuple[bytes, int, int]]) -> None:
        """Where blocks lie, by their digests: digest, offset and length. Of one that comes again the last place counts."""
        self._db.executemany("insert or replace into place values(?, ?, ?)", places)

    def place(self, digest: bytes) -> Place | None:
        """Where the block of this digest lies; None if there is none."""
        found: Place | None = self._db.execute("select offset, length from place where digest=?", (digest,)).fetchone()
        return found

    def put_page(self, cid: Cid) -> None:
        """A page below those that were put before."""
        self._db.execute("insert into page values(?)", (cid.binary,))

    def pages(self) -> Iterator[Cid]:
        """The pages that were put, the last first."""
        for (cid,) in self._db.execute("select cid from page order by rowid desc"):
            yield from_binary(cid)

    def forget_log(self) -> None:
        """Nothing was seen of hashes and pages."""
        self._db.executescript("delete from seen; delete from page")


@contextmanager
def scratch() -> Iterator[Scratch]:
    """Notes for one look. IoError where they cannot be kept."""
    try:
        notes = Scratch()
        try:
            yield notes
        finally:
            notes.close()
    except sqlite3.Error as error:
        raise IoError(f"the tables on the side cannot be kept: {error}", hint="make room in /var/tmp", retryable=True) from error
