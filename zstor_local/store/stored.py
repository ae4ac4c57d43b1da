"""A version as the use cases hand it out, and how its record opens."""

from __future__ import annotations

from dataclasses import replace

from zstor_local import limits
from zstor_local.errors import CorruptRecord, NotFound
from zstor_local.metastore.base import Lookups, Owed
from zstor_local.model.ids import NamespaceId, ObjectName, Version
from zstor_local.model.record import STORE_WIDE, Envelope, ObjectRecord
from zstor_local.model.storewide import VoidRecord
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
    return replace(record, placement=tuple(foreign.first + number for number in record.placement))


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


def stored_row(metastore: Lookups, sealer: RecordSealer, namespace: str, key: str, envelope: Envelope) -> Stored:
    """The version under a key, with its debts; CorruptRecord, with the key in its data."""
    try:
        record = open_object(sealer, envelope)
    except CorruptRecord as error:
        error.data["key"] = key
        raise
    if record.key != key:
        raise CorruptRecord(f"the record under the key {key!r} is another key's", hint="run `zstor rebuild`", key=key)
    return with_debts(metastore, Stored(namespace, record, envelope))


def no_key(name: ObjectName) -> NotFound:
    where = "" if name.namespace == "default" else f" -n {name.namespace}"
    return NotFound(
        f"there is no key {name.key!r} in namespace {name.namespace}",
        hint=f"`zstor ls{where}` lists the keys",
        key=name.key,
        namespace=name.namespace,
    )
