"""A new metastore from the shards and the master key alone.

The logs hold a copy of every record. Of each key's records that no void covers, the one with the highest sequence counts: a tombstone
buries, an object comes back. A version of which fewer than k shares can be found hides no older one that is readable: then both are
reported. Nothing is decided in silence: shards that were not seen, records that do not open and objects that lack shares are counted,
and where something may be missing the caller has to accept it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Final

from zstor_local.coding.keys import KeyHasher, KeyRing
from zstor_local.config import Config
from zstor_local.errors import CorruptRecord
from zstor_local.metastore.base import Debt, Owed, Reference, Row, StoreState, Transaction, Usage
from zstor_local.model.ids import KeyHash, NamespaceId, ShareId, StoreId, Version
from zstor_local.model.masterkey import MasterKey
from zstor_local.model.record import (
    STORE_WIDE,
    Envelope,
    Kind,
    NamespaceRecord,
    ObjectRecord,
    RowRecord,
    ShardEntry,
    ShardsRecord,
    StoreRecord,
    Tombstone,
    VoidRecord,
)
from zstor_local.runtime import Runtime
from zstor_local.shards.base import Shard, ShardError
from zstor_local.shards.directory import LOG, marker_store, read_identity
from zstor_local.shards.index import LogIndex
from zstor_local.shards.log import Log
from zstor_local.shards.marker import BadMarker
from zstor_local.shards.opening import ShardOpener
from zstor_local.store.create import SHARDS_ROW, STORE_ROW, shard_places
from zstor_local.store.engines import Engines
from zstor_local.store.faults import StoreFault
from zstor_local.store.keyfile import make_directories
from zstor_local.store.lock import store_lock
from zstor_local.store.namespaces import row_name
from zstor_local.store.publishing import RESERVE
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.unlocking import KEYS_ROW, key_files, older_keys

BATCH: Final = 5_000  # rows in a transaction
PROGRESS_EVERY: Final = 10_000
WRITING: Final = "objects written"  # what the progress tells once something is changed

_SCHEMA: Final = """
drop table if exists candidate;
create table candidate(
    space blob not null, key_hash blob not null, sequence integer not null, server integer not null, kind integer not null,
    version blob not null, sealed blob not null, primary key(space, key_hash, sequence, server)) without rowid;
