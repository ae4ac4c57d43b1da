"""The shares of one version, open: any k good blocks of each chunk, each proved before it is used."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Literal, NamedTuple

from zstor_local.coding.block import BadBlock, Buffer, ChunkShape
from zstor_local.coding.chunk import ChunkCoder
from zstor_local.coding.seal import BlockSealer
from zstor_local.coding.share import pack_block_header
from zstor_local.coding.table import BLOCK_HEADER_BYTES, ChunkTable, parse_chunk_table, sealed_table_length
from zstor_local.errors import CorruptRecord, Unreadable
from zstor_local.model.ids import ShareId, StoreId, Version
from zstor_local.model.record import ObjectRecord
from zstor_local.shards.base import ShardError, ShareLate, ShareMissing, ShareReader
from zstor_local.shards.pool import ShardPool
from zstor_local.store.coding import block_sealer
from zstor_local.store.namespaces import Namespace

ShareState = Literal["ok", "missing", "corrupt", "stale", "unreachable"]

_GONE: Final = frozenset({"missing", "failed"})  # states of a shard that answers nothing


class _Slot(NamedTuple):
    """What a chunk has in each share: where its block lies, and the header with which it begins."""

    chunk: int
    shape: ChunkShape
    offset: int
    length: int
    header: bytes


class ShareBad(Exception):
    """A share, or a block of it, that cannot be used, and why."""

    def __init__(self, state: ShareState) -> None:
        super().__init__(state)
        self.state: ShareState = state


class VersionShares:
    """Readers of a version's shares, opened as they are needed. Close it when done; any thread may read."""

    def __init__(self, pool: ShardPool, store_id: StoreId, namespace: Namespace, version: Version, record: ObjectRecord) -> None:
        """CorruptRecord if the record's data key does not open."""
        self._pool = pool
        self._record = record
        self.version = version
        self._policy = record.policy
        self.sealer: BlockSealer = block_sealer(store_id, namespace, record.policy, version, namespace.keys.unwrap(record.wrapped_key))
        self.coder = ChunkCoder(record.policy, self.sealer)
        self._lock = threading.Lock()
        self._readers: dict[int, ShareReader] = {}
        self._states: dict[int, ShareState] = {}
        self._late: set[int] = set()  # shares that took longer than others would have
        self._table: ChunkTable | None = None

    @property
    def bad(self) -> Mapping[int, ShareState]:
        """What was found wrong so far, by share index."""
        return dict(self._states)

    def fetch(self, chunk: int, among: Iterable[int] | None = None) -> dict[int, Buffer]:
        """k opened blocks of a chunk: data blocks where they are good, a parity block at once for each that is not.

        `among` limits the share indices. Unreadable if fewer than k are good.
        """
        blocks: dict[int, Buffer] = {}
        slot = self._slot(chunk)
        order = list(self._order() if among is None else among)
        for index in order[: self._policy.k]:
            with suppress(ShareBad):  # reading it will say so
                self.reader(index).prefetch(slot.offset, slot.length)
        late: list[int] = []
        for patient, indices in ((False, order), (True, late)):
            for index in indices:
                try:
                    blocks[index] = self._block(index, slot, patient=patient)
                except ShareLate:
                    late.append(index)
                    self._late.add(index)
                except ShareBad as bad:
                    self._states[index] = bad.state
                else:
                    if len(blocks) == self._policy.k:
                        return blocks
        raise self._unreadable()

    def _slot(self, chunk: int) -> _Slot:
        """Where each share has its block of a chunk, and how it begins."""
        table = self.table()
        shape = table.shape(chunk)
        offset = table.offset(chunk)
        return _Slot(chunk, shape, offset, table.offset(chunk + 1) - offset, pack_block_header(chunk, shape, self._policy.padding))

    def block(self, index: int, chunk: int) -> Buffer:
        """One opened block, or ShareBad."""
        return self._block(index, self._slot(chunk), patient=True)

    def _block(self, index: int, slot: _Slot, *, patient: bool) -> Buffer:
        """The same; without patience ShareLate if its shard is slower than usual."""
        chunk, shape, offset, length, header = slot
        reader = self.reader(index)
        try:
            data = memoryview(reader.read(offset, length, patient=patient))
            if data[:BLOCK_HEADER_BYTES] != header:
                raise BadBlock("another block lies there")
            return self.coder.open_block(chunk, index, shape, data[BLOCK_HEADER_BYTES:])
        except ShareMissing:
            raise ShareBad("missing") from None
        except ShardError as error:
            raise self.told(index, error) from None
        except BadBlock:
            raise ShareBad("corrupt") from None

    def told(self, index: int, error: ShardError) -> ShareBad:
        """What an error of its shard says of a share: a disk that is well and cannot read the share has lost it."""
        shard = self._pool.readable(self._record.placement[index])
        well = shard is not None and shard.on_disk is not None and shard.check() not in _GONE
        ours = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EMFILE, errno.ENFILE)
        return ShareBad("unreachable" if ours or (error.state in _GONE and not well) else "corrupt")

    def away(self, index: int) -> ShareBad:
        """What to say of a share whose shard is not there: it may come back, but not if the store has no such shard any more."""
        return ShareBad("unreachable" if self._pool.knows(self._record.placement[index]) else "missing")

    def reader(self, index: int) -> ShareReader:
        """The share's reader, or ShareBad."""
        found = self._readers.get(index)
        if found is not None:
            return found
        with self._lock:
            if index not in self._readers:
                shard = self._pool.readable(self._record.placement[index])
                if shard is None:
                    raise self.away(index)
                try:
                    self._readers[index] = shard.open_share(ShareId(self.version, index), small=self._record.small)
                except ShareMissing:
                    raise ShareBad("unreachable" if shard.check() in _GONE else "missing") from None
                except ShardError as error:
                    raise self.told(index, error) from None
            return self._readers[index]

    def table(self) -> ChunkTable:
        """The version's chunk table: from the record, or from the first share whose copy opens."""
        if self._table is None:
            packed = self._table_from_shares() if self._record.table_blob else self._record.chunk_table
            policy = self._policy
            try:
                self._table = parse_chunk_table(packed, self._record.size, policy.chunk_size, k=policy.k, padding=policy.padding)
            except BadBlock as error:
                raise CorruptRecord(f"the chunk table does not fit the object: {error}") from None
        return self._table

    def sealed_table(self, index: int) -> bytes:
        """The share's copy of the sealed chunk table, which opens; ShareBad otherwise."""
        try:
            sealed = bytes(self.reader(index).read_table(sealed_table_length(self._record.size, self._policy.chunk_size)))
            self.sealer.open_table(sealed)
        except ShareMissing:
            raise ShareBad("corrupt") from None
        except ShardError as error:
            raise self.told(index, error) from None
        except BadBlock:
            raise ShareBad("corrupt") from None
        return sealed

    def _table_from_shares(self) -> bytes:
        for index in range(self._policy.m):
            try:
                return self.sealer.open_table(self.sealed_table(index))
            except ShareBad as bad:
                self._states[index] = bad.state
        raise self._unreadable()

    def _order(self) -> Sequence[int]:
        """Share indices, the most promising first: data before parity, late and bad ones last (another chunk may be good)."""
        if not self._states and not self._late:
            return range(self._policy.m)
        return sorted(range(self._policy.m), key=lambda index: (index in self._states, index in self._late))

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
