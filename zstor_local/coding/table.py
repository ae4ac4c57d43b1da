"""The chunk table: how long each chunk of a version is as stored, and so where each of its blocks lies in a share.

Packed, it is one little-endian u32 per chunk: the stored length in bits 0–30, the codec in bit 31. The plain lengths are not written:
all chunks are `chunk_size` long but the last, and together they are the object.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from zstor_local.coding.block import TAG_BYTES, BadBlock, ChunkShape, block_width, padme
from zstor_local.limits import CHUNKS_MAX
from zstor_local.model.policy import Padding

BLOCK_HEADER_BYTES: Final = 16
ENTRY_BYTES: Final = 4
_CODEC_BIT: Final = 31
_LENGTH_MASK: Final = (1 << _CODEC_BIT) - 1


def block_size(shape: ChunkShape, k: int, padding: Padding) -> int:
    """Bytes that one block of this chunk takes in a share: header, width and tag."""
    return BLOCK_HEADER_BYTES + block_width(shape.stored_length, k, padding) + TAG_BYTES


def table_word(shape: ChunkShape) -> int:
    """A chunk's entry in the table: what a writer keeps of each chunk, in an array("I"), to make a ChunkTable of."""
    return shape.stored_length | shape.codec << _CODEC_BIT


def split_word(word: int) -> tuple[int, int]:
    """(stored length, codec) of an entry."""
    return word & _LENGTH_MASK, word >> _CODEC_BIT


def pack_chunk_table(shapes: Iterable[ChunkShape]) -> bytes:
    """The shapes of all chunks of a version, in order, 4 bytes each."""
    return _packed(array("I", map(table_word, shapes)))


def sealed_table_length(plain_size: int, chunk_size: int) -> int:
    """Bytes of the sealed table of an object of `plain_size` bytes."""
    return -(-plain_size // chunk_size) * ENTRY_BYTES + TAG_BYTES


def parse_chunk_table(data: bytes, plain_size: int, chunk_size: int, *, k: int, padding: Padding) -> ChunkTable:
    """The table of an object of `plain_size` bytes; BadBlock if it is not one that a writer with this chunk size makes."""
    chunks = -(-plain_size // chunk_size)
    if chunks > CHUNKS_MAX:
        raise BadBlock(f"an object of {plain_size} bytes has too many chunks")
    if len(data) != chunks * ENTRY_BYTES:  # before anything is allocated
        raise BadBlock(f"a chunk table of {len(data)} bytes for {chunks} chunks")
    words = array("I")
    words.frombytes(data)
    if sys.byteorder == "big":
        words.byteswap()
    return ChunkTable(words, plain_size, chunk_size, k=k, padding=padding)


class ChunkTable:
    """The shapes of a version's chunks, 4 bytes of memory each (12 once an offset was asked for), and the layout of its shares.

    `words` is an array("I") of `table_word`s, one for each chunk in order; it is not copied. BadBlock unless they are those of an
    object of `plain_size` bytes.
    """

    __slots__ = ("_chunk_size", "_k", "_last_shape", "_offsets", "_padding", "_words")

    def __init__(self, words: array[int], plain_size: int, chunk_size: int, *, k: int, padding: Padding) -> None:
        if len(words) != -(-plain_size // chunk_size):
            raise BadBlock(f"{len(words)} chunks of {chunk_size} bytes are no object of {plain_size}")
        self._words = words
        self._chunk_size = chunk_size
        self._k = k
        self._padding = padding
        self._offsets: array[int] | None = None
        if len(words) > 1:
            for word in set(words[:-1]):  # few are distinct where nothing compresses
                _shape(word, chunk_size)
        self._last_shape = _shape(words[-1], plain_size - chunk_size * (len(words) - 1)) if words else None

    def __len__(self) -> int:
        return len(self._words)

    def __iter__(self) -> Iterator[ChunkShape]:
        return (self.shape(chunk) for chunk in range(len(self._words)))

    def shape(self, chunk: int) -> ChunkShape:
        """The shape of chunk number `chunk`; IndexError if there is none."""
        last = len(self._words) - 1
        if chunk == last and self._last_shape is not None:
            return self._last_shape
        if not 0 <= chunk <= last:
            raise IndexError(f"there is no chunk {chunk} in a table of {last + 1}")
        return _shape(self._words[chunk], self._chunk_size)

    def offset(self, chunk: int) -> int:
        """Where the block of this chunk begins, counted from a share's first block; `len(self)` gives the end of the last."""
        if not 0 <= chunk <= len(self._words):
            raise IndexError(f"there is no chunk {chunk} in a table of {len(self._words)}")
        if chunk == 0:
            return 0
        if self._offsets is None:
            self._offsets = self._summed()
        return self._offsets[chunk]

    @property
    def blocks_length(self) -> int:
        """Bytes that all blocks of one share take, with their headers and tags."""
        return self.offset(len(self._words))

    def pack(self) -> bytes:
        """The bytes that `parse_chunk_table` reads."""
        return _packed(self._words)

    def pack_public(self) -> bytes:
        """The same of what shards may see of each chunk (`block.public_shape`)."""
        if self._padding == "none":
            return self.pack()
        return _packed(array("I", [padme(word & _LENGTH_MASK) for word in self._words]))

    def _summed(self) -> array[int]:
        fixed = BLOCK_HEADER_BYTES + TAG_BYTES
        sizes = {word: fixed + block_width(word & _LENGTH_MASK, self._k, self._padding) for word in set(self._words)}
        return array("Q", accumulate(map(sizes.__getitem__, self._words), initial=0))


def _shape(word: int, plain_length: int) -> ChunkShape:
    return ChunkShape(plain_length, *split_word(word))


def _packed(words: array[int]) -> bytes:
    if sys.byteorder == "big":
        words = words[:]
        words.byteswap()
    return words.tobytes()
