"""Shares back to an object's bytes: any k good blocks of each chunk, each proved before it is decoded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import trio

from zstor_local import limits
from zstor_local.coding.block import BadBlock, ChunkShape
from zstor_local.coding.chunk import ChunkCoder, Scratch
from zstor_local.coding.share import BLOCK_HEADER_BYTES, ChunkTable, pack_block_header, parse_chunk_table
from zstor_local.errors import CorruptRecord, Unreadable
from zstor_local.model.ids import ShareId, StoreId, Version
from zstor_local.model.record import ObjectRecord
from zstor_local.runtime import Buffer, Runtime
from zstor_local.shards.base import ShardError, ShareMissing, ShareReader
from zstor_local.shards.pool import ShardPool
from zstor_local.store.coding import BATCH_BYTES, ScratchPool, block_sealer
from zstor_local.store.namespaces import Namespace
from zstor_local.store.sinks import FileSink, OrderedSink

ShareState = Literal["ok", "missing", "corrupt", "unreachable"]
READ_AHEAD: Final = 2  # chunks being decoded while an ordered sink takes the one before


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of an object: chunk numbers, and what to cut from the first and leave of the last."""

    offset: int
    length: int
    chunk_size: int

    @property
    def chunks(self) -> range:
        if self.length == 0:
            return range(0)
        return range(self.offset // self.chunk_size, (self.offset + self.length - 1) // self.chunk_size + 1)

    def cut(self, chunk: int, plain_length: int) -> tuple[int, int]:
        """Where the wanted bytes of a chunk begin and end in it."""
        start = chunk * self.chunk_size
        return max(0, self.offset - start), min(plain_length, self.offset + self.length - start)


class ObjectReader:
    """One version, open for reading. Close it when done. Any thread may fetch."""

    def __init__(
        self, runtime: Runtime, pool: ShardPool, scratches: ScratchPool, store_id: StoreId, namespace: Namespace, version: Version,
        record: ObjectRecord,
    ) -> None:  # fmt: skip
        """CorruptRecord if the record's data key does not open."""
        self._runtime = runtime
        self._pool = pool
        self._scratches = scratches
        self._record = record
        self._version = version
        self._policy = record.policy
        self._sealer = block_sealer(store_id, namespace, record.policy, version, namespace.keys.unwrap(record.wrapped_key))
        self._coder = ChunkCoder(record.policy, self._sealer)
        self._lock = threading.Lock()
        self._readers: dict[int, ShareReader] = {}
        self._states: dict[int, ShareState] = {}
        self._table: ChunkTable | None = None
        self.blocks_read = 0

    @property
    def bad_shares(self) -> Mapping[int, ShareState]:
        """What was found wrong so far, by share index."""
        return dict(self._states)

    def small_value(self, stretch: Range) -> bytes | None:
        """The bytes without waiting for a disk, or None if that is not possible."""
        try:
            with self._scratches.borrow() as scratch:
                parts = [part for chunk in stretch.chunks for part in self._decode(scratch, chunk, stretch, wait=False)]
        except BlockingIOError:
            return None
        return b"".join(parts)

    async def to_file(self, sink: FileSink, stretch: Range, progress: Callable[[int], None]) -> None:
        """Every chunk to its place, in parallel."""
        numbers = iter(stretch.chunks)
        done = 0
        batch_chunks = max(1, BATCH_BYTES // self._policy.chunk_size)

        def batch() -> int:
            count = 0
            with self._scratches.borrow() as scratch:
                for _ in range(batch_chunks):
                    with self._lock:
                        number = next(numbers, None)
                    if number is None:
                        return count
                    parts = self._decode(scratch, number, stretch, wait=True)
                    sink.write_at(parts, max(0, number * self._policy.chunk_size - stretch.offset))
                    count += sum(len(part) for part in parts)
            return count

        async def worker() -> None:
            nonlocal done
            while count := await self._runtime.threads.run(batch):
                done += count
                progress(done)

        async with trio.open_nursery() as nursery:
            for _ in range(min(self._runtime.threads.workers, len(stretch.chunks))):
                nursery.start_soon(worker)

    async def to_stream(self, sink: OrderedSink, stretch: Range, progress: Callable[[int], None]) -> None:
        """Every chunk in order; the next ones are decoded while the sink takes one."""
        done = 0
        ready: dict[int, list[Buffer]] = {}
        arrived = trio.Event()

        async def fetch(number: int) -> None:
            nonlocal arrived
            ready[number] = await self._runtime.threads.run(self._fetch_and_decode, number, stretch)
            arrived.set()
            arrived = trio.Event()

        async with trio.open_nursery() as nursery:
            for number in stretch.chunks[:READ_AHEAD]:
                nursery.start_soon(fetch, number)
            for number in stretch.chunks:
                while number not in ready:
                    await arrived.wait()
                parts = ready.pop(number)
                if number + READ_AHEAD in stretch.chunks:
                    nursery.start_soon(fetch, number + READ_AHEAD)
                await sink.write(parts)
                done += sum(len(part) for part in parts)
                progress(done)

    def _fetch_and_decode(self, chunk: int, stretch: Range) -> list[Buffer]:
        with self._scratches.borrow() as scratch:
            return self._decode(scratch, chunk, stretch, wait=True)

    def _decode(self, scratch: Scratch, chunk: int, stretch: Range, *, wait: bool) -> list[Buffer]:
        shape = self._chunk_table().shape(chunk)
        blocks = self._fetch(chunk, shape, wait=wait)
        parts = self._coder.decode_parts(scratch, chunk, shape, blocks)
        begin, end = stretch.cut(chunk, shape.plain_length)
        if (begin, end) == (0, shape.plain_length):
            return parts
        return list(_slice(parts, begin, end))

    def _fetch(self, chunk: int, shape: ChunkShape, *, wait: bool) -> dict[int, Buffer]:
        """k opened blocks of a chunk: data blocks where they are good, a parity block at once for each that is not."""
        table = self._chunk_table()
        offset = table.offset(chunk)
        length = table.offset(chunk + 1) - offset
        header = pack_block_header(chunk, shape, self._policy.padding)
        blocks: dict[int, Buffer] = {}
        for index in self._order():
            try:
                reader = self._reader(index)
                data = reader.read(offset, length) if wait else reader.read_nowait(offset, length)
                self.blocks_read += 1
                view = memoryview(data)
                if view[:BLOCK_HEADER_BYTES] != header:
                    raise BadBlock("another block lies there")
                blocks[index] = self._coder.open_block(chunk, index, shape, view[BLOCK_HEADER_BYTES:])
            except ShareMissing:
                self._mark(index, "missing")
            except ShardError as error:
                self._mark(index, "missing" if error.state == "missing" else "unreachable")
            except BadBlock:
                self._mark(index, "corrupt")
            else:
                if len(blocks) == self._policy.k:
                    return blocks
        raise self._unreadable()

    def _order(self) -> Sequence[int]:
        """Share indices, the most promising first: data before parity, those found bad last (another chunk of theirs may be good)."""
        if not self._states:
            return range(self._policy.m)
        return sorted(range(self._policy.m), key=lambda index: index in self._states)

    def _reader(self, index: int) -> ShareReader:
        reader = self._readers.get(index)
        if reader is not None:
            return reader
        with self._lock:
            if index not in self._readers:
                number = self._record.placement[index]
                shard = self._pool.get(number)
                if shard is None:
                    raise ShardError(self._pool.state(number), "the shard is not there")
                self._readers[index] = shard.open_share(ShareId(self._version, index), small=self._record.small)
            return self._readers[index]

    def _chunk_table(self) -> ChunkTable:
        if self._table is None:
            packed = self._table_from_shares() if self._record.table_blob else self._record.chunk_table
            record = self._record
            try:
                self._table = parse_chunk_table(
                    packed, record.size, self._policy.chunk_size, k=self._policy.k, padding=self._policy.padding
                )
            except BadBlock as error:
                raise CorruptRecord(f"the chunk table does not fit the object: {error}") from None
        return self._table

    def _table_from_shares(self) -> bytes:
        """The sealed table, which lies in every share: one good copy is enough."""
        for index in range(self._policy.m):
            try:
                return self._sealer.open_table(self._reader(index).read_table())
            except ShareMissing:
                self._mark(index, "missing")
            except ShardError as error:
                self._mark(index, "missing" if error.state == "missing" else "unreachable")
            except BadBlock:
                self._mark(index, "corrupt")
        raise self._unreadable()

    def _mark(self, index: int, state: ShareState) -> None:
        self._states[index] = state

    def _unreadable(self) -> Unreadable:
        shares = [
            {"shard": self._pool.name(number), "index": index, "state": self._states.get(index, "ok")}
            for index, number in enumerate(self._record.placement)
        ]
        good = sum(share["state"] == "ok" for share in shares)
        return Unreadable(
            f"only {good} of the {self._policy.k} shares that a read needs are good",
            hint="bring the missing shards back: `zstor status` names them",
            shares=shares,
        )

    def close(self) -> None:
        with self._lock:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()


def _slice(parts: Sequence[Buffer], begin: int, end: int) -> Iterator[Buffer]:
    """Bytes begin to end of the parts' concatenation."""
    for part in parts:
        length = len(part)
        low, high = max(0, begin), min(length, end)
        if low < high:
            yield memoryview(part)[low:high]
        begin, end = begin - length, end - length


def whole(record: ObjectRecord) -> Range:
    return Range(0, record.size, record.policy.chunk_size)


def stretch(record: ObjectRecord, offset: int | None, length: int | None) -> Range:
    """The wanted part of an object, cut at its end."""
    begin = min(offset or 0, record.size)
    rest = record.size - begin
    return Range(begin, rest if length is None else min(length, rest), record.policy.chunk_size)


INLINE_READ_BYTES: Final = 256 * limits.KIB  # up to here a thread hop costs more than decoding in the loop
