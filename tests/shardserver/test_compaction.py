"""The logs of a server are compacted: freed small shares give their room back, and nothing else is lost by it."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
import trio

from tests.shardserver.server import LIMIT, MARKER, NAMESPACE, SESSION, STORE, scanned, version
from tests.troubled_files import TroubledFiles, troubled_runtime
from zstor_local import limits
from zstor_local.model.ids import NamespaceId, ShardUid, ShareId
from zstor_local.shards.base import ScannedEntry
from zstor_local.shards.http.wire import Batch, Fence
from zstor_local.shards.log import Log
from zstor_local.shards.segment import Freed, Position
from zstor_local.shardserver.compaction import Compaction, _Candidates
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.space import Cursor, Space
from zstor_local.shardserver.volume import Volume
from zstor_local.store.pace import unpaced

UID = ShardUid(bytes(STORE))
OTHER = NamespaceId(b"another name 16b")
SHARE_BYTES = 1_000
EVERY = range(1, 41)
KEPT = {number for number in EVERY if number % 4 == 0}
AGAIN = 20  # was freed and is here again


class House:
    """A volume with one space, on a disk that can be told to fail; `open` is a start of the server."""

    def __init__(self, parent: Path) -> None:
        self.files = TroubledFiles()
        self.root = parent / "data"
        self.volume = self._volume()
        self.volume.create(UID, "issuer", MARKER)
        self.life = 0
        self.number = 0
        self.space = self.open()

    def _volume(self) -> Volume:
        return Volume(troubled_runtime(self.files), str(self.root))

    def open(self, *, forget: bool = False) -> Space:
        """Forgetting where the shares lie: the logs alone tell."""
        self.volume.close()
        if forget:
            for path in self.path().glob("index.sqlite*"):
                path.unlink()
        self.volume = self._volume()
        self.space = self.volume.find(UID)
        self.life += 1
        self.fence = Fence(self.life, 1, SESSION)
        self.space.raise_fence(self.fence)
        return self.space

    def path(self) -> Path:
        return self.root / "spaces" / UID.hex()

    def append(self, *numbers: int, namespace: NamespaceId = NAMESPACE) -> None:
        self._send(Batch([scanned(number, share(number), namespace=namespace, committed=number - 1) for number in numbers]))

    def free(self, *numbers: int) -> None:
        self._send(Batch([], [ShareId(version(number), 0) for number in numbers]))

    def _send(self, batch: Batch) -> None:
        self.number += 1
        self.space.append(self.fence, self.number, batch)

    def compact(self) -> int:
        return trio.run(lambda: Compaction(self.volume).compact(unpaced))

    def log_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.path().glob("rooms/*/log/*"))

    def content(self) -> dict[int, bytes]:
        return {number: found for number in EVERY if (found := self.read(number)) is not None}

    def read(self, number: int) -> bytes | None:
        try:
            with self.space.opened(NAMESPACE, ShareId(version(number), 0), small=True) as (size, read):
                return read(0, size)
        except Refusal as refusal:
            if refusal.type != "not_found":
                raise
            return None

    def records(self) -> set[int]:
        return {each.entry.envelope.sequence for each in self.space.page(None, Cursor(), 1 << 40)[0].entries}


def share(number: int) -> bytes:
    return bytes([number]) * SHARE_BYTES


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(limits, "SEGMENT_BYTES", 8 * 1_024)
    monkeypatch.setattr(limits, "SEGMENT_STEP_BYTES", 2 * 1_024)
    house = House(tmp_path)
    yield house
    house.files.heal()
    house.volume.close()


def fill(house: House) -> None:
    """Several segments, of which three quarters are freed."""
    for number in EVERY:
        house.append(number)
    house.free(*(number for number in EVERY if number not in KEPT), AGAIN)
    house.append(AGAIN)


def holds_what_it_should(house: House) -> None:
    assert house.content() == {number: share(number) for number in KEPT}
    assert house.records() >= {*EVERY}


def test_freed_shares_give_their_room_back_and_count_no_more(house: House) -> None:
    fill(house)
    before, used = house.log_bytes(), sum(room.used_bytes for room in house.space.rooms)
    assert house.compact() > 2
    freed = (len(EVERY) - len(KEPT)) * SHARE_BYTES
    assert house.log_bytes() < before - 0.7 * freed
    assert sum(room.used_bytes for room in house.space.rooms) < used - 0.7 * freed
    assert house.compact() == 0
    for forget in (False, True, False):
        holds_what_it_should(house)
        house.open(forget=forget)


def test_it_goes_on_with_what_is_freed_later_and_after_a_restart(house: House) -> None:
    fill(house)
    assert house.compact()
    house.free(*KEPT)
    house.open()
    assert house.compact()
    for forget in (False, True):
        house.open(forget=forget)
        assert house.content() == {}
        assert house.records() >= {*EVERY}


def log_of(house: House) -> Log:
    return house.space.rooms.log(next(iter(house.space.rooms)))


def said_to_be_freed(house: House) -> set[ShareId]:
    log = log_of(house)
    return {each.item.share for number in log.segments() for each in log.read_whole(number) or () if isinstance(each.item, Freed)}


@pytest.mark.parametrize("together", [True, False])
def test_what_says_that_a_share_was_freed_goes_once_nothing_of_the_share_is_left(house: House, *, together: bool) -> None:
    """As long as the share lies in another segment it would be here again without that, where the index is made anew. Some were freed
    in the segment in which they lie.
    """
    gone = EVERY[:30]
    for number in EVERY:
        house.append(number)
        if together and number in gone:
            house.free(number)
    house.free(*gone)
    house.append(100)
    for _ in range(3):  # what goes in one takes with it what others had to say of it
        house.compact()
        house.open(forget=True)
        assert set(house.content()) == {*EVERY} - {*gone}
    assert not said_to_be_freed(house)


def test_a_log_is_read_for_that_only_when_much_was_freed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    scan_after = Log.scan_after

    def scanned_after(self: Log, segment: int, offset: int) -> Iterator[tuple[ScannedEntry, Position]]:
        read.append(segment)
        return scan_after(self, segment, offset)

    fill(house)
    house.compact()
    monkeypatch.setattr(Log, "scan_after", scanned_after)
    house.append(*range(100, 140))
    house.free(100)
    house.compact()
    assert not read
    house.free(*range(101, 140))
    house.compact()
    assert read


RECORDS = range(100, 300)  # without shares


def test_records_go_that_their_owner_has_named_and_no_others(house: House) -> None:
    house._send(Batch([scanned(number) for number in RECORDS]))
    house._send(Batch([scanned(400, namespace=OTHER)]))
    fill(house)
    assert house.compact() > 2
    before, used = house.log_bytes(), sum(room.used_bytes for room in house.space.rooms)
    superseded = {number for number in [*RECORDS, *EVERY] if number % 10}
    house.space.supersede(NAMESPACE, [*superseded, 400])
    assert house.compact() > 2
    assert house.log_bytes() < before - 15_000
    assert sum(room.used_bytes for room in house.space.rooms) < used - 15_000
    kept = {number for number in [*RECORDS, *EVERY, 400] if number not in superseded}
    for forget in (False, True):
        assert kept <= house.records() <= {*kept, *KEPT, *EVERY}
        assert not house.records() & superseded & {*RECORDS}
        assert house.content() == {number: share(number) for number in KEPT}
        house.open(forget=forget)


def test_nothing_is_read_in_vain_twice(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of records alone seem to be all dead."""
    read: list[int] = []
    compact = Compaction._compact

    def reading(self: Compaction, space: Space, found: _Candidates, number: int, least: float) -> tuple[int, bool]:
        read.append(number)
        return compact(self, space, found, number, least)

    monkeypatch.setattr(Compaction, "_compact", reading)
    house._send(Batch([scanned(number) for number in RECORDS]))
    fill(house)
    house.compact()
    assert read
    for _ in range(3):  # what was copied was appended to new segments
        read.clear()
        house.space.freed = True
        house.compact()
    assert read == []
    house.space.supersede(NAMESPACE, RECORDS)
    assert house.compact()
    assert read


