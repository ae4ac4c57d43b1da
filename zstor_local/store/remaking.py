"""Shares made anew from the coded blocks of others, never from the plain bytes: bit by bit what a writer made.

What goes where, and what becomes of it, is decided in health.py. A small object's shares are the work of one thread call, a large
one's of many: between two of them others have the thread, and a cancel acts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import trio

from zstor_local.coding.block import BadBlock
from zstor_local.coding.erasure import erasure_code
from zstor_local.coding.share import pack_block_header, pack_share_end
from zstor_local.model.ids import NamespaceId, ShareId
from zstor_local.model.record import ObjectRecord
from zstor_local.runtime import Buffer, Runtime
from zstor_local.shards.base import ShardError, ShareWriter
from zstor_local.shards.pool import ShardPool
from zstor_local.store.checking import CHUNKS_AT_ONCE
from zstor_local.store.shares import VersionShares


class Remaking:
    """Of one version. `sources` are the indices of the shares that the others are made of, the best first."""

    def __init__(self, record: ObjectRecord, shares: VersionShares, sources: Sequence[int]) -> None:
        self._record = record
        self._shares = shares
        self._sources = sources

    def small(self, wanted: Collection[int]) -> dict[int, bytes]:
        """The shares of these indices. Unreadable if a chunk has fewer than k good blocks."""
        parts: dict[int, list[Buffer]] = {index: [] for index in wanted}
        for chunk in range(len(self._shares.table())):
            for index, buffers in self._blocks(chunk, wanted).items():
                parts[index] += buffers
        return {index: b"".join(buffers) for index, buffers in parts.items()}

    async def files(self, runtime: Runtime, pool: ShardPool, namespace: NamespaceId, targets: Mapping[int, int]) -> Mapping[int, int]:
        """Write large shares, each index to its shard; returns the targets that took theirs, durably. The other shares stay bad and are
        tried again later. Unreadable as above.
        """
        run = runtime.threads.run
        writers: dict[int, ShareWriter] = {}
        try:
            chunks = await run(self._begin, writers, pool, namespace, targets)
            for first in chunks[::CHUNKS_AT_ONCE] if writers else ():
                await run(self._write, writers, chunks[first : first + CHUNKS_AT_ONCE])
            done = await run(self._finish, writers)
        finally:
            with trio.CancelScope(shield=True):
                await run(_abort, writers)
        return {index: targets[index] for index in done}

    def _begin(self, writers: dict[int, ShareWriter], pool: ShardPool, namespace: NamespaceId, targets: Mapping[int, int]) -> range:
        """Open the shares where that is possible; returns the chunks."""
        for index, number in targets.items():
            with suppress(ShardError):
                if (shard := pool.get(number)) is not None:
                    writers[index] = shard.begin(ShareId(self._shares.version, index), namespace, self._record.policy)
        return range(len(self._shares.table()))

    def _write(self, writers: dict[int, ShareWriter], chunks: range) -> None:
        offset = self._shares.table().offset
        for chunk in chunks:
            for index, buffers in self._blocks(chunk, writers).items():
                with _giving_up(writers, index):
                    writers[index].write(offset(chunk), buffers)

    def _finish(self, writers: dict[int, ShareWriter]) -> Sequence[int]:
        table = self._shares.table()
        sealed = self._shares.sealer.seal_table(table.pack()) if self._record.table_blob else b""
        end = pack_share_end(table, len(sealed))
        done = []
        for index in list(writers):
            with _giving_up(writers, index):
                writers[index].finish(end, table.blocks_length, sealed)
                del writers[index]
                done.append(index)
        return done

    def _blocks(self, chunk: int, wanted: Collection[int]) -> dict[int, list[Buffer]]:
        """The blocks of a chunk for the wanted indices, each with its header."""
        shape, policy = self._shares.table().shape(chunk), self._record.policy
        try:
            blocks = self._shares.fetch(chunk, self._sources)
            made = erasure_code(policy.k, policy.m).remake(blocks, [*wanted])
        except BadBlock as error:
            raise AssertionError("opened blocks fit together") from error
        header = pack_block_header(chunk, shape, policy.padding)
        return {index: [header, self._shares.sealer.seal(chunk, index, shape, block)] for index, block in made.items()}


def _abort(writers: Mapping[int, ShareWriter]) -> None:
    for writer in writers.values():
        writer.abort()


@contextmanager
def _giving_up(writers: dict[int, ShareWriter], index: int) -> Iterator[None]:
    """One share less, if its shard does not take it: the others are made all the same."""
    try:
        yield
    except ShardError:
        writers.pop(index).abort()
