"""The index of the logs: thrown away, damaged, behind or ahead, it leads to the same places again."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from tests.descriptors import open_descriptors
from tests.shards.ground import Ground, entry, read_share, version
from tests.troubled_files import PAGE
from zstor_local import limits
from zstor_local.model.ids import ShareId
from zstor_local.runtime import Buffer
from zstor_local.shards.base import ScannedEntry, ShardError, ShareMissing
from zstor_local.shards.directory import DirectoryShard
from zstor_local.shards.log_index import Extent, IndexDamaged, LogIndex, Progress
from zstor_local.shards.segment import Located, SegmentHeader, aligned, scan_segment


def share(number: int, index: int = 0) -> ShareId:
    return ShareId(version(number), index)


def extent(number: int) -> Extent:
    return Extent(1 + number % 3, number * 100, 50 + number)


PROGRESS = Progress(3, b"segment id 16 by", 4_000, 77, 70)


@contextmanager
def opened(path: str) -> Iterator[LogIndex]:
    with closing(LogIndex(path)) as index:
        yield index


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    before = open_descriptors()
    yield str(tmp_path / "index.sqlite")
    assert open_descriptors() == before


# --- By itself ---


def test_what_was_recorded_is_found_at_once_and_by_the_next_process(path: str) -> None:
    with opened(path) as index:
        index.record(5, [(share(number, 3), extent(number)) for number in range(100)], PROGRESS)
        for _ in ("waiting", "flushed"):
            assert index.find(5, share(7, 3)) == extent(7)
            assert index.find(5, share(7, 4)) is None
            assert index.find(6, share(7, 3)) is None
            index.flush()
            assert index.waiting == 0
    with opened(path) as index:
        assert index.find(5, share(99, 3)) == extent(99)
        assert index.progress(5) == PROGRESS
        assert index.progress(6) == Progress()


def test_shards_of_one_version_do_not_overwrite_each_other(path: str) -> None:
    with opened(path) as index:
        for shard in range(4):
            index.record(shard, [(share(1, shard), extent(shard))], PROGRESS)
            if shard == 1:
                index.flush()
    with opened(path) as index:
        assert [index.find(shard, share(1, shard)) for shard in range(4)] == [extent(shard) for shard in range(4)]


def test_the_latest_place_counts(path: str) -> None:
    with opened(path) as index:
        for number in (1, 2, 3):
            index.record(0, [(share(1), extent(number))], PROGRESS)
            if number == 2:
                index.flush()
        assert index.find(0, share(1)) == extent(3)
    with opened(path) as index:
        assert index.find(0, share(1)) == extent(3)


def test_what_was_freed_is_gone_at_once_and_for_the_next_process(path: str) -> None:
    with opened(path) as index:
        index.record(0, [(share(1), extent(1)), (share(2), extent(2))], PROGRESS)
        index.record(1, [(share(1, 1), extent(3))], PROGRESS)
        index.flush()
        index.record(0, [(share(1), None)], PROGRESS)
        assert index.find(0, share(1)) is None
    with opened(path) as index:
        assert index.find(0, share(1)) is None
        assert index.find(1, share(1, 1)) == extent(3)
        assert list(index.shares(0)) == [share(2)]
        index.record(1, [(share(1, 1), None)], PROGRESS)
        assert list(index.shares(1)) == []


def test_every_share_of_a_shard_is_told(path: str) -> None:
    with opened(path) as index:
        index.record(0, [(share(number), extent(number)) for number in range(5)], PROGRESS)
        index.record(1, [(share(number, 1), extent(number)) for number in range(9)], PROGRESS)
        assert set(index.shares(0)) == {share(number) for number in range(5)}
        assert set(index.shares(1)) == {share(number, 1) for number in range(9)}


def test_the_shares_of_one_shard_are_found_among_those_of_others(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.shards.log_index._STRETCH", 7)
    with opened(path) as index:
        for shard in (1, 2, 256, 513):  # some of the bytes of one lie in another's
            for each in (0, 1):
                mine = [share(number, each) for number in range(100) if number % 10 < 3 or shard != 2]
                index.record(shard, [(one, Extent(513, 2, 1)) for one in mine], PROGRESS)
        assert len([*index.shares(1)]) == 200
        assert sorted(index.shares(2)) == sorted(share(number, each) for number in range(100) if number % 10 < 3 for each in (0, 1))
        assert [*index.shares(3)] == []
        index.forget(2)
        assert [*index.shares(2)] == []
        assert len([*index.shares(513)]) == 200


@pytest.mark.parametrize("seed", range(20))
def test_what_is_held_of_many_versions_is_what_is_found_of_each(path: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.shards.log_index._PAGE", 3)
    random = Random(seed)
    every = [(shard, share(number, index)) for shard in range(3) for number in range(8) for index in range(3)]
    with opened(path) as index:
        for number in range(60):
            shard, one = random.choice(every)
            index.record(shard, [(one, random.choice([None, extent(number), extent(number)]))], PROGRESS)
            if random.random() < 0.1:
                index.flush()
        held = index.held([version(number) for number in range(9)])
        for shard, one in every:
            assert ((shard, one.index) in held.get(one.version, ())) is (index.find(shard, one) is not None)


def test_what_a_kill_left_unwritten_is_behind_and_not_wrong(path: str, tmp_path: Path) -> None:
    with opened(path) as index:
        index.record(0, [(share(1), extent(1))], PROGRESS)
        index.flush()
        index.record(0, [(share(2), extent(2))], Progress(4, b"another id 16 by", 5_000, 99, 90))
        for suffix in ("", "-wal"):
            shutil.copy(path + suffix, str(tmp_path / "copy.sqlite") + suffix)
    with opened(str(tmp_path / "copy.sqlite")) as index:
        assert index.progress(0) == PROGRESS
        assert index.find(0, share(1)) == extent(1)
        assert index.find(0, share(2)) is None


def test_a_flush_that_failed_leaves_everything_to_be_found_and_is_tried_again(path: str) -> None:
    with opened(path) as index:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            index._db.execute("pragma busy_timeout=0")
            other.execute("begin immediate")
            index.record(0, [(share(1), extent(1))], PROGRESS)
            index.flush()
            assert index.waiting == 1
            assert index.find(0, share(1)) == extent(1)
            other.execute("rollback")
        index.flush()
        assert index.waiting == 0
    with opened(path) as index:
        assert index.find(0, share(1)) == extent(1)
        assert index.progress(0) == PROGRESS


@pytest.mark.parametrize("full", [False, True])
def test_during_a_flush_every_share_is_found_and_where_it_lies_by_then(
    path: str, monkeypatch: pytest.MonkeyPatch, *, full: bool
) -> None:
    now = {1: extent(4), 2: None, 3: extent(3)}

    def check(index: LogIndex) -> None:
        assert {number: index.find(0, share(number)) for number in now} == now
        assert {found for found, holders in index.held([version(number) for number in now]).items() if holders} == {
            version(1),
            version(3),
        }

    store = LogIndex._store

    def moving(index: LogIndex, progress: Mapping[int, Progress]) -> None:
        index.record(0, [(share(1), now[1]), (share(2), None)], PROGRESS)
        check(index)
        if full:
            raise sqlite3.OperationalError("database or disk is full")
        store(index, progress)

    with opened(path) as index:
        index.record(0, [(share(number), extent(number)) for number in now], PROGRESS)
        with monkeypatch.context() as patch:
            patch.setattr(LogIndex, "_store", moving)
            index.flush()
        check(index)
    with opened(path) as index:
        check(index)


@pytest.mark.parametrize("content", [b"garbage", b"garbage" * 2_000, bytes(9_000)])
def test_a_file_that_is_no_index_is_begun_anew(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    with opened(path) as index:
        assert index.progress(0) == Progress()
        index.record(0, [(share(1), extent(1))], PROGRESS)
    with opened(path) as index:
        assert index.find(0, share(1)) == extent(1)


@pytest.mark.parametrize(
    "statement",
    [
        "pragma user_version=99",
        "drop table progress",
        "update progress set segment_id='text'",
        "update progress set offset='text'",
    ],
)
def test_an_index_of_another_format_or_with_nonsense_is_begun_anew(path: str, statement: str) -> None:
    with opened(path) as index:
        index.record(0, [(share(1), extent(1))], PROGRESS)
    tamper(path, statement)
    with opened(path) as index:
        assert index.progress(0) == Progress()
        assert index.find(0, share(1)) is None


def test_an_index_of_format_1_is_taken_over(filled: Ground, path: str) -> None:
    with opened(path) as index:
        shard = filled.open(index=index, writer=2)
        shard.append([entry(each, content(each)) for each in (101, 102)], 100)
        shard.flush()
        filled.close()
        before = index.progress(0)
    assert before.settled_segment
    for statement in ("alter table progress drop settled_segment", "alter table progress drop settled_offset", "pragma user_version=1"):
        tamper(path, statement)
    for _ in range(2):
        with opened(path) as index:
            assert index.find(0, share(1)) is not None
            assert index.progress(0) == replace(before, settled_segment=0, settled_offset=0)
            shard = filled.open(index=index, writer=None)
            assert [each.sequence for each in shard.unsettled()] == [101, 102]
            filled.close()


def test_a_damaged_page_is_told_and_the_next_start_begins_anew(path: str) -> None:
    with opened(path) as index:
        index.record(0, [(share(1), extent(1))], PROGRESS)
    tamper(path, "update entry set places=x'00'")
    with opened(path) as index:
        assert index.progress(0) == PROGRESS
        with pytest.raises(IndexDamaged):
            index.find(0, share(1))
        with pytest.raises(IndexDamaged):
            index.held([version(1)])
        with pytest.raises(IndexDamaged):
            dict(index.versions())
    with opened(path) as index:
        assert index.progress(0) == Progress()


def test_of_a_log_that_is_begun_anew_nothing_older_is_known(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where a crash came in between: then it is begun anew again."""
    monkeypatch.setattr("zstor_local.shards.log_index.FLUSH_AT", 10)
    late = str(tmp_path / "late.sqlite")
    with opened(path) as index:
        for shard in (1, 2):
            index.record(shard, [(share(number), extent(number)) for number in range(105)], PROGRESS)
        index.forget(1)
        shutil.copy(path, late)
        for suffix in ("-wal", "-shm"):
            shutil.copy(f"{path}{suffix}", f"{late}{suffix}")
        for _ in ("waiting", "flushed"):
            assert [*index.shares(1)] == []
            assert index.progress(1) == Progress()
        assert len([*index.shares(2)]) == 105
        assert index.progress(2) == PROGRESS
    with opened(late) as index:
        assert 0 < len([*index.shares(1)]) < 105
        assert index.progress(1) == replace(PROGRESS, segment_id=b"")  # which no log's segment has


