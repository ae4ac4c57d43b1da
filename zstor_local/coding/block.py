"""What a chunk and its blocks measure: shapes, widths, padding, and the one error of everything that does not fit.

Sizes are bytes throughout. A chunk of `plain_length` bytes is kept as `stored_length` bytes (fewer if compressed), padded to k
equal blocks of `block_width` bytes each; every block grows by `TAG_BYTES` when it is sealed.
"""

from __future__ import annotations

from typing import Final

from zstor_local.model.policy import Padding
from zstor_local.value import value

Buffer = bytes | bytearray | memoryview

FORMAT: Final = 1  # of blocks and shares; part of every block's associated data
TAG_BYTES: Final = 16  # AES-GCM's tag, behind the sealed bytes

CODEC_PLAIN: Final = 0
CODEC_ZSTD: Final = 1


class BadBlock(ValueError):
    """Bytes from a shard that are not what was stored there: damaged, swapped, stale, cut or forged. Take another share."""


@value()
class ChunkShape:
    """The lengths of one chunk, in bytes, before and after compression.

    A shape that no encoder makes cannot exist: BadBlock unless codec 0 has equal lengths and codec 1 is really smaller. So what a
    shape declares bounds what decompression may yield.
    """

    plain_length: int
    stored_length: int
    codec: int

    def __post_init__(self) -> None:
        if self.codec == CODEC_PLAIN:
            fits = 0 < self.stored_length == self.plain_length
        else:
            fits = self.codec == CODEC_ZSTD and 0 < self.stored_length < self.plain_length
        if not fits:
            raise BadBlock(f"no chunk of {self.plain_length} bytes is kept as {self.stored_length} with codec {self.codec}")

    @property
    def compressed(self) -> bool:
        """Whether the stored bytes are a zstd frame."""
        return self.codec == CODEC_ZSTD


def padme(length: int) -> int:
    """`length` rounded up so that it shows only O(log log length) bits of itself, at most 12 % more.

    Padmé: Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs", PoPETs 2019(4), algorithm 1.
    Rounding a rounded length changes nothing.
    """
    exponent = length.bit_length() - 1
    mask = (1 << max(exponent - exponent.bit_length(), 0)) - 1
    return (length + mask) & ~mask


def padded_length(stored_length: int, padding: Padding) -> int:
    """The bytes of a chunk that a shard can tell apart: `stored_length` itself, or that rounded by Padmé."""
    return padme(stored_length) if padding == "padme" else stored_length


def block_width(stored_length: int, k: int, padding: Padding) -> int:
    """Bytes of each of a chunk's blocks before sealing: ⌈padded length / k⌉."""
    return -(-padded_length(stored_length, padding) // k)


def public_shape(shape: ChunkShape, padding: Padding) -> ChunkShape:
    """What the clear parts of a share may tell of a chunk: everything, or with Padmé the rounded length alone.

    Its blocks have the same width as those of `shape` (padme is idempotent), so shares can be walked by it. A block opens only by
    the true shape, which is in the sealed record or chunk table.
    """
    if padding == "none":
        return shape
    length = padme(shape.stored_length)
    return ChunkShape(length, length, CODEC_PLAIN)
