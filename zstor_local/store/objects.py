"""Objects: write, read, delete, stat, list. Arguments come checked; results are `Stored` versions, which `metadata` describes."""

from __future__ import annotations

from zstor_local.store.coding import ScratchPool
from zstor_local.store.core import Core
from zstor_local.store.freeing import Freeing
from zstor_local.store.namespaces import Namespaces
from zstor_local.store.placing import Placing
from zstor_local.store.reads import ObjectFinder, OnBadShares
from zstor_local.store.stored import Stored
from zstor_local.store.stream_budget import StreamBudget
from zstor_local.store.writes import DIGEST_PREFIX, ObjectWriter, Source, WriteOptions

__all__ = ["DIGEST_PREFIX", "Objects", "Source", "Stored", "WriteOptions"]


class Objects:
    """The use cases of objects; each is described where it is written (store/writes.py, store/reads.py)."""

    def __init__(
        self,
        core: Core,
        namespaces: Namespaces,
        freeing: Freeing,
        placing: Placing,
        on_bad_shares: OnBadShares,
    ) -> None:
        shared = ScratchPool(), StreamBudget()
        writer = ObjectWriter(core, namespaces, freeing, *shared, placing)
        finder = ObjectFinder(core, namespaces, freeing, *shared, on_bad_shares)
        self.write = writer.write
        self.write_value = writer.write_value
        self.store = writer.store
        self.put = writer.put
        self.discard = writer.discard
        self.delete = writer.delete
        self.find = finder.find
        self.from_seal = finder.from_seal
        self.read = finder.read
        self.read_value = finder.read_value
        self.read_to_file = finder.read_to_file
        self.read_to_stream = finder.read_to_stream
        self.list = finder.list
