"""A share's parts come back as they were, and damage to a header or footer is noticed."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from random import Random

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.coding.samples import NAMESPACE, VERSION
from zstor_local.coding.block import BadBlock, ChunkShape
from zstor_local.coding.share import (
    FOOTER_BYTES,
    SHARE_HEADER_BYTES,
    ShareHeader,
    pack_block_header,
    pack_share_end,
    pack_share_header,
    parse_share_footer,
    parse_share_header,
)
from zstor_local.coding.table import BLOCK_HEADER_BYTES, ChunkTable, block_size, table_word
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
        for chunk, shape in enumerate(self.shapes):
            header = pack_block_header(chunk, shape, self.padding)
            self.data += header + random.randbytes(block_size(shape, K, self.padding) - BLOCK_HEADER_BYTES)
        self.data += SEALED_TABLE + pack_share_end(self.table, len(SEALED_TABLE))

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])


@pytest.fixture(params=["none", "padme"])
def share(request: pytest.FixtureRequest) -> ShareFile:
    return ShareFile(request.param)


@given(st.integers(0, CHUNKS_MAX - 1), st.integers(1, CHUNK), st.integers(1, CHUNK))
def test_a_block_header_tells_the_chunk_its_lengths_and_codec(chunk: int, one: int, other: int) -> None:
    shape = ChunkShape(max(one, other), min(one, other), int(one != other))
    header = pack_block_header(chunk, shape)
    assert len(header) == BLOCK_HEADER_BYTES
    assert struct.unpack("<2sBBIII", header) == (b"ZB", 1, shape.codec, chunk, shape.plain_length, shape.stored_length)


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
    assert index == share.table.pack_public()
    checked = index + share.data[-FOOTER_BYTES:-16]
    assert share.data[-16:] == blake3(checked).digest(16)


def test_a_footer_of_a_file_of_another_length_is_refused(share: ShareFile) -> None:
    for size in (len(share.data) - 1, len(share.data) + 1, 0):
        with pytest.raises(BadBlock):
            parse_share_footer(share.data[-FOOTER_BYTES:], size)
    for footer in (share.data[-FOOTER_BYTES:-1], share.data[-FOOTER_BYTES:] + b"\0", b""):
        with pytest.raises(BadBlock):
            parse_share_footer(footer, len(share.data))
