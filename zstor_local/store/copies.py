"""Whether the logs hold the copies of records that they should: for one shard, both ways.

The log is read once into tables on the side (key → highest sequence, and the sequence of each entry: some 60 bytes each, in a temporary
file of SQLite's); then the metastore is walked and each row is looked up in them. A shard that lacks the newest record of a key, where
it ought to have it or has another one, is owed that record and gets it at once; one that never came to be is no newer one. Keys of
which the metastore knows nothing are counted: it may have lost them.

A shard server is told which records it need not keep: those that are older than the newest one of their row, where its log holds that.
What a rebuild makes of the log does not depend on them. Of deletions only those may go that are older than a newer one: where too
little is left of what was written since, they are what buries what was before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Set
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from zstor_local.errors import CorruptRecord, IoError
from zstor_local.metastore.base import Debt, Owed, Row
from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import STORE_WIDE, Kind
from zstor_local.model.storewide import VoidRecord
from zstor_local.shards.base import Shard
from zstor_local.store.core import Core
from zstor_local.store.pace import Spend
from zstor_local.store.plausible import no_more_than_written
from zstor_local.store.stored import open_object, open_void

PAGE: Final = 500  # entries or rows that one thread call looks at

_SCHEMA: Final = """
create table heard(space blob not null, key_hash blob not null, sequence integer not null, kind integer not null,
    known integer not null default 0, primary key(space, key_hash)) without rowid;
create table entry(space blob not null, key_hash blob not null, sequence integer not null, kind integer not null,
    primary key(space, key_hash, sequence)) without rowid;
