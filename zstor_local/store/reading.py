"""Shares back to an object's bytes: the chunks that a read touches, decoded in the workers, to where the caller wants them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import trio

from zstor_local import limits
from zstor_local.coding.chunk import Scratch
from zstor_local.model.ids import StoreId, Version
from zstor_local.model.record import ObjectRecord
from zstor_local.runtime import Buffer, Runtime
from zstor_local.shards.pool import ShardPool
from zstor_local.store.coding import ScratchPool
from zstor_local.store.namespaces import Namespace
from zstor_local.store.shares import ShareState, VersionShares
from zstor_local.store.sinks import FileSink, OrderedSink
from zstor_local.value import value

BATCH_US: Final = 20_000  # in a thread call: so long that the hop is cheap, so short that it is fair to others, however slow a disk is
BATCH_BYTES: Final = 64 * limits.MIB  # and never more of them, whatever the clock says
READ_AHEAD: Final = 2  # chunks being decoded while an ordered sink takes the one before


@value()
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

    def cut(self, chunk: int, plain_length: int, parts: list[Buffer]) -> list[Buffer]:
        """The wanted bytes of a chunk that these parts are together."""
        start = chunk * self.chunk_size
        begin, end = max(0, self.offset - start), min(plain_length, self.offset + self.length - start)
        return parts if (begin, end) == (0, plain_length) else list(_slice(parts, begin, end))


class ObjectReader:
    """One version, open for reading. Close it when done. Any thread may fetch."""

    def __init__(
        self, runtime: Runtime, pool: ShardPool, scratches: ScratchPool, store_id: StoreId, namespace: Namespace, version: Version,
        record: ObjectRecord,
    ) -> None:  # fmt: skip
        """CorruptRecord if the record's data key does not open."""
        self._runtime = runtime
        self._scratches = scratches
        self._policy = record.policy
        self._lock = threading.Lock()
        self.shares = VersionShares(pool, store_id, namespace, version, record)

    @property
    def bad_shares(self) -> Mapping[int, ShareState]:
        """What was found wrong so far, by share index."""
        return self.shares.bad

    async def to_file(self, sink: FileSink, stretch: Range, progress: Callable[[int], None]) -> None:
        """Every chunk to its place, in parallel."""
        numbers = iter(stretch.chunks)
        done = 0
        batch_chunks = max(1, BATCH_BYTES // self._policy.chunk_size)

        def batch() -> int:
            count = 0
            until = self._runtime.clock.now() + BATCH_US
            with self._scratches.borrow() as scratch:
                for _ in range(batch_chunks):
                    with self._lock:
                        number = next(numbers, None)
                    if number is None:
                        return count
                    parts = self._decode(scratch, number, stretch)
                    sink.write_at(parts, max(0, number * self._policy.chunk_size - stretch.offset))
                    count += sum(len(part) for part in parts)
                    if self._runtime.clock.now() >= until:
                        break
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
            return self._decode(scratch, chunk, stretch)

    def _decode(self, scratch: Scratch, chunk: int, stretch: Range) -> list[Buffer]:
        shape = self.shares.table().shape(chunk)
        parts = self.shares.coder.decode(scratch, chunk, shape, self.shares.fetch(chunk))
        return stretch.cut(chunk, shape.plain_length, parts)

    def close(self) -> None:
        self.shares.close()


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
