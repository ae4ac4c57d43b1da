"""An object's bytes to its shares: small ones in memory, large ones chunk by chunk through the workers into files on the shards."""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from functools import partial
from types import MappingProxyType
from typing import Final

import blake3
import trio

from zstor_local import limits
from zstor_local.coding.chunk import ChunkCoder, Scratch
from zstor_local.coding.keys import KEY_BYTES
from zstor_local.coding.seal import BlockBinding, BlockSealer
from zstor_local.coding.share import pack_block_header, pack_share_end
from zstor_local.coding.table import ChunkTable, block_size, pack_chunk_table, table_word
from zstor_local.model.ids import ID_BYTES, ShareId, StoreId, Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import ObjectRecord
from zstor_local.runtime import Buffer, Runtime
from zstor_local.shards.base import ShardError, ShareWriter
from zstor_local.shards.pool import ShardPool
from zstor_local.store.namespaces import Namespace
from zstor_local.store.quorum import not_enough_shards
from zstor_local.store.sources import FileSource, StreamSource, fill
from zstor_local.store.stream_budget import STREAM_BUFFERS, Turn
from zstor_local.value import value

INLINE_CODING_BYTES: Final = 64 * limits.KIB  # up to here a thread hop costs more than the coding
BATCH_BYTES: Final = 8 * limits.MIB  # plain bytes in a thread call: so many that the hop is cheap, so few that it is fair to others

Watch = Callable[[int, memoryview], None]  # is shown each chunk's number and plain bytes, in any order and by any thread


def watch_nothing(number: int, plain: memoryview) -> None:
    """For writes whose bytes nobody else wants to see."""


class ScratchPool:
    """What worker threads need from chunk to chunk, handed out and taken back."""

    def __init__(self) -> None:
        self._free: list[Scratch] = []

    @contextmanager
    def borrow(self) -> Iterator[Scratch]:
        try:
            scratch = self._free.pop()
        except IndexError:
            scratch = Scratch()
        try:
            yield scratch
        finally:
            self._free.append(scratch)


NO_MEMBERS: Final[Mapping[str, object]] = MappingProxyType({})


@value()
class Coded:
    """An object as its shares hold it. `chunk_table` packed; `wrapped_key` opens its blocks."""

    version: Version
    size: int
    digest: bytes
    chunk_table: bytes
    share_bytes: int
    wrapped_key: bytes
    placement: tuple[int, ...]
    shares: Sequence[bytes] = ()  # of a small object, by index
    failed: Mapping[int, ShardError] = field(default_factory=dict)  # shards (by share index) that did not take theirs, or do not get it

    @property
    def table_in_shares(self) -> bool:
        return len(self.chunk_table) > limits.CHUNK_TABLE_INLINE_BYTES

    def record(
        self,
        key: str,
        policy: Policy,
        created: int,
        modified: int,
        *,
        references: tuple[str, ...] = (),
        user: Mapping[str, object] = NO_MEMBERS,
        previous_key: str | None = None,
        next_key: str | None = None,
    ) -> ObjectRecord:
        """The record of a key with these bytes; times in microseconds."""
        return ObjectRecord(
            key=key,
            size=self.size,
            digest=self.digest,
            created=created,
            modified=modified,
            policy=policy,
            wrapped_key=self.wrapped_key,
            placement=self.placement,
            share_bytes=self.share_bytes,
            chunk_table=b"" if self.table_in_shares else self.chunk_table,
            table_blob=self.table_in_shares,
            references=references,
            user=user,
            previous_key=previous_key,
            next_key=next_key,
        )


def new_version(runtime: Runtime, last_given: int) -> Version:
    """An id that no version ever had: the last sequence that was given and 9 random bytes.

    Versions that are written one after the other lie side by side in every table that has them as its key: a group of writes touches a
    page or two of each instead of one for each write. Before the sequence stands a byte that goes through all its values, at each for
    4,096 sequences: large shares lie in directories by it.
    """
    return Version(bytes([last_given >> 12 & 0xFF]) + last_given.to_bytes(6, "big") + runtime.randomness.bytes(ID_BYTES - 7))


def block_sealer(store_id: StoreId, namespace: Namespace, policy: Policy, version: Version, data_key: bytes) -> BlockSealer:
    return BlockSealer(data_key, BlockBinding(store_id, namespace.id, version, policy.k, policy.m))