"""


@dataclass(slots=True)
class Report:
    """What a rebuild found. `loss` says why something may be missing; empty if nothing can be."""

    objects: int = 0
    bytes: int = 0
    deleted: int = 0
    records: int = 0
    damaged: int = 0  # entries whose record does not open
    rotated: bool = False  # the master key was replaced, after the one at hand was written
    seen: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # keys of which fewer than k shares were found
    older: list[str] = field(default_factory=list)  # keys for which an older version came back, as the newest cannot be read

    @property
    def loss(self) -> list[str]:
        found = []
        if self.unseen:
            found.append(f"not seen: shard {', '.join(self.unseen)}; what only they know is missing, deletes among it")
        if self.damaged:
            why = "; the master key was rotated, the newer one opens more" if self.rotated else ""
            found.append(f"{self.damaged} log entries hold a record that does not open{why}")
        if self.unreadable:
            found.append(f"{len(self.unreadable)} objects have too few shares: {_some(self.unreadable)}")
        if self.older:
            found.append(f"{len(self.older)} objects came back in an older version: {_some(self.older)}")
        return found


def rebuild(runtime: Runtime, engines: Engines, config: Config, *, accept_loss: bool, progress: Callable[[str, int], None]) -> Report:
    """Make the metastore anew. The store must not be in use; an old metastore is put aside, never removed.

    StoreFault if there is no shard to read, or if something may be missing and that was not accepted: then nothing was changed. The
    same holds for what `progress` raises, unless it was told of WRITING.
    """
    masters = key_files(runtime.files, config.master_key_file)
    make_directories(runtime.files, config.store)
    with store_lock(runtime, config.store):
        return _rebuild(runtime, engines, config, masters, accept_loss=accept_loss, progress=progress)


def _rebuild(
    runtime: Runtime, engines: Engines, config: Config, masters: list[MasterKey], *, accept_loss: bool,
    progress: Callable[[str, int], None],
) -> Report:  # fmt: skip
    master = masters[-1]
    sealer = _sealer(runtime, masters, _keys_in_logs(runtime, config, masters))
    with ExitStack() as opened:
        index = engines.open_index(config.store)
        opened.callback(index.close)
        opener = ShardOpener(engines.shard_engines(runtime, master.store_id, sealer.keys(STORE_WIDE), index))
        shards = _open_shards(config, opener, master.store_id, opened)
        scratch = opened.enter_context(closing(sqlite3.connect("", isolation_level=None)))  # a temporary file of SQLite's own
        opening = _Opening(opener, shards, opened)
        return _Rebuild(runtime, engines, config, masters, sealer, opening, scratch, progress).run(accept_loss=accept_loss)


def _sealer(runtime: Runtime, masters: list[MasterKey], envelopes: Iterable[Envelope]) -> RecordSealer:
    """What opens the records of the store, by its records of older keys if there are some."""
    found = older_keys(runtime, masters, envelopes)
    master, older = (masters[-1], ()) if found is None else (found[0], found[1].older)
    return RecordSealer(KeyRing(master.key, master.store_id, older), master.store_id, runtime.randomness)


def _keys_in_logs(runtime: Runtime, config: Config, masters: list[MasterKey]) -> Iterator[Envelope]:
    """Records of older keys, where the master key alone does not open the marker of a shard."""
    store_id = masters[-1].store_id
    keys = KeyRing(masters[-1].key, store_id).store_wide()
    for place in shard_places(config):
        if marker_store(runtime.files, place.root) != store_id:
            continue
        with suppress(BadMarker, OSError):
            read_identity(runtime.files, place.root, keys, store_id)
            if len(masters) == 1:
                continue
        with (
            suppress(ShardError, OSError),
            closing(LogIndex(":memory:")) as index,
            closing(Log(runtime.files, f"{place.root}/{LOG}", shard=0, store_id=store_id, index=index)) as log,
        ):
            yield from (scanned.entry.envelope for scanned in log.scan() if scanned.entry.envelope.kind is Kind.KEYS)


def _open_shards(config: Config, opener: ShardOpener, store_id: StoreId, opened: ExitStack) -> dict[int, Shard]:
    """Every place of the configuration that is a shard of the key's store."""
    found: dict[int, Shard] = {}
    for place in shard_places(config):
        try:
            identity = opener.identify(place.root)
            if identity is None:
                continue
            marker = identity.marker
            if marker.number in found:
                raise StoreFault(
                    f"both {found[marker.number].url} and {place.root} are shard {place.id}", "one is a copy: take it away"
                )
            shard = opener.open(ShardEntry(marker.number, marker.uid, place.id, place.root, place.group), place.root)
        except (BadMarker, ShardError):
            continue  # reported as unseen
        opened.callback(shard.close)
        found[marker.number] = shard
    if not found:
        raise StoreFault(
            f"there is no shard of store {store_id.hex()} where the configuration looks",
            "mount the disks, or name them in [[shard]]",
        )
    return found


@dataclass(slots=True)
class _Opening:
    """The shards that are read: by number those that the newest list of shards names, as far as they are there."""

    opener: ShardOpener
    shards: dict[int, Shard]
    opened: ExitStack
    tried: set[int] = field(default_factory=set)

    def follow(self, listed: ShardsRecord) -> bool:
        """Open what the list names and the configuration does not, and leave out what is no shard any more. Whether that changes it."""
        entries = {entry.number: entry for entry in listed.shards}
        strangers = [n for n, shard in self.shards.items() if n not in entries or shard.entry.uid != entries[n].uid]
        for number in strangers:
            self.shards.pop(number).close()
        new = [entry for entry in listed.shards if entry.number not in self.shards and entry.number not in self.tried and entry.added]
        for entry in new:
            self.tried.add(entry.number)
            with suppress(ShardError):
                self.shards[entry.number] = shard = self.opener.open(entry, entry.url)
                self.opened.callback(shard.close)
        return bool(strangers) or any(entry.number in self.shards for entry in new)


