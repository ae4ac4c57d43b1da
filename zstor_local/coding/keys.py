"""Keys from the master key: who may open what, and how a record is sealed.

    master key ─ HKDF ─┬─ record key of a namespace ─┬─ one key per seal of a record (random salt beside it)
                       │                             └─ wrapping key ─ AES-KW ─ data key of one version
                       └─ record key of the store (namespaces, permissions, names, the list of shards)

HKDF is HKDF-Expand of RFC 5869 with SHA-256: every key that is expanded is already 32 uniform bytes, so there is nothing to extract.
AES-KW is RFC 3394. Nothing here draws random bytes: salts and keys are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from zstor_local.coding.block import TAG_BYTES
from zstor_local.errors import CorruptRecord
from zstor_local.model.ids import ID_BYTES, KeyHash, NamespaceId, ReferenceHash, StoreId

KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
WRAPPED_KEY_BYTES: Final = KEY_BYTES + 8
COMMITMENT_BYTES: Final = 16
SEAL_OVERHEAD_BYTES: Final = SALT_BYTES + TAG_BYTES  # what a sealed record has more than its plain bytes

_RECORD_KEY: Final = b"zstor/1 record key"
_STORE_RECORDS: Final = b"zstor/1 store records"
_RECORD_SEAL: Final = b"zstor/1 record seal"
_WRAP: Final = b"zstor/1 wrap"
_COMMITMENT: Final = b"zstor/1 commitment"
_KEY_HASH: Final = b"zstor/1 key hash"
_REFERENCE_HASH: Final = b"zstor/1 reference hash"
_NONCE: Final = bytes(12)  # the same always: each of these keys seals one record, once
_SHA256: Final = SHA256()


def expand(key: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-Expand (RFC 5869 §2.3) with SHA-256: `length` bytes from a key that is uniform already."""
    return HKDFExpand(_SHA256, length, info).derive(key)


def commitment(data_key: bytes) -> bytes:
    """16 bytes that stand for this data key alone. AES-GCM does not commit to its key, so every block's associated data holds this."""
    return expand(data_key, _COMMITMENT, COMMITMENT_BYTES)


class NamespaceKeys:
    """What opens and seals the records of one namespace, or of the store. Safe to share between threads; repr shows no key."""

    __slots__ = ("_record_key", "_wrapping_key")

    def __init__(self, record_key: bytes) -> None:
        self._record_key = _sized(record_key, KEY_BYTES, "record key")
        self._wrapping_key = expand(record_key, _WRAP)

    def seal_record(self, salt: bytes, associated: bytes, plain: bytes) -> bytes:
        """salt ‖ AES-256-GCM(plain), bound to `associated`. `salt` is 32 fresh random bytes: it makes a key that seals nothing else."""
        return salt + self._sealer(_sized(salt, SALT_BYTES, "salt")).encrypt(_NONCE, plain, associated)

    def open_record(self, associated: bytes, sealed: bytes) -> bytes:
        """The record that `seal_record` was given, or CorruptRecord."""
        try:
            return self._sealer(sealed[:SALT_BYTES]).decrypt(_NONCE, memoryview(sealed)[SALT_BYTES:], associated)
        except InvalidTag:
            raise _corrupt("a record failed authentication") from None

    def wrap(self, data_key: bytes) -> bytes:
        """The 32-byte data key as 40 bytes that only this namespace opens (AES-KW)."""
        return aes_key_wrap(self._wrapping_key, _sized(data_key, KEY_BYTES, "data key"))

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key, or CorruptRecord."""
        if len(wrapped) != WRAPPED_KEY_BYTES:
            raise _corrupt(f"a wrapped data key has {len(wrapped)} bytes")
        try:
            return aes_key_unwrap(self._wrapping_key, wrapped)
        except InvalidUnwrap:
            raise _corrupt("a data key failed authentication") from None

    def _sealer(self, salt: bytes) -> AESGCM:
        return AESGCM(expand(self._record_key, _RECORD_SEAL + salt))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class KeyRing:
    """Every key of one store, from its 32-byte master key. Namespaces' keys are derived once; repr shows no key."""

    _master: bytes
    _store_id: StoreId
    _opened: dict[NamespaceId | None, NamespaceKeys] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        _sized(self._master, KEY_BYTES, "master key")
        _sized(self._store_id, ID_BYTES, "store id")

    def record_key(self, namespace: NamespaceId) -> bytes:
        """The 32 bytes from which a namespace's records open; an invitation wraps them to another user."""
        return expand(self._master, _RECORD_KEY + self._store_id + _sized(namespace, ID_BYTES, "namespace id"))

    def store_record_key(self) -> bytes:
        """The 32 bytes from which the store-wide records open."""
        return expand(self._master, _STORE_RECORDS)

    def namespace(self, namespace: NamespaceId) -> NamespaceKeys:
        """The keys of one namespace."""
        keys = self._opened.get(namespace)
        return keys if keys is not None else self._opened.setdefault(namespace, NamespaceKeys(self.record_key(namespace)))

    def store_wide(self) -> NamespaceKeys:
        """The keys of the store-wide records."""
        keys = self._opened.get(None)
        return keys if keys is not None else self._opened.setdefault(None, NamespaceKeys(self.store_record_key()))


class KeyHasher:
    """What shards see instead of keys: nobody without the store's 32-byte hash key can guess a key and confirm it."""

    __slots__ = ("_keyed", "_references")

    def __init__(self, hash_key: bytes) -> None:
        self._keyed = blake3(_KEY_HASH, key=_sized(hash_key, KEY_BYTES, "hash key"))
        self._references = blake3(_REFERENCE_HASH, key=hash_key)

    def key_hash(self, namespace: NamespaceId, key: str) -> KeyHash:
        """16 bytes of BLAKE3, keyed, of a label, the namespace id (both of fixed size) and the key in UTF-8."""
        hasher = self._keyed.copy()
        hasher.update(_sized(namespace, ID_BYTES, "namespace id") + key.encode())
        return KeyHash(hasher.digest(16))

    def reference_hash(self, namespace: NamespaceId, reference: str) -> ReferenceHash:
        """The same of a reference, with a label of its own: what the metastore finds it by."""
        hasher = self._references.copy()
        hasher.update(_sized(namespace, ID_BYTES, "namespace id") + reference.encode())
        return ReferenceHash(hasher.digest(16))


def _sized(value: bytes, size: int, what: str) -> bytes:
    if len(value) != size:
        raise ValueError(f"a {what} has {size} bytes, not {len(value)}")
    return value


def _corrupt(what: str) -> CorruptRecord:
    return CorruptRecord(what, hint="another copy of it may be good: run `zstor check`")
