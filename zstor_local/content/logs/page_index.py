"""Where in its log's pages an entry lies: by sequence number, by local hash, by content id. Derived from the pages alone.

One SQLite file for all logs, which can be thrown away (`index_file.py`): a log is then read again from its newest page on. Pages are
named by their hash and name the page before, so the index of a log is right as a whole if its newest page is the tail of the log's
head. Head pages are not in it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from zstor_local.errors import IoError
from zstor_local.formats.cid import Cid, from_binary
from zstor_local.formats.remotelog import Page
from zstor_local.index_file import DAMAGE, IndexFormat, open_index, remove_index, transaction

_FORMAT: Final = IndexFormat(
    index="the index of remote logs",
    number=1,
    tables="""
create table log(log integer primary key, name text not null unique);
create table page(log integer not null, last integer not null, first integer not null, cid blob not null,
    primary key(log, last)) without rowid;
create index page_cid on page(log, cid);
create table entry(log integer not null, seq integer not null, hash blob not null, cid blob, primary key(log, seq)) without rowid;
create index entry_hash on entry(log, hash);
create index entry_cid on entry(log, cid)""",
)

log = logging.getLogger("zstor.content")


@dataclass(frozen=True, slots=True)
class IndexedPage:
    """A closed page, and the numbers of its entries."""

    cid: Cid
    first: int
    last: int


class PageIndex:
    """One for a store, used by one thread. The file is made when something is first looked for.

    Where the file fails (damage, a full disk) it goes on in memory, empty: `life` is then another one, and whoever relied on what was
    in it puts that in again. The call that met the failure raises IoError.
    """

    def __init__(self, path: str) -> None:
        """`path` may be ":memory:"."""
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._numbers: dict[str, int] = {}
        self.life = 0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- Look ---

    def page(self, name: str, cid: Cid) -> IndexedPage | None:
        return self._page("select cid, first, last from page indexed by page_cid where log=? and cid=?", self._number(name), cid.binary)

    def page_with(self, name: str, seq: int) -> IndexedPage | None:
        """The page that has the entry of this number."""
        found = self._page("select cid, first, last from page where log=? and last>=? order by last limit 1", self._number(name), seq)
        return found if found is not None and found.first <= seq else None

    def pages_above(self, name: str, seq: int) -> list[IndexedPage]:
        """Pages whose newest entry has at least this number, the oldest first."""
        return self._pages("select cid, first, last from page where log=? and last>=? order by last", self._number(name), seq)

    def find(self, name: str, local_hash: bytes) -> tuple[int, Cid | None] | None:
        """The number and content id of the entry with this local hash."""
        # Left to itself SQLite would rather go through the log in the order of its numbers.
        query = "select seq, cid from entry indexed by entry_hash where log=? and hash=? order by seq limit 1"
        number = self._number(name)
        with self._noticing_failure():
            for seq, cid in self._db.execute(query, (number, local_hash)):
                return _checked(seq), None if cid is None else from_binary(cid)
        return None

    def uses(self, name: str, cid: Cid) -> bool:
        """Whether some entry has this content."""
        query = "select 1 from entry indexed by entry_cid where log=? and cid=? limit 1"
        number = self._number(name)
        with self._noticing_failure():
            return self._db.execute(query, (number, cid.binary)).fetchone() is not None

    # --- Change ---

    def add(self, name: str, cid: Cid, page: Page) -> None:
        """A page that lies right above those that are known."""
        number = self._number(name)
        entries = [(number, entry.seq, entry.local_hash, None if entry.cid is None else entry.cid.binary) for entry in page.entries]

        def change(db: sqlite3.Connection) -> None:
            db.execute("insert or replace into page values(?, ?, ?, ?)", (number, page.last, page.first, cid.binary))
            db.executemany("insert or replace into entry values(?, ?, ?, ?)", entries)

        self._change(change)

    def cut(self, name: str, last: int) -> None:
        """Forget the pages above this number, which ends one."""
        number = self._number(name)

        def change(db: sqlite3.Connection) -> None:
            db.execute("delete from page where log=? and last>?", (number, last))
            db.execute("delete from entry where log=? and seq>?", (number, last))

        self._change(change)

    def rewrite(self, name: str, first: int, last: int, pages: Iterable[tuple[int, Cid]]) -> None:
        """Pages (newest number, new id) stand for those of these numbers, and the entries from `first` to `last` have no content."""
        number = self._number(name)
        renamed = [(cid.binary, number, newest) for newest, cid in pages]

        def change(db: sqlite3.Connection) -> None:
            db.executemany("update page set cid=? where log=? and last=?", renamed)
            db.execute("update entry set cid=null where log=? and seq between ? and ?", (number, first, last))

        self._change(change)

    # --- The file ---

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_index(self._path, _FORMAT)
        return self._connection

    def _number(self, name: str) -> int:
        """What stands for a log in the file."""
        number = self._numbers.get(name)
        if number is None:
            self._change(lambda db: db.execute("insert or ignore into log(name) values(?)", (name,)))
            with self._noticing_failure():
                number = self._numbers[name] = int(self._db.execute("select log from log where name=?", (name,)).fetchone()[0])
        return number

    def _page(self, query: str, *parameters: object) -> IndexedPage | None:
        found = self._pages(query, *parameters)
        return found[0] if found else None

    def _pages(self, query: str, *parameters: object) -> list[IndexedPage]:
        with self._noticing_failure():
            rows = self._db.execute(query, parameters)
            return [IndexedPage(from_binary(cid), _checked(first), _checked(last)) for cid, first, last in rows]

    def _change(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """All or nothing."""
        with self._noticing_failure(), transaction(self._db):
            change(self._db)

    @contextmanager
    def _noticing_failure(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            log.warning("the index of remote logs failed and is made anew in memory: %s", error)
            self.close()
            self._numbers = {}
            self.life += 1
            self._connection = open_index(":memory:", _FORMAT)
            remove_index(self._path)
            raise IoError("the index of remote logs failed", hint="try again: it is made anew", retryable=True) from None


def _checked(number: object) -> int:
    if not isinstance(number, int):
        raise TypeError("a number is damaged")
    return number
