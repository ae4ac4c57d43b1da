"""A version as the use cases hand it out, and how its record opens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from zstor_local import limits
from zstor_local.coding.keys import NamespaceKeys
from zstor_local.coding.table import sealed_table_length
from zstor_local.errors import CorruptRecord, NotFound
from zstor_local.metastore.base import Lookups, Owed, Row
from zstor_local.model.ids import NamespaceId, ObjectName, Version
from zstor_local.model.record import STORE_WIDE, Envelope, ObjectRecord
from zstor_local.model.storewide import VoidRecord
from zstor_local.store.core import Core
from zstor_local.store.namespaces import Namespace
from zstor_local.store.sealing import RecordSealer
from zstor_local.value import value


@value()
class Stored:
    """A version as the metastore knows it. `owed` counts shards still to be told or filled, `shares_owed` those without their share."""

    namespace: str
    record: ObjectRecord
    envelope: Envelope
    owed: int = 0
    shares_owed: int = 0

    @property
    def version(self) -> Version:
        return self.envelope.version


def open_object(sealer: RecordSealer, envelope: Envelope) -> ObjectRecord:
    """The record in an envelope, or CorruptRecord."""
    record = ObjectRecord.decode(sealer.open(envelope))
    foreign = sealer.foreign.get(envelope.namespace) if sealer.foreign else None
    if foreign is None:
        return record
    if any(number >= limits.SHARD_NUMBERS for number in record.placement):  # it would be somebody else's shard
        raise CorruptRecord("a record of another user's namespace names a shard that cannot be")
    if record.table_blob and sealed_table_length(record.size, record.policy.chunk_size) > limits.FOREIGN_TABLE_BYTES:
        raise CorruptRecord("an object of another user's namespace has more chunks than are read of others")
    return replace(record, placement=tuple(foreign.first + number for number in record.placement))


def must_be_told(record: ObjectRecord) -> None:
    """CorruptRecord for what no daemon writes, but who has the record key may: CBOR says more than JSON, and what lists it fails."""
    try:
        json.dumps(record.user, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise CorruptRecord("what a user said of an object cannot be told") from None


def under_present_key(record: ObjectRecord, keys: NamespaceKeys) -> ObjectRecord:
    """The record as it is to be written: its data key wrapped with the key that seals now. A rotation of the master key does not look
    at what was written since it began.
    """
    wrapped = keys.wrap_anew(record.wrapped_key)
    return record if wrapped == record.wrapped_key else replace(record, wrapped_key=wrapped)


def open_void(sealer: RecordSealer, envelope: Envelope, space: NamespaceId = STORE_WIDE) -> VoidRecord | None:
    """The void in an envelope; None if it does not open, or is for others: who may read a namespace could seal one there, and not in
    the store's own space, whose voids the store goes by.
    """
    if envelope.namespace != space:
        return None
    try:
        return VoidRecord.decode(sealer.open(envelope))
    except CorruptRecord:
        return None


def with_debts(metastore: Lookups, stored: Stored) -> Stored:
    """The same version, with what its shards still have to be given: its shares, and the record of this key."""
    debts = [debt for debt in metastore.debts_of(stored.version) if debt.kind is Owed.SHARE or debt.name == stored.record.key]
    if not debts:
        return stored
    shares = {debt.shard for debt in debts if debt.kind is Owed.SHARE}
    return replace(stored, owed=len({debt.shard for debt in debts}), shares_owed=len(shares))


def owed_shares(metastore: Lookups, version: Version, record: ObjectRecord) -> set[int]:
    """The indices of a version's shares that the shards they are placed on have yet to be given."""
    debts = metastore.debts_of(version)
    return {debt.index for debt in debts if debt.kind is Owed.SHARE and record.placement[debt.index] == debt.shard}


def stored_at(core: Core, namespace: Namespace, key: str) -> Stored | None:
    """The version under a key, as `stored_row` has it; None if there is no such key."""
    try:
        envelope = core.reading.get(namespace.id, key)
    except CorruptRecord as error:
        raise _found_damaged(core, namespace.id, key, error) from None
    return None if envelope is None else stored_row(core, namespace.name, Row(namespace.id, key, envelope))


def stored_row(core: Core, namespace: str, row: Row) -> Stored:
    """The version in a row, with its debts; CorruptRecord, with the key in its data, and then mending looks at the row."""
    try:
        record = open_object(core.sealer, row.envelope)
        if record.key != row.name:
            raise CorruptRecord(f"the record under the key {row.name!r} is another key's", hint="run `zstor rebuild`")
    except CorruptRecord as error:
        raise _found_damaged(core, row.space, row.name, error) from None
    return with_debts(core.reading, Stored(namespace, record, row.envelope))


def _found_damaged(core: Core, space: NamespaceId, key: str, error: CorruptRecord) -> CorruptRecord:
    core.suspects.add(space, key)
    error.data["key"] = key
    return error


def naming(metastore: Lookups, version: Version) -> Iterator[Envelope]:
    """The records that name a version, each as it is when it is looked at."""
    found = (metastore.get(*row) for row in metastore.named(version))
    return (envelope for envelope in found if envelope is not None and envelope.version == version)


def no_key(name: ObjectName) -> NotFound:
    where = "" if name.namespace == "default" else f" -n {name.namespace}"
    return NotFound(
        f"there is no key {name.key!r} in namespace {name.namespace}",
        hint=f"`zstor ls{where}` lists the keys",
        key=name.key,
        namespace=name.namespace,
    )
