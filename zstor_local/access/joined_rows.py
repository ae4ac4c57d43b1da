"""What is heard of a joined namespace: its records, in a metastore of their own beside ours, which is made anew at each start.

Whoever sends some without end gets a part of our disk and half of a thread, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from zstor_local import limits
from zstor_local.access.invitation import Pass
from zstor_local.access.joined_before import Before, Older
from zstor_local.errors import CorruptRecord, IoError, ZstorError
from zstor_local.metastore.base import (
    CommitRefused,
    CommitUnknown,
    MetastoreClosed,
    MetastoreInUse,
    MetastoreNotOpened,
    Reference,
    Row,
    StoreState,
    Transaction,
    Usage,
)
from zstor_local.metastore.sqlite import SqliteMetastore
from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import NO_KEY, NO_VERSION, STORE_WIDE, Envelope, Kind, ObjectRecord, Tombstone
from zstor_local.model.storewide import VoidRecord
from zstor_local.runtime import Files
from zstor_local.shards.base import ShardError
from zstor_local.shards.http.wire import COUNT_MAX, BadWire, parse_batch
from zstor_local.store.store import Store
from zstor_local.store.stored import must_be_told, open_object, open_void
from zstor_local.store.voids import Voids

ROWS: Final = "joined-"  # files in the store's directory, one for each namespace
ROWS_BYTES: Final = 4_096 * limits.MIB  # of its records, some millions
VOIDS_MAX: Final = 2**18  # stretches of sequences that never came to be, some 100 bytes each
_AT_ONCE: Final = 500  # rows that are asked for together

_FAILED: Final = (CommitRefused, CommitUnknown, MetastoreClosed, MetastoreInUse, MetastoreNotOpened, ZstorError, OSError)


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a page: whether there are entries in it, and whether one of them is news. `lost`: what an older record of a key says
    is not known any more, and is to be shown again, so all logs have to be read again. `sealed`: something in it does not open.
    `shards`: the numbers of those that the news names.
    """

    entries: bool
    news: bool
    lost: bool
    sealed: bool
    shards: Set[int]


@dataclass(frozen=True, slots=True)
class _Change:
    """What a key shows before and after, and what is known below that."""

    key: str
    before: Envelope | None
    after: Envelope | None
    older: Older
    lost: bool


class JoinedMetastore(SqliteMetastore):
    """The rows of a namespace, and in what order they changed here: in the place of the store's own rows, which nobody tells us, each
    key's is a tombstone with nothing but its place. See metastore.routed.FollowedRows.
    """

    def arrived(self, space: NamespaceId, since: int, limit: int) -> list[tuple[int, Row]]:
        if since > self.state().sequence:
            since = 0
        found = []
        for place in self.changes(STORE_WIDE, since, limit):
            envelope = self.get(space, place.name) or self.tombstone(space, place.name)
            if envelope is not None:  # else it changes just now, and comes later
                found.append((place.envelope.sequence, Row(space, place.name, envelope)))
        return found


def _nothing(space: NamespaceId, place: int = 0) -> Envelope:
    """A tombstone with nothing in it but its place in an order."""
    return Envelope(Kind.TOMBSTONE, space, NO_KEY, NO_VERSION, place, b"")