@value()
class Planned:
    """A version that is to be written: where its shares go, and how many of them must get there. Those of `refused`, by share index,
    are not sent at all.
    """

    store_id: StoreId
    namespace: Namespace
    version: Version
    placement: tuple[int, ...]
    refused: Mapping[int, ShardError]
    quorum: int

    def sealer(self, data_key: bytes) -> BlockSealer:
        """What seals its blocks."""
        return block_sealer(self.store_id, self.namespace, self.namespace.policy, self.version, data_key)


def code_small(planned: Planned, data_key: bytes, data: Buffer, scratch: Scratch, watch: Watch = watch_nothing) -> Coded:
    """All of a small object's shares, in memory."""
    policy = planned.namespace.policy
    coder = ChunkCoder(policy, planned.sealer(data_key))
    view = memoryview(data)
    parts: list[list[Buffer]] = [[] for _ in range(policy.m)]
    shapes = []
    for number, start in enumerate(range(0, len(view), policy.chunk_size)):
        plain = view[start : start + policy.chunk_size]
        watch(number, plain)
        chunk = coder.encode(scratch, number, plain)
        shapes.append(chunk.shape)
        header = pack_block_header(number, chunk.shape, policy.padding)
        for index, block in enumerate(chunk.blocks):
            parts[index] += (header, block)
    shares = [b"".join(blocks) for blocks in parts]
    return Coded(
        version=planned.version,
        size=len(view),
        digest=blake3.blake3(view).digest(),
        chunk_table=pack_chunk_table(shapes),
        share_bytes=len(shares[0]),
        wrapped_key=planned.namespace.keys.wrap(data_key),
        placement=planned.placement,
        shares=shares,
        failed=planned.refused,
    )


class _Abandoned(Exception):
    """Another chunk of the same object failed; its error is the one that counts."""


