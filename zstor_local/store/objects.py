"""Objects: write, read, delete, stat, list. Arguments come checked; results are `Stored` versions, which `metadata` describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from zstor_local.metastore.base import Metastore
from zstor_local.model.ids import Version
from zstor_local.runtime import Runtime
from zstor_local.shards.pool import ShardPool
from zstor_local.store.coding import ScratchPool
from zstor_local.store.committer import Committer
from zstor_local.store.free_space import FreeSpace
from zstor_local.store.namespaces import Namespaces
from zstor_local.store.placing import Placing
from zstor_local.store.reads import ObjectFinder
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.shares import ShareState
from zstor_local.store.stored import Stored
from zstor_local.store.stream_budget import StreamBudget
from zstor_local.store.writes import DIGEST_PREFIX, ObjectWriter, Source, WriteOptions

__all__ = ["DIGEST_PREFIX", "Objects", "Source", "Stored", "WriteOptions"]


class Objects:
    """The use cases of objects; each is described where it is written (store/writes.py, store/reads.py)."""

    def __init__(
        self,
        runtime: Runtime,
        metastore: Metastore,
        pool: ShardPool,
        committer: Committer,
        namespaces: Namespaces,
        sealer: RecordSealer,
        *,
        write_quorum: int | None,
        free_space: FreeSpace,
        on_garbage: Callable[[], None],
        on_released: Callable[[Version], None],
        on_bad_shares: Callable[[Stored, Mapping[int, ShareState]], None],
    ) -> None:
        shared = ScratchPool(), StreamBudget()
        writer = ObjectWriter(
            runtime,
            metastore,
            pool,
            committer,
            namespaces,
            sealer,
            *shared,
            placing=Placing(pool, namespaces, free_space, write_quorum),
            on_garbage=on_garbage,
        )
        finder = ObjectFinder(
            runtime, metastore, pool, namespaces, sealer, *shared, on_released=on_released, on_bad_shares=on_bad_shares
        )
        self.write = writer.write
        self.write_value = writer.write_value
        self.store = writer.store
        self.put = writer.put
        self.discard = writer.discard
        self.delete = writer.delete
        self.find = finder.find
        self.from_seal = finder.from_seal
        self.leased = finder.leased
        self.lease = finder.lease
        self.read = finder.read
        self.read_value = finder.read_value
        self.read_to_file = finder.read_to_file
        self.read_to_stream = finder.read_to_stream
        self.list = finder.list
