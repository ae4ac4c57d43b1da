"""Keys from the master key: who may open what, and how a record is sealed.

    master key ─ HKDF ─┬─ record key of a namespace ─┬─ one key per seal of a record (random salt beside it)
                       │                             └─ wrapping key ─ AES-KW ─ data key of one version
                       └─ record key of the store (namespaces, permissions, names, the list of shards)

HKDF is HKDF-Expand of RFC 5869 with SHA-256: every key that is expanded is already 32 uniform bytes, so there is nothing to extract.
AES-KW is RFC 3394. Nothing here draws random bytes: salts and keys are passed in. After a rotation the master keys before it stay: they
open, each up to its last sequence, and seal nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Final, TypeVar

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from zstor_local.errors import DAMAGED_ROW_HINT, CorruptRecord
from zstor_local.model.ids import ID_BYTES, KeyHash, NamespaceId, ReferenceHash, StoreId
from zstor_local.model.masterkey import OlderKey

KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
WRAPPED_KEY_BYTES: Final = KEY_BYTES + 8
COMMITMENT_BYTES: Final = 16

_RECORD_KEY: Final = b"zstor/1 record key"
_STORE_RECORDS: Final = b"zstor/1 store records"
_RECORD_SEAL: Final = b"zstor/1 record seal"
_WRAP: Final = b"zstor/1 wrap"
_COMMITMENT: Final = b"zstor/1 commitment"
_KEY_HASH: Final = b"zstor/1 key hash"
_REFERENCE_HASH: Final = b"zstor/1 reference hash"
_NONCE: Final = bytes(12)  # the same always: each of these keys seals one record, once
_SHA256: Final = SHA256()

Sized = TypeVar("Sized", bound=bytes)


def expand(key: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-Expand (RFC 5869 §2.3) with SHA-256: `length` bytes from a key that is uniform already."""
    return HKDFExpand(_SHA256, length, info).derive(key)


def commitment(data_key: bytes) -> bytes:
    """16 bytes that stand for this data key alone. AES-GCM does not commit to its key, so every block's associated data holds this."""
    return expand(data_key, _COMMITMENT, COMMITMENT_BYTES)


class _RecordKey:
    """A namespace's keys from one master key."""

    __slots__ = ("_key", "through", "wrapping")

    def __init__(self, key: bytes, through: int | None) -> None:
        self._key = key
        self.through = through
        self.wrapping = expand(key, _WRAP)

    def sealer(self, salt: bytes) -> AESGCM:
        return AESGCM(expand(self._key, _RECORD_SEAL + salt))

    def derive(self, info: bytes, length: int) -> bytes:
        return expand(self._key, info, length)


