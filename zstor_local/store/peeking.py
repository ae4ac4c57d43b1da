"""A small object's bytes at once, in the event loop: where no disk has to be waited for and every block is good."""

from __future__ import annotations

from zstor_local.coding.block import BadBlock, Buffer, ChunkShape
from zstor_local.coding.chunk import ChunkCoder, Scratch
from zstor_local.coding.share import pack_block_header
from zstor_local.coding.table import BLOCK_HEADER_BYTES, block_size, parse_chunk_table
from zstor_local.model.ids import ShareId, StoreId
from zstor_local.shards.pool import ShardPool
from zstor_local.store.coding import block_sealer
from zstor_local.store.namespaces import Namespace
from zstor_local.store.reading import Range
from zstor_local.store.stored import Stored


def peek(pool: ShardPool, store_id: StoreId, namespace: Namespace, stored: Stored, part: Range, scratch: Scratch) -> bytes | None:
    """The wanted bytes, or None: an ObjectReader finds them, or what is wrong. CorruptRecord if the data key does not open."""
    record = stored.record
    if not record.small:
        return None
    policy = record.policy
    data_key = namespace.keys.unwrap(record.wrapped_key)
    coder = ChunkCoder(policy, block_sealer(store_id, namespace, policy, stored.version, data_key))
    parts: list[Buffer] = []
    try:
        table = parse_chunk_table(record.chunk_table, record.size, policy.chunk_size, k=policy.k, padding=policy.padding)
        for chunk in part.chunks:
            shape = table.shape(chunk)
            blocks = _blocks(pool, stored, coder, chunk, shape, table.offset(chunk))
            if blocks is None:
                return None
            parts += part.cut(chunk, shape.plain_length, coder.decode(scratch, chunk, shape, blocks))
    except BadBlock:
        return None
    return b"".join(parts)


def _blocks(pool: ShardPool, stored: Stored, coder: ChunkCoder, chunk: int, shape: ChunkShape, offset: int) -> dict[int, Buffer] | None:
    """k opened blocks of a chunk. A shard that is away is passed over; None if one that is there has no good block at hand.

    Where a disk would have to be waited for the attempt has begun its read (Linux reads ahead for RWF_NOWAIT). So all k are tried: who
    reads them next waits for k disks at once.
    """
    policy = coder.policy
    header, length = pack_block_header(chunk, shape, policy.padding), block_size(shape, policy.k, policy.padding)
    blocks: dict[int, Buffer] = {}
    tried = 0
    for index, number in enumerate(stored.record.placement):
        shard = pool.readable(number)
        if shard is None:
            continue
        data = shard.peek(ShareId(stored.version, index), offset, length)
        tried += 1
        if data is not None and data[:BLOCK_HEADER_BYTES] != header:
            return None
        if data is not None and len(blocks) == tried - 1:
            blocks[index] = coder.open_block(chunk, index, shape, memoryview(data)[BLOCK_HEADER_BYTES:])
        if tried == policy.k:
            break
    return blocks if len(blocks) == policy.k else None
