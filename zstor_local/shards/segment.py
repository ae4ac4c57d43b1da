"""The bytes of a log segment: header and entries. Pure layout, no files; docs/format.md describes the same.

A segment is a file of fixed length, allocated when it is opened:

    header   64 bytes: magic `ZSTORSEG`, format u8, 7 zero bytes, segment id 16, store id 16, writer number u64, checksum 8
    entries  each aligned to 8 bytes

An entry is a header of 96 bytes, the sealed record, the small share, and zeros up to the alignment:

    magic `ZENT` · kind u8 · share index u8 (255: none) · 2 zero bytes · record length u32 · share length u32 · sequence u64 ·
    committed u64 · namespace id 16 · keyed hash of the key 16 · version 16 · checksum 16

All integers are little-endian. The checksum is BLAKE3 over the offset, the header up to the checksum, record and share, keyed with
BLAKE3(segment id): bytes that an earlier file left on the disk, or an entry moved to another place, are never taken for entries.
It finds accidents; what proves that an entry is genuine is the seal inside. Entries of kind FREED carry nothing but a share's id.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import blake3

from zstor_local.model.ids import ID_BYTES, KeyHash, NamespaceId, ShareId, StoreId, Version
from zstor_local.model.record import ENVELOPE_HEADER, KINDS, Envelope
from zstor_local.runtime import Buffer
from zstor_local.shards.base import Entry, ScannedEntry

FORMAT: Final = 1
HEADER_BYTES: Final = 64
ENTRY_HEADER_BYTES: Final = 96
ALIGNMENT: Final = 8
CHECKSUM_BYTES: Final = 16

_MAGIC: Final = b"ZSTORSEG"
_ENTRY_MAGIC: Final = b"ZENT"
_HEADER: Final = struct.Struct("<8sB7x16s16sQ")
_ENTRY: Final = struct.Struct("<4sBBxxIIQQ16s16s16s")
_OFFSET: Final = struct.Struct("<Q")
_NO_SHARE: Final = 255
_FREED: Final = 255
_SCAN_BYTES: Final = 1 << 20
_PADDING: Final = tuple(bytes(count) for count in range(ALIGNMENT))


class BadSegment(Exception):
    """The header of a segment is not one that this version reads."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Who wrote a segment. `id` is random, 16 bytes."""

    id: bytes
    store_id: StoreId
    writer: int

    def pack(self) -> bytes:
        fields = _HEADER.pack(_MAGIC, FORMAT, self.id, self.store_id, self.writer)
        return fields + blake3.blake3(fields).digest(HEADER_BYTES - len(fields))

    @classmethod
    def parse(cls, data: Buffer) -> SegmentHeader:
        fields = bytes(data[: _HEADER.size])
        if len(data) < HEADER_BYTES or blake3.blake3(fields).digest(HEADER_BYTES - len(fields)) != bytes(
            data[_HEADER.size : HEADER_BYTES]
        ):
            raise BadSegment("the header of a log segment is damaged")
        magic, version, segment, store, writer = _HEADER.unpack(fields)
        if magic != _MAGIC or version != FORMAT:
            raise BadSegment(f"a log segment has format {version}, this version reads {FORMAT}")
        return cls(segment, StoreId(store), writer)

    @property
    def checksum_key(self) -> bytes:
        return blake3.blake3(self.id).digest()


@dataclass(frozen=True, slots=True)
class Freed:
    """An entry that says: this shard no longer holds that share."""

    share: ShareId


@dataclass(frozen=True, slots=True)
class Located:
    """An entry found in a segment: where it begins, where its share lies, where the next entry begins."""

    item: ScannedEntry | Freed
    offset: int
    share_offset: int
    share_length: int
    end: int


@dataclass(frozen=True, slots=True)
class Position:
    """Behind an entry: the offset of its end in a segment, of which the random id tells whether it is the same one still."""

    segment: int = 0
    offset: int = 0
    segment_id: bytes = b""


BEGINNING: Final = Position()


def pack_entry(key: bytes, offset: int, entry: Entry, committed: int) -> list[bytes]:
    """The buffers of an entry that begins at `offset`; together a multiple of the alignment."""
    envelope = entry.envelope
    index = _NO_SHARE if entry.share_index is None else entry.share_index
    fields = _ENTRY.pack(
        _ENTRY_MAGIC,
        envelope.kind,
        index,
        len(envelope.sealed),
        len(entry.share),
        envelope.sequence,
        committed,
        envelope.namespace,
        envelope.key_hash,
        envelope.version,
    )
    return _finish(key, offset, fields, envelope.sealed, entry.share)


def pack_freed(key: bytes, offset: int, share: ShareId, committed: int) -> list[bytes]:
    """The buffers of an entry that frees a share."""
    nothing = bytes(ID_BYTES)
    fields = _ENTRY.pack(_ENTRY_MAGIC, _FREED, share.index, 0, 0, 0, committed, nothing, nothing, share.version)
    return _finish(key, offset, fields, b"", b"")


