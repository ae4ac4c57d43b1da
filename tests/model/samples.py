"""One record of each kind, with every field filled; fixed, so that their bytes can be frozen."""

from __future__ import annotations

from typing import Final

from zstor_local.model.ids import KeyHash, NamespaceId, Version
from zstor_local.model.masterkey import OlderKey
from zstor_local.model.policy import Policy
from zstor_local.model.record import Envelope, Kind, ObjectRecord, Tombstone
from zstor_local.model.storewide import (
    KeysRecord,
    NamespaceRecord,
    Record,
    RowRecord,
    ShardEntry,
    ShardsRecord,
    StoreRecord,
    VoidRecord,
)

NAMESPACE: Final = NamespaceId(b"namespace id 16b")
VERSION: Final = Version(b"version 16 bytes")

FULL: Final = ObjectRecord(
    key="path/to/ü",
    size=5_000_000,
    digest=bytes(range(32)),
    created=1_700_000_000_000_000,
    modified=1_700_000_000_000_001,
    policy=Policy(4, 6, padding="padme"),
    wrapped_key=bytes(range(40)),
    placement=(5, 0, 1, 2, 3, 4),
    share_bytes=1_250_080,
    chunk_table=bytes(range(20)),
    references=("one", "two"),
    user={"b": 1, "a": [None, True, 0.5, "x"], "map": {"deep": {}}},
    previous_key="path/to/t",
    next_key="path/to/v",
)
SHORTEST: Final = ObjectRecord(
    key="k",
    size=0,
    digest=bytes(32),
    created=1,
    modified=1,
    policy=Policy(),
    wrapped_key=bytes(40),
    placement=(0, 1, 2, 3, 4, 5),
    share_bytes=0,
)
MANY_SHARDS: Final = ObjectRecord(
    key="k",
    size=10**15,
    digest=bytes(32),
    created=1,
    modified=1,
    policy=Policy(1, 3, compression="none"),
    wrapped_key=bytes(40),
    placement=(255, 256, 65_535),
    share_bytes=10**15,
    table_blob=True,
)
RECORDS: Final[dict[str, Record]] = {
    "object, every field": FULL,
    "object, no field more than needed": SHORTEST,
    "object, many shards and a table in its shares": MANY_SHARDS,
    "tombstone": Tombstone("path/to/ü", 1_700_000_000_000_002),
    "namespace": NamespaceRecord("default", NAMESPACE, 1_700_000_000_000_003, Policy(2, 3, chunk_size=1 << 18)),
    "namespace, every field": NamespaceRecord("a", NAMESPACE, 1_700_000_000_000_003, Policy(), 2**40, ("disk0", "attic"), True),
    "store": StoreRecord(bytes(range(100, 132)), 1_700_000_000_000_004),
    "shards": ShardsRecord(
        (
            ShardEntry(0, bytes(range(16)), "disk0", "/disks/0", "disk"),
            ShardEntry(300, bytes(range(16, 32)), "disk300", "/disks/300", ""),
        )
    ),
    "void": VoidRecord(7, 2**62),
    "keys": KeysRecord((OlderKey(bytes(range(32)), 2**40), OlderKey(bytes(range(1, 33)))), 1_700_000_000_000_006, settled=True),
    "row": RowRecord("row/names/ü", b"value", 1_700_000_000_000_005),
}
ENVELOPE: Final = Envelope(Kind.TOMBSTONE, NAMESPACE, KeyHash(b"a hashed key 16b"), VERSION, 2**63, b"sealed bytes")