class NamespaceKeys:
    """What opens and seals the records of one namespace, or of the store. Safe to share between threads; repr shows no key.

    A rotation changes it in place. It seals with one key and opens with each that may have sealed, the newest first.
    """

    __slots__ = ("_opening", "_sealing")

    def __init__(self, record_key: bytes) -> None:
        self._sealing = _RecordKey(_sized(record_key, KEY_BYTES, "record key"), None)
        self._opening: tuple[_RecordKey, ...] = (self._sealing,)

    @classmethod
    def of(cls, record_keys: Sequence[bytes], through: Sequence[int] = ()) -> NamespaceKeys:
        """The keys of a namespace that opens with several: see `renew`."""
        keys = cls(record_keys[0])
        keys.renew(record_keys, through)
        return keys

    def renew(self, record_keys: Sequence[bytes], through: Sequence[int] = ()) -> None:
        """Open with these from now on, the newest first. `through`: the last sequences that the oldest of them open, in that order."""
        limits = [*[None] * (len(record_keys) - len(through)), *through]
        self._set([*zip(record_keys, limits, strict=True)], 0)

    def seal_record(self, salt: bytes, associated: bytes, plain: bytes, *, newest: bool = False) -> bytes:
        """salt ‖ AES-256-GCM(plain), bound to `associated`. `salt` is 32 fresh random bytes: it makes a key that seals nothing else.

        `newest`: with the key that a rotation is about to bring in.
        """
        key = self._opening[0] if newest else self._sealing
        return salt + key.sealer(_sized(salt, SALT_BYTES, "salt")).encrypt(_NONCE, plain, associated)

    def open_record(self, associated: bytes, sealed: bytes, sequence: int = 0) -> bytes:
        """The record that `seal_record` was given, or CorruptRecord. A key that was replaced opens no `sequence` after its time."""
        salt, rest = sealed[:SALT_BYTES], memoryview(sealed)[SALT_BYTES:]
        for key in self._opening:
            if key.through is not None and sequence > key.through:
                continue
            try:
                return key.sealer(salt).decrypt(_NONCE, rest, associated)
            except InvalidTag:
                continue
        raise _corrupt("a record failed authentication")

    def is_sealed_anew(self, associated: bytes, sealed: bytes) -> bool:
        """Whether the key that seals now sealed this record."""
        try:
            self._sealing.sealer(sealed[:SALT_BYTES]).decrypt(_NONCE, memoryview(sealed)[SALT_BYTES:], associated)
        except InvalidTag:
            return False
        return True

    def derive_each(self, info: bytes, length: int) -> tuple[bytes, ...]:
        """Bytes for a purpose of their own from every key that is known, the newest first."""
        return tuple(key.derive(info, length) for key in self._opening)

    def wrap(self, data_key: bytes) -> bytes:
        """The 32-byte data key as 40 bytes that only this namespace opens (AES-KW)."""
        return aes_key_wrap(self._sealing.wrapping, _sized(data_key, KEY_BYTES, "data key"))

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key, or CorruptRecord."""
        if len(wrapped) != WRAPPED_KEY_BYTES:
            raise _corrupt(f"a wrapped data key has {len(wrapped)} bytes")
        for key in self._opening:
            with suppress(InvalidUnwrap):
                return aes_key_unwrap(key.wrapping, wrapped)
        raise _corrupt("a data key failed authentication")

    def wrap_anew(self, wrapped: bytes) -> bytes:
        """The same data key wrapped with the key that seals now: `wrapped` itself where that did, or where no key opens it."""
        if len(self._opening) == 1:
            return wrapped
        for key in self._opening:
            with suppress(InvalidUnwrap):
                data_key = aes_key_unwrap(key.wrapping, wrapped)
                return wrapped if key is self._sealing else self.wrap(data_key)
        return wrapped

    def _set(self, opening: Sequence[tuple[bytes, int | None]], sealing: int) -> None:
        keys = tuple(_RecordKey(key, through) for key, through in opening)
        self._opening = keys  # opens more, then seals with another: whoever reads in between finds both
        self._sealing = keys[sealing]


class KeyRing:
    """Every key of one store, from its 32-byte master key and those before it. Safe to share between threads; repr shows no key.

    A rotation goes: `announce` the new key (it opens, and seals the record of the keys), then `switch` to it (it seals everything),
    then `limit` what the one before may open.
    """

    __slots__ = ("_lock", "_masters", "_opened", "_sealing", "store_id")

    def __init__(self, master: bytes, store_id: StoreId, older: Sequence[OlderKey] = ()) -> None:
        for key in (master, *(each.key for each in older)):
            _sized(key, KEY_BYTES, "master key")
        self.store_id = _sized(store_id, ID_BYTES, "store id")
        self._masters: tuple[OlderKey, ...] = (OlderKey(master), *older)  # the newest first
        self._sealing = 0  # which of them seals
        self._opened: dict[NamespaceId | None, NamespaceKeys] = {}
        self._lock = Lock()

    def record_keys(self, namespace: NamespaceId) -> tuple[bytes, ...]:
        """The 32 bytes from which a namespace's records open, and those from older master keys, the newest first; an invitation wraps
        them to another user.
        """
        return tuple(self._record_key(master.key, namespace) for master in self._masters)

    @property
    def through(self) -> tuple[int | None, ...]:
        """Up to which sequence each master key opens, the newest first; None: any, before it was replaced."""
        return tuple(master.through for master in self._masters)

    def namespace(self, namespace: NamespaceId) -> NamespaceKeys:
        """The keys of one namespace."""
        return self._opened.get(namespace) or self._open(namespace)

    def store_wide(self) -> NamespaceKeys:
        """The keys of the store-wide records."""
        return self._opened.get(None) or self._open(None)

    @property
    def master(self) -> bytes:
        """The master key that seals."""
        return self._masters[self._sealing].key

    @property
    def older(self) -> tuple[OlderKey, ...]:
        """The master keys before it, the newest first."""
        return self._masters[self._sealing + 1 :]

    def announce(self, master: bytes) -> None:
        """Open with a new master key too; seal with the one before as yet."""
        self._change((OlderKey(_sized(master, KEY_BYTES, "master key")), *self._masters), 1)

    def withdraw(self) -> None:
        """The announced key does not come."""
        self._change(self._masters[1:], 0)

    def switch(self) -> None:
        """Seal with the announced key from now on."""
        self._change(self._masters, 0)

    def limit(self, through: int) -> None:
        """The key before the present one opens nothing with a sequence above this."""
        present, before, *others = self._masters
        self._change((present, OlderKey(before.key, through), *others), 0)

    def _change(self, masters: tuple[OlderKey, ...], sealing: int) -> None:
        with self._lock:
            self._masters, self._sealing = masters, sealing
            for namespace, keys in self._opened.items():
                self._set(namespace, keys)

    def _open(self, namespace: NamespaceId | None) -> NamespaceKeys:
        with self._lock:
            keys = NamespaceKeys(self._record_key(self._masters[0].key, namespace))
            self._set(namespace, keys)
            return self._opened.setdefault(namespace, keys)

    def _set(self, namespace: NamespaceId | None, keys: NamespaceKeys) -> None:
        keys._set([(self._record_key(master.key, namespace), master.through) for master in self._masters], self._sealing)

    def _record_key(self, master: bytes, namespace: NamespaceId | None) -> bytes:
        if namespace is None:
            return expand(master, _STORE_RECORDS)
        return expand(master, _RECORD_KEY + self.store_id + _sized(namespace, ID_BYTES, "namespace id"))


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


def _sized(value: Sized, size: int, what: str) -> Sized:
    if len(value) != size:
        raise ValueError(f"a {what} has {size} bytes, not {len(value)}")
    return value


def _corrupt(what: str) -> CorruptRecord:
    return CorruptRecord(what, hint=DAMAGED_ROW_HINT)
