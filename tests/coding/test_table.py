"""A chunk table comes back as it was, tells where every block lies, and refuses what no writer makes."""

from __future__ import annotations

import sys
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zstor_local.coding.block import BadBlock, ChunkShape, padme
from zstor_local.coding.table import ChunkTable, block_size, pack_chunk_table, parse_chunk_table, split_word, table_word
from zstor_local.limits import KIB
from zstor_local.model.policy import Padding

CHUNK = 256 * KIB
PADDINGS: list[Padding] = ["none", "padme"]


def shape(plain_length: int, fraction: float) -> ChunkShape:
    stored = max(1, int(plain_length * fraction))
    return ChunkShape(plain_length, stored, 1) if stored < plain_length else ChunkShape(plain_length, plain_length, 0)


@given(st.lists(st.floats(0, 1), max_size=20), st.integers(1, CHUNK), st.integers(1, 255), st.sampled_from(PADDINGS))
def test_shapes_and_offsets_come_back(fractions: list[float], last: int, k: int, padding: Padding) -> None:
    lengths = [CHUNK] * (len(fractions) - 1) + [last] * bool(fractions)
    shapes = [shape(length, fraction) for length, fraction in zip(lengths, fractions, strict=True)]
    packed = pack_chunk_table(shapes)
    assert len(packed) == 4 * len(shapes)
    table = parse_chunk_table(packed, sum(lengths), CHUNK, k=k, padding=padding)
    assert len(table) == len(shapes)
    assert list(table) == shapes
    assert table.pack() == packed
    sizes = [block_size(each, k, padding) for each in shapes]
    assert [table.offset(n) for n in range(len(shapes) + 1)] == [sum(sizes[:n]) for n in range(len(shapes) + 1)]
    assert table.blocks_length == sum(sizes)
    public = [padme(each.stored_length) for each in shapes]
    assert table.pack_public() == (packed if padding == "none" else array("I", public).tobytes())


def test_packed_as_documented() -> None:
    shapes = [ChunkShape(CHUNK, CHUNK, 0), ChunkShape(CHUNK, 0x010203, 1), ChunkShape(7, 7, 0)]
    assert pack_chunk_table(shapes) == bytes.fromhex("00000400 03020180 07000000")
    assert [split_word(table_word(each)) for each in shapes] == [(CHUNK, 0), (0x010203, 1), (7, 0)]


def test_a_big_endian_machine_writes_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [ChunkShape(CHUNK, 0x010203, 1), ChunkShape(7, 7, 0)]
    packed = pack_chunk_table(shapes)
    monkeypatch.setattr(sys, "byteorder", "little" if sys.byteorder == "big" else "big")
    swapped = array("I", packed)
    swapped.byteswap()
    assert pack_chunk_table(shapes) == swapped.tobytes()
    table = parse_chunk_table(swapped.tobytes(), CHUNK + 7, CHUNK, k=4, padding="none")
    assert list(table) == shapes
    assert table.pack() == table.pack() == swapped.tobytes()


def test_an_empty_object_has_an_empty_table() -> None:
    table = parse_chunk_table(b"", 0, CHUNK, k=4, padding="none")
    assert len(table) == table.blocks_length == table.offset(0) == 0
    assert list(table) == []


@pytest.mark.parametrize(
    ("words", "plain_size"),
    [
        ([], 1),
        ([CHUNK], 0),
        ([CHUNK], CHUNK + 1),
        ([CHUNK, CHUNK], CHUNK),
        ([CHUNK, 8], CHUNK + 7),
        ([CHUNK - 1, 7], CHUNK + 7),
        ([0, 7], CHUNK + 7),
        ([CHUNK + 1, 7], CHUNK + 7),
        ([CHUNK | 1 << 31, 7], CHUNK + 7),
        ([(CHUNK + 1) | 1 << 31, 7], CHUNK + 7),
        ([1 << 31, 7], CHUNK + 7),
        ([CHUNK, 7 | 1 << 31], CHUNK + 7),
        ([CHUNK, 0], CHUNK + 7),
    ],
)
def test_a_table_that_no_writer_makes_is_refused(words: list[int], plain_size: int) -> None:
    with pytest.raises(BadBlock):
        parse_chunk_table(array("I", words).tobytes(), plain_size, CHUNK, k=4, padding="none")
    with pytest.raises(BadBlock):
        ChunkTable(array("I", words), plain_size, CHUNK, k=4, padding="none")


@pytest.mark.parametrize("length", [3, 5, 8])
def test_a_table_has_four_bytes_for_each_chunk(length: int) -> None:
    with pytest.raises(BadBlock):
        parse_chunk_table(bytes(length), 10, CHUNK, k=4, padding="none")


def test_more_chunks_than_there_are_nonces_are_refused() -> None:
    with pytest.raises(BadBlock, match="too many"):
        parse_chunk_table(b"", 2**32 * CHUNK, CHUNK, k=4, padding="none")


@pytest.mark.parametrize("chunk", [-1, 2])
def test_there_is_nothing_outside_the_table(chunk: int) -> None:
    table = parse_chunk_table(pack_chunk_table([ChunkShape(CHUNK, 9, 1), ChunkShape(5, 5, 0)]), CHUNK + 5, CHUNK, k=4, padding="none")
    with pytest.raises(IndexError):
        table.shape(chunk)
    with pytest.raises(IndexError):
        table.offset(chunk + (chunk > 0))
