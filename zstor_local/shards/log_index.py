"""Where small shares lie in the logs of directory shards: one SQLite file for all of a store's, derived from the logs alone.

It can be thrown away (`index_file.py`): a shard's log is then read again from its first segment. What it knows and how far it knows
each log commit in one transaction. New entries wait in memory until `flush`.
"""

from __future__ import annotations

import logging
import sqlite3
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from zstor_local.index_file import DAMAGE, IndexFormat, give_up, is_damage, open_index, transaction
from zstor_local.model.ids import ID_BYTES, ShareId, Version
from zstor_local.value import value

FLUSH_AT: Final = 500  # versions waiting in memory: so many of each log's entries are read again at a start after a kill

_PAGE: Final = 500  # versions read at once
_STRETCH: Final = 5_000  # versions among which those of one shard are looked for at once
_BEHIND_ALL: Final = b"\xff" * (ID_BYTES + 1)
_EXTENT: Final = struct.Struct("<HBIII")
_NUMBER: Final = struct.Struct("<H")
_HOLDER: Final = struct.Struct("<HB12x")  # the same without where it lies
_FORMAT: Final = IndexFormat(
    index="the index of the logs",
    number=2,
    tables="""
create table entry(version blob primary key, places blob not null) without rowid;
create table progress(shard integer primary key, segment integer not null, segment_id blob not null,
    offset integer not null, sequence integer not null, committed integer not null,
    settled_segment integer not null, settled_offset integer not null)""",
    older={
        1: """
alter table progress add settled_segment integer not null default 0;
alter table progress add settled_offset integer not null default 0"""
    },
)
_PROGRESS: Final = "select shard, segment, segment_id, offset, sequence, committed, settled_segment, settled_offset from progress"

log = logging.getLogger("zstor.shards")


class IndexDamaged(Exception):
    """A part of the index cannot be read. It is started anew at the next start, and made from the logs again."""


@value()
class Extent:
    """Where a small share lies in its shard's log. Offset and length in bytes."""

    segment: int
    offset: int
    length: int


@value()
class Progress:
    """How far a shard's log is indexed: everything before `offset` of the segment, and what the newest entry there said.

    No entry before the settled position has a sequence above `committed`; (0, 0) where none is known.
    """

    segment: int = 0
    segment_id: bytes = b""
    offset: int = 0
    sequence: int = 0
    committed: int = 0
    settled_segment: int = 0
    settled_offset: int = 0

    @property
    def settled(self) -> tuple[int, int]:
        return self.settled_segment, self.settled_offset

    def settled_behind(self, committed: int, segment: int, offset: int) -> tuple[int, int]:
        """The settled position once an entry follows there that says how far all is committed."""
        if committed >= self.sequence:
            return segment, offset
        return self.settled if committed >= self.committed else (0, 0)


_Key = tuple[int, int]  # shard number, share index
_Extents = dict[_Key, Extent | None]  # None: freed


