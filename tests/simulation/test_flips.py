"""Every single bit of what lies on the disks, flipped alone: found, or shown to change nothing.

Share files, log segments and the rows of the metastore, with the very functions that read them. The figures are asserted: all flips of
everything, more than a hundred thousand.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import trio.testing

from tests.simulation.account import name
from tests.simulation.engines import SimulatedEngines
from tests.simulation.house import House, policy, small_limits
from tests.simulation.world import run
from zstor_local import limits
from zstor_local.coding.block import BadBlock
from zstor_local.coding.share import SHARE_HEADER_BYTES, parse_share_header
from zstor_local.errors import CorruptRecord
from zstor_local.model.ids import NamespaceId, Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import Envelope, Kind, ObjectRecord
from zstor_local.shards.base import ScannedEntry
from zstor_local.shards.segment import HEADER_BYTES, BadSegment, Freed, SegmentHeader, scan_segment
from zstor_local.store.caller import Nobody
from zstor_local.store.opening import open_store
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.shares import ShareBad, VersionShares
from zstor_local.store.sources import BytesSource
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import WriteOptions

HOUSE = House(policy(3, 5), 5, kind="xfs")
PADDED = House(replace(Policy(2, 3, chunk_size=256 * limits.KIB), padding="padme"), 3, kind="xfs")


class InMemory:
    """A reader of a share file that lies in memory, damaged or not."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def prefetch(self, offset: int, length: int) -> None:
        pass

    def read(self, offset: int, length: int, *, patient: bool = True) -> bytearray:
        return self.data[SHARE_HEADER_BYTES + offset : SHARE_HEADER_BYTES + offset + length]

    def read_table(self, length: int) -> bytearray:
        raise AssertionError("the table is in the record")

    def claimed_version(self) -> Version | None:
        return None

    def claimed_namespace(self) -> NamespaceId | None:
        return None

    def close(self) -> None:
        pass


@dataclass
class Scene:
    """What lies there: the objects' share files, the segments of one shard, rows, and the keys to look at them with."""

    shares: list[tuple[VersionShares, int, bytearray]]
    segments: list[bytearray]
    rows: list[Envelope]
    sealer: RecordSealer


def scene(house: House) -> Scene:
    world = house.world()
    found = Scene([], [], [], None)  # type: ignore[arg-type]

    async def program() -> None:
        async with open_store(world.runtime, SimulatedEngines(world), house.config()) as store:
            text = b"compresses well, and so several chunks make a small file. " * 40_000
            stored = [await put(store, "chunks", text[:700_000]), await put(store, "one", random.Random(1).randbytes(13_001))]
            await put(store, "small", b"some bytes")
            await put(store, "gone", b"some other bytes")
            await store.writer.delete(name("gone"), None, Nobody())
            await put(store, "with all", b"x", WriteOptions(references=("a", "b"), user={"type": "file"}))
            await trio.testing.wait_all_tasks_blocked()
            found.sealer = store.sealer
            for each in stored:
                found.shares += [*share_files(house, world.files.contents, store, each)]
            log = f"{house.root(0)}/log"
            found.segments += [written(bytearray(world.files.contents(f"{log}/{each}"))) for each in world.files.list(log)]
            namespace = stored[0].envelope.namespace
            found.rows += [
                row.envelope for space in (NamespaceId(bytes(16)), namespace) for row in store.metastore.changes(space, 0, 100)
            ]

    run(world, program)
    return found


def written(data: bytearray) -> bytearray:
    """A segment without its empty rest."""
    key = SegmentHeader.parse(data).checksum_key
    located = list(scan_segment(key, lambda at, size: data[at : at + size], HEADER_BYTES, len(data)))
    return data[: located[-1].end]


async def put(store: Store, key: str, data: bytes, options: WriteOptions | None = None) -> Stored:
    return await store.writer.write(name(key), BytesSource(data), options or WriteOptions(), Nobody())


def share_files(
    house: House, contents: Callable[[str], bytes], store: Store, stored: Stored
) -> Iterator[tuple[VersionShares, int, bytearray]]:
    namespace = store.namespaces.find("default")
    assert namespace is not None
    assert not stored.record.small
    shares = VersionShares(store.pool, store.sealer.store_id, namespace, stored.version, stored.record)
    for index in (0, house.policy.m - 1):
        version = stored.version.hex()
        path = f"{house.root(stored.record.placement[index])}/shares/{version[:2]}/{version}.{index}"
        yield shares, index, bytearray(contents(path))


