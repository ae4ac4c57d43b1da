"""A chunk to m sealed blocks and back: compress, pad, erasure-code, seal; open, restore, cut, decompress.

One thread takes one chunk through every stage. Writing has two steps, `pack` and `seal`, because a writer may have an ordered section
between them (the digest of the whole object).
"""

from __future__ import annotations

from collections.abc import Mapping

from zstor_local.coding.block import CODEC_PLAIN, CODEC_ZSTD, TAG_BYTES, BadBlock, Buffer, ChunkShape, block_width
from zstor_local.coding.compress import Compressor
from zstor_local.coding.erasure import erasure_code
from zstor_local.coding.seal import BlockSealer
from zstor_local.model.policy import Policy
from zstor_local.value import value


class Scratch:
    """What one thread keeps from chunk to chunk. Never used by two threads at once."""

    __slots__ = ("_plain", "_tail", "compressor")

    def __init__(self) -> None:
        self.compressor = Compressor()
        self._plain = bytearray()
        self._tail = bytearray()

    def plain(self, size: int) -> memoryview:
        """`size` writable bytes to read a chunk into, with anything in them. They are the next caller's too: done after `seal`."""
        if len(self._plain) < size:
            self._plain = bytearray(size)
        return memoryview(self._plain)[:size]

    def padded(self, tail: memoryview, size: int) -> memoryview:
        """`tail` with zeros behind it, `size` bytes in all; good until the next call."""
        if len(self._tail) < size:
            self._tail = bytearray(size)
        whole = memoryview(self._tail)[:size]
        whole[: len(tail)] = tail
        whole[len(tail) :] = bytes(size - len(tail))
        return whole


@value()
class Packed:
    """A chunk as it will be stored, before padding; `body` may be the caller's own buffer, not copied."""

    shape: ChunkShape
    body: Buffer


@value()
class EncodedChunk:
    """The m sealed blocks of a chunk, in order, in memory of their own."""

    shape: ChunkShape
    blocks: list[bytes]


class ChunkCoder:
    """Encodes and decodes the chunks of one version. Safe to share between threads, each with its own Scratch."""

    __slots__ = ("_code", "_sealer", "policy")

    def __init__(self, policy: Policy, sealer: BlockSealer) -> None:
        if (policy.k, policy.m) != (sealer.binding.k, sealer.binding.m):
            raise ValueError("the policy and the sealer's binding differ in k or m")
        self.policy = policy
        self._sealer = sealer
        self._code = erasure_code(policy.k, policy.m)

    def encode(self, scratch: Scratch, chunk: int, plain: Buffer) -> EncodedChunk:
        """`pack` and `seal` in one go."""
        packed = self.pack(scratch, plain)
        return EncodedChunk(packed.shape, self.seal(scratch, chunk, packed))

    def pack(self, scratch: Scratch, plain: Buffer) -> Packed:
        """The chunk compressed, if the policy wants it and it gets smaller. ValueError if it is empty or larger than a chunk."""
        length = len(plain)
        if not 0 < length <= self.policy.chunk_size:
            raise ValueError(f"a chunk has 1 to {self.policy.chunk_size} bytes, not {length}")
        frame = scratch.compressor.shrink(plain) if self.policy.compression == "zstd" else None
        if frame is None:
            return Packed(ChunkShape(length, length, CODEC_PLAIN), plain)
        return Packed(ChunkShape(length, len(frame), CODEC_ZSTD), frame)

    def seal(self, scratch: Scratch, chunk: int, packed: Packed) -> list[bytes]:
        """The m sealed blocks of chunk number `chunk`; each chunk number of a version is sealed once."""
        shape = packed.shape
        blocks = self._split(scratch, packed.body, block_width(shape.stored_length, self.policy.k, self.policy.padding))
        blocks.extend(self._code.parity(blocks))
        seal = self._sealer.seal
        return [seal(chunk, index, shape, block) for index, block in enumerate(blocks)]

    def open_block(self, chunk: int, index: int, shape: ChunkShape, sealed: Buffer) -> bytes:
        """The plain block, `block_width` bytes, if `sealed` is exactly block `index` of this chunk; else BadBlock."""
        if len(sealed) != block_width(shape.stored_length, self.policy.k, self.policy.padding) + TAG_BYTES:
            raise BadBlock(f"block {index} of chunk {chunk} has {len(sealed)} bytes")
        return self._sealer.open(chunk, index, shape, sealed)

    def decode(self, scratch: Scratch, chunk: int, shape: ChunkShape, blocks: Mapping[int, Buffer]) -> list[Buffer]:
        """The plain chunk from any k of its *opened* blocks by index, in pieces whose concatenation it is: uncompressed data blocks are
        handed on, not joined. BadBlock if they are no chunk of this shape.
        """
        width = block_width(shape.stored_length, self.policy.k, self.policy.padding)
        if {*map(len, blocks.values())} != {width}:
            raise BadBlock(f"a block of chunk {chunk} does not have {width} bytes")
        parts = _cut(self._code.restore(blocks), width, shape.stored_length, chunk)
        if not shape.compressed:
            return parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        return [scratch.compressor.restore(body, shape.plain_length)]

    def _split(self, scratch: Scratch, body: Buffer, width: int) -> list[Buffer]:
        """k blocks of `width` bytes: slices of `body`, and only what reaches into the padding is copied."""
        k = self.policy.k
        view = memoryview(body)
        whole = len(view) // width
        blocks: list[Buffer] = [view[i * width : (i + 1) * width] for i in range(whole)]
        if whole < k:
            tail = scratch.padded(view[whole * width :], (k - whole) * width)
            blocks.extend(tail[i * width : (i + 1) * width] for i in range(k - whole))
        return blocks


def _cut(data_blocks: list[Buffer], width: int, stored_length: int, chunk: int) -> list[Buffer]:
    """The first `stored_length` bytes of the padded chunk; BadBlock if anything but zeros follows."""
    whole, rest = divmod(stored_length, width)
    parts = data_blocks[:whole]
    padding = data_blocks[whole:]
    if rest:
        last = memoryview(data_blocks[whole])
        parts.append(last[:rest])
        padding[0] = last[rest:]
    if any(part != bytes(len(part)) for part in padding):
        raise BadBlock(f"the padding of chunk {chunk} is not zero")
    return parts
