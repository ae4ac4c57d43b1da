"""What daemon and shard server say to each other: paths, headers, and the bytes of a batch of log entries. docs/shard-server.md.

A batch is a header, entries, freed shares; little-endian, as in the log (docs/format.md):

    header   24 bytes: magic `ZSTBATCH`, format u8, 3 zero bytes, entries u32, freed shares u32, 4 zero bytes
    entry    80 bytes: kind u8, share index u8 (255: none), 2 zero bytes, record length u32, share length u32, 4 zero bytes,
             sequence u64, committed u64, namespace id 16, keyed hash of the key 16, version 16, record, share
    freed    17 bytes: version 16, share index u8
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zstor_local import limits
from zstor_local.model.ids import ID_BYTES, KeyHash, NamespaceId, ShardUid, ShareId, Version
from zstor_local.model.record import Envelope, Kind
from zstor_local.runtime import Buffer
from zstor_local.shards.base import Entry, ScannedEntry

API: Final = "/v1"
FENCE: Final = "zstor-writer"  # header of everything that changes something: writer number, a colon, another, and 32 hex digits
NEXT: Final = "zstor-next"  # header of a page: the cursor of what follows
DIGEST: Final = "content-digest"  # RFC 9530, sha-256

BATCH_BYTES_MAX: Final = 64 * limits.MIB  # a group: 256 changes with a share of 64 KiB each, records and room
PART_BYTES_MAX: Final = 8 * limits.MIB
PAGE_BYTES: Final = 4 * limits.MIB
BATCH_ENTRIES_MAX: Final = 2**17  # more than a page of the shortest entries has
ENTRY_MEMORY: Final = 512  # bytes that an entry takes beside its own once it is parsed
UNSETTLED_BYTES_MAX: Final = 64 * limits.MIB  # of the records that nothing says were committed: those of a group, and room

BEGINNING: Final = "0.0.0"  # the cursor before all that a server's logs hold

LETTERS_MAX: Final = 10_000  # that a space keeps
SUPERSEDED_MAX: Final = 2**17  # sequences that are told at once

COUNT_MAX: Final = 2**62  # of sequences, writers and bytes: what a server may tell, far above what there is

_FORMAT: Final = 1
_MAGIC: Final = b"ZSTBATCH"
_HEADER: Final = struct.Struct("<8sB3xII4x")
_ENTRY: Final = struct.Struct("<BBxxII4xQQ16s16s16s")
_FREED: Final = struct.Struct("<16sB")
_NO_SHARE: Final = 255
_KINDS: Final = {int(kind): kind for kind in Kind}
_SHARE: Final = re.compile(r"([0-9a-f]{32})\.(0|[1-9][0-9]{0,2})\Z")
_FENCE: Final = re.compile(r"(\d{1,18}):(\d{1,9}):([0-9a-f]{32})\Z", re.ASCII)
_CURSOR: Final = re.compile(r"(\d{1,12})\.(\d{1,12})\.(\d{1,12})(\.[0-9a-f]{32})?\Z", re.ASCII)
_ID: Final = re.compile(r"[0-9a-f]{32}\Z")


class BadWire(ValueError):
    """Bytes or a name that are not what the other side should have sent. The text is fit for people."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is appended to the logs of a space at once, or a page of what lies there."""

    entries: Sequence[ScannedEntry]
    freed: Sequence[ShareId] = ()


def pack_batch(batch: Batch) -> bytes:
    parts: list[Buffer] = [_HEADER.pack(_MAGIC, _FORMAT, len(batch.entries), len(batch.freed))]
    for scanned in batch.entries:
        entry, envelope = scanned.entry, scanned.entry.envelope
        index = _NO_SHARE if entry.share_index is None else entry.share_index
        lengths = len(envelope.sealed), len(entry.share)
        ids = envelope.namespace, envelope.key_hash, envelope.version
        parts += [_ENTRY.pack(envelope.kind, index, *lengths, envelope.sequence, scanned.committed, *ids), envelope.sealed, entry.share]
    parts += [_FREED.pack(share.version, share.index) for share in batch.freed]
    return b"".join(parts)


def parse_batch(data: bytes) -> Batch:
    """The reverse of `pack_batch`; BadWire for anything else."""
    entries, freed = _counts(data)
    at = _HEADER.size
    scanned = []
    for _ in range(entries):
        one, at = _parse_entry(data, at)
        scanned.append(one)
    if len(data) != at + freed * _FREED.size:
        raise BadWire("a batch is longer or shorter than it says")
    gone = [ShareId(Version(share), index) for share, index in _FREED.iter_unpack(data[at:])]
    return Batch(scanned, gone)


def parsed_bytes(data: bytes) -> int:
    """The memory that a batch takes once it is parsed, beside its own; BadWire for what is none."""
    return ENTRY_MEMORY * sum(_counts(data))