def entry_size(entry: Entry) -> int:
    """Bytes an entry takes in a segment."""
    return -(-(ENTRY_HEADER_BYTES + len(entry.envelope.sealed) + len(entry.share)) // ALIGNMENT) * ALIGNMENT


def aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _finish(key: bytes, offset: int, fields: bytes, record: bytes, share: bytes) -> list[bytes]:
    checksum = _checksum(key, offset, fields, record, share)
    return [fields, checksum, record, share, _PADDING[-(len(record) + len(share)) % ALIGNMENT]]  # the header's length is aligned


def _checksum(key: bytes, offset: int, fields: bytes, *rest: bytes) -> bytes:
    return blake3.blake3(b"".join((_OFFSET.pack(offset), fields, *rest)), key=key).digest(CHECKSUM_BYTES)


def scan_segment(key: bytes, read: Callable[[int, int], Buffer], start: int, length: int) -> Iterator[Located]:
    """Every whole entry from `start` to `length`, in order. `read(offset, length)` may come up short at the end of the file.

    Behind damage it goes on at the next magic word on the alignment whose checksum holds. The empty rest of a segment is skipped
    a mebibyte at a time.
    """
    for data, at, offset, fields in _whole(key, read, start, length):
        _, kind, index, record_length, share_length, sequence, committed, namespace, key_hash, version = fields
        record_end = at + ENTRY_HEADER_BYTES + record_length
        share_end = record_end + share_length
        item: ScannedEntry | Freed
        if kind == _FREED:
            item = Freed(ShareId(Version(version), index))
        else:
            record = data[at + ENTRY_HEADER_BYTES : record_end]
            envelope = Envelope(KINDS[kind], NamespaceId(namespace), KeyHash(key_hash), Version(version), sequence, record)
            item = ScannedEntry(Entry(envelope, None if index == _NO_SHARE else index, data[record_end:share_end]), committed)
        yield Located(item, offset, offset + record_end - at, share_length, offset + aligned(share_end - at))


def scan_records(key: bytes, read: Callable[[int, int], Buffer], start: int, length: int) -> Iterator[bytes]:
    """The records of the entries that `scan_segment` finds, each as Envelope.pack gives it, at half the price."""
    for data, at, _, fields in _whole(key, read, start, length):
        _, kind, _, record_length, _, sequence, _, namespace, key_hash, version = fields
        if kind != _FREED:
            record = at + ENTRY_HEADER_BYTES
            yield ENVELOPE_HEADER.pack(kind, namespace, key_hash, version, sequence) + data[record : record + record_length]


_Fields = tuple[bytes, int, int, int, int, int, int, bytes, bytes, bytes]  # as _ENTRY has them


def _whole(key: bytes, read: Callable[[int, int], Buffer], start: int, length: int) -> Iterator[tuple[bytes, int, int, _Fields]]:
    """Each whole entry: bytes that hold it, where in them and in the segment it begins, and the fields of its header."""
    unpack, number = _ENTRY.unpack_from, _OFFSET.pack
    window, base = b"", 0
    offset = aligned(start)
    while offset + ENTRY_HEADER_BYTES <= length:
        at = offset - base
        if at + ENTRY_HEADER_BYTES > len(window):
            window, base, at = bytes(read(offset, min(_SCAN_BYTES, length - offset))), offset, 0
            if len(window) < ENTRY_HEADER_BYTES:
                return
        fields: _Fields = unpack(window, at)
        if fields[0] != _ENTRY_MAGIC:
            # The magic word is aligned; a hit elsewhere is a coincidence in some payload.
            near = window.find(_ENTRY_MAGIC, at + 1)
            if near < 0:
                offset = base + max(aligned(len(window) - len(_ENTRY_MAGIC) + 1), at + ALIGNMENT)
            else:
                offset += max(ALIGNMENT, (near - at) // ALIGNMENT * ALIGNMENT)
            continue
        size = ENTRY_HEADER_BYTES + fields[3] + fields[4]
        step = size + ALIGNMENT - 1 & -ALIGNMENT
        if offset + step <= length and (fields[1] == _FREED or (fields[1] in KINDS and fields[3])):
            if at + size > len(window):
                window, base, at = bytes(read(offset, max(size, min(_SCAN_BYTES, length - offset)))), offset, 0
            body, end = at + ENTRY_HEADER_BYTES, at + size
            claimed = window[at + _ENTRY.size : body]
            # As _checksum has it; here, as all that a log holds comes by.
            checked = number(offset), window[at : at + _ENTRY.size], window[body:end]
            if end <= len(window) and blake3.blake3(b"".join(checked), key=key).digest(CHECKSUM_BYTES) == claimed:
                yield window, at, offset, fields
                offset += step
                continue
        offset += ALIGNMENT
