"""The bytes of a share: pure layout, all numbers little-endian.

A share is all blocks of one version that have the same index. An object without bytes has shares without bytes.

Block, in every share, 32 bytes more than its width:

    2s   magic b"ZB"
    u8   format, 1
    u8   codec: 0 as is, 1 zstd
    u32  chunk number
    u32  plain length of the chunk
    u32  stored length of the chunk
    …    the sealed block: width = ⌈stored length / k⌉, then the 16 bytes of its tag

With Padmé padding the header tells only what the width tells anyway: both lengths are the padded one and the codec is 0. The true
shape is in the record or in the sealed chunk table, and no block opens without it.

A small share is its blocks alone, in chunk order. A share file has four parts more:

    header, 64 bytes:    8s magic b"ZSTORSHR", u8 format = 1, u8 share index, u8 k, u8 m, u8 padding (0 none, 1 padme), 3 zero bytes,
                         16s version, 16s namespace id, 8 zero bytes, 8s BLAKE3 of the 56 bytes before
    blocks               in chunk order
    sealed chunk table   only if the record does not hold the table; the same in every share
    index                u32 per chunk: stored length as in the block's header, codec in bit 31
    footer, 40 bytes:    8s magic b"ZSTORIDX", u32 number of chunks, u32 length of the sealed table, u64 length of the blocks,
                         16s BLAKE3 of the index and the 24 bytes before

Checksums here find accidents, not attacks: nothing is believed until it opens. Whoever has the record needs neither index nor footer,
but the footer for the sealed table: where that is damaged, another share's table is read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from zstor_local.coding.block import FORMAT, BadBlock, Buffer, ChunkShape, public_shape
from zstor_local.coding.table import ENTRY_BYTES, ChunkTable
from zstor_local.limits import SHARES_MAX
from zstor_local.model.ids import ID_BYTES, NamespaceId, Version
from zstor_local.model.policy import PADDINGS, Padding

SHARE_HEADER_BYTES: Final = 64
FOOTER_BYTES: Final = 40

_BLOCK: Final = struct.Struct("<2sBBIII")
_BLOCK_MAGIC: Final = b"ZB"
_HEADER: Final = struct.Struct("<8sBBBBB3x16s16s8x")
_HEADER_MAGIC: Final = b"ZSTORSHR"
_HEADER_CHECK_BYTES: Final = 8
_FOOTER: Final = struct.Struct("<8sIIQ")
_FOOTER_MAGIC: Final = b"ZSTORIDX"
_FOOTER_CHECK_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class ShareHeader:
    """Whose share a file is. `index` is the block index of all its blocks."""

    index: int
    k: int
    m: int
    padding: Padding
    version: Version
    namespace: NamespaceId

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.m <= SHARES_MAX or not 0 <= self.index < self.m:
            raise BadBlock(f"no share has index {self.index} with k = {self.k}, m = {self.m}")
        if len(self.version) != ID_BYTES or len(self.namespace) != ID_BYTES:
            raise BadBlock(f"ids have {ID_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class ShareFooter:
    """Where the parts of a share file are: how many blocks, how long the sealed chunk table, how long the blocks."""

    chunks: int
    table_length: int
    blocks_length: int

    @property
    def table_offset(self) -> int:
        """Where the sealed chunk table begins in the file, which is where the blocks end."""
        return SHARE_HEADER_BYTES + self.blocks_length

    @property
    def index_offset(self) -> int:
        """Where the index begins in the file."""
        return self.table_offset + self.table_length

    @property
    def index_length(self) -> int:
        """Bytes of the index."""
        return self.chunks * ENTRY_BYTES


def pack_block_header(chunk: int, shape: ChunkShape, padding: Padding = "none") -> bytes:
    """The 16 bytes before a sealed block. With Padmé they do not tell the true lengths."""
    seen = public_shape(shape, padding)
    return _BLOCK.pack(_BLOCK_MAGIC, FORMAT, seen.codec, chunk, seen.plain_length, seen.stored_length)


def pack_share_header(header: ShareHeader) -> bytes:
    """The first 64 bytes of a share file."""
    padding = PADDINGS.index(header.padding)
    fields = _HEADER.pack(_HEADER_MAGIC, FORMAT, header.index, header.k, header.m, padding, header.version, header.namespace)
    return fields + blake3(fields).digest(_HEADER_CHECK_BYTES)


def parse_share_header(data: Buffer) -> ShareHeader:
    """What `pack_share_header` was given, or BadBlock."""
    fields = bytes(data[: _HEADER.size])
    if bytes(data[_HEADER.size : SHARE_HEADER_BYTES]) != blake3(fields).digest(_HEADER_CHECK_BYTES):
        raise BadBlock("a share's header is damaged")
    magic, format_, index, k, m, padding, version, namespace = _HEADER.unpack(fields)
    if magic != _HEADER_MAGIC or format_ != FORMAT or padding >= len(PADDINGS):
        raise BadBlock("that is not a share of a format known here")
    return ShareHeader(index, k, m, PADDINGS[padding], Version(version), NamespaceId(namespace))


def pack_share_end(table: ChunkTable, table_length: int = 0) -> bytes:
    """The index and the footer: what follows the blocks, and the sealed chunk table of `table_length` bytes where there is one."""
    index = table.pack_public()
    fields = _FOOTER.pack(_FOOTER_MAGIC, len(table), table_length, table.blocks_length)
    return index + fields + blake3(index + fields).digest(_FOOTER_CHECK_BYTES)


def parse_share_footer(data: Buffer, file_size: int) -> ShareFooter:
    """The last 40 bytes of a share file, or BadBlock if they are no footer or speak of a file of another size.

    Its checksum is not compared: nothing is believed of what it leads to until that opens.
    """
    if len(data) != FOOTER_BYTES:
        raise BadBlock("a share's footer is cut short")
    magic, chunks, table_length, blocks_length = _FOOTER.unpack_from(data)
    footer = ShareFooter(chunks, table_length, blocks_length)
    if magic != _FOOTER_MAGIC or footer.index_offset + footer.index_length + FOOTER_BYTES != file_size:
        raise BadBlock("a share's footer is damaged")
    return footer