def _counts(data: bytes) -> tuple[int, int]:
    """How many entries and freed shares a batch has."""
    if len(data) < _HEADER.size:
        raise BadWire("a batch is cut short")
    magic, version, entries, freed = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _FORMAT:
        raise BadWire(f"that is no batch of format {_FORMAT}")
    if entries * _ENTRY.size + freed * _FREED.size > len(data):
        raise BadWire("a batch is cut short")
    if max(entries, freed) > BATCH_ENTRIES_MAX:
        raise BadWire(f"a batch holds more than {BATCH_ENTRIES_MAX} entries")
    return entries, freed


def _parse_entry(data: bytes, at: int) -> tuple[ScannedEntry, int]:
    if at + _ENTRY.size > len(data):
        raise BadWire("a batch is cut short")
    kind, index, record_length, share_length, sequence, committed, namespace, key_hash, version = _ENTRY.unpack_from(data, at)
    at += _ENTRY.size
    end = at + record_length + share_length
    if kind not in _KINDS or not record_length or end > len(data) or share_length > limits.SMALL_SHARE_BYTES:
        raise BadWire("a batch holds an entry that is none")
    if max(sequence, committed) > COUNT_MAX:
        raise BadWire("a batch holds an entry that is none")
    if share_length and index == _NO_SHARE:
        raise BadWire("a batch holds a share without an index")
    sealed, share = data[at : at + record_length], data[at + record_length : end]
    envelope = Envelope(_KINDS[kind], NamespaceId(namespace), KeyHash(key_hash), Version(version), sequence, sealed)
    return ScannedEntry(Entry(envelope, None if index == _NO_SHARE else index, share), committed), end


def pack_sequences(sequences: Sequence[int]) -> bytes:
    """Each as u64."""
    return struct.pack(f"<{len(sequences)}Q", *sequences)


def parse_sequences(data: bytes) -> Sequence[int]:
    """The reverse of `pack_sequences`; BadWire for anything else."""
    if len(data) % 8 or len(data) > 8 * SUPERSEDED_MAX:
        raise BadWire(f"that are no sequences: 8 bytes each, {SUPERSEDED_MAX} at most")
    return struct.unpack(f"<{len(data) // 8}Q", data)


# --- Names in paths ---


def share_name(share: ShareId) -> str:
    return f"{share.version.hex()}.{share.index}"


def parse_share_name(name: str) -> ShareId:
    match = _SHARE.match(name)
    if match is None or int(match[2]) >= limits.SHARES_MAX:
        raise BadWire("that is no share: 32 hex digits, a dot, an index")
    return ShareId(Version(bytes.fromhex(match[1])), int(match[2]))


def parse_id(text: str) -> bytes:
    """Sixteen bytes from 32 lower case hex digits."""
    if not _ID.match(text):
        raise BadWire("that is no id: 32 hex digits")
    return bytes.fromhex(text)


def parse_ids(data: bytes) -> list[bytes]:
    """Ids, one behind the other."""
    if len(data) % ID_BYTES:
        raise BadWire(f"that are no ids: {ID_BYTES} bytes each")
    return [data[at : at + ID_BYTES] for at in range(0, len(data), ID_BYTES)]


def cursor(text: str) -> tuple[int, ...]:
    """A place in a server's logs, as the header NEXT gives it: three numbers that grow, with the id of a segment behind them but for
    BEGINNING; nothing for what is none.
    """
    match = _CURSOR.match(text)
    return tuple(map(int, match.groups()[:3])) if match and (match[4] or text == BEGINNING) else ()


def space_path(uid: ShardUid) -> str:
    if len(uid) != ID_BYTES:
        raise ValueError("a shard uid has 16 bytes")
    return f"{API}/{uid.hex()}"


# --- Headers ---


def digest(data: Buffer) -> str:
    """The value of the digest header."""
    return digest_value(hashlib.sha256(data).digest())


def digest_value(hashed: bytes) -> str:
    """The same of what was hashed already."""
    return f"sha-256=:{base64.b64encode(hashed).decode()}:"


@dataclass(frozen=True, slots=True)
class Fence:
    """Which life of a daemon speaks, and which opening of the shard in it.

    The writer number grows with each life; random hex digits tell two lives of one number apart; a life counts how often it opened the
    shard, so that what an earlier opening sent late is refused.
    """

    writer: int
    opening: int
    session: str

    def __str__(self) -> str:
        return f"{self.writer}:{self.opening}:{self.session}"

    def follows(self, other: Fence) -> bool:
        """Whether it may take over from the other one."""
        if self.writer == other.writer:
            return self.session == other.session and self.opening > other.opening
        return self.writer > other.writer

    @classmethod
    def parse(cls, text: str) -> Fence:
        match = _FENCE.match(text)
        if match is None:
            raise BadWire("that is no writer: two numbers and 32 hex digits, with colons between")
        return cls(int(match[1]), int(match[2]), match[3])