class LogIndex:
    """One for a store. Any thread may call it."""

    def __init__(self, path: str) -> None:
        """`path` may be ":memory:". A file that is damaged or no index of this format is begun anew; if that fails, memory is used."""
        self._lock = threading.Lock()  # held for moments: the event loop takes it too
        self._flush_lock = threading.Lock()  # held for a whole flush
        self._waiting: dict[Version, _Extents] = {}
        self._flushing: dict[Version, _Extents] = {}
        self._unflushed: set[int] = set()
        self._due_at = 0  # versions that have to wait before a flush is tried again that was in vain
        # In the file, last: a version's shares are asked for in a row.
        self._looked_up: tuple[Version | None, Mapping[_Key, Extent]] = None, {}
        self._db = open_index(path, _FORMAT, _progress)
        self._progress = _progress(self._db)
        self._reader = _reader(self._db)
        self._noticing_damage = _NoticingDamage(self._db)

    def progress(self, shard: int) -> Progress:
        return self._progress.get(shard, Progress())

    def forget(self, shard: int) -> None:
        """Start a shard's log from the beginning: nothing that was known of it holds. Takes little memory. IndexDamaged.

        What a crash leaves of that is known with a progress that matches no log.
        """
        known = replace(self.progress(shard), segment_id=b"")
        for share in self.shares(shard):
            self.record(shard, [(share, None)], known)
            if self.is_due:
                self.flush()
        self.record(shard, (), Progress())

    def record(self, shard: int, extents: Iterable[tuple[ShareId, Extent | None]], progress: Progress) -> None:
        """Take what was appended to a shard's log (None: freed), and how far the log is known now."""
        with self._lock:
            for share, extent in extents:
                self._waiting.setdefault(share.version, {})[shard, share.index] = extent
            self._progress[shard] = progress
            self._unflushed.add(shard)

    def find(self, shard: int, share: ShareId) -> Extent | None:
        """Where a share lies; None if the shard does not hold it; IndexDamaged."""
        key = (shard, share.index)
        with self._lock:
            for fresh in (self._waiting, self._flushing):
                extents = fresh.get(share.version)
                if extents is not None and key in extents:
                    return extents[key]
            if self._looked_up[0] != share.version:
                self._looked_up = share.version, self._stored(self._reader, share.version)
            return self._looked_up[1].get(key)

    def held(self, versions: Sequence[Version]) -> dict[Version, set[_Key]]:
        """The small shares of these versions that any shard holds, as shard number and share index; IndexDamaged.

        Versions of which none is held may be left out.
        """
        held: dict[Version, set[_Key]] = {}
        with self._lock, self._noticing_damage:
            for start in range(0, len(versions), _PAGE):
                some = versions[start : start + _PAGE]
                query = f"select version, places from entry where version in ({','.join('?' * len(some))})"  # noqa: S608 (question marks)
                for version, extents in self._reader.execute(query, some):
                    held[version] = {*_HOLDER.iter_unpack(extents)}
            for fresh in (self._flushing, self._waiting):
                for version in fresh.keys() & versions if fresh else ():
                    here = held.setdefault(version, set())
                    for key, extent in fresh[version].items():
                        (here.discard if extent is None else here.add)(key)
        return held

    def shares(self, shard: int) -> Iterator[ShareId]:
        """Every small share the shard holds, by version; for comparing both ways. As `versions`, but of others little more is read
        than that they are others'.
        """
        self.flush()
        first: bytes | None = b""
        with self._noticing_damage:
            while first is not None:
                rows, first = self._stretch(first, shard)
                for version, extents in rows:
                    yield from (ShareId(Version(version), index) for number, index in _unpack(extents) if number == shard)

    def _stretch(self, first: bytes, shard: int) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Versions from a first one on that a shard may hold shares of, and where the next stretch begins, if there is one."""
        with self._lock:
            query = "select version from entry where version >= ? order by version limit 1 offset ?"
            (end,) = self._reader.execute(query, (first, _STRETCH)).fetchone() or (None,)
            query = "select version, places from entry where version >= ? and version < ? and instr(places, ?) order by version"
            return self._reader.execute(query, (first, end or _BEHIND_ALL, _NUMBER.pack(shard))).fetchall(), end

    def versions(self, first: bytes = b"") -> Iterator[tuple[Version, Mapping[_Key, Extent]]]:
        """Every version of which small shares are held, in their order from a first one on, and where they lie, by shard number and
        share index. Flushes first, takes little memory. IndexDamaged.

        What comes or goes meanwhile may be among them or not.
        """
        self.flush()
        with self._noticing_damage:
            while rows := self._page(first):
                for version, extents in rows:
                    yield Version(version), _unpack(extents)
                first = rows[-1][0] + b"\0"

    def _page(self, first: bytes) -> list[tuple[bytes, bytes]]:
        with self._lock:
            query = "select version, places from entry where version >= ? order by version limit ?"
            return self._reader.execute(query, (first, _PAGE)).fetchall()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_due(self) -> bool:
        """Whether enough waits for a flush. After one in vain that is twice as much: each has all of it to write."""
        return len(self._waiting) >= max(FLUSH_AT, self._due_at)

    def flush(self) -> None:
        """Write what waits. An error leaves it waiting: the log holds the same, so nothing is lost. Lookups go on meanwhile."""
        with self._flush_lock:
            with self._lock:
                self._flushing, self._waiting = self._waiting, {}
                progress = {shard: self._progress[shard] for shard in sorted(self._unflushed)}
                self._unflushed.clear()
            try:
                with transaction(self._db):
                    self._store(progress)
            except (sqlite3.Error, IndexDamaged) as error:
                log.warning("the index of the logs was not written: %s", error)
                self._put_back(progress)
                self._due_at = 2 * len(self._waiting)
                if is_damage(error):
                    give_up(self._db)
            else:
                self._due_at = 0
            with self._lock:
                self._flushing = {}
                self._looked_up = None, {}

    def _put_back(self, progress: Mapping[int, Progress]) -> None:
        with self._lock:
            for version, extents in self._flushing.items():
                self._waiting[version] = {**extents, **self._waiting.get(version, {})}
            self._unflushed.update(progress)

    def _store(self, progress: Mapping[int, Progress]) -> None:
        fresh: list[Version] = []
        changed: list[Version] = []
        for version, extents in self._flushing.items():
            (changed if None in extents.values() else fresh).append(version)
        self._db.executemany(
            "insert into entry values(?, ?) on conflict(version) do update set places = cast(places || excluded.places as blob)",
            [(version, _pack(self._flushing[version])) for version in fresh],
        )
        for version in changed:
            merged: _Extents = {**self._stored(self._db, version), **self._flushing[version]}
            alive: _Extents = {key: extent for key, extent in merged.items() if extent is not None}
            if alive:
                self._db.execute("insert or replace into entry values(?, ?)", (version, _pack(alive)))
            else:
                self._db.execute("delete from entry where version=?", (version,))
        rows = [(n, p.segment, p.segment_id, p.offset, p.sequence, p.committed, *p.settled) for n, p in progress.items()]
        self._db.executemany("insert or replace into progress values(?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _stored(self, db: sqlite3.Connection, version: Version) -> Mapping[_Key, Extent]:
        with self._noticing_damage:
            row = db.execute("select places from entry where version=?", (version,)).fetchone()
            return {} if row is None else _unpack(row[0])

    def close(self) -> None:
        self.flush()
        if self._reader is not self._db:
            self._reader.close()
        self._db.close()


class _NoticingDamage:
    """While it is entered: errors come as IndexDamaged, and the index is given up. Made once: every lookup of a share enters it."""

    __slots__ = ("_db",)

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, DAMAGE):
            give_up(self._db)
            raise IndexDamaged(f"the index of the logs is damaged ({type(error).__name__}); a restart makes it anew") from error


def _pack(extents: _Extents) -> bytes:
    return b"".join(
        _EXTENT.pack(shard, index, extent.segment, extent.offset, extent.length)
        for (shard, index), extent in extents.items()
        if extent is not None
    )


def _unpack(extents: bytes) -> dict[_Key, Extent]:
    """Behind a share's older extent a newer one may stand: the last counts."""
    return {(shard, index): Extent(segment, offset, length) for shard, index, segment, offset, length in _EXTENT.iter_unpack(extents)}


def _reader(db: sqlite3.Connection) -> sqlite3.Connection:
    """A connection of its own for lookups, which then never wait for a flush; an index in memory has only the one."""
    path = db.execute("select file from pragma_database_list where name='main'").fetchone()[0]
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False) if path else db


def _progress(db: sqlite3.Connection) -> dict[int, Progress]:
    """How far each log is known; TypeError where that is damaged."""
    progress: dict[int, Progress] = {}
    for shard, segment, segment_id, *numbers in db.execute(_PROGRESS):
        if not isinstance(segment_id, bytes) or not all(isinstance(each, int) for each in (segment, *numbers)):
            raise TypeError("a number or an id is damaged")
        progress[shard] = Progress(segment, segment_id, *numbers)
    return progress