@pytest.mark.parametrize("change", [extent(2), None], ids=["appended", "freed"])
def test_damage_that_a_flush_comes_upon_is_told_to_the_next_start(path: str, change: Extent | None) -> None:
    with opened(path) as index:
        index.record(0, [(share(1), extent(1))], PROGRESS)
    if change is None:
        tamper(path, "update entry set places=x'00'")
    else:
        with closing(sqlite3.connect(path)) as db:
            page = db.execute("select rootpage from sqlite_schema where name='entry'").fetchone()[0]
        with Path(path).open("r+b") as file:
            file.seek((page - 1) * 4_096)
            file.write(b"\xff" * 4_096)
    with opened(path) as index:
        index.record(0, [(share(1), change)], replace(PROGRESS, offset=5_000))
        index.flush()
        assert index.find(0, share(1)) == change
    with opened(path) as index:
        assert index.progress(0) == Progress()


def test_a_flush_in_vain_is_not_tried_again_for_every_group(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.shards.log_index.FLUSH_AT", 3)
    tried = []
    with opened(path) as index:
        index._db.execute("drop table entry")
        for number in range(100):
            index.record(0, [(share(number), extent(number))], PROGRESS)
            if index.is_due:
                tried.append(number)
                index.flush()
        assert tried == [2, 5, 11, 23, 47, 95]
        index._db.execute("create table entry(version blob primary key, places blob not null) without rowid")
        index.flush()
        index.record(0, [(share(number), extent(number)) for number in range(3)], PROGRESS)
        assert index.is_due


def test_where_no_file_can_be_made_the_index_lives_in_memory(tmp_path: Path) -> None:
    with opened(str(tmp_path / "no such directory" / "index.sqlite")) as index:
        index.record(0, [(share(1), extent(1))], PROGRESS)
        index.flush()
        assert index.find(0, share(1)) == extent(1)


def tamper(path: str, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)


# --- Over the logs ---

NUMBERS = range(1, 60)
FREED = (7, 30)


@pytest.fixture
def filled(real: Ground, path: str, short_segments: int) -> Ground:
    """A shard whose log has many segments, some shares freed, closed; its index at `path`."""
    shard = real.new(index=(index := LogIndex(path)))
    for number in NUMBERS:
        shard.append([entry(number, content(number))], 0)
    shard.free([share(number) for number in FREED], small=True)
    shard.flush()
    real.close()
    index.close()
    return real


def content(number: int) -> bytes:
    return b"share %d " % number * 80


def extents(index: LogIndex) -> dict[int, Extent | None]:
    return {number: index.find(0, share(number)) for number in NUMBERS}


def check_everything(shard: DirectoryShard) -> None:
    for number in NUMBERS:
        if number in FREED:
            with pytest.raises(ShareMissing):
                shard.open_share(share(number), small=True)
        else:
            assert read_share(shard, share(number), small=True) == content(number)


def test_thrown_away_it_is_made_from_the_log_with_the_same_places(filled: Ground, path: str) -> None:
    with opened(path) as index:
        before, progress = extents(index), index.progress(0)
    Path(path).unlink()
    with opened(path) as index:
        check_everything(filled.open(index=index, writer=None))
        assert extents(index) == before
        assert index.progress(0) == progress
        filled.close()


@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
def test_what_is_not_settled_is_indexed_where_it_is_not(filled: Ground, path: str, part: float) -> None:
    """As after a start at which a disk could not read a part of the log. What is known already is not written once more."""
    random = Random(0)
    with opened(path) as index:
        before = extents(index)
        assert index.progress(0).settled < (2, 0)
    missed = {version(number) for number in NUMBERS if number not in FREED and random.random() < part}
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany("delete from entry where version=?", [(each,) for each in missed])
    with opened(path) as index:
        filled.open(index=index, writer=None)
        assert index._waiting.keys() == missed | {version(number) for number in FREED}
        assert extents(index) == before
        filled.close()


def test_a_start_reads_the_end_of_a_log_however_long_it_is(filled: Ground, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as index:
        shard = filled.open(index=index, writer=2)
        shard.append([entry(each, content(each)) for each in (101, 102)], 100)
        shard.flush()
        filled.close()
    headers: list[SegmentHeader] = []
    entries: list[Located] = []
    parse = SegmentHeader.parse

    def parsed(data: Buffer) -> SegmentHeader:
        headers.append(parse(data))
        return headers[-1]

    def scanned(key: bytes, read: Callable[[int, int], Buffer], start: int, length: int) -> Iterator[Located]:
        for located in scan_segment(key, read, start, length):
            entries.append(located)
            yield located

    monkeypatch.setattr(SegmentHeader, "parse", parsed)
    monkeypatch.setattr("zstor_local.shards.segment_directory.scan_segment", scanned)
    with opened(path) as index:
        shard = filled.open(index=index, writer=None)
        assert shard.newest_writer() == 2
        assert [each.sequence for each in shard.unsettled()] == [101, 102]
        assert len(shard.log.segments()) > 10
        assert len(headers) == 5
        assert len(entries) == 6  # those two: the index knows the end of the last one, and what is unsettled is indexed and looked at
        filled.close()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_unsettled_is_found_wherever_it_lies(real: Ground, path: str, tmp_path: Path, short_segments: int, seed: int) -> None:
    """Appends that say what is committed, some groups never committed, shares freed, copies of old entries; with any index, and
    with one of an earlier version, which knows no settled place.
    """
    random, kept, older = Random(seed), tmp_path / "kept.sqlite", tmp_path / "without.sqlite"
    index = LogIndex(path)
    shard, sequence, committed = real.new(index=index), 0, 0
    for step in range(60):
        match random.choice(["commit", "commit", "lose", "free", "copy", "flush"]):
            case "commit" | "lose" as outcome:
                group = [entry(sequence + each, content(sequence + each)) for each in range(1, random.randrange(2, 6))]
                shard.append(group, committed)
                sequence = group[-1].envelope.sequence
                committed = sequence if outcome == "commit" else committed
            case "free" if sequence:
                shard.free([share(random.randint(1, sequence))], small=True)
            case "copy" if sequence:
                shard.log.copy([*islice(shard.scan(), random.randrange(3))])
            case "flush":
                shard.flush()
                index.flush()
        if step == 30:
            shard.flush()
            index.flush()
            with closing(sqlite3.connect(path)) as now, closing(sqlite3.connect(kept)) as copy:
                now.backup(copy)
    shard.flush()
    newest = index.progress(0).committed
    expected = [found.entry.envelope.sequence for found in shard.scan() if found.entry.envelope.sequence > newest]
    real.close()
    index.close()
    with closing(sqlite3.connect(path)) as other, closing(sqlite3.connect(older)) as copy:
        other.backup(copy)
        copy.execute("update progress set settled_segment=0, settled_offset=0")
        copy.commit()
    for known in (path, str(kept), str(older), ":memory:"):
        with opened(known) as index:
            assert [each.sequence for each in real.open(index=index, writer=None).unsettled()] == expected
            real.close()


@pytest.mark.parametrize("seed", range(40))
def test_what_never_came_to_be_is_found_whatever_could_not_be_read_for_a_while(
    real: Ground, path: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Lives of which some end with a group that is never committed; pages that cannot be read at a start, and indexes that are lost or
    are behind. No start passes over such a group for good: another one that can read it finds it, though later entries lie behind.
    """
    monkeypatch.setattr(limits, "SEGMENT_BYTES", 3 * PAGE)
    random, sequence, lost, found = Random(seed), 0, set[int](), set[int]()
    real.create()
    for life in range(1, 9):
        real.faults.heal()
        if random.random() < 0.3:
            Path(path).unlink(missing_ok=True)
        if life < 8:
            ruin_pages(real, random)
        with opened(path if random.random() < 0.7 else ":memory:") as index, suppress(ShardError), closing(real):
            shard = real.open(index=index, writer=None)
            found.update(each.sequence for each in shard.unsettled())
            shard.start(life, real.runtime.randomness)
            committed = sequence  # what an earlier life never committed is void by now
            for _ in range(random.randrange(4)):
                sequence = append_group(shard, sequence, committed, random)
                committed = sequence
            if life < 8 and random.random() < 0.5:
                sequence = append_group(shard, sequence, committed, random)
                lost.update(range(committed + 1, sequence + 1))
    assert lost <= found


def test_where_a_log_cannot_be_read_at_its_end_starts_look_at_little_of_it(
    real: Ground, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at all of it for as long as the page is bad."""
    monkeypatch.setattr(limits, "SEGMENT_BYTES", 3 * PAGE)
    with opened(path) as index:
        shard = real.new(index=index)
        while index.progress(0).segment < 10 or index.progress(0).offset < PAGE:
            append_group(shard, index.progress(0).sequence, index.progress(0).sequence, Random(0))
        bad = index.progress(0)
        real.close()
    real.faults.ruin(real.segment(bad.segment), bad.offset - 1)  # type: ignore[union-attr]
    for _ in range(2):
        with opened(path) as index:
            list(real.open(index=index, writer=None).unsettled())
            assert index.progress(0).settled_segment >= bad.segment - 1
            real.close()


def ruin_pages(real: Ground, random: Random) -> None:
    for name in real.names(f"{real.root()}/log"):
        for offset in range(0, limits.SEGMENT_BYTES, PAGE):
            if random.random() < 0.2:
                real.faults.ruin(f"{real.root()}/log/{name}", offset)  # type: ignore[union-attr]


def compact(shard: DirectoryShard, random: Random) -> None:
    """Move a segment's entries to the log's end."""
    sealed = shard.log.sealed()
    if sealed and (entries := shard.log.read_whole(number := random.choice(sealed))) is not None:
        shard.log.copy([located.item for located in entries])
        shard.flush()
        shard.log.remove(number)


def append_group(shard: DirectoryShard, sequence: int, committed: int, random: Random) -> int:
    """Returns the last of its sequences."""
    group = [entry(sequence + each, content(sequence + each)) for each in range(1, random.randrange(2, 6))]
    shard.append(group, committed)
    shard.flush()
    return group[-1].envelope.sequence


def test_it_knows_of_nothing_that_was_not_flushed(real: Ground, path: str) -> None:
    with opened(path) as index:
        shard = real.new(index=index)
        shard.append([entry(1, content(1))], 0)
        shard.flush()
        before = index.progress(0)
        for number in (2, 3):
            shard.append([entry(number, content(number))], 0)
            assert index.progress(0) == before
            assert index.find(0, share(number)) is None
            if number == 2:
                shard.flush()
                before = index.progress(0)
                assert index.find(0, share(2)) is not None
        real.faults.fail("fdatasync", lambda path: True, errno.EIO)
        with pytest.raises(ShardError):
            shard.flush()
        assert (index.progress(0), index.find(0, share(3))) == (before, None)
        real.close()


def test_after_a_clean_end_nothing_is_flushed_again(real: Ground, path: str) -> None:
    with opened(path) as index:
        shard = real.new(index=index)
        shard.append([entry(1, content(1))], 0)
        shard.flush()
        real.close()
        before = real.faults.calls["fsync"]  # type: ignore[union-attr]
        real.open(index=index, writer=None)
        assert real.faults.calls["fsync"] == before  # type: ignore[union-attr]
        real.close()


def test_behind_the_log_it_reads_the_rest(filled: Ground, path: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept.sqlite"
    shutil.copy(path, kept)
    with opened(path) as index:
        shard = filled.open(index=index, writer=2)
        shard.append([entry(100, content(100))], 0)
        shard.free([share(1)], small=True)
        shard.flush()
        filled.close()
    with opened(str(kept)) as index:
        shard = filled.open(index=index, writer=None)
        assert read_share(shard, share(100), small=True) == content(100)
        with pytest.raises(ShareMissing):
            shard.open_share(share(1), small=True)
        assert index._waiting.keys() == {version(number) for number in (1, 100, *FREED)}  # of what is known, only what was freed again
        filled.close()


def test_ahead_of_an_older_log_that_was_put_back_it_is_made_again(filled: Ground, path: str, tmp_path: Path) -> None:
    log, kept = Path(filled.root()) / "log", tmp_path / "kept"
    shutil.copytree(log, kept)
    with opened(path) as index:
        shard = filled.open(index=index, writer=2)
        shard.append([entry(number, content(number)) for number in range(100, 120)], 0)
        shard.flush()
        filled.close()
    shutil.rmtree(log)
    shutil.copytree(kept, log)
    with opened(path) as index:
        shard = filled.open(index=index, writer=3)
        check_everything(shard)
        with pytest.raises(ShareMissing):
            read_share(shard, share(119), small=True)
        shard.append([entry(200, content(200))], 0)
        shard.flush()
        assert read_share(shard, share(200), small=True) == content(200)
        filled.close()


@pytest.mark.parametrize("clean", [True, False])
def test_ahead_of_an_older_copy_of_the_very_segment_it_is_made_again(
    filled: Ground, path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, clean: bool
) -> None:
    """The copy was made while the shard was written to; now or then the segment has room that was not used yet."""
    log, kept, lacking = Path(filled.root()) / "log", tmp_path / "kept", (102, 103)  # in one segment with those before
    with opened(path) as index:
        shard = filled.open(index=index, writer=2)
        for number in (100, 101):
            shard.append([entry(number, content(number)[:200])], 99)
        shard.flush()
        shutil.copytree(log, kept)
        for number in lacking:
            shard.append([entry(number, content(number)[:200])], number - 1)
        shard.flush()
        assert shard.log.segments() == sorted(int(each.stem) for each in kept.iterdir())
        filled.close()
    shutil.rmtree(log)
    shutil.copytree(kept, log)
    if clean:
        segment = max(log.iterdir())
        os.truncate(segment, aligned(len(segment.read_bytes().rstrip(b"\0"))))
    with opened(path) as index:
        shard = filled.open(index=index, writer=3)
        assert "an older copy was put back" in caplog.text
        check_everything(shard)
        assert read_share(shard, share(101), small=True) == content(101)[:200]
        for number in lacking:
            assert not shard.has(share(number), small=True)
        assert not {*shard.held(small=True)} & {*map(share, lacking)}
        assert shard.newest_committed() == 99
        assert [each.sequence for each in shard.unsettled()] == [100, 101]
        shard.append([entry(200, content(200))], 103)
        shard.flush()
        filled.close()
    with opened(path) as index:
        shard = filled.open(index=index, writer=None)
        check_everything(shard)
        assert read_share(shard, share(200), small=True) == content(200)
        filled.close()


def test_behind_a_segment_that_compaction_took_it_is_made_again_without_a_word(
    filled: Ground, path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "kept.sqlite"
    shutil.copy(path, kept)
    with opened(path) as index:
        shard = filled.open(index=index, writer=2)
        last = index.progress(0).segment
        entries = shard.log.read_whole(last)
        assert entries
        shard.log.copy([each.item for each in entries])
        shard.flush()
        shard.log.remove(last)
        filled.close()
    with opened(str(kept)) as index:
        assert index.progress(0).segment == last
        check_everything(filled.open(index=index, writer=None))
        assert not caplog.text
        filled.close()


def test_what_compaction_does_is_known_after_a_kill(filled: Ground, path: str, tmp_path: Path) -> None:
    """Else all of the log would be read again."""
    left = tmp_path / "left.sqlite"
    with opened(path) as index:
        shard = filled.open(index=index, writer=2)
        shard.append([entry(number, content(number)) for number in range(100, 110)], 0)
        shard.flush()
        shard.log.remove(shard.log.sealed()[-1])
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(f"{path}{suffix}", f"{left}{suffix}")
        with opened(str(left)) as found:
            assert found.progress(0) == index.progress(0)
        filled.close()


def test_what_goes_with_a_segment_and_no_entry_says_so_is_not_held_any_more(filled: Ground, path: str, tmp_path: Path) -> None:
    left = tmp_path / "left.sqlite"
    with opened(path) as index:
        shard = filled.open(index=index, writer=2)
        segments, first = shard.segments(), shard.log.sealed()[0]
        entries = [each.item for each in segments.read(first) or () if isinstance(each.item, ScannedEntry)]
        moved, *dropped = [share(NUMBERS[at]) for at, _ in enumerate(entries)]
        segments.copy(entries[:1])
        segments.flush()
        segments.remove(first, [moved, *dropped, share(NUMBERS[-1])])
        held = {share(number) for number in NUMBERS if number not in FREED} - {*dropped}
        assert dropped
        assert {*shard.held(small=True)} == held
        for each in held:
            assert read_share(shard, each, small=True)
        for suffix in ("", "-wal", "-shm"):  # as a kill leaves it
            shutil.copy(f"{path}{suffix}", f"{left}{suffix}")
        filled.close()
    with opened(str(left)) as index:
        assert {*index.shares(0)} == held


@pytest.mark.parametrize("took", ["what follows it", "something behind that"])
def test_behind_a_compaction_that_took_what_says_of_a_share_that_it_was_freed_it_is_made_again(
    filled: Ground, path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, took: str
) -> None:
    """As after a power loss, or a kill: it leads to where the share lay, which is gone too."""
    kept = tmp_path / "kept.sqlite"
    shutil.copy(path, kept)
    with opened(path) as index:
        shard = filled.open(index=index, writer=2)
        if took == "something behind that":
            shard.append([entry(number, content(number)) for number in range(100, 110)], 0)
        shard.free([share(1)], small=True)
        shard.flush()
        says_so = index.progress(0).segment
        shard.append([entry(number, content(number)) for number in range(110, 120)], 0)
        shard.flush()
        for number in (1, says_so):
            items = [each.item for each in shard.log.read_whole(number) or ()]
            shard.log.copy([item for item in items if isinstance(item, ScannedEntry) and item.entry.share != content(1)])
            shard.flush()
            shard.log.remove(number)
        filled.close()
    with opened(str(kept)) as index:
        shard = filled.open(index=index, writer=None)
        assert not shard.has(share(1), small=True)
        assert share(1) not in [*shard.held(small=True)]
        assert read_share(shard, share(110), small=True) == content(110)
        assert not caplog.text
        filled.close()


def test_a_damaged_index_is_a_failed_shard_for_that_share_and_no_crash(filled: Ground, path: str) -> None:
    with opened(path) as index:
        shard = filled.open(index=index, writer=None)
        index.flush()
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("update entry set places=x'00' where version=?", (version(5),))
        with pytest.raises(ShardError, match="restart"):
            shard.open_share(share(5), small=True)
        assert read_share(shard, share(6), small=True) == content(6)
        filled.close()
    with opened(path) as index:
        check_everything(filled.open(index=index, writer=None))
        filled.close()


def test_a_log_of_another_time_makes_it_start_over(filled: Ground, path: str) -> None:
    with opened(path) as index:
        progress, lacking = index.progress(0), share(1_000)
        index.record(0, [(lacking, extent(1))], Progress(progress.segment, b"not that segment", progress.offset))
    with opened(path) as index:
        shard = filled.open(index=index, writer=None)
        check_everything(shard)
        assert not shard.has(lacking, small=True)
        assert index.progress(0).segment_id == progress.segment_id
        filled.close()