@pytest.fixture(scope="module", params=[HOUSE, PADDED], ids=["3 of 5", "2 of 3, padded"])
def seen(request: pytest.FixtureRequest) -> Scene:
    with small_limits():
        return scene(request.param)


def flips(data: bytearray) -> Iterator[int]:
    """Each bit flipped and flipped back; the byte that has it."""
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            yield at
            data[at] ^= 1 << bit


def test_share_files(seen: Scene) -> None:
    count = 0
    for shares, index, data in seen.shares:
        shares._readers[index] = InMemory(data)
        table = shares.table()
        ends = [SHARE_HEADER_BYTES + table.offset(chunk + 1) for chunk in range(len(table))]
        for chunk in range(len(table)):
            shares.block(index, chunk)  # undamaged, all of it opens
        before = bytes(data)
        chunk = 0
        for at in flips(data):
            count += 1
            if at < SHARE_HEADER_BYTES:
                with pytest.raises(BadBlock):
                    parse_share_header(data[:SHARE_HEADER_BYTES])
            elif at < ends[-1]:  # what lies behind the blocks is not read: the table is in the record
                while at >= ends[chunk]:
                    chunk += 1
                try:
                    shares.block(index, chunk)
                except ShareBad:
                    continue
                raise AssertionError(f"a flip at {at} was not found")
        assert data == before
    assert count > 50_000, count


def test_log_segments(seen: Scene) -> None:
    count = harmless = 0
    for data in seen.segments:
        key = SegmentHeader.parse(data).checksum_key
        whole = scanned(key, data)
        assert len(whole) >= 2
        covered = spans(key, data)
        for at in flips(data):
            count += 1
            if at < HEADER_BYTES:
                with pytest.raises(BadSegment):
                    SegmentHeader.parse(data)
                continue
            found = scanned(key, data)
            hit = next((position for position, (start, end) in enumerate(covered) if start <= at < end), None)
            if hit is None:  # padding between two entries
                harmless += 1
                assert found == whole
            else:  # that entry is gone, and no other
                assert found == whole[:hit] + whole[hit + 1 :]
    assert count > 10_000, count
    assert harmless < count / 20


def scanned(key: bytes, data: bytearray) -> list[ScannedEntry | Freed]:
    return [located.item for located in scan_segment(key, lambda at, size: data[at : at + size], HEADER_BYTES, len(data))]


def spans(key: bytes, data: bytearray) -> list[tuple[int, int]]:
    """Where each entry begins and ends, without the zeros behind it."""
    found = []
    for located in scan_segment(key, lambda at, size: data[at : at + size], HEADER_BYTES, len(data)):
        item, start = located.item, located.offset
        size = len(item.entry.envelope.sealed) + len(item.entry.share) if isinstance(item, ScannedEntry) else 0
        found.append((start, start + 96 + size))
    return found


def test_rows_of_the_metastore(seen: Scene) -> None:
    """As callers keep it and as the columns hold it: kind, namespace, keyed hash, version, sequence, sealed record."""
    assert {row.kind for row in seen.rows} >= {Kind.OBJECT, Kind.TOMBSTONE, Kind.NAMESPACE, Kind.STORE, Kind.SHARDS}
    count = 0
    for row in seen.rows:
        seen.sealer.open(row)
        data = bytearray(row.pack())
        for _ in flips(data):
            count += 1
            with_flip = bytes(data)
            try:
                seen.sealer.open(Envelope.parse(with_flip))
            except CorruptRecord:
                continue
            raise AssertionError(f"a flipped {row.kind.name} opened")
    assert count > 10_000, count


def test_the_name_of_a_row_is_compared_with_what_is_sealed(seen: Scene) -> None:
    objects = {ObjectRecord.decode(seen.sealer.open(row)).key: row for row in seen.rows if row.kind is Kind.OBJECT}
    for key, row in objects.items():
        for other in objects.values():
            if other is not row:
                moved = replace(other, key_hash=row.key_hash, version=row.version, sequence=row.sequence)
                with pytest.raises(CorruptRecord):
                    seen.sealer.open(moved)
        assert ObjectRecord.decode(seen.sealer.open(row)).key == key
