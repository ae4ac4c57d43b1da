"""Namespaces that were deleted go from shard servers with their logs: what lies there buries nothing any more.

A row names each, written by the commit that deletes it, with the shards on servers that still have it. A tombstone may be the only one
that tells a shard of a deletion, so none goes before every shard is there and has been told of all.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Final

import trio

from zstor_local.errors import CorruptRecord, ZstorError
from zstor_local.model.fields import decode, encode
from zstor_local.model.ids import ID_BYTES, NamespaceId
from zstor_local.model.record import STORE_WIDE
from zstor_local.shards.base import ShardError
from zstor_local.store.core import Core
from zstor_local.store.storewide import StoredRow, StoreWide

TABLE: Final = "retire"  # of store-wide rows, by the id of a namespace that is no more
EVERY: Final = 60.0  # seconds between two looks
AGAIN: Final = 3_600.0  # after a server that did not do it: it may take longer than a server is waited for, and would be away each time
FEW: Final = 1_000  # shares that are still to be freed, of more its server might have to free too many in one request; and debts
SCHEMA: Final = 1

log = logging.getLogger("zstor.store")


def still_there(shards: Sequence[int]) -> bytes:
    """The row's value: the numbers of shards on servers that have the namespace."""
    return encode({0: SCHEMA, 1: [*shards]})


class Retiring:
    """One task for a store."""

    def __init__(self, core: Core, rows: StoreWide) -> None:
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._rows = rows

    async def run(self) -> None:
        well = True
        while True:
            await trio.sleep(EVERY if well else AGAIN)
            try:
                well = await self.retire()
            except ZstorError as error:
                log.warning("deleted namespaces stay on shard servers as yet: %s", error)

    async def retire(self) -> bool:
        """Have each go from where it may. False if a server did not do it."""
        well = True
        for row in self._rows.each(TABLE):
            left = _numbers(row)
            for number in left:
                if not self._may_go(NamespaceId(bytes.fromhex(row.name))):
                    break
                if await self._gone(number, NamespaceId(bytes.fromhex(row.name))):
                    await self._strike_out(row.name, number)
                else:
                    well = False
        return well

    def _may_go(self, namespace: NamespaceId) -> bool:
        """Whether no shard may hold anything that a tombstone of the namespace has yet to bury, nor lack the end of the namespace."""
        if not self._committer.all_told or any(self._pool.state(number) != "ok" for number in self._pool.numbers):
            return False
        if self._metastore.garbage_count() > FEW or self._metastore.debts_count() > FEW:
            return False
        return not any(debt.space in (namespace, STORE_WIDE) for debt in self._metastore.debts())

    async def _gone(self, number: int, namespace: NamespaceId) -> bool:
        """Remove it there; nothing to do if that shard is none any more."""
        shard = self._pool.get(number)
        if shard is None:
            return not self._pool.knows(number)
        try:
            await self._runtime.threads.run(shard.retire, namespace)
        except ShardError as error:
            log.warning("a deleted namespace stays on shard %s as yet: %s", shard.id, error)
            return False
        return True

    async def _strike_out(self, name: str, number: int) -> None:
        def change(row: StoredRow | None) -> bytes | None:
            left = [] if row is None else [each for each in _numbers(row) if each != number]
            return still_there(left) if left else None

        await self._rows.change(TABLE, name, change)


def _numbers(row: StoredRow) -> Collection[int]:
    try:
        plain = decode(row.value)
        numbers = plain[1]
        if plain[0] != SCHEMA or not isinstance(numbers, list) or len(row.name) != 2 * ID_BYTES:
            raise ValueError
    except (KeyError, ValueError):
        raise CorruptRecord("what says where a deleted namespace still lies is malformed") from None
    return [number for number in numbers if type(number) is int]
