"""Chunks made smaller with zstd, and back again without a bomb."""

from __future__ import annotations

from typing import Final

import zstandard

from zstor_local.coding.block import BadBlock, Buffer

LEVEL: Final = 1


class Compressor:
    """zstd's two contexts, kept from chunk to chunk. One per thread: it must not be shared."""

    __slots__ = ("_restore", "_shrink")

    def __init__(self) -> None:
        self._shrink = zstandard.ZstdCompressor(level=LEVEL)
        self._restore = zstandard.ZstdDecompressor()

    def shrink(self, data: Buffer) -> bytes | None:
        """One frame that declares its size, or None if that would not be smaller than `data`."""
        frame = self._shrink.compress(data)
        return frame if len(frame) < len(data) else None

    def restore(self, data: Buffer, plain_length: int) -> bytes:
        """The `plain_length` bytes of the one frame that `data` is; anything else is BadBlock.

        zstandard ignores `max_output_size` when a frame declares a size, and by default drops what follows the frame: both are
        checked here, the size before anything is allocated.
        """
        try:
            if zstandard.frame_content_size(data) != plain_length:
                raise BadBlock(f"a frame does not declare the {plain_length} bytes that its chunk has")
            return self._restore.decompress(data, max_output_size=plain_length, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise BadBlock("a chunk is not one whole zstd frame") from error
