"""Records to envelopes and back: the right key, a fresh salt, everything bound."""

from __future__ import annotations

from zstor_local.coding.keys import KeyHasher, KeyRing, NamespaceKeys
from zstor_local.model.ids import KeyHash, NamespaceId, StoreId, Version
from zstor_local.model.record import STORE_WIDE, Envelope, Kind, associated_data
from zstor_local.runtime import Randomness

SALT_BYTES = 32


class RecordSealer:
    """Seals and opens every record of one store. Any thread may use it."""

    def __init__(self, ring: KeyRing, store_id: StoreId, randomness: Randomness) -> None:
        self._ring = ring
        self.store_id = store_id
        self._randomness = randomness

    def keys(self, space: NamespaceId) -> NamespaceKeys:
        return self._ring.store_wide() if space == STORE_WIDE else self._ring.namespace(space)

    def seal(self, kind: Kind, space: NamespaceId, key_hash: KeyHash, version: Version, sequence: int, plain: bytes) -> Envelope:
        associated = associated_data(self.store_id, kind, space, key_hash, version, sequence)
        sealed = self.keys(space).seal_record(self._randomness.bytes(SALT_BYTES), associated, plain)
        return Envelope(kind, space, key_hash, version, sequence, sealed)

    def open(self, envelope: Envelope) -> bytes:
        """The record's CBOR, or CorruptRecord."""
        associated = associated_data(
            self.store_id, envelope.kind, envelope.namespace, envelope.key_hash, envelope.version, envelope.sequence
        )
        return self.keys(envelope.namespace).open_record(associated, envelope.sealed)


__all__ = ["KeyHasher", "RecordSealer"]
