"""Records: what the store knows of an object, a deletion, a namespace, and of itself; as CBOR, one class per schema version.

A record travels sealed, in an `Envelope` whose clear header (kind, namespace id, keyed hash of the key, version, sequence) is bound to
it as associated data. The same sealed bytes lie in the metastore and, as copies, in the logs of shards. CBOR maps have small integers
as keys, are canonical in the length-first order (RFC 8949 §4.2.3), and leave out members that have their default.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, TypeVar

import cbor2

from zstor_local import limits
from zstor_local.errors import CorruptRecord, InvalidParams
from zstor_local.model.ids import ID_BYTES, KeyHash, NamespaceId, StoreId, Version
from zstor_local.model.masterkey import KEY_BYTES, OlderKey
from zstor_local.model.policy import COMPRESSIONS, PADDINGS, Policy
from zstor_local.value import value

STORE_WIDE: Final = NamespaceId(bytes(ID_BYTES))  # the namespace id of records that belong to no namespace
NO_VERSION: Final = Version(bytes(ID_BYTES))
NO_KEY: Final = KeyHash(bytes(ID_BYTES))
BLOCK_OVERHEAD_BYTES: Final = 32  # header and tag of a block in a share
DIGEST_BYTES: Final = 32
HASH_KEY_BYTES: Final = 32
CHUNK_SIZE_BITS_MAX: Final = 63

T = TypeVar("T")
Plain = Mapping[int, object]


class Kind(IntEnum):
    """What an envelope holds. The numbers are on disk."""

    OBJECT = 1
    TOMBSTONE = 2
    NAMESPACE = 3
    STORE = 4
    SHARDS = 5
    VOID = 6
    ROW = 7
    KEYS = 8


KINDS: Final = {int(kind): kind for kind in Kind}  # looked up in a fifth of the time
ENVELOPE_HEADER: Final = struct.Struct("<B16s16s16sQ")  # kind, namespace, keyed hash of the key, version, sequence
_ASSOCIATED: Final = struct.Struct("<12sB16s16s16s16sQ")


@value()
class Envelope:
    """A sealed record with its clear header."""

    kind: Kind
    namespace: NamespaceId
    key_hash: KeyHash
    version: Version
    sequence: int
    sealed: bytes

    def pack(self) -> bytes:
        """Header and sealed bytes, as callers keep it (the `seal` of an object's metadata)."""
        return ENVELOPE_HEADER.pack(self.kind, self.namespace, self.key_hash, self.version, self.sequence) + self.sealed

    @classmethod
    def parse(cls, data: bytes) -> Envelope:
        """The reverse of `pack`; CorruptRecord if it is not one. Nothing is authenticated yet."""
        try:
            kind, namespace, key_hash, version, sequence = ENVELOPE_HEADER.unpack_from(data)
            return cls(KINDS[kind], namespace, key_hash, version, sequence, data[ENVELOPE_HEADER.size :])
        except (struct.error, KeyError):
            raise CorruptRecord("that is not a sealed record") from None


def associated_data(store_id: StoreId, kind: Kind, namespace: NamespaceId, key_hash: KeyHash, version: Version, sequence: int) -> bytes:
    """What a record's seal is bound to; every part of fixed size."""
    return _ASSOCIATED.pack(b"zstor record", kind, store_id, namespace, key_hash, version, sequence)


def is_small(size: int, policy: Policy) -> bool:
    """Whether an object's shares are log entries: so if none would be over the limit without compression. The size alone decides, so
    that a reader knows where to look.
    """
    chunks = -(-size // policy.chunk_size)
    return -(-size // policy.k) + chunks * BLOCK_OVERHEAD_BYTES <= limits.SMALL_SHARE_BYTES


@value()
class ObjectRecord:
    """One version of an object, schema 1.

    Sizes in bytes, epochs in microseconds since 1970 UTC, `digest` the BLAKE3 of the plain object. `placement[i]` is the number of the
    shard that holds (or is owed) share i. `chunk_table` is coding.share's table; an empty one with `table_blob` set means that the
    sealed table lies in every share. `share_bytes` is the length of one share's blocks.
    """

    key: str
    size: int
    digest: bytes
    created: int
    modified: int
    policy: Policy
    wrapped_key: bytes
    placement: tuple[int, ...]
    share_bytes: int
    chunk_table: bytes = b""
    table_blob: bool = False
    references: tuple[str, ...] = ()
    user: Mapping[str, object] = field(default_factory=dict)
    previous_key: str | None = None
    next_key: str | None = None

    @property
    def small(self) -> bool:
        """Whether its shares lie in the logs."""
        return is_small(self.size, self.policy)

    def encode(self) -> bytes:
        plain: dict[int, object] = {0: 1, 1: self.key, 2: self.size, 3: self.digest, 4: self.created}
        if self.modified != self.created:
            plain[5] = self.modified
        plain[6] = _policy_fields(self.policy)
        plain[7] = self.wrapped_key
        plain[8] = bytes(self.placement) if max(self.placement) < 256 else list(self.placement)
        plain[9] = self.share_bytes
        optional = (self.chunk_table, self.table_blob, list(self.references), dict(self.user), self.previous_key, self.next_key)
        plain.update((number, value) for number, value in enumerate(optional, 10) if value)
        # In this order and without the caller's own values the plain form is the canonical one, at half the price.
        return encode(plain) if self.user else cbor2.dumps(plain)

    @classmethod
    def decode(cls, data: bytes) -> ObjectRecord:
        """The reverse of `encode`; CorruptRecord for anything else (a later schema too)."""
        plain = decode(data)
        _expect_schema(plain, 1)
        get = plain.get
        created = get(4)
        fields: tuple[Any, ...] = (
            get(1), get(2), get(3), created, get(5, created), get(7), get(9), get(10, b""), get(11, False), get(12, []),
            get(13, {}), get(14, ""), get(15, ""),
        )  # fmt: skip
        if [*map(type, fields)] != _OBJECT_TYPES:
            raise CorruptRecord(_misfit(fields))
        key, size, digest, created, modified, wrapped, share_bytes, table, blob, references, user, previous, following = fields
        if min(size, created, modified, share_bytes) < 0 or len(digest) != DIGEST_BYTES:
            raise CorruptRecord("a record has a negative number, or a digest of another length")
        if references:
            _take_list(plain, 12, str)
        if user:
            _take_texts(plain, 13)
        policy = _policy(plain)
        placement = get(8)
        return cls(
            key,
            size,
            digest,
            created,
            modified,
            policy,
            wrapped,
            _placement(placement if type(placement) is bytes else _take_list(plain, 8, int), policy),
            share_bytes,
            table,
            blob,
            tuple(references),
            user,
            previous or None,
            following or None,
        )


_INTEGER: Final = frozenset({int})
# The fields of an object's record that are read together, in the order of `decode`: numbers and types.
_OBJECT_FIELDS: Final = (1, 2, 3, 4, 5, 7, 9, 10, 11, 12, 13, 14, 15)
_OBJECT_TYPES: Final[list[type]] = [str, int, bytes, int, int, bytes, int, bytes, bool, list, dict, str, str]


def _misfit(fields: Sequence[object]) -> str:
    for number, found, kind in zip(_OBJECT_FIELDS, fields, _OBJECT_TYPES, strict=True):
        if type(found) is not kind:
            return f"field {number} of a record is not {kind.__name__}"
    raise AssertionError("every field fits")


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A deletion, schema 1: it buries every record of the key with a lower sequence."""

    key: str
    deleted: int  # microseconds since 1970 UTC

    def encode(self) -> bytes:
        return encode({0: 1, 1: self.key, 4: self.deleted})

    @classmethod
    def decode(cls, data: bytes) -> Tombstone:
        plain = decode(data)
        _expect_schema(plain, 1)
        return cls(_take(plain, 1, str), _take(plain, 4, int))


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    """A namespace, schema 1 or 2: its random id (what shards see of it) and how its objects are stored.

    The members behind `policy` are those of schema 2, written only where there are such. `quota` in plain bytes, None without one;
    `placement` names the shards or groups that shares go to, empty for all; `deleting` once its deletion has begun.
    """

    name: str
    id: NamespaceId
    created: int
    policy: Policy
    quota: int | None = None
    placement: tuple[str, ...] = ()
    deleting: bool = False

    def encode(self) -> bytes:
        plain: dict[int, object] = {0: 1, 1: self.name, 2: self.id, 4: self.created, 6: _policy_fields(self.policy)}
        later = {7: self.quota, 8: [*self.placement] or None, 9: self.deleting or None}
        later = {number: value for number, value in later.items() if value is not None}
        return encode(plain | {0: 2} | later if later else plain)

    @classmethod
    def decode(cls, data: bytes) -> NamespaceRecord:
        plain = decode(data)
        if plain.get(0) != 1:
            _expect_schema(plain, 2)
        return cls(
            name=_take(plain, 1, str),
            id=NamespaceId(_take_sized(plain, 2, ID_BYTES)),
            created=_take(plain, 4, int),
            policy=_policy(plain),
            quota=_take(plain, 7, int) if 7 in plain else None,
            placement=tuple(_take_list(plain, 8, str, [])),
            deleting=_take(plain, 9, bool, False),
        )


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """What the store keeps of itself, schema 1: the key of the keyed hashes, made by init and never rotated."""

    hash_key: bytes
    created: int

    def encode(self) -> bytes:
        return encode({0: 1, 1: self.hash_key, 4: self.created})

    @classmethod
    def decode(cls, data: bytes) -> StoreRecord:
        plain = decode(data)
        _expect_schema(plain, 1)
        return cls(_take_sized(plain, 1, HASH_KEY_BYTES), _take(plain, 4, int))


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard of the store: `number` stands in placements, `uid` in the shard's marker, `id` is its name for people.

    `url` may be relative to the store's directory. A `draining` shard gets no new shares. One that was `added` while the store was
    in use is where this says; of the others the configuration may say something else.
    """

    number: int
    uid: bytes
    id: str
    url: str
    group: str
    draining: bool = False
    added: bool = False


@dataclass(frozen=True, slots=True)
class ShardsRecord:
    """The list of shards, schema 1. `numbers_used`: how many numbers were ever given, from 0; none is given twice.

    `home` is the store's directory when a shard was added last: in a copy of the store it tells that it is one.
    """

    shards: tuple[ShardEntry, ...]
    numbers_used: int = 0
    home: str = ""

    @property
    def next_number(self) -> int:
        """The number of the next new shard."""
        return max(self.numbers_used, 1 + max((shard.number for shard in self.shards), default=-1))

    def encode(self) -> bytes:
        plain: dict[int, object] = {0: 1, 1: [[s.number, s.uid, s.id, s.url, s.group] for s in self.shards]}
        draining, added = [s.number for s in self.shards if s.draining], [s.number for s in self.shards if s.added]
        plain.update((number, value) for number, value in enumerate((self.numbers_used, draining, added, self.home), 2) if value)
        return encode(plain)

    @classmethod
    def decode(cls, data: bytes) -> ShardsRecord:
        plain = decode(data)
        _expect_schema(plain, 1)
        entries = _take_list(plain, 1, list)
        if any([type(field) for field in entry] != [int, bytes, str, str, str] for entry in entries):
            raise CorruptRecord("the list of shards is malformed")
        draining, added = _take_list(plain, 3, int, []), _take_list(plain, 4, int, [])
        shards = tuple(replace(ShardEntry(*entry), draining=entry[0] in draining, added=entry[0] in added) for entry in entries)
        return cls(shards, _take(plain, 2, int, 0), _take(plain, 5, str, ""))


@dataclass(frozen=True, slots=True)
class VoidRecord:
    """Sequences `first` to `last` that reached a log but never the metastore: whoever reads the logs ignores their entries."""

    first: int
    last: int

    def encode(self) -> bytes:
        return encode({0: 1, 1: self.first, 2: self.last})

    @classmethod
    def decode(cls, data: bytes) -> VoidRecord:
        plain = decode(data)
        _expect_schema(plain, 1)
        return cls(_take(plain, 1, int), _take(plain, 2, int))


@dataclass(frozen=True, slots=True)
class RowRecord:
    """A store-wide row, schema 1: bytes under a name, whose meaning is its table's (`store.storewide`)."""

    name: str  # of the row in the metastore
    value: bytes
    changed: int  # microseconds since 1970 UTC

    def encode(self) -> bytes:
        return encode({0: 1, 1: self.name, 2: self.value, 4: self.changed})

    @classmethod
    def decode(cls, data: bytes) -> RowRecord:
        plain = decode(data)
        _expect_schema(plain, 1)
        return cls(_take(plain, 1, str), _take(plain, 2, bytes), _take(plain, 4, int))


@dataclass(frozen=True, slots=True)
class KeysRecord:
    """The master keys before the present one, the newest first, schema 1. Sealed under the present one: who has that has all.

    `settled` once every record was sealed anew after the last rotation.
    """

    older: tuple[OlderKey, ...]
    rotated: int  # microseconds since 1970 UTC
    settled: bool = False

    def encode(self) -> bytes:
        plain: dict[int, object] = {0: 1, 1: [[key.key, key.through] for key in self.older], 4: self.rotated}
        if self.settled:
            plain[5] = True
        return encode(plain)

    @classmethod
    def decode(cls, data: bytes) -> KeysRecord:
        plain = decode(data)
        _expect_schema(plain, 1)
        entries = _take_list(plain, 1, list)
        older = [OlderKey(*entry) for entry in entries if len(entry) == 2]
        if len(older) != len(entries) or not all(
            type(each.key) is bytes and len(each.key) == KEY_BYTES and (each.through is None or type(each.through) is int)
            for each in older
        ):
            raise CorruptRecord("the record of the older master keys is malformed")
        return cls(tuple(older), _take(plain, 4, int), _take(plain, 5, bool, False))


Record = ObjectRecord | Tombstone | NamespaceRecord | StoreRecord | ShardsRecord | VoidRecord | RowRecord | KeysRecord


def encode(plain: Plain) -> bytes:
    """Canonical CBOR of a map."""
    return cbor2.dumps(plain, canonical=True)


def decode(data: bytes) -> Plain:
    """A CBOR map with integer keys, strictly read; CorruptRecord for anything else."""
    try:
        plain = cbor2.loads(data, max_depth=16, allow_indefinite=False, allow_duplicate_keys=False, str_errors="strict")
    except (cbor2.CBORDecodeError, ValueError):
        raise CorruptRecord("a record is not CBOR") from None
    if type(plain) is not dict or not _INTEGER.issuperset(map(type, plain)):
        raise CorruptRecord("a record is not a map with integers as keys")
    return plain


def _expect_schema(plain: Plain, newest: int) -> None:
    schema = plain.get(0)
    if schema != newest:
        raise CorruptRecord(
            f"a record has schema {schema!r}, this version reads schema {newest}", hint="use the newer zstor that wrote it"
        )


def _take(plain: Plain, number: int, kind: type[T], default: T | None = None) -> T:
    """A field of exactly this type; numbers are never negative."""
    value = plain.get(number, default)
    if type(value) is not kind or (kind is int and value < 0):  # type: ignore[operator]
        raise CorruptRecord(f"field {number} of a record is not {kind.__name__}")
    return value


def _take_sized(plain: Plain, number: int, size: int) -> bytes:
    value = _take(plain, number, bytes)
    if len(value) != size:
        raise CorruptRecord(f"field {number} of a record does not have {size} bytes")
    return value


def _take_list(plain: Plain, number: int, kind: type[T], default: list[T] | None = None) -> list[T]:
    items: list[T] = _take(plain, number, list, default)
    if not {kind}.issuperset(map(type, items)):
        raise CorruptRecord(f"field {number} of a record holds something that is not {kind.__name__}")
    return items


def _take_texts(plain: Plain, number: int) -> dict[str, object]:
    members: dict[str, object] = _take(plain, number, dict, {})
    if any(type(name) is not str for name in members):
        raise CorruptRecord(f"field {number} of a record has a name that is not text")
    return members


def _placement(numbers: bytes | list[int], policy: Policy) -> tuple[int, ...]:
    if len(numbers) != policy.m or min(numbers) < 0:
        raise CorruptRecord(f"a record does not name {policy.m} shards")
    return tuple(numbers)


def _policy_fields(policy: Policy) -> list[int]:
    return [
        policy.k,
        policy.m,
        policy.chunk_size.bit_length() - 1,
        COMPRESSIONS.index(policy.compression),
        PADDINGS.index(policy.padding),
    ]


def _policy(plain: Plain) -> Policy:
    return _policy_of(*_take_list(plain, 6, int))


@lru_cache(maxsize=64)
def _policy_of(*fields: int) -> Policy:
    """A store has few policies, and a record of each object."""
    try:
        k, m, chunk_bits, compression, padding = fields
        if min(fields) < 0 or chunk_bits > CHUNK_SIZE_BITS_MAX:
            raise ValueError
        return Policy(k, m, 1 << chunk_bits, COMPRESSIONS[compression], PADDINGS[padding])
    except (ValueError, IndexError, InvalidParams):
        raise CorruptRecord("the policy in a record is malformed") from None