def test_of_what_was_looked_at_in_vain_nothing_is_remembered_once_it_was_retired(house: House) -> None:
    house._send(Batch([scanned(number) for number in RECORDS]))
    assert house.compact() == 0
    house.space.retire(NAMESPACE)
    for number in EVERY[:8]:
        house._send(Batch([scanned(number, bytes(4_000))]))
    house.free(*EVERY[:8])
    house.compact()
    assert 1 not in log_of(house).segments()


def test_a_namespace_that_is_retired_meanwhile_is_left_alone(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """In each of the pauses, while its log is read and between its segments."""
    for at in count(1):
        house.append(100, namespace=OTHER)
        fill(house)
        pauses: list[int] = []

        async def retiring(size: int, at: int = at, pauses: list[int] = pauses) -> None:
            pauses.append(size)
            if len(pauses) == at:
                async with house.volume.lock(UID):
                    house.space.retire(NAMESPACE)

        trio.run(lambda: Compaction(house.volume).compact(retiring))
        assert not caplog.records
        if len(pauses) < at:
            break
        house.space.retire(OTHER)
    assert at > 5
    holds_what_it_should(house)


def test_what_is_named_while_its_share_is_here_goes_when_that_is_freed(house: House) -> None:
    for number in EVERY:
        house.append(number)
    house.space.supersede(NAMESPACE, EVERY)
    assert house.compact() == 0
    house.free(*(number for number in EVERY if number not in KEPT))
    assert house.compact() > 2
    assert {*KEPT} <= house.records() < {*EVERY}
    assert house.content() == {number: share(number) for number in KEPT}
    house.free(*KEPT)
    before = house.records()
    assert house.compact()
    assert house.records() < before


def test_no_more_is_remembered_than_there_is_memory_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.shardserver.rooms.SUPERSEDED_MAX", 3)
    house.append(1)
    house.append(2, namespace=OTHER)
    house.space.supersede(OTHER, [2])
    for _ in range(2):
        house.space.supersede(NAMESPACE, range(100, 200))
    assert sorted(len(room.superseded) for room in house.space.rooms) == [1, 2]


def test_other_namespaces_and_whoever_reads_a_log_miss_nothing(house: House) -> None:
    house.append(100, namespace=OTHER)
    fill(house)
    batch, after = house.space.page(None, Cursor(), 10_000)
    assert house.compact()
    found = {each.entry.envelope.sequence for each in batch.entries}
    found |= {each.entry.envelope.sequence for each in house.space.page(None, after, 1 << 40)[0].entries}
    assert found == {*EVERY, 100}


def test_a_segment_with_damage_in_it_stays(house: House) -> None:
    fill(house)
    first = min(house.path().glob("rooms/*/log/*"))
    data = bytearray(first.read_bytes())
    data[data.index(b"ZENT", 2_000) + 60] ^= 1
    first.write_bytes(data)
    assert house.compact()
    assert first.read_bytes() == data


def test_a_full_disk_is_compacted_with_what_is_in_reserve(house: House) -> None:
    fill(house)
    house.files.fail("allocate", lambda path: "/rooms/" in path, errno.ENOSPC, times=1)
    assert house.compact() > 2
    holds_what_it_should(house)


def test_what_was_refused_takes_no_share_along_that_is_there_already(house: House) -> None:
    """It lies in one log, unflushed, as the other one failed; then a segment is begun, and the one that holds it is compacted."""
    fill(house)
    house.append(100, namespace=OTHER)
    house.compact()
    house.files.fail("fdatasync", lambda path: f"/rooms/{OTHER.hex()}/" in path, errno.EIO)
    for numbers in ([101], sorted(KEPT), range(110, 120)):
        with pytest.raises(Refusal):
            house._send(Batch([*(scanned(number, share(number)) for number in numbers), scanned(200, b"share", namespace=OTHER)]))
    house.space.freed = True
    house.compact()
    for forget in (False, True):
        holds_what_it_should(house)
        house.open(forget=forget)


def test_a_log_that_a_failed_sync_has_closed_keeps_no_other_one_waiting(house: House) -> None:
    for number in range(100, 120):
        house.append(number, namespace=OTHER)
    house.free(*range(100, 120))
    fill(house)
    house.files.fail("fdatasync", lambda path: f"/rooms/{OTHER.hex()}/" in path, errno.EIO, times=1)
    with pytest.raises(Refusal):
        house.append(120, namespace=OTHER)
    assert house.compact() > 2
    holds_what_it_should(house)
    house.open()
    assert house.compact() > 2  # those of the other one


def test_a_log_that_was_not_compacted_is_looked_at_again(house: House) -> None:
    fill(house)
    house.files.fail("allocate", lambda path: "/rooms/" in path, errno.ENOSPC, times=None)
    assert house.compact() == 0
    house.files.heal()
    assert house.compact() > 2
    holds_what_it_should(house)


def test_that_a_share_was_freed_stays_said_where_it_may_lie_in_what_cannot_be_read(house: House) -> None:
    for number in EVERY:
        house.append(number)
    house.free(*EVERY[:36])
    house.append(*range(100, 110))  # behind the segment that says so
    house.files.ruin(log_of(house).path(1), 0)
    house.compact()
    house.open()
    house.compact()  # what says so of shares that lie nowhere any more is most of its segment
    house.files.heal()
    house.open(forget=True)
    assert set(house.content()) == {*EVERY[36:]}


def test_a_damaged_index_ends_nothing_and_is_made_anew(house: House) -> None:
    fill(house)
    house.space.list_small("", 1)
    with closing(sqlite3.connect(house.path() / "index.sqlite")) as db, db:
        db.execute("update entry set places = x'00'")
    assert house.compact() == 0
    house.open()
    assert house.compact() > 2
    holds_what_it_should(house)


def test_whoever_wants_a_space_alone_does_not_wait_for_a_look_at_all_of_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(house)
    monkeypatch.setattr("zstor_local.shardserver.compaction.PART", 1)
    turns, alive = house.space.turns, house.space.rooms.alive
    met: list[str] = []

    def be_alone() -> None:
        with turns.alone():
            met.append("alone")

    wanting = threading.Thread(target=be_alone)

    def looking() -> Iterator[tuple[int, int, int]]:
        for number, each in enumerate(alive()):
            met.append("share")
            yield each
            if number == 0:
                wanting.start()
                while not turns._alone:  # it waits
                    pass

    monkeypatch.setattr(house.space.rooms, "alive", looking)
    house.compact()
    wanting.join(LIMIT)
    assert met.index("alone") < met.count("share")


def test_it_may_break_off_anywhere(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each change of the disk, once and for good. A start goes on from there, whether it remembers where shares lie or not."""
    fill(house)
    untouched = house.root.rename(house.root.with_name("untouched"))
    for times, forget in ((1, False), (None, True)):
        for at in count(1):
            _copy(untouched, house.root)
            house.open()
            fault = _Nth(at)
            house.files.fail("*", fault.met, errno.EIO, times)
            house.compact()
            house.files.heal()
            if not fault.reached:
                break
            house.open(forget=forget)
            holds_what_it_should(house)
            house.compact()
            holds_what_it_should(house)
        assert at > 10


class _Nth:
    """From the nth change of a log on."""

    def __init__(self, at: int) -> None:
        self._left = at

    @property
    def reached(self) -> bool:
        return self._left <= 0

    def met(self, path: str) -> bool:
        if "/log" in path:
            self._left -= 1
        return self.reached


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
