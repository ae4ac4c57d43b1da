"""The bytes of records and log entries, frozen: what was written once is written the same for ever, and read for ever.

`tests/vectors/records.json` is never made anew for a format that was released; a new format gets vectors beside the old ones. For a
format still in the making: `python -m tests.model.test_record_vectors`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tests.model.samples import ENVELOPE, NAMESPACE, RECORDS, VERSION
from zstor_local.coding.keys import KeyRing
from zstor_local.model.ids import KeyHash, ShardUid, ShareId, StoreId
from zstor_local.model.record import Envelope, Kind, associated_data
from zstor_local.shards.base import Entry, ScannedEntry
from zstor_local.shards.marker import Marker
from zstor_local.shards.segment import (
    HEADER_BYTES,
    Freed,
    SegmentHeader,
    pack_entry,
    pack_freed,
    scan_segment,
)

PATH: Final = Path(__file__).parents[1] / "vectors" / "records.json"
STORE: Final = StoreId(b"store id 16bytes")
RING: Final = KeyRing(bytes(range(100, 132)), STORE)
SALT: Final = bytes(range(200, 232))
MARKER: Final = Marker(STORE, ShardUid(b"shard uid 16byte"), 3, 1_700_000_000_000_000)
HEADER: Final = SegmentHeader(b"segment id 16 by", STORE, writer=258)
ENTRIES: Final = (
    Entry(ENVELOPE),
    Entry(Envelope(Kind.OBJECT, NAMESPACE, KeyHash(b"a hashed key 16b"), VERSION, 515, b"sealed"), 4, b"a small share"),
)
FREED: Final = ShareId(VERSION, 4)


def vectors() -> dict[str, object]:
    """Everything that is frozen, in hex."""
    return {
        "format": 1,
        "records": {name: record.encode().hex() for name, record in RECORDS.items()},
        "envelope": ENVELOPE.pack().hex(),
        "associated data": associated_data(STORE, Kind.OBJECT, NAMESPACE, KeyHash(b"a hashed key 16b"), VERSION, 515).hex(),
        "marker": MARKER.pack(RING.store_wide(), SALT).hex(),
        "segment": segment().hex(),
    }


def segment() -> bytes:
    data = HEADER.pack()
    for entry in ENTRIES:
        data += b"".join(pack_entry(HEADER.checksum_key, len(data), entry, 514))
    return data + b"".join(pack_freed(HEADER.checksum_key, len(data), FREED, 514))


def frozen() -> dict[str, object]:
    found: dict[str, object] = json.loads(PATH.read_text())
    return found


def test_what_is_written_is_what_was_always_written() -> None:
    assert vectors() == frozen()


def test_frozen_records_are_read() -> None:
    records = frozen()["records"]
    assert isinstance(records, dict)
    for name, data in records.items():
        assert type(RECORDS[name]).decode(bytes.fromhex(data)) == RECORDS[name]


def test_a_frozen_envelope_and_marker_are_read() -> None:
    assert Envelope.parse(bytes.fromhex(str(frozen()["envelope"]))) == ENVELOPE
    assert Marker.parse(bytes.fromhex(str(frozen()["marker"])), RING.store_wide(), STORE) == MARKER


def test_a_frozen_segment_is_read() -> None:
    data = bytes.fromhex(str(frozen()["segment"]))
    assert SegmentHeader.parse(data) == HEADER
    found = scan_segment(HEADER.checksum_key, lambda at, size: data[at : at + size], HEADER_BYTES, len(data))
    assert [each.item for each in found] == [*(ScannedEntry(entry, 514) for entry in ENTRIES), Freed(FREED)]


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
