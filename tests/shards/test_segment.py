"""Segments: what is whole is found, what is not is not, and nothing else looks like an entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shards.ground import STORE, entry, version
from zstor_local.model.ids import ShareId
from zstor_local.model.record import Kind
from zstor_local.shards.base import Entry, ScannedEntry
from zstor_local.shards.segment import (
    ALIGNMENT,
    HEADER_BYTES,
    BadSegment,
    Freed,
    SegmentHeader,
    aligned,
    entry_size,
    pack_entry,
    pack_freed,
    scan_records,
    scan_segment,
)

HEADER = SegmentHeader(b"segment id 16 by", STORE, writer=3)
KEY = HEADER.checksum_key
SHARE = ShareId(version(7), 2)


def pack(items: Sequence[Entry | ShareId], *, key: bytes = KEY, start: int = HEADER_BYTES) -> bytes:
    """Entries (and freed shares) one behind the other, as they lie from `start` on."""
    packed = b""
    for item in items:
        at = start + len(packed)
        buffers = pack_entry(key, at, item, 9) if isinstance(item, Entry) else pack_freed(key, at, item, 9)
        packed += b"".join(buffers)
    return packed


def scan(content: bytes, *, key: bytes = KEY, start: int = HEADER_BYTES) -> list[ScannedEntry | Freed]:
    """What is found in a whole segment; whoever asks for the records alone finds the same ones."""

    def read(at: int, size: int) -> bytes:
        return content[at : at + size]

    found = [each.item for each in scan_segment(key, read, start, len(content))]
    records = [each.entry.envelope.pack() for each in found if isinstance(each, ScannedEntry)]
    assert list(scan_records(key, read, start, len(content))) == records
    return found


def wanted(*items: Entry | ShareId) -> list[ScannedEntry | Freed]:
    return [ScannedEntry(item, 9) if isinstance(item, Entry) else Freed(item) for item in items]


SMALL = (entry(1, b"a small share", index=4), SHARE, entry(2), entry(3, b"the last", kind=Kind.OBJECT))
SEGMENT = HEADER.pack() + pack(SMALL)


def test_every_kind_of_entry_is_found_as_it_was_written() -> None:
    items = [entry(number, kind=kind) for number, kind in enumerate(Kind, 1)]
    assert scan(HEADER.pack() + pack(items) + bytes(1_000)) == wanted(*items)


def test_a_header_is_read_back() -> None:
    assert len(HEADER.pack()) == HEADER_BYTES
    assert SegmentHeader.parse(HEADER.pack()) == HEADER


@pytest.mark.parametrize("length", range(HEADER_BYTES))
def test_a_header_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(BadSegment):
        SegmentHeader.parse(HEADER.pack()[:length])


def test_every_flipped_bit_of_a_segment_is_found_or_harmless() -> None:
    everything = wanted(*SMALL)
    for bit in range(len(SEGMENT) * 8):
        damaged = bytearray(SEGMENT)
        damaged[bit // 8] ^= 1 << bit % 8
        if bit < HEADER_BYTES * 8:
            with pytest.raises(BadSegment):
                SegmentHeader.parse(damaged)
            continue
        found = scan(bytes(damaged))
        assert all(item in everything for item in found)
        assert len(found) >= len(everything) - 1
        if len(found) == len(everything):
            assert in_padding(bit // 8)


def in_padding(offset: int) -> bool:
    """Whether a byte of SEGMENT belongs to no entry but to the zeros between two."""
    end = HEADER_BYTES
    for item in SMALL:
        size = 96 + (len(item.envelope.sealed) + len(item.share) if isinstance(item, Entry) else 0)
        if end + size <= offset < end + aligned(size):
            return True
        end += aligned(size)
    return False


def test_of_a_torn_segment_the_whole_entries_are_found() -> None:
    ends = [HEADER_BYTES + len(pack(SMALL[:count])) for count in range(len(SMALL) + 1)]
    for length in range(HEADER_BYTES, len(SEGMENT)):
        whole = sum(end <= length for end in ends[1:])
        torn = SEGMENT[:length]
        padded = torn + bytes(len(SEGMENT) - length)
        assert scan(torn)[:whole] == wanted(*SMALL)[:whole]
        assert len(scan(torn)) <= whole + 1  # an entry may lack nothing but its padding
        assert scan(padded)[:whole] == wanted(*SMALL)[:whole]


def test_bytes_of_an_older_segment_are_never_taken_for_entries() -> None:
    older = SegmentHeader(b"older segment 16", STORE, writer=2)
    stale = pack([entry(number, b"old share") for number in range(10, 20)], key=older.checksum_key)
    assert scan(HEADER.pack() + stale) == []
    fresh = pack([entry(1, b"new")])
    assert scan(HEADER.pack() + fresh + stale[len(fresh) :]) == wanted(entry(1, b"new"))


def test_an_entry_that_was_moved_to_another_place_is_none() -> None:
    first, second = pack([entry(1)]), pack([entry(2)])
    assert len(first) == len(second)
    assert scan(HEADER.pack() + second + first) == wanted(entry(2))
    assert scan(HEADER.pack() + bytes(ALIGNMENT) + first) == []


def test_an_entry_without_a_record_is_none() -> None:
    nothing = Entry(replace(entry(1).envelope, sealed=b""))
    assert scan(HEADER.pack() + pack([nothing])) == []


def test_an_entry_of_a_later_kind_is_passed_over() -> None:
    content = bytearray(HEADER.pack() + pack([entry(1), entry(2)]))
    content[HEADER_BYTES + 4] = 77
    assert scan(bytes(content)) == wanted(entry(2))


def test_an_empty_segment_has_no_entries() -> None:
    assert scan(HEADER.pack()) == []
    assert scan(HEADER.pack() + bytes(3 << 20)) == []


@pytest.mark.parametrize("gap", [8, 96, (1 << 20) - 8, (1 << 20) + 8, 3 << 20])
def test_scanning_resumes_behind_damage(gap: int) -> None:
    first = HEADER.pack() + pack([entry(1)])
    last = pack([entry(2, b"behind the damage")], start=len(first) + gap)
    for damage in (bytes(gap), b"\xff" * gap, b"ZENT\xff\xff\xff\xff" * (gap // 8), (b"xZENT" * gap)[:gap]):
        assert scan(first + damage + last) == wanted(entry(1), entry(2, b"behind the damage"))


@pytest.mark.parametrize("over", range(-104, 105, 8))
def test_entries_on_the_edge_of_what_is_read_at_once_are_found(over: int) -> None:
    filler = entry(1, bytes((1 << 20) + over - 400))
    items = [filler, entry(2, b"on the edge"), entry(3)]
    assert scan(HEADER.pack() + pack(items)) == wanted(*items)


def test_a_claimed_length_beyond_the_segment_ends_nothing() -> None:
    content = bytearray(HEADER.pack() + pack([entry(1), entry(2)]))
    content[HEADER_BYTES + 8 : HEADER_BYTES + 16] = b"\xff" * 8
    assert scan(bytes(content)) == wanted(entry(2))


def test_a_scan_that_starts_later_finds_what_follows() -> None:
    begin = HEADER_BYTES + entry_size(SMALL[0])
    assert scan(SEGMENT, start=begin) == wanted(*SMALL[1:])


@given(
    st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 5_000), st.binary(min_size=1, max_size=40)), max_size=4),
)
def test_damage_hides_the_entries_it_hits_and_no_others(shapes: list[tuple[int, bool]], damages: list[tuple[int, bytes]]) -> None:
    items = [entry(number, bytes(length) if with_share else None) for number, (length, with_share) in enumerate(shapes, 1)]
    content = bytearray(HEADER.pack() + pack(items))
    hit = [False] * len(content)
    for at, data in damages:
        at = HEADER_BYTES + at % (len(content) - HEADER_BYTES)
        data = data[: len(content) - at]
        content[at : at + len(data)] = data
        hit[at : at + len(data)] = [True] * len(data)
    found = scan(bytes(content))
    at = HEADER_BYTES
    for item, scanned in zip(items, wanted(*items), strict=True):
        end = at + entry_size(item)
        if not any(hit[at:end]):
            assert scanned in found
        at = end
    assert all(each in wanted(*items) for each in found)
