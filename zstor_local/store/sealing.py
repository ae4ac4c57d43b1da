"""Records to envelopes and back: the right key, a fresh salt, everything bound."""

from __future__ import annotations

from dataclasses import dataclass

from zstor_local.coding.keys import SALT_BYTES, KeyRing, NamespaceKeys
from zstor_local.model.ids import KeyHash, NamespaceId, StoreId, Version
from zstor_local.model.record import STORE_WIDE, Envelope, Kind, associated_data
from zstor_local.runtime import Randomness


@dataclass(frozen=True, slots=True)
class Foreign:
    """A namespace of another store, whose owner gave us its keys. Its limits.SHARD_NUMBERS count from `first` on here."""

    store_id: StoreId
    keys: NamespaceKeys
    first: int


class RecordSealer:
    """Seals and opens every record of one store, and opens those of namespaces of others. Any thread may use it."""

    def __init__(self, ring: KeyRing, store_id: StoreId, randomness: Randomness) -> None:
        self.ring = ring
        self.store_id = store_id
        self.foreign: dict[NamespaceId, Foreign] = {}
        self._randomness = randomness

    def store_of(self, space: NamespaceId) -> StoreId:
        """The store that a namespace belongs to."""
        foreign = self.foreign.get(space)
        return self.store_id if foreign is None else foreign.store_id

    def keys(self, space: NamespaceId) -> NamespaceKeys:
        """What opens its records."""
        return self.foreign[space].keys if space in self.foreign else self._own_keys(space)

    def _own_keys(self, space: NamespaceId) -> NamespaceKeys:
        return self.ring.store_wide() if space == STORE_WIDE else self.ring.namespace(space)

    def seal(self, kind: Kind, space: NamespaceId, key_hash: KeyHash, version: Version, sequence: int, plain: bytes) -> Envelope:
        associated = associated_data(self.store_id, kind, space, key_hash, version, sequence)
        salt = self._randomness.bytes(SALT_BYTES)
        sealed = self._own_keys(space).seal_record(salt, associated, plain, newest=kind is Kind.KEYS)
        return Envelope(kind, space, key_hash, version, sequence, sealed)

    def open(self, envelope: Envelope) -> bytes:
        """The record's CBOR, or CorruptRecord."""
        return self.keys(envelope.namespace).open_record(self._associated(envelope), envelope.sealed, envelope.sequence)

    def is_sealed_anew(self, envelope: Envelope) -> bool:
        """Whether the master key that seals now sealed this record."""
        return self.keys(envelope.namespace).is_sealed_anew(self._associated(envelope), envelope.sealed)

    def _associated(self, envelope: Envelope) -> bytes:
        store_id = self.store_of(envelope.namespace)
        return associated_data(store_id, envelope.kind, envelope.namespace, envelope.key_hash, envelope.version, envelope.sequence)
