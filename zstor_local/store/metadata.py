"""An object's metadata as the wire shows it, and back: the seal that names a version."""

from __future__ import annotations

import binascii
from typing import Literal, TypedDict

import pybase64

from zstor_local.errors import CorruptRecord, InvalidParams
from zstor_local.model.policy import Compression, Padding, Policy
from zstor_local.shards.pool import ShardPool
from zstor_local.store.stored import Stored
from zstor_local.store.writes import DIGEST_PREFIX

_MAY_DIFFER = frozenset({"seal", "health", "owed", "shards", "stored_size", "previous_key", "next_key", "references", "user"})


class PolicyView(TypedDict):
    """How an object is stored."""

    k: int
    m: int
    chunk_size: int
    compression: Compression
    padding: Padding


class SharePlace(TypedDict):
    """Which shard holds (or is owed) which share."""

    shard: str
    index: int


class Metadata(TypedDict):
    """One version of an object. Sizes in bytes, epochs in microseconds since 1970 UTC."""

    namespace: str
    key: str
    version: str
    size: int
    stored_size: int
    digest: str
    created_epoch: int
    modified_epoch: int
    chunk_size: int
    chunks: int
    policy: PolicyView
    shards: list[SharePlace]
    previous_key: str | None
    next_key: str | None
    references: list[str]
    user: dict[str, object]
    health: Literal["optimal", "valid"]
    owed: int
    seal: str


def describe(stored: Stored, pool: ShardPool) -> Metadata:
    """The metadata of a version."""
    record = stored.record
    return {
        "namespace": stored.namespace,
        "key": record.key,
        "version": stored.version.hex(),
        "size": record.size,
        "stored_size": record.share_bytes * record.policy.m,
        "digest": DIGEST_PREFIX + record.digest.hex(),
        "created_epoch": record.created,
        "modified_epoch": record.modified,
        "chunk_size": record.policy.chunk_size,
        "chunks": -(-record.size // record.policy.chunk_size),
        "policy": view(record.policy),
        "shards": [{"shard": pool.name(number), "index": index} for index, number in enumerate(record.placement)],
        "previous_key": record.previous_key,
        "next_key": record.next_key,
        "references": list(record.references),
        "user": dict(record.user),
        "health": "valid" if stored.shares_owed or not all(map(pool.knows, record.placement)) else "optimal",
        "owed": stored.owed,
        "seal": pybase64.b64encode(stored.envelope.pack()).decode(),
    }


def view(policy: Policy) -> PolicyView:
    return {
        "k": policy.k,
        "m": policy.m,
        "chunk_size": policy.chunk_size,
        "compression": policy.compression,
        "padding": policy.padding,
    }


def seal_of(metadata: dict[str, object]) -> bytes:
    """The seal in metadata that a caller hands back."""
    seal = metadata.get("seal")
    if not isinstance(seal, str):
        raise InvalidParams("metadata has no seal", hint="give the metadata as a write returned it", parameter="metadata")
    try:
        return pybase64.b64decode(seal, validate=True)
    except (binascii.Error, ValueError):
        raise CorruptRecord("the seal is not base64", hint="give the metadata as a write returned it") from None


def check_metadata(metadata: dict[str, object], genuine: Metadata) -> None:
    """CorruptRecord unless the other members that a caller handed back are those of the sealed record."""
    sealed: dict[str, object] = {**genuine}
    for name, value in metadata.items():
        if name not in _MAY_DIFFER and (name not in sealed or sealed[name] != value):
            raise CorruptRecord(f"{name} in the metadata is not what was sealed", hint="give the metadata as a write returned it")