class Rows:
    """What is heard of a namespace, in a file that means nothing after the daemon's end."""

    def __init__(self, store: Store, given: Pass) -> None:
        """Begin it anew. IoError."""
        self._files = store.runtime.files
        self._sealer = store.sealer
        self._name = given.namespace
        self._space = given.namespace_id
        self._voids = Voids()
        self._before = Before()
        self._reference_hash = store.namespaces.hasher.reference_hash
        self._place = store.runtime.clock.now()  # of the last row that changed: above all that an earlier life has shown
        self._path = f"{store.config.store}/{ROWS}{given.namespace_id.hex()}.sqlite"
        remove_rows(self._files, store.config.store, given)
        try:
            SqliteMetastore.create(self._path, given.store_id, ())
            self.metastore = JoinedMetastore(self._path)
        except _FAILED as error:
            raise IoError(f"there is no place for the records of a joined namespace: {error}", hint="make room") from error

    def take(self, page: bytes) -> Taken:
        """A page of a server's log: of each key the record with the highest sequence counts, of those that its owner did not take back.
        ShardError where that cannot be understood, or cannot be kept.
        """
        try:
            entries = [scanned.entry.envelope for scanned in parse_batch(page).entries]
            return self._take([envelope for envelope in entries if envelope.namespace == self._space], bool(entries))
        except BadWire as error:
            raise ShardError("failed", str(error)) from None
        except _FAILED as error:
            raise ShardError("failed", f"the records of {self._name} cannot be kept: {error}") from error

    def _take(self, page: Sequence[Envelope], entries: bool) -> Taken:
        told = {each: open_void(self._sealer, each, self._space) for each in page if each.kind is Kind.VOID}
        sealed = None in told.values()
        heard: dict[str, list[Envelope]] = {key: [] for key in self._taken_back(told)}
        for envelope in page:
            if envelope.kind not in (Kind.OBJECT, Kind.TOMBSTONE) or self._voids.cover(envelope.sequence):
                continue
            try:
                heard.setdefault(self._key(envelope), []).append(envelope)
            except CorruptRecord:
                sealed = True  # another server has a good copy, or it takes a newer key, or nobody has one
        changes = [change for key, envelopes in heard.items() if (change := self._change(key, envelopes)) is not None]
        news = [change for change in changes if change.after is not change.before]
        shards = self._commit(news) if news else set()
        for change in changes:
            self._before.put(change.key, change.older)
        return Taken(entries, bool(news), any(change.lost for change in changes), sealed, shards)

    def _taken_back(self, told: Mapping[Envelope, VoidRecord | None]) -> Iterator[str]:
        """Learn what these say never came to be. Gives the keys that show some of that."""
        for envelope, void in told.items():
            if void is None or not 0 <= void.first <= void.last <= COUNT_MAX:
                continue
            if len(self._voids) >= VOIDS_MAX:
                raise ShardError("failed", f"{VOIDS_MAX} times records were taken back in it: no more are kept", untouched=True)
            self._voids.add(void.first, void.last)
            self._voids.add(envelope.sequence, envelope.sequence)  # no record's: so what comes one after the other is one stretch
            since = void.first - 1
            while rows := self.metastore.changes(self._space, since, _AT_ONCE):
                since = rows[-1].envelope.sequence
                yield from (row.name for row in rows if row.envelope.sequence <= void.last and row.envelope.sealed)
                if since >= void.last:
                    break

    def _key(self, envelope: Envelope) -> str:
        if envelope.kind is Kind.TOMBSTONE:
            return Tombstone.decode(self._sealer.open(envelope)).key
        record = open_object(self._sealer, envelope)
        must_be_told(record)
        return record.key

    def _change(self, key: str, heard: Sequence[Envelope]) -> _Change | None:
        """What a key comes to by these records and those that are void; None where nothing comes of it."""
        shown = self.metastore.get(self._space, key) or self.metastore.tombstone(self._space, key)
        if shown is not None and not shown.sealed:
            shown = None
        older = self._before.get(key)
        if older is None:
            if (
                shown is not None
                and heard
                and max(each.sequence for each in heard) <= shown.sequence
                and not self._voids.cover(shown.sequence)
            ):
                return None
            older = Older(whole=shown is None)
        every = {each.sequence: each for each in (*heard, *older.records, *([] if shown is None else [shown]))}
        left = [every[sequence] for sequence in sorted(every, reverse=True) if not self._voids.cover(sequence)]
        lost = not left and not older.whole
        return _Change(key, shown, left[0] if left else None, Older(left[1:], older.whole or lost), lost)  # it is read again from there

    def _commit(self, news: Sequence[_Change]) -> Set[int]:
        """Returns the shards that they name."""
        self._check_room()
        shards: set[int] = set()
        transaction = Transaction(StoreState(self._place + len(news)))
        usage = Usage()
        for place, change in enumerate(news, self._place + 1):
            before, after = self._record(change.before), self._record(change.after)
            # In the place of a key's only record, which was taken back, is nothing: who follows the changes is told that it is gone.
            transaction.rows.append(Row(self._space, change.key, change.after or _nothing(self._space)))
            transaction.rows.append(Row(STORE_WIDE, change.key, _nothing(STORE_WIDE, place)))
            shards.update(() if after is None else after.placement)
            usage += Usage((after is not None) - (before is not None), _size(after) - _size(before))
            transaction.references_gone += self._references(change.key, before)
            transaction.references += self._references(change.key, after)
        if self.metastore.usage(self._space).bytes + usage.bytes > limits.SAFE_INTEGER:
            raise ShardError("failed", "its objects claim more bytes than there can be: no more are kept", untouched=True)
        transaction.usage = {self._space: usage}
        self.metastore.commit(transaction)
        self._place += len(news)
        self.metastore.checkpoint()
        return shards

    def _record(self, envelope: Envelope | None) -> ObjectRecord | None:
        return None if envelope is None or envelope.kind is Kind.TOMBSTONE else open_object(self._sealer, envelope)

    def _references(self, key: str, record: ObjectRecord | None) -> Sequence[Reference]:
        texts = () if record is None else record.references
        return [Reference(self._space, self._reference_hash(self._space, text), key) for text in texts]

    def _check_room(self) -> None:
        """ShardError where they have become too many."""
        size = sum(self._files.path_status(path).size for path in (self._path, f"{self._path}-wal"))
        if size > ROWS_BYTES:
            raise ShardError("failed", f"its records take more than {ROWS_BYTES} bytes: no more are kept", untouched=True)

    def close(self) -> None:
        self.metastore.close()
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                self._files.unlink(self._path + suffix)


def remove_rows(files: Files, directory: str, given: Pass | None = None) -> None:
    """What an earlier life has left: of one namespace, or of all."""
    prefix = ROWS if given is None else f"{ROWS}{given.namespace_id.hex()}"
    with suppress(OSError):
        for name in files.list(directory):
            if name.startswith(prefix):
                files.unlink(f"{directory}/{name}")


def _size(record: ObjectRecord | None) -> int:
    return 0 if record is None else record.size
