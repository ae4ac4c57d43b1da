"""The marker: what makes a directory a shard of this store and no other. Written once, when the shard is added.

Clear header of 48 bytes (magic `ZSTORMRK`, format u8, 7 zero bytes, store id 16, shard uid 16), then a record sealed under the store's
key with that header as associated data: CBOR {0: schema, 1: number, 4: created}.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from zstor_local.coding.keys import NamespaceKeys
from zstor_local.errors import CorruptRecord
from zstor_local.model.fields import decode, encode
from zstor_local.model.ids import ShardUid, StoreId

FORMAT: Final = 1
NAME: Final = "marker"
MAX_BYTES: Final = 4_096

_MAGIC: Final = b"ZSTORMRK"
_HEADER: Final = struct.Struct("<8sB7x16s16s")


class BadMarker(Exception):
    """The file is no marker, not of this store, or of a newer format. The text is fit for people."""


@dataclass(frozen=True, slots=True)
class Marker:
    """A shard's identity."""

    store_id: StoreId
    uid: ShardUid
    number: int
    created: int

    def pack(self, keys: NamespaceKeys, salt: bytes) -> bytes:
        header = _HEADER.pack(_MAGIC, FORMAT, self.store_id, self.uid)
        return header + keys.seal_record(salt, header, encode({0: 1, 1: self.number, 4: self.created}))

    @classmethod
    def parse(cls, data: bytes, keys: NamespaceKeys, store_id: StoreId) -> Marker:
        """The marker, authenticated; BadMarker otherwise."""
        if len(data) < _HEADER.size:
            raise BadMarker("its marker is cut short")
        magic, version, store, uid = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise BadMarker("its marker is damaged")
        if version != FORMAT:
            raise BadMarker(f"its format is {version}, this version reads {FORMAT}")
        if store != store_id:
            raise BadMarker(f"it belongs to another store, {store.hex()}")
        try:
            plain = decode(keys.open_record(data[: _HEADER.size], data[_HEADER.size :]))
        except CorruptRecord:
            raise BadMarker("its marker does not open with this master key") from None
        number, created = plain.get(1), plain.get(4)
        if not isinstance(number, int) or not isinstance(created, int):
            raise BadMarker("its marker is malformed")
        return cls(StoreId(store), ShardUid(uid), number, created)


def claimed_shard(data: bytes) -> ShardUid | None:
    """The shard that a marker is of, unauthenticated; None if it is no marker."""
    return None if claimed_store(data) is None else ShardUid(_HEADER.unpack_from(data)[3])


def claimed_store(data: bytes) -> StoreId | None:
    """The store that a marker names, unauthenticated; None if it is no marker."""
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        return None
    return StoreId(_HEADER.unpack_from(data)[2])