class _Turns:
    """An ordered section: the threads that code chunks pass it in the order of the chunks."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._turn = 0
        self._broken = False

    @contextmanager
    def take(self, number: int) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: self._turn == number or self._broken)
            if self._broken:
                raise _Abandoned
        yield
        with self._condition:
            self._turn += 1
            self._condition.notify_all()

    def break_off(self) -> None:
        with self._condition:
            self._broken = True
            self._condition.notify_all()


class LargeWrite:
    """The shares of one large object on their way. `begin`, one of the two `code_…`, then `finish`; `abort` if any of them failed.

    Shards that fail on the way are dropped and named in `Coded.failed`, as long as the quorum of them remains.
    """

    def __init__(
        self, runtime: Runtime, pool: ShardPool, scratches: ScratchPool, planned: Planned, watch: Watch = watch_nothing
    ) -> None:
        self._runtime = runtime
        self._pool = pool
        self._scratches = scratches
        self._planned = planned
        self._policy = planned.namespace.policy
        self._watch = watch
        self._data_key = runtime.randomness.bytes(KEY_BYTES)
        self._sealer = planned.sealer(self._data_key)
        self._coder = ChunkCoder(self._policy, self._sealer)
        self._writers: dict[int, ShareWriter] = {}
        self._retired: list[ShareWriter] = []  # failed ones: open until no thread can be writing to them
        self._failed: dict[int, ShardError] = {}
        self._lock = threading.Lock()
        self._turns = _Turns()
        self._digest = blake3.blake3()
        self._words = array("I")
        self._offset = 0
        self._size = 0

    def begin(self) -> None:
        """Open the shares' files. NotEnoughShards if fewer than the quorum can be opened. Blocks."""
        planned = self._planned
        for index, number in enumerate(planned.placement):
            if index in planned.refused:
                self._drop(index, planned.refused[index])
                continue
            shard = self._pool.get(number)
            try:
                if shard is None:
                    raise ShardError(self._pool.state(number), self._pool.reason(number))
                self._writers[index] = shard.begin(ShareId(planned.version, index), planned.namespace.id, self._policy)
            except ShardError as error:
                self._drop(index, error)
        self._check_quorum()

    async def code_file(self, source: FileSource, progress: Callable[[int], None]) -> None:
        """Every chunk of a file, in parallel."""
        chunk_size = self._policy.chunk_size
        chunks = -(-source.size // chunk_size)
        numbers = iter(range(chunks))

        def batch() -> bool:
            with self._scratches.borrow() as scratch:
                for _ in range(max(1, BATCH_BYTES // chunk_size)):
                    with self._lock:
                        number = next(numbers, None)
                    if number is None:
                        return False
                    start = number * chunk_size
                    buffer = scratch.plain(min(chunk_size, source.size - start))
                    self._code(scratch, number, buffer, partial(source.read_at, buffer, start))
            return True

        async def worker() -> None:
            more = True
            while more:
                more = await self._in_thread(batch)
                progress(self._size)

        async with trio.open_nursery() as nursery:
            for _ in range(self._runtime.threads.workers):
                nursery.start_soon(worker)
        await self._runtime.threads.run(source.verify)

    async def code_stream(self, beginning: Buffer, source: StreamSource, turn: Turn, progress: Callable[[int], None]) -> None:
        """Every chunk of a stream whose first bytes were read already."""
        slots = trio.Semaphore(STREAM_BUFFERS)
        queue: deque[tuple[int, memoryview]] = deque()
        number = 0

        def code_next() -> None:
            with self._lock:
                chunk, plain = queue.popleft()
            with self._scratches.borrow() as scratch:
                self._code(scratch, chunk, plain)

        async def work() -> None:
            await self._in_thread(code_next)
            progress(self._size)
            slots.release()

        async with trio.open_nursery() as nursery:
            rest = memoryview(beginning)
            while True:
                await slots.acquire()
                buffer = memoryview(bytearray(self._policy.chunk_size))
                begun = min(len(rest), len(buffer))
                buffer[:begun], rest = rest[:begun], rest[begun:]
                with turn.waiting():
                    filled = begun + await fill(source, buffer[begun:])
                if filled:
                    queue.append((number, buffer[:filled]))
                    number += 1
                    nursery.start_soon(work)
                if filled < len(buffer):
                    return

    async def _in_thread(self, work: Callable[[], bool | None]) -> bool:
        try:
            return bool(await self._runtime.threads.run(work))
        except _Abandoned:
            return False

    def _code(self, scratch: Scratch, number: int, plain: memoryview, fill: Callable[[], None] | None = None) -> None:
        """One chunk, which `fill` reads if need be, through every stage, in one thread."""
        try:
            if fill is not None:
                fill()
            self._watch(number, plain)
            packed = self._coder.pack(scratch, plain)
            size = block_size(packed.shape, self._policy.k, self._policy.padding)
            with self._turns.take(number):
                self._digest.update(plain)
                self._words.append(table_word(packed.shape))
                self._size += len(plain)
                offset, self._offset = self._offset, self._offset + size
            blocks = self._coder.seal(scratch, number, packed)
            header = pack_block_header(number, packed.shape, self._policy.padding)
            for index, writer in list(self._writers.items()):
                try:
                    writer.write(offset, [header, blocks[index]])
                except ShardError as error:
                    self._drop(index, error)
                    self._check_quorum()
        except BaseException:
            self._turns.break_off()
            raise

    async def finish(self) -> Coded:
        """Make every share durable. NotEnoughShards if fewer than the quorum could."""
        table = ChunkTable(self._words, self._size, self._policy.chunk_size, k=self._policy.k, padding=self._policy.padding)
        packed = table.pack()
        sealed = self._sealer.seal_table(packed) if len(packed) > limits.CHUNK_TABLE_INLINE_BYTES else b""
        end = pack_share_end(table, len(sealed))

        async def finish(index: int, writer: ShareWriter) -> None:
            try:
                await self._runtime.threads.run(writer.finish, end, self._offset, sealed)
            except ShardError as error:
                self._drop(index, error)

        async with trio.open_nursery() as nursery:
            for index, writer in list(self._writers.items()):
                nursery.start_soon(finish, index, writer)
        self._check_quorum()
        with self._lock:
            retired, self._retired = self._retired, []
        for writer in retired:
            await self._runtime.threads.run(writer.abort)
        return Coded(
            version=self._planned.version,
            size=self._size,
            digest=self._digest.digest(),
            chunk_table=packed,
            share_bytes=self._offset,
            wrapped_key=self._planned.namespace.keys.wrap(self._data_key),
            placement=self._planned.placement,
            failed=dict(self._failed),
        )

    def abort(self) -> None:
        """Leave nothing where that is possible; the intent in the metastore sees to the rest. Blocks."""
        self._turns.break_off()
        with self._lock:
            writers, self._writers, self._retired = [*self._writers.values(), *self._retired], {}, []
        for writer in writers:
            writer.abort()

    def _drop(self, index: int, error: ShardError) -> None:
        with self._lock:
            self._failed[index] = error
            writer = self._writers.pop(index, None)
            if writer is not None:
                self._retired.append(writer)

    def _check_quorum(self) -> None:
        with self._lock:  # other threads may find further ones failed meanwhile
            left, failed = len(self._writers), dict(self._failed)
        if left < self._planned.quorum:
            named = {self._pool.name(self._planned.placement[index]): error for index, error in failed.items()}
            raise not_enough_shards(left, self._planned.quorum, named)
