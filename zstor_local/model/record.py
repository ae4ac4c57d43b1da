"""Records: what the store knows of an object or a deletion, as CBOR, one class per schema version; and how every record travels.

It travels sealed, in an `Envelope` whose clear header (kind, namespace id, keyed hash of the key, version, sequence) is bound to it as
associated data. The same sealed bytes lie in the metastore and, as copies, in the logs of shards.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count, islice
from typing import Any, Final

import cbor2

from zstor_local import limits
from zstor_local.errors import CorruptRecord
from zstor_local.model.fields import decode, encode, expect_schema, policy_fields, take, take_list, take_policy, take_texts
from zstor_local.model.ids import ID_BYTES, KeyHash, NamespaceId, StoreId, Version
from zstor_local.model.policy import Policy
from zstor_local.value import value

STORE_WIDE: Final = NamespaceId(bytes(ID_BYTES))  # the namespace id of records that belong to no namespace
NO_VERSION: Final = Version(bytes(ID_BYTES))
NO_KEY: Final = KeyHash(bytes(ID_BYTES))
BLOCK_OVERHEAD_BYTES: Final = 32  # header and tag of a block in a share
DIGEST_BYTES: Final = 32
_SAFE_BITS: Final = limits.SAFE_INTEGER.bit_length()


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
        plain[6] = policy_fields(self.policy)
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
        expect_schema(plain, 1)
        get = plain.get
        created = get(4)
        fields: tuple[Any, ...] = (
            get(1), get(2), get(3), created, get(5, created), get(7), get(9), get(10, b""), get(11, False), get(12, []),
            get(13, {}), get(14, ""), get(15, ""),
        )  # fmt: skip
        if [*map(type, fields)] != _OBJECT_TYPES:
            raise CorruptRecord(_misfit(fields))
        key, size, digest, created, modified, wrapped, share_bytes, table, blob, references, user, previous, following = fields
        # Of all at once, as there is one for every read: none is negative, none beyond limits.SAFE_INTEGER.
        if (size | created | modified | share_bytes) >> _SAFE_BITS or len(digest) != DIGEST_BYTES:
            raise CorruptRecord("a record has a negative number or one that nobody can count to, or a digest of another length")
        if references:
            take_list(plain, 12, str)
        if user:
            take_texts(plain, 13)
        policy = take_policy(plain)
        placement = get(8)
        return cls(
            key,
            size,
            digest,
            created,
            modified,
            policy,
            wrapped,
            _placement(placement if type(placement) is bytes else take_list(plain, 8, int), policy),
            share_bytes,
            table,
            blob,
            tuple(references),
            user,
            previous or None,
            following or None,
        )


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
        expect_schema(plain, 1)
        return cls(take(plain, 1, str), take(plain, 4, int))


def _placement(numbers: bytes | list[int], policy: Policy) -> tuple[int, ...]:
    if not policy.k <= len(numbers) <= policy.m or min(numbers) < 0:
        raise CorruptRecord(f"a record does not name {policy.m} shards")
    # Before 0.2 a store with fewer shards than shares named no more than it had: the last shares lie nowhere.
    others = (number for number in count() if number not in numbers)
    return (*numbers, *islice(others, policy.m - len(numbers)))