class _Rebuild:
    def __init__(
        self, runtime: Runtime, engines: Engines, config: Config, masters: list[MasterKey], sealer: RecordSealer,
        opening: _Opening, scratch: sqlite3.Connection, progress: Callable[[str, int], None],
    ) -> None:  # fmt: skip
        self._runtime = runtime
        self._engines = engines
        self._config = config
        self._masters = masters
        self._sealer = sealer
        self._opening = opening
        self._shards = opening.shards
        self._scratch = scratch
        self._progress = progress
        self._doing = "objects found"
        self._report = Report()
        self._highest = 0
        self._listed: set[int] = set()
        self._damaged_store = 0  # damaged entries that belong to no object

    def run(self, *, accept_loss: bool) -> Report:
        while True:
            self._gather()
            hasher, store_rows, listed = self._store_rows()
            if not self._opening.follow(listed):
                break
        self._tell_shards(listed)
        self._damaged_store = self._report.damaged
        for _ in self._rows():  # once to see what it comes to, once to write it: a report before anything is changed
            pass
        report = self._report
        if report.loss and not accept_loss:
            raise StoreFault(
                "something may be missing:\n  " + "\n  ".join(report.loss),
                "bring the missing shards, or take what there is with --accept-loss",
            )
        self._progress(self._doing, report.objects)
        self._doing = WRITING
        self._write(hasher, store_rows)
        return report

    # --- Gather ---

    def _gather(self) -> None:
        """Every record of every log into the scratch table, less what is void."""
        self._scratch.executescript(_SCHEMA)
        self._scratch.execute("begin")
        self._highest = self._report.records = self._report.damaged = 0
        voids: list[Envelope] = []
        keys: list[Envelope] = []
        candidates: list[tuple[object, ...]] = []
        for shard in self._shards.values():
            # A directory's word is taken. A server's is not: it hides no other's record, and only what opens counts.
            server = 0 if shard.on_disk is not None else shard.number + 1
            for scanned in shard.scan():
                envelope = scanned.entry.envelope
                if not server:
                    self._highest = max(self._highest, envelope.sequence)
                self._report.records += 1
                if self._report.records % PROGRESS_EVERY == 0:
                    self._progress("records read", self._report.records)
                if envelope.kind is Kind.VOID:
                    voids.append(envelope)
                else:
                    if envelope.kind is Kind.KEYS:
                        keys.append(envelope)
                    candidates.append(_candidate(envelope, server))
                if len(candidates) >= BATCH:
                    self._put(candidates)
        self._put(candidates)
        self._sealer = _sealer(self._runtime, self._masters, keys)
        self._highest = max([self._highest, *self._proved(voids)])
        void = {opened for envelope in voids for opened in self._void(envelope)}
        self._scratch.executemany("delete from candidate where sequence between ? and ?", [(each.first, each.last) for each in void])
        self._scratch.execute("commit")

    def _proved(self, voids: list[Envelope]) -> Iterator[int]:
        """Sequences above those of the directories that servers can show: of their newest record that opens, and of their voids."""
        query = "select kind, space, key_hash, version, sequence, sealed from candidate where sequence > ? order by sequence desc"
        yield from (envelope.sequence for envelope in voids if envelope.sequence > self._highest and self._opens(envelope))
        for row in self._scratch.execute(query, (self._highest,)):
            if self._opens(envelope := _envelope(*row)):
                yield envelope.sequence
                return

    def _opens(self, envelope: Envelope) -> bool:
        try:
            self._sealer.open(envelope)
        except CorruptRecord:
            return False
        return True

    def _put(self, candidates: list[tuple[object, ...]]) -> None:
        self._scratch.executemany("insert or ignore into candidate values(?, ?, ?, ?, ?, ?, ?)", candidates)
        candidates.clear()

    def _void(self, envelope: Envelope) -> list[VoidRecord]:
        try:
            return [VoidRecord.decode(self._sealer.open(envelope))]
        except CorruptRecord:
            self._report.damaged += 1
            return []

    # --- Choose ---

    def _store_rows(self) -> tuple[KeyHasher, list[Row], ShardsRecord]:
        """The newest records of the store itself: its own, the list of shards, the namespaces, the rows."""
        newest: dict[KeyHash, tuple[Envelope, bytes]] = {}
        for envelope in self._candidates(STORE_WIDE):
            if envelope.key_hash not in newest:
                try:
                    newest[envelope.key_hash] = envelope, self._sealer.open(envelope)
                except CorruptRecord:
                    if envelope.kind is Kind.KEYS:
                        self._report.rotated = True  # nothing is lost with it as long as the key at hand opens all the others
                    else:
                        self._report.damaged += 1
        rows: list[Row] = []
        hash_key: bytes | None = None
        listed: ShardsRecord | None = None
        for envelope, plain in newest.values():
            if envelope.kind is Kind.STORE:
                hash_key = StoreRecord.decode(plain).hash_key
                rows.append(Row(STORE_WIDE, STORE_ROW, envelope))
            elif envelope.kind is Kind.SHARDS:
                listed = ShardsRecord.decode(plain)
                rows.append(Row(STORE_WIDE, SHARDS_ROW, envelope))
            elif envelope.kind is Kind.KEYS:
                rows.append(Row(STORE_WIDE, KEYS_ROW, envelope))
            elif envelope.kind is Kind.NAMESPACE:
                rows.append(Row(STORE_WIDE, row_name(NamespaceRecord.decode(plain).name), envelope))
            elif envelope.kind is Kind.ROW:
                rows.append(Row(STORE_WIDE, RowRecord.decode(plain).name, envelope))
            elif envelope.kind is Kind.TOMBSTONE:
                rows.append(Row(STORE_WIDE, Tombstone.decode(plain).key, envelope))
        if hash_key is None or listed is None:
            raise StoreFault("the shards hold no copy of the store's own records", "give the right master key, or more of the shards")
        # A namespace that was deleted and made again lies under two hashes: the later record counts.
        return KeyHasher(hash_key), sorted(rows, key=lambda row: row.envelope.sequence), listed

    def _tell_shards(self, record: ShardsRecord) -> None:
        self._listed = {entry.number for entry in record.shards}
        for entry in record.shards:
            (self._report.seen if entry.number in self._shards else self._report.unseen).append(entry.id)

    def _candidates(self, space: NamespaceId | None = None) -> Iterator[Envelope]:
        """Records by key, the newest first; of one space, or of all but the store's."""
        condition, value = ("space = ?", space) if space is not None else ("space <> ?", STORE_WIDE)
        query = f"select kind, space, key_hash, version, sequence, sealed from candidate where {condition} order by space, key_hash, sequence desc, server"  # noqa: S608, E501
        for row in self._scratch.execute(query, (value,)):
            yield _envelope(*row)

    def _rows(self) -> Iterator[tuple[Row, ObjectRecord | None, list[Debt]]]:
        """Each key's row, its record if it is an object, and what its shards lack. Fills the report anew."""
        report = self._report
        report.objects = report.bytes = report.deleted = 0
        report.unreadable, report.older = [], []
        report.damaged = self._damaged_store
        candidates = self._candidates()
        current = next(candidates, None)
        while current is not None:
            group = [current]
            while (current := next(candidates, None)) is not None and _same_key(current, group[0]):
                group.append(current)
            chosen = self._choose(group)
            if chosen is not None:
                yield chosen

    def _choose(self, group: list[Envelope]) -> tuple[Row, ObjectRecord | None, list[Debt]] | None:
        """The record that counts of one key's, newest first."""
        first: tuple[Row, ObjectRecord, list[Debt]] | None = None
        for envelope in group:
            try:
                plain = self._sealer.open(envelope)
                if envelope.kind is Kind.TOMBSTONE:
                    if first is not None:
                        break
                    self._report.deleted += 1
                    return Row(envelope.namespace, Tombstone.decode(plain).key, envelope), None, []
                record = ObjectRecord.decode(plain)
            except CorruptRecord:
                self._report.damaged += 1
                continue
            row = Row(envelope.namespace, record.key, envelope)
            lacking = self._lacking(envelope.version, record)
            if record.policy.m - len(lacking) >= record.policy.k:
                if first is not None:
                    self._report.older.append(record.key)
                return self._take(row, record, lacking)
            first = first or (row, record, [])
        if first is None:
            return None
        self._report.unreadable.append(first[1].key)
        return self._take(first[0], first[1], [])

    def _take(self, row: Row, record: ObjectRecord, lacking: list[int]) -> tuple[Row, ObjectRecord, list[Debt]]:
        self._report.objects += 1
        self._report.bytes += record.size
        if self._report.objects % PROGRESS_EVERY == 0:
            self._progress(self._doing, self._report.objects)
        version = row.envelope.version
        listed = [index for index in lacking if record.placement[index] in self._listed]
        debts = [Debt(record.placement[index], Owed.SHARE, row.space, row.name, version, index) for index in listed]
        return row, record, debts

    def _lacking(self, version: Version, record: ObjectRecord) -> list[int]:
        """The indices of shares that are not where the record says."""
        return [index for index, number in enumerate(record.placement) if not self._has(number, ShareId(version, index), record)]

    def _has(self, number: int, share: ShareId, record: ObjectRecord) -> bool:
        shard = self._shards.get(number)
        if shard is None:
            return False
        try:
            return shard.has(share, small=record.small)
        except ShardError:
            return False

    # --- Write ---

    def _write(self, hasher: KeyHasher, store_rows: list[Row]) -> None:
        writer = max(shard.newest_writer() for shard in self._shards.values())
        state = StoreState(self._highest, self._highest + RESERVE, writer)
        self._engines.put_metastore_aside(self._config.store)
        self._engines.create_metastore(self._config.store, self._sealer.store_id, self._transactions(hasher, store_rows, state))

    def _transactions(self, hasher: KeyHasher, store_rows: list[Row], state: StoreState) -> Iterator[Transaction]:
        transaction = Transaction(state, rows=list(store_rows))
        objects = size = 0
        for row, record, debts in self._rows():
            transaction.rows.append(row)
            transaction.debts += debts
            if record is not None:
                objects, size = objects + 1, size + record.size
                transaction.usage[row.space] = transaction.usage.get(row.space, Usage()) + Usage(1, record.size)
                transaction.references += [
                    Reference(row.space, hasher.reference_hash(row.space, reference), row.name) for reference in record.references
                ]
            if len(transaction.rows) >= BATCH:
                transaction.state = StoreState(state.sequence, state.reserved, state.writer, objects, size)
                yield transaction
                transaction = Transaction(state)
        transaction.state = StoreState(state.sequence, state.reserved, state.writer, objects, size)
        yield transaction


def _envelope(kind: int, space: bytes, key_hash: bytes, version: bytes, sequence: int, sealed: bytes) -> Envelope:
    return Envelope(Kind(kind), NamespaceId(space), KeyHash(key_hash), Version(version), sequence, sealed)


def _candidate(found: Envelope, server: int) -> tuple[object, ...]:
    return found.namespace, found.key_hash, found.sequence, server, found.kind, found.version, found.sealed


def _same_key(one: Envelope, other: Envelope) -> bool:
    return (one.namespace, one.key_hash) == (other.namespace, other.key_hash)


def _some(keys: list[str]) -> str:
    shown = ", ".join(repr(key) for key in keys[:5])
    return shown + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
