"""Which row of the metastore a record belongs to, told from the record alone."""

from __future__ import annotations

from typing import Final

from zstor_local.errors import CorruptRecord
from zstor_local.model.record import Kind, ObjectRecord, Tombstone
from zstor_local.model.storewide import NamespaceRecord, RowRecord
from zstor_local.store.create import SHARDS_ROW, STORE_ROW
from zstor_local.store.namespaces import row_name
from zstor_local.store.unlocking import KEYS_ROW

FIXED: Final = {Kind.STORE: STORE_ROW, Kind.SHARDS: SHARDS_ROW, Kind.KEYS: KEYS_ROW}  # kinds of which there is one


def row_name_of(kind: Kind, plain: bytes) -> str:
    """The name of the row, of a record that was opened; CorruptRecord for kinds that have none."""
    if kind is Kind.OBJECT:
        return ObjectRecord.decode(plain).key
    if kind is Kind.TOMBSTONE:
        return Tombstone.decode(plain).key
    if kind is Kind.NAMESPACE:
        return row_name(NamespaceRecord.decode(plain).name)
    if kind is Kind.ROW:
        return RowRecord.decode(plain).name
    if kind in FIXED:
        return FIXED[kind]
    raise CorruptRecord(f"a record of kind {kind.name} has no row")
