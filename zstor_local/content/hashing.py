"""The SHA-256 of a content's leaves, whoever brings the bytes: workers coding a write, workers reading a file, a read in order."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Final

import trio

from zstor_local.formats import unixfs
from zstor_local.formats.cid import DIGEST_BYTES
from zstor_local.formats.unixfs import LEAF_BYTES, Link, Node
from zstor_local.runtime import Buffer, Runtime
from zstor_local.store.errorgroups import alone
from zstor_local.store.sources import FileSource

_BATCH_LEAVES: Final = 8  # in one thread call: long enough to make the hop cheap, short enough to be fair


class Leaves:
    """The digests of a content's leaves, 32 bytes for each MiB. They may come in any order and from any thread."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._lock = threading.Lock()

    def show(self, first: int, plain: Buffer) -> None:
        """Hash these leaves, from number `first` on; all whole but the content's last one."""
        view = memoryview(plain)
        made = [hashlib.sha256(view[start : start + LEAF_BYTES]).digest() for start in range(0, len(view), LEAF_BYTES)]
        for number, digest in enumerate(made, first):
            self.put(number, digest)

    def put(self, number: int, digest: bytes) -> None:
        """The digest of one leaf."""
        start = number * DIGEST_BYTES
        with self._lock:
            if len(self._digests) < start + DIGEST_BYTES:
                self._digests.extend(bytes(start + DIGEST_BYTES - len(self._digests)))
            self._digests[start : start + DIGEST_BYTES] = digest

    def watch(self, chunk_size: int) -> Callable[[int, memoryview], None]:
        """For a write whose chunks are whole leaves: shows each of them."""
        leaves, rest = divmod(chunk_size, LEAF_BYTES)
        if rest:
            raise AssertionError("chunks of content hold whole leaves")
        return lambda number, plain: self.show(number * leaves, plain)

    def link(self, size: int, on_node: Callable[[Node], None] = lambda node: None) -> Link:
        """The tree of the content, when all of its leaves were shown."""
        return unixfs.from_digests(self._digests, size, on_node)


async def hash_file(runtime: Runtime, source: FileSource, progress: Callable[[int], None]) -> Link:
    """The tree of a file's bytes, hashed by all workers; PathRefused if the file changes meanwhile. `progress` gets plain bytes."""
    leaves = Leaves()
    firsts = iter(range(0, -(-source.size // LEAF_BYTES), _BATCH_LEAVES))
    done = 0

    def hash_some(first: int) -> int:
        start = first * LEAF_BYTES
        buffer = memoryview(bytearray(min(LEAF_BYTES, source.size - start)))
        end = min(source.size, start + _BATCH_LEAVES * LEAF_BYTES)
        for at in range(start, end, LEAF_BYTES):
            leaf = buffer[: end - at]
            source.read_at(leaf, at)
            leaves.show(at // LEAF_BYTES, leaf)
        return end - start

    async def worker() -> None:
        nonlocal done
        for first in firsts:
            done += await runtime.threads.run(hash_some, first)
            progress(done)

    async def workers() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(runtime.threads.workers):
                nursery.start_soon(worker)

    await alone(workers())
    await runtime.threads.run(source.verify)
    return leaves.link(source.size)


class HashSink:
    """Takes a content's bytes in order and knows its leaves afterwards (an OrderedSink)."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._leaves = Leaves()
        self._leaf = hashlib.sha256()
        self._size = 0

    async def write(self, parts: Sequence[Buffer]) -> None:
        await self._runtime.threads.run(self._update, parts)

    def _update(self, parts: Sequence[Buffer]) -> None:
        for part in parts:
            rest = memoryview(part)
            while rest:
                taken = rest[: LEAF_BYTES - self._size % LEAF_BYTES]
                self._leaf.update(taken)
                self._size += len(taken)
                rest = rest[len(taken) :]
                if self._size % LEAF_BYTES == 0:
                    self._close()

    def _close(self) -> None:
        self._leaves.put((self._size - 1) // LEAF_BYTES, self._leaf.digest())
        self._leaf = hashlib.sha256()

    def link(self, on_node: Callable[[Node], None] = lambda node: None) -> Link:
        """The tree of all the bytes; ask once, at the end."""
        if self._size % LEAF_BYTES:
            self._close()
        return self._leaves.link(self._size, on_node)
