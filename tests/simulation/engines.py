"""The engines of a simulated world: the metastore is a `Cell` among the world's survivors, and so is the index of the logs.

A commit takes effect at once and for ever, between its two crash points. The faults of a SQLite file come in there too: a full disk
refuses the transaction, any other error leaves its outcome open, and what the process then sees may not be what a restart finds.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Final

from tests.metastore.memory import Cell, MemoryMetastore
from tests.simulation.indexes import KeptLogIndex, indexes
from tests.simulation.world import World
from zstor_local.coding.keys import NamespaceKeys
from zstor_local.disks import Disks
from zstor_local.metastore.base import CommitRefused, CommitUnknown, MetastoreDamaged, Transaction
from zstor_local.model.ids import StoreId
from zstor_local.runtime import Runtime
from zstor_local.shards.log_index import LogIndex
from zstor_local.shards.opening import FILE, DirectoryEngine, ShardEngine
from zstor_local.store.engines import INDEX

COMMIT: Final = "metastore:commit"  # the names of the crash points: followed by " before" or " after"
CREATE: Final = "metastore:create"


def cell(world: World, store: str) -> Cell:
    """What the metastore of the store holds, as a restart would find it."""
    survivor = world.survivors[store]
    assert isinstance(survivor, Cell)
    return survivor


class SimulatedEngines:
    """Engines for a `World`. The metastore of the store at a path is the survivor of that name."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._disks = Disks(world.files, "/", start=world.files.ask, patience=0, now=lambda: world.clock.time / 1e6)

    def metastore_exists(self, store: str) -> bool:
        return store in self._world.survivors

    def create_metastore(self, store: str, store_id: StoreId, transactions: Iterable[Transaction]) -> None:
        self._world.point(f"{CREATE} before")
        made = Cell(store_id)
        for transaction in transactions:
            MemoryMetastore(made).commit(transaction)
        self._world.survivors[store] = made
        self._world.point(f"{CREATE} after")

    def open_metastore(self, store: str) -> SimulatedMetastore:
        if not self.metastore_exists(store):
            raise MetastoreDamaged("there is no metastore")
        return SimulatedMetastore(self._world, cell(self._world, store))

    def open_index(self, store: str) -> LogIndex:
        return KeptLogIndex(indexes(self._world), f"{store}/{INDEX}")

    def shard_engines(self, runtime: Runtime, store_id: StoreId, keys: NamespaceKeys, index: LogIndex) -> Mapping[str, ShardEngine]:
        return {FILE: DirectoryEngine(self._disks.device, runtime.randomness, store_id, keys, index)}


class SimulatedMetastore(MemoryMetastore):
    """A metastore whose commits are crash points, and fail as those of SQLite do.

    ENOSPC refuses a commit. After EIO before its moment the process sees the old state, a restart finds the new one.
    """

    def __init__(self, world: World, durable: Cell) -> None:
        super().__init__(durable, self._around)
        self._world = world
        self._arrives_late = False

    def commit(self, transaction: Transaction) -> None:
        try:
            super().commit(transaction)
        except CommitUnknown:
            if self._arrives_late:
                seen = self.cell.copy()
                MemoryMetastore(self.cell).commit(transaction)
                self.cell, self._arrives_late = seen, False
            raise

    def _around(self, moment: str) -> None:
        try:
            self._world.point(f"{COMMIT} {moment}")
        except OSError as error:
            if error.errno == errno.ENOSPC and moment == "before":
                raise CommitRefused("the disk of the metastore is full", no_space=True) from error
            self._arrives_late = error.errno == errno.EIO and moment == "before"
            raise
