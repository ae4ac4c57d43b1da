"""Shares made anew from the coded blocks of others, never from the plain bytes: bit by bit what a writer made.

What goes where, and what becomes of it, is decided in health.py. All of it blocks: it is the work of a thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from zstor_local.coding.block import BadBlock
from zstor_local.coding.erasure import erasure_code
from zstor_local.coding.share import pack_block_header, pack_share_end
from zstor_local.model.ids import NamespaceId, ShareId
from zstor_local.model.record import ObjectRecord
from zstor_local.runtime import Buffer
from zstor_local.shards.base import ShardError, ShareWriter
from zstor_local.shards.pool import ShardPool
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

    def files(self, pool: ShardPool, namespace: NamespaceId, targets: Mapping[int, int]) -> Mapping[int, int]:
        """Write large shares, each index to its shard; returns the targets that took theirs, durably. The other shares stay bad and are
        tried again later. Unreadable as above.
        """
        table, policy = self._shares.table(), self._record.policy
        sealed = self._shares.sealer.seal_table(table.pack()) if self._record.table_blob else b""
        end = pack_share_end(table, len(sealed))
        writers: dict[int, ShareWriter] = {}
        done: dict[int, int] = {}
        try:
            for index, number in targets.items():
                with suppress(ShardError):
                    if (shard := pool.get(number)) is not None:
                        writers[index] = shard.begin(ShareId(self._shares.version, index), namespace, policy)
            for chunk in range(len(table) if writers else 0):
                for index, buffers in self._blocks(chunk, writers).items():
                    with _giving_up(writers, index):
                        writers[index].write(table.offset(chunk), buffers)
            for index in list(writers):
                with _giving_up(writers, index):
                    writers[index].finish(end, table.blocks_length, sealed)
                    del writers[index]
                    done[index] = targets[index]
        finally:
            for writer in writers.values():
                writer.abort()
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


@contextmanager
def _giving_up(writers: dict[int, ShareWriter], index: int) -> Iterator[None]:
    """One share less, if its shard does not take it: the others are made all the same."""
    try:
        yield
    except ShardError:
        writers.pop(index).abort()
