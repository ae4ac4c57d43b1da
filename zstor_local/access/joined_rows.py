"""What is heard of a joined namespace: its records, in a metastore of their own beside ours, which is made anew at each start.

Whoever sends some without end gets a part of our disk and half of a thread, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from zstor_local import limits
from zstor_local.access.invitation import Pass
from zstor_local.errors import CorruptRecord, IoError, ZstorError
from zstor_local.metastore.base import (
    CommitRefused,
    CommitUnknown,
    Metastore,
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
from zstor_local.model.record import Envelope, Kind, ObjectRecord, Tombstone
from zstor_local.runtime import Files
from zstor_local.shards.base import ShardError
from zstor_local.shards.http.wire import BadWire, parse_batch
from zstor_local.store.store import Store
from zstor_local.store.stored import open_object

ROWS: Final = "joined-"  # files in the store's directory, one for each namespace
ROWS_BYTES: Final = 4_096 * limits.MIB  # of its records, some millions

_FAILED: Final = (CommitRefused, CommitUnknown, MetastoreClosed, MetastoreInUse, MetastoreNotOpened, ZstorError, OSError)


class Rows:
    """What is heard of a namespace, in a file that means nothing after the daemon's end."""

    def __init__(self, store: Store, given: Pass) -> None:
        """Begin it anew. IoError."""
        self._files = store.runtime.files
        self._sealer = store.sealer
        self._name = given.namespace
        self._space = given.namespace_id
        self._reference_hash = store.namespaces.hasher.reference_hash
        self._path = f"{store.config.store}/{ROWS}{given.namespace_id.hex()}.sqlite"
        remove_rows(self._files, store.config.store, given)
        try:
            SqliteMetastore.create(self._path, given.store_id, ())
            self.metastore: Metastore = SqliteMetastore(self._path)
        except _FAILED as error:
            raise IoError(f"there is no place for the records of a joined namespace: {error}", hint="make room") from error

    def take(self, page: bytes) -> tuple[bool, bool]:
        """A page of a server's log: of each key the record with the highest sequence counts. Whether there are entries in it, and
        whether one of them is news. ShardError where that cannot be understood, or cannot be kept.
        """
        try:
            return self._take(page)
        except BadWire as error:
            raise ShardError("failed", str(error)) from None
        except _FAILED as error:
            raise ShardError("failed", f"the records of {self._name} cannot be kept: {error}") from error

    def _take(self, page: bytes) -> tuple[bool, bool]:
        batch = parse_batch(page)
        transaction = Transaction(StoreState())
        usage, highest = Usage(), self.metastore.state().sequence
        newest: dict[str, Envelope] = {}
        for scanned in batch.entries:
            envelope = scanned.entry.envelope
            if envelope.kind not in (Kind.OBJECT, Kind.TOMBSTONE) or envelope.namespace != self._space:
                continue
            try:
                if envelope.kind is Kind.TOMBSTONE:
                    key = Tombstone.decode(self._sealer.open(envelope)).key
                else:
                    key = open_object(self._sealer, envelope).key
            except CorruptRecord:
                continue  # another server has a good copy, or nobody
            known = newest.get(key) or self.metastore.get(self._space, key) or self.metastore.tombstone(self._space, key)
            if known is None or known.sequence < envelope.sequence:
                newest[key] = envelope
        for key, envelope in newest.items():
            before, after = self._record(self.metastore.get(self._space, key)), self._record(envelope)
            transaction.rows.append(Row(self._space, key, envelope))
            usage += Usage((after is not None) - (before is not None), _size(after) - _size(before))
            transaction.references_gone += self._references(key, before)
            transaction.references += self._references(key, after)
            highest = max(highest, envelope.sequence)
        if newest:
            self._check_room()
            transaction.state = StoreState(highest)
            transaction.usage = {self._space: usage}
            self.metastore.commit(transaction)
            self.metastore.checkpoint()
        return bool(batch.entries), bool(newest)

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