"""
_GIVEN_UP: Final = (Kind.OBJECT, Kind.TOMBSTONE, Kind.ROW)  # kinds of which a log that was told of a newer one needs no older one

_SUPERSEDED_MAX: Final = 2**19  # that one pass tells of; the next one goes on
_OLDER: Final = "select sequence, kind from entry where space=? and key_hash=? and sequence<?"
_HOLDS: Final = "select 1 from entry where space=? and key_hash=? and sequence=?"


@dataclass(slots=True)
class Compared:
    """What a log and the metastore have to tell each other. `lacking` is owed to the shard; `unknown` counts the keys that the shard
    has and the metastore does not; `superseded` are the sequences of records that a server need not keep, by namespace.
    """

    lacking: list[Debt] = field(default_factory=list)
    unknown: int = 0
    superseded: dict[NamespaceId, list[int]] = field(default_factory=dict)


class CopyCheck:
    """The use case. `spaces` are the ids of all namespaces, asked for in the event loop."""

    def __init__(self, core: Core, spaces: Callable[[], list[NamespaceId]]) -> None:
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._sealer = core.sealer
        self._spaces = spaces

    async def compare(self, shard: Shard, spend: Spend) -> Compared:
        """A shard's log with the metastore. ShardError if the shard goes away, IoError if there is no room for the table."""
        try:
            return await self._compared(shard, spend)
        except sqlite3.Error as error:
            raise IoError(f"the table on the side cannot be kept ({type(error).__name__})", hint="make room in /var/tmp") from error

    async def _compared(self, shard: Shard, spend: Spend) -> Compared:
        until = self._metastore.state().sequence  # what comes after it is being written now
        with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as table:
            table.executescript(_SCHEMA)
            voids: set[VoidRecord] = set()
            with closing(self._read(shard, table, voids)) as reading:
                while (size := await self._runtime.threads.run(lambda: next(reading, None))) is not None:
                    await spend(size)
            compared = Compared()
            for space in [STORE_WIDE, *self._spaces()]:
                since = 0
                while rows := await self._runtime.threads.run(self._metastore.changes, space, since, PAGE):
                    since = rows[-1].envelope.sequence
                    compared.lacking += await self._runtime.threads.run(self._compare, shard.number, rows, until, table)
                    if shard.on_disk is None:
                        await self._runtime.threads.run(self._look_for_superseded, rows, table, compared.superseded)
                    await spend(0)
            spaces = {STORE_WIDE, *self._spaces()}  # not in the thread: it would bring the gate of a namespace into being twice
            compared.unknown = await self._runtime.threads.run(self._unknown, table, voids, spaces, until)
        return compared

    def _read(self, shard: Shard, table: sqlite3.Connection, voids: set[VoidRecord]) -> Generator[int, None, None]:
        """The log into the table, a page at a time; yields the bytes that were read."""
        entries = no_more_than_written(shard, shard.scan(), self._metastore)
        while page := list(islice(entries, PAGE)):
            envelopes = [scanned.entry.envelope for scanned in page]
            opened = (open_void(self._sealer, envelope) for envelope in envelopes if envelope.kind is Kind.VOID)
            voids.update(void for void in opened if void is not None)
            table.execute("begin")
            table.executemany(
                "insert into heard(space, key_hash, sequence, kind) values(?, ?, ?, ?) on conflict do update "
                "set sequence = excluded.sequence, kind = excluded.kind where excluded.sequence > sequence",
                [(each.namespace, each.key_hash, each.sequence, each.kind) for each in envelopes if each.kind is not Kind.VOID],
            )
            table.executemany(
                "insert or ignore into entry values(?, ?, ?, ?)",
                [(each.namespace, each.key_hash, each.sequence, each.kind) for each in envelopes if each.kind is not Kind.VOID],
            )
            table.execute("commit")
            yield sum(len(scanned.entry.envelope.sealed) + len(scanned.entry.share) for scanned in page)

    def _compare(self, shard: int, rows: list[Row], until: int, table: sqlite3.Connection) -> list[Debt]:
        """What the shard lacks of these rows. Those that changed since the log was read are known, and no more is asked of them."""
        debts = []
        table.execute("begin")
        for row in rows:
            envelope = row.envelope
            at = (row.space, envelope.key_hash)
            if table.execute("update heard set known=1 where space=? and key_hash=?", at).rowcount:
                lacks = not table.execute(_HOLDS, (*at, envelope.sequence)).fetchone()
            else:
                lacks = self._ought(shard, row)
            if lacks and envelope.sequence <= until:
                debts.append(Debt(shard, Owed.RECORD, row.space, row.name, envelope.version))
        table.execute("commit")
        return debts

    def _look_for_superseded(self, rows: list[Row], table: sqlite3.Connection, superseded: dict[NamespaceId, list[int]]) -> None:
        """What the log holds of these rows below their newest records, if it holds those."""
        for row in rows:
            if sum(map(len, superseded.values())) >= _SUPERSEDED_MAX:
                return
            envelope = row.envelope
            at = (row.space, envelope.key_hash)
            kinds = _GIVEN_UP if envelope.kind is Kind.TOMBSTONE else tuple(kind for kind in _GIVEN_UP if kind is not Kind.TOMBSTONE)
            if envelope.kind not in _GIVEN_UP or not table.execute(_HOLDS, (*at, envelope.sequence)).fetchone():
                continue
            older = table.execute(_OLDER, (*at, envelope.sequence))
            if found := [sequence for sequence, kind in older if kind in kinds]:
                superseded.setdefault(row.space, []).extend(found)

    def _unknown(self, table: sqlite3.Connection, voids: Set[VoidRecord], spaces: Set[NamespaceId], until: int) -> int:
        """How many keys the metastore should know by what was heard, and does not. Namespaces that are gone took theirs along."""
        count = 0
        rows = table.execute("select space, sequence from heard where known=0 and kind<>? and sequence<=?", (Kind.TOMBSTONE, until))
        for space, sequence in rows:
            if space in spaces and not any(void.covers(sequence) for void in voids):
                count += 1
        return count

    def _ought(self, shard: int, row: Row) -> bool:
        """Whether a shard that never heard of a row ought to have its record."""
        if row.envelope.kind is Kind.TOMBSTONE:
            return False  # there is nothing that it could bury
        if row.envelope.kind is not Kind.OBJECT:
            return True
        try:
            return shard in open_object(self._sealer, row.envelope).placement
        except CorruptRecord:
            return False  # the walk over the objects tells of it
