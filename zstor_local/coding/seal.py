"""Blocks sealed so that each proves by itself that it is the right one and undamaged.

AES-256-GCM under the version's data key. Nonce, 12 bytes `<QI`: chunk number, block index; the chunk table has chunk number 2³² − 1.
A version is never rewritten and its data key never used again, so no nonce meets two plaintexts; a block that is made again for
repair is the same plaintext.

Associated data, 104 bytes, little-endian, every field of fixed size:

    8s  kind: b"ZSTBLOCK" or b"ZSTTABLE"      16s store id                 u64 chunk number
    u8  format, 1                             16s namespace id             u32 block index
    u8  k                                     16s version                  u32 plain length of the chunk
    u8  m                                     16s commitment of the        u32 stored length
    u8  zero                                      data key                 u32 width of the block (holds the padding)
                                                                           u32 codec

A chunk table is one block: its three lengths are all its own, index and codec are 0.

`encrypt` and `decrypt` rather than `*_into`: they allocate what they return, run as fast on two threads (the GIL is free while
AES-GCM works), and no buffer ever holds bytes that failed authentication.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from zstor_local.coding.block import CODEC_PLAIN, FORMAT, TAG_BYTES, BadBlock, Buffer, ChunkShape
from zstor_local.coding.keys import KEY_BYTES, commitment
from zstor_local.limits import CHUNKS_MAX, SHARES_MAX
from zstor_local.model.ids import ID_BYTES, NamespaceId, StoreId, Version
from zstor_local.value import value

_BLOCK_KIND: Final = b"ZSTBLOCK"
_TABLE_KIND: Final = b"ZSTTABLE"
_TABLE_CHUNK: Final = CHUNKS_MAX  # 2³² − 1: one more than the last chunk number there can be
_VERSION_FIELDS: Final = struct.Struct("<8sBBBx16s16s16s16s")
_BLOCK_FIELDS: Final = struct.Struct("<QIIIII")
_NONCE: Final = struct.Struct("<QI")


@value()
class BlockBinding:
    """What all blocks of one version have in common, and are bound to."""

    store_id: StoreId
    namespace: NamespaceId
    version: Version
    k: int
    m: int

    def __post_init__(self) -> None:
        if not all(len(part) == ID_BYTES for part in (self.store_id, self.namespace, self.version)):
            raise ValueError(f"ids have {ID_BYTES} bytes")
        if not 1 <= self.k <= self.m <= SHARES_MAX:
            raise ValueError(f"no code has k = {self.k}, m = {self.m}")


class BlockSealer:
    """Seals and opens the blocks of one version. Safe to share between threads; repr shows no key."""

    __slots__ = ("_aes", "_block_prefix", "_m", "_table_prefix", "binding")

    def __init__(self, data_key: bytes, binding: BlockBinding) -> None:
        if len(data_key) != KEY_BYTES:
            raise ValueError(f"a data key has {KEY_BYTES} bytes")
        self.binding = binding
        self._m = binding.m
        self._aes = AESGCM(data_key)
        common = (FORMAT, binding.k, binding.m, binding.store_id, binding.namespace, binding.version, commitment(data_key))
        self._block_prefix = _VERSION_FIELDS.pack(_BLOCK_KIND, *common)
        self._table_prefix = _VERSION_FIELDS.pack(_TABLE_KIND, *common)

    def seal(self, chunk: int, index: int, shape: ChunkShape, plain: Buffer) -> bytes:
        """Block `index` of chunk number `chunk`, sealed: `TAG_BYTES` longer, in memory of its own. Seal a (chunk, index) once."""
        self._check(chunk, index)
        fields = _BLOCK_FIELDS.pack(chunk, index, shape.plain_length, shape.stored_length, len(plain), shape.codec)
        return self._aes.encrypt(_NONCE.pack(chunk, index), plain, self._block_prefix + fields)

    def open(self, chunk: int, index: int, shape: ChunkShape, sealed: Buffer) -> bytes:
        """The block that was sealed as exactly this one, or BadBlock."""
        self._check(chunk, index)
        width = len(sealed) - TAG_BYTES
        if width <= 0:
            raise BadBlock(f"block {index} of chunk {chunk} has {len(sealed)} bytes")
        fields = _BLOCK_FIELDS.pack(chunk, index, shape.plain_length, shape.stored_length, width, shape.codec)
        try:
            return self._aes.decrypt(_NONCE.pack(chunk, index), sealed, self._block_prefix + fields)
        except InvalidTag:
            raise BadBlock(f"block {index} of chunk {chunk} failed authentication") from None

    def seal_table(self, plain: Buffer) -> bytes:
        """The version's packed chunk table, sealed: the same bytes go into every share."""
        return self._aes.encrypt(_NONCE.pack(_TABLE_CHUNK, 0), plain, self._table_associated(len(plain)))

    def open_table(self, sealed: Buffer) -> bytes:
        """The packed chunk table of this version, or BadBlock."""
        if len(sealed) < TAG_BYTES:
            raise BadBlock(f"a sealed chunk table has {len(sealed)} bytes")
        try:
            return self._aes.decrypt(_NONCE.pack(_TABLE_CHUNK, 0), sealed, self._table_associated(len(sealed) - TAG_BYTES))
        except InvalidTag:
            raise BadBlock("a chunk table failed authentication") from None

    def _table_associated(self, length: int) -> bytes:
        return self._table_prefix + _BLOCK_FIELDS.pack(_TABLE_CHUNK, 0, length, length, length, CODEC_PLAIN)

    def _check(self, chunk: int, index: int) -> None:
        """ValueError for a place that no block has: above all, no chunk may take the table's nonce."""
        if not 0 <= chunk < _TABLE_CHUNK or not 0 <= index < self._m:
            raise ValueError(f"there is no block {index} of chunk {chunk} in a version with m = {self._m}")
