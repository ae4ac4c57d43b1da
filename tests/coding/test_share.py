"""A share's parts come back as they were, damage to any of them is noticed, and blocks are found without the index."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from random import Random

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.coding.samples import NAMESPACE, VERSION
from zstor_local.coding.block import TAG_BYTES, BadBlock, ChunkShape
from zstor_local.coding.share import (
    BLOCK_HEADER_BYTES,
    FOOTER_BYTES,
    SCAN_STEP_BYTES,
    SHARE_HEADER_BYTES,
    ChunkTable,
    FoundBlock,
    ShareHeader,
    block_size,
    pack_block_header,
    pack_share_end,
    pack_share_header,
    parse_block_header,
    parse_share_footer,
    parse_share_header,
    parse_share_index,
    scan_blocks,
)
from zstor_local.coding.table import table_word
from zstor_local.limits import CHUNKS_MAX, KIB
from zstor_local.model.ids import NamespaceId, Version
from zstor_local.model.policy import Padding

CHUNK = 256 * KIB
K = 4
STORED = [CHUNK, 100_000, 17, CHUNK, 1]
LAST = 4_000
SEALED_TABLE = b"a sealed chunk table"


@dataclass
class ShareFile:
    """A share file in memory whose sealed blocks are random bytes."""

    padding: Padding = "none"

    def __post_init__(self) -> None:
        lengths = [CHUNK] * (len(STORED) - 1) + [LAST]
        self.shapes = [ChunkShape(n, s, int(s < n)) for n, s in zip(lengths, STORED, strict=True)]
        self.table = ChunkTable(array("I", map(table_word, self.shapes)), sum(lengths), CHUNK, k=K, padding=self.padding)
        self.header = ShareHeader(2, K, 6, self.padding, VERSION, NAMESPACE)
        random = Random(1)
        self.data = bytearray(pack_share_header(self.header))
        self.found: list[FoundBlock] = []
        for chunk, shape in enumerate(self.shapes):
            header = pack_block_header(chunk, shape, self.padding)
            self.found.append(FoundBlock(chunk, len(self.data), parse_block_header(header)[1]))
            self.data += header + random.randbytes(block_size(shape, K, self.padding) - BLOCK_HEADER_BYTES)
        self.data += SEALED_TABLE + pack_share_end(self.table, len(SEALED_TABLE))

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def scan(self) -> list[FoundBlock]:
        return list(scan_blocks(self.read, len(self.data), self.header))


@pytest.fixture(params=["none", "padme"])
def share(request: pytest.FixtureRequest) -> ShareFile:
    return ShareFile(request.param)


@given(st.integers(0, CHUNKS_MAX - 1), st.integers(1, CHUNK), st.integers(1, CHUNK))
def test_a_block_header_comes_back(chunk: int, one: int, other: int) -> None:
    shape = ChunkShape(max(one, other), min(one, other), int(one != other))
    header = pack_block_header(chunk, shape)
    assert len(header) == BLOCK_HEADER_BYTES
    assert parse_block_header(header) == (chunk, shape)
    assert parse_block_header(header + b"sealed") == (chunk, shape)


@pytest.mark.parametrize(
    "header",
    [
        b"ZB\1\0" + bytes(4) + b"\5\0\0\0" * 2,
        b"ZC\1\0" + bytes(4) + b"\5\0\0\0" * 2,
        b"ZB\2\0" + bytes(4) + b"\5\0\0\0" * 2,
        b"ZB\1\2" + bytes(4) + b"\5\0\0\0" * 2,
        b"ZB\1\0" + b"\xff" * 4 + b"\5\0\0\0" * 2,
        b"ZB\1\0" + bytes(4) + b"\1\0\x40\0" * 2,
        b"ZB\1\0" + bytes(4) + b"\5\0\0\0" + b"\4\0\0\0",
        b"ZB\1\0" + bytes(4) + b"\5\0\0\0" + b"\5\0\0",
    ],
    ids=["sound", "magic", "format", "codec", "chunk 2^32-1", "over 4 MiB", "lengths", "cut"],
)
def test_what_is_no_block_header_is_refused(header: bytes, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.id == "sound":
        assert parse_block_header(header) == (0, ChunkShape(5, 5, 0))
        return
    with pytest.raises(BadBlock):
        parse_block_header(header)


def test_with_padme_no_clear_part_tells_the_true_length() -> None:
    """Two chunks of other lengths and codecs, but one padded length, look the same from outside."""
    one, two = ChunkShape(1001, 1001, 0), ChunkShape(1024, 1005, 1)
    assert pack_block_header(3, one, "padme") == pack_block_header(3, two, "padme")
    assert pack_block_header(3, one) != pack_block_header(3, two)
    ends = [pack_share_end(ChunkTable(array("I", [table_word(s)]), s.plain_length, CHUNK, k=K, padding="padme")) for s in (one, two)]
    assert ends[0] == ends[1]


def test_a_share_header_comes_back(share: ShareFile) -> None:
    packed = pack_share_header(share.header)
    assert len(packed) == SHARE_HEADER_BYTES
    assert parse_share_header(packed) == share.header


def test_any_flipped_bit_of_a_share_header_is_noticed() -> None:
    packed = pack_share_header(ShareFile().header)
    for bit in range(8 * len(packed)):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadBlock):
            parse_share_header(damaged)
    with pytest.raises(BadBlock):
        parse_share_header(packed[:-1])


@pytest.mark.parametrize(("at", "value"), [(0, 0), (8, 2), (9, 6), (10, 0), (10, 7), (11, 3), (12, 2)])
def test_a_share_header_of_nonsense_is_refused_though_its_checksum_fits(at: int, value: int) -> None:
    fields = bytearray(pack_share_header(ShareFile().header)[:56])
    assert parse_share_header(fields + blake3(fields).digest(8))
    fields[at] = value
    with pytest.raises(BadBlock):
        parse_share_header(fields + blake3(fields).digest(8))


def test_a_share_header_has_whole_ids() -> None:
    with pytest.raises(BadBlock):
        ShareHeader(0, 1, 1, "none", Version(b"short"), NAMESPACE)
    with pytest.raises(BadBlock):
        ShareHeader(0, 1, 1, "none", VERSION, NamespaceId(b"short"))


def test_the_footer_leads_to_table_and_index(share: ShareFile) -> None:
    footer = parse_share_footer(share.data[-FOOTER_BYTES:], len(share.data))
    assert footer.chunks == len(STORED)
    assert footer.blocks_length == share.table.blocks_length
    assert share.read(footer.table_offset, footer.table_length) == SEALED_TABLE
    index = share.read(footer.index_offset, footer.index_length)
    assert list(parse_share_index(footer, index)) == [(b.shape.stored_length, b.shape.codec) for b in share.found]


def test_any_flipped_bit_of_index_or_footer_is_noticed(share: ShareFile) -> None:
    end = share.data[-FOOTER_BYTES - 4 * len(STORED) :]
    for bit in range(8 * len(end)):
        damaged = bytearray(end)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadBlock):
            parse_share_index(parse_share_footer(damaged[-FOOTER_BYTES:], len(share.data)), damaged[:-FOOTER_BYTES])


def test_a_footer_of_a_file_of_another_length_is_refused(share: ShareFile) -> None:
    for size in (len(share.data) - 1, len(share.data) + 1, 0):
        with pytest.raises(BadBlock):
            parse_share_footer(share.data[-FOOTER_BYTES:], size)
    for footer in (share.data[-FOOTER_BYTES:-1], share.data[-FOOTER_BYTES:] + b"\0", b""):
        with pytest.raises(BadBlock):
            parse_share_footer(footer, len(share.data))


def test_a_scan_finds_every_block(share: ShareFile) -> None:
    assert share.scan() == share.found
    assert [b.offset - SHARE_HEADER_BYTES for b in share.found] == [share.table.offset(n) for n in range(len(STORED))]


@pytest.mark.parametrize("lost", range(len(STORED)))
def test_a_damaged_header_hides_its_own_block_only(share: ShareFile, lost: int) -> None:
    share.data[share.found[lost].offset] ^= 1
    assert share.scan() == share.found[:lost] + share.found[lost + 1 :]


@pytest.mark.parametrize("at", range(4, 16))
@pytest.mark.parametrize("bit", [1, 128])
@pytest.mark.parametrize("lost", range(len(STORED)))
def test_a_header_that_lies_hides_no_other_block(share: ShareFile, lost: int, at: int, bit: int) -> None:
    """A flipped chunk number or length that still makes a header."""
    share.data[share.found[lost].offset + at] ^= bit
    scanned = share.scan()
    assert [b for b in share.found if b.chunk != lost] == [b for b in scanned if b in share.found and b.chunk != lost]


@pytest.mark.parametrize("keep", [0, 10, SHARE_HEADER_BYTES, SHARE_HEADER_BYTES + 20, -1, -FOOTER_BYTES, -FOOTER_BYTES - 60])
def test_a_cut_file_gives_the_blocks_that_are_whole(share: ShareFile, keep: int) -> None:
    del share.data[keep:]
    whole = [b for b in share.found if b.offset + block_size(b.shape, K, share.padding) <= len(share.data)]
    assert share.scan() == whole


def test_a_length_that_leads_to_a_later_block_hides_none_between() -> None:
    share = ShareFile()
    first, _, third = share.found[:3]
    width = third.offset - first.offset - BLOCK_HEADER_BYTES - TAG_BYTES
    lie = ChunkShape(4 * KIB * KIB, width * K, 1)
    share.data[first.offset : first.offset + BLOCK_HEADER_BYTES] = pack_block_header(0, lie)
    assert share.scan() == [FoundBlock(0, first.offset, lie), *share.found[1:]]


@pytest.mark.parametrize("before", range(4))
def test_a_header_across_two_reads_is_found(before: int) -> None:
    """`before` bytes of it are at the end of the first read."""
    offset = SHARE_HEADER_BYTES + SCAN_STEP_BYTES - before
    data = bytes(offset) + pack_block_header(9, ChunkShape(8, 8, 0)) + bytes(2 + 16)
    found = scan_blocks(lambda start, length: data[start : start + length], len(data), ShareFile().header)
    assert list(found) == [FoundBlock(9, offset, ChunkShape(8, 8, 0))]


@given(st.binary(max_size=300))
def test_rubbish_is_scanned_without_harm(rubbish: bytes) -> None:
    header = ShareFile().header
    data = bytes(SHARE_HEADER_BYTES) + rubbish
    for found in scan_blocks(lambda offset, length: data[offset : offset + length], len(data), header):
        assert found.offset + block_size(found.shape, K, "none") <= len(data)
