"""The log: many segments, a bounded number of open files, damage that hides no more than it must."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from tests.shards.ground import Ground, crashed, entry, read_share, version
from tests.simulation.outcomes import NOTHING, outcomes
from zstor_local import limits
from zstor_local.model.ids import ShareId
from zstor_local.model.record import Kind
from zstor_local.runtime import DiskStalled
from zstor_local.shards.base import ShardError, ShareMissing
from zstor_local.shards.directory import DirectoryShard
from zstor_local.shards.log_index import LogIndex
from zstor_local.shards.segment_files import OPEN_PART, OpenSegments
from zstor_local.system import RealFiles


def share(number: int) -> ShareId:
    return ShareId(version(number), 0)


def content(number: int) -> bytes:
    return b"share %d " % number * 100


def fill(shard: DirectoryShard, first: int, last: int) -> None:
    for number in range(first, last + 1):
        shard.append([entry(number, content(number))], number - 1)
    shard.flush()


def readable(shard: DirectoryShard, first: int, last: int) -> list[int]:
    """The numbers whose shares read as they were written; any other bytes fail the test."""
    found = []
    for number in range(first, last + 1):
        try:
            assert read_share(shard, share(number), small=True) == content(number)
            found.append(number)
        except ShareMissing:
            pass
    return found


def test_a_full_segment_is_followed_by_another(real: Ground, short_segments: int) -> None:
    shard = real.new()
    fill(shard, 1, 50)
    assert len(shard.log.segments()) > 10
    for opened in real.now_and_after_a_restart():
        assert readable(opened, 1, 50) == list(range(1, 51))
        assert [found.entry.envelope.sequence for found in opened.scan()] == list(range(1, 51))


def test_a_full_segment_that_says_something_of_being_closed_is_done_with(real: Ground, short_segments: int) -> None:
    """Its number may be another file's by then, which nothing of the log may be written to."""
    shard = real.new()
    real.faults.fail("close", lambda path: path.endswith(".log"), errno.EIO, times=None)
    fill(shard, 1, 50)
    assert readable(shard, 1, 50) == list(range(1, 51))
    real.faults.heal()
    assert readable(real.reopen(), 1, 50) == list(range(1, 51))


def test_one_group_may_fill_several_segments(real: Ground, short_segments: int) -> None:
    shard = real.new()
    shard.append([entry(number, content(number)) for number in range(1, 31)], 0)
    shard.flush()
    for opened in real.now_and_after_a_restart():
        assert readable(opened, 1, 30) == list(range(1, 31))


def test_before_a_segment_is_written_to_those_before_it_are_flushed(simulated: Ground, short_segments: int) -> None:
    shard = simulated.new()
    shard.append([entry(number, content(number)) for number in range(1, 31)], 0)
    *full, last = map(simulated.segment, shard.log.segments())
    after = crashed(simulated, NOTHING)
    assert len(full) > 5
    assert [after.content(path) for path in full] == [simulated.content(path) for path in full]
    assert after.content(last) != simulated.content(last)


@pytest.mark.parametrize("known", [True, False], ids=["the index knows what was flushed", "there is no index"])
@pytest.mark.parametrize("failing", ["the last segment", "a full segment"])
@pytest.mark.parametrize("number", range(5))
def test_what_a_failed_flush_left_is_seen_as_far_as_it_is_durable(
    simulated: Ground, short_segments: int, failing: str, number: int, *, known: bool
) -> None:
    index = LogIndex(":memory:") if known else None
    shard = simulated.new(index=index)
    fill(shard, 1, 2)
    *_, last = shard.log.segments()
    entries = [entry(each, content(each)) for each in range(3, 10 + number)]
    if failing == "a full segment":
        simulated.faults.fail("fdatasync", lambda path: path == simulated.segment(last + (number > 2)), errno.EIO)
        with pytest.raises(ShardError):
            shard.append(entries, 2)
    else:
        shard.append(entries, 2)
        simulated.faults.fail("fdatasync", lambda path: True, errno.EIO)
        with pytest.raises(ShardError):
            shard.flush()
    seen = [found.entry.envelope.sequence for found in simulated.reopen(index=index).scan()]
    assert seen[:2] == [1, 2]
    for outcome in outcomes(simulated.faults.unpinned()):  # type: ignore[union-attr]
        after = crashed(simulated, outcome)
        assert [found.entry.envelope.sequence for found in after.open().scan()] == seen
        after.close()


def test_a_log_whose_end_the_disk_does_not_make_durable_tells_nothing(simulated: Ground) -> None:
    fill(simulated.new(), 1, 2)
    simulated.faults.fail("fsync", lambda path: path == simulated.segment(1), errno.EIO)
    with pytest.raises(ShardError, match="EIO"):
        simulated.reopen()


def test_no_segment_is_longer_than_it_may_be(real: Ground, short_segments: int) -> None:
    fill(real.new(), 1, 30)
    for name in real.names(f"{real.root()}/log"):
        assert len(real.content(f"{real.root()}/log/{name}")) <= short_segments


def test_few_of_many_segments_are_kept_open_where_descriptors_are_scarce(
    real: Ground, short_segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real.faults, "descriptors", lambda: 10 * OPEN_PART)
    shard = real.new()
    fill(shard, 1, 150)
    before = len(open_descriptors())
    for _ in range(2):
        assert len(readable(shard, 1, 150)) == 150
    assert len(open_descriptors()) <= before + 10


def test_segments_that_were_read_are_not_opened_again(real: Ground, short_segments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real.faults, "descriptors", lambda: 100 * OPEN_PART)
    shard = real.new()
    fill(shard, 1, 150)
    assert len(readable(shard, 1, 150)) == 150
    before = real.faults.calls["open"]  # type: ignore[union-attr]
    assert len(readable(shard, 1, 150)) == 150
    assert real.faults.calls["open"] == before  # type: ignore[union-attr]


def test_a_segment_in_use_stays_open_however_many_others_are_read(real: Ground, short_segments: int) -> None:
    shard = real.new()
    fill(shard, 1, 150)
    with shard.log._readers.using(1) as fd:
        readable(shard, 1, 150)
        assert real.runtime.files.status(fd).inode == real.runtime.files.path_status(real.segment(1)).inode


class OpeningSlowly(RealFiles):
    """Something happens while a file is opened."""

    def __init__(self) -> None:
        self.meanwhile: list[Callable[[], object]] = []

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        while self.meanwhile:
            self.meanwhile.pop()()
        return fd


@pytest.fixture
def slow(tmp_path: Path) -> tuple[OpeningSlowly, OpenSegments]:
    for number in (1, 2):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
    files = OpeningSlowly()
    return files, OpenSegments(files, lambda number: str(tmp_path / str(number)))


def test_nobody_waits_for_a_segment_that_another_one_opens(slow: tuple[OpeningSlowly, OpenSegments]) -> None:
    files, segments = slow
    with segments.using(1) as one:
        files.meanwhile = [lambda: segments.give(segments.take(1))]
        with segments.using(2) as two:
            assert [files.pread(fd, 1, 0) for fd in (one, two)] == [b"1", b"2"]
    segments.close()


def test_two_who_open_a_segment_share_it(slow: tuple[OpeningSlowly, OpenSegments]) -> None:
    files, segments = slow
    before = open_descriptors()
    files.meanwhile = [lambda: segments.give(segments.take(1))]
    with segments.using(1):
        assert len(open_descriptors()) == len(before) + 1
    segments.close()
    assert open_descriptors() == before


def test_a_segment_that_is_removed_while_it_is_opened_is_not_taken_for_the_next_of_its_number(
    slow: tuple[OpeningSlowly, OpenSegments], tmp_path: Path
) -> None:
    files, segments = slow

    def another() -> None:
        (tmp_path / "1").unlink()
        (tmp_path / "1").write_bytes(b"another")
        segments.forget(1)

    files.meanwhile = [another]
    with segments.using(1) as fd:
        assert files.pread(fd, 7, 0) == b"another"
    segments.close()


def test_each_start_begins_a_segment_of_its_own(real: Ground) -> None:
    fill(real.new(), 1, 3)
    shard = real.reopen()
    fill(shard, 4, 6)
    assert shard.log.segments() == [1, 2]
    assert readable(real.reopen(), 1, 6) == [1, 2, 3, 4, 5, 6]


def test_a_clean_end_gives_the_room_of_the_segment_back(real: Ground) -> None:
    fill(real.new(), 1, 3)
    assert len(real.content(real.segment(1))) == limits.SEGMENT_STEP_BYTES
    real.close()
    assert len(real.content(real.segment(1))) < 10_000


def test_after_a_kill_the_empty_rest_is_given_back_and_nothing_else(real: Ground) -> None:
    fill(real.new(), 1, 3)
    real.close()
    used = len(real.content(real.segment(1)))
    real.overwrite(real.segment(1), limits.SEGMENT_BYTES - 1, b"\0")
    real.reopen()
    assert len(real.content(real.segment(1))) == used
    real.close()
    real.overwrite(real.segment(1), limits.SEGMENT_BYTES - 1, b"x")  # something that no scan understands
    shard = real.reopen()
    assert len(real.content(real.segment(1))) == limits.SEGMENT_BYTES
    assert readable(shard, 1, 3) == [1, 2, 3]


def test_a_damaged_header_hides_its_segment_and_no_other(real: Ground, short_segments: int) -> None:
    shard = real.new()
    fill(shard, 1, 30)
    third = {number for number in range(1, 31) if (place := shard.log._index.find(0, share(number))) and place.segment == 3}
    real.overwrite(real.segment(3), 0, b"?")  # of the magic: any other byte may be one already
    shard = real.reopen()
    assert set(readable(shard, 1, 30)) == set(range(1, 31)) - third
    assert third
    fill(shard, 31, 35)
    assert readable(shard, 31, 35) == [31, 32, 33, 34, 35]


def test_a_damaged_entry_hides_itself_and_no_other(real: Ground) -> None:
    fill(real.new(), 1, 10)
    place = real.opened[0].log._index.find(0, share(5))
    assert place is not None
    real.overwrite(real.segment(1), place.offset + 3, b"?")
    assert readable(real.reopen(), 1, 10) == [1, 2, 3, 4, 6, 7, 8, 9, 10]


def test_a_bad_sector_hides_what_lies_on_it_and_no_other(real: Ground) -> None:
    shard = real.new()
    fill(shard, 1, 50)
    place = shard.log._index.find(0, share(20))
    assert place is not None
    real.faults.ruin(real.segment(1), place.offset)  # type: ignore[union-attr]
    for opened in real.now_and_after_a_restart():
        found = [each.entry.envelope.sequence for each in opened.scan()]
        assert 20 not in found
        assert 50 > len(found) > 40
        assert len(list(opened.records())) == len(found)
    assert readable(real.reopen(), 1, 50) == found
    fill(real.opened[0], 51, 52)
    real.faults.heal()
    assert readable(real.reopen(), 1, 52) == list(range(1, 53))


def test_a_bad_sector_under_a_header_hides_its_segment_and_no_other(real: Ground, short_segments: int) -> None:
    shard = real.new()
    fill(shard, 1, 30)
    third = {number for number in range(1, 31) if (place := shard.log._index.find(0, share(number))) and place.segment == 3}
    real.faults.ruin(real.segment(3), 0)  # type: ignore[union-attr]
    assert {each.entry.envelope.sequence for each in real.reopen().scan()} == set(range(1, 31)) - third
    assert third


def test_a_bad_sector_behind_the_last_entry_keeps_nobody_from_beginning(real: Ground) -> None:
    fill(real.new(), 1, 3)
    real.close()
    real.overwrite(real.segment(1), limits.SEGMENT_BYTES - 1, b"\0")
    real.faults.ruin(real.segment(1), limits.SEGMENT_BYTES - 1)  # type: ignore[union-attr]
    shard = real.reopen()
    assert shard.check() == "ok"
    assert real.runtime.files.path_status(real.segment(1)).size == limits.SEGMENT_BYTES
    fill(shard, 4, 5)
    assert readable(shard, 1, 5) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("header", [True, False])
def test_a_disk_that_reads_little_of_a_log_has_more_than_a_bad_sector(real: Ground, *, header: bool) -> None:
    fill(real.new(), 1, 300)
    real.close()
    real.faults.ruin(real.segment(1), 0 if header else 4_096, limits.SEGMENT_BYTES)  # type: ignore[union-attr]
    with pytest.raises(ShardError, match="EIO"):
        real.open()


def test_a_torn_tail_costs_what_was_not_flushed(real: Ground) -> None:
    shard = real.new()
    fill(shard, 1, 5)
    end = shard.log._index.progress(0).offset
    real.close()
    real.overwrite(real.segment(1), end, b"ZENT" + b"\xff" * 60)  # the beginning of an entry that came no further
    shard = real.reopen()
    fill(shard, 6, 8)
    assert readable(real.reopen(), 1, 8) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_segment_that_was_taken_away_is_missing(real: Ground, short_segments: int) -> None:
    shard = real.new()
    fill(shard, 1, 100)
    for number in shard.log.segments()[:-1]:
        real.runtime.files.unlink(real.segment(number))
    assert len(readable(real.reopen(), 1, 100)) < 10


def test_a_segment_taken_away_while_open_is_missing_too(real: Ground, short_segments: int) -> None:
    shard = real.new()
    fill(shard, 1, 100)
    for number in shard.log.segments()[:-1]:
        real.runtime.files.unlink(real.segment(number))
    assert len(readable(shard, 1, 100)) < 100


def test_a_scan_that_came_upon_a_segment_that_could_not_be_made_does_not_hide_the_next(
    real: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = real.new()
    fill(shard, 1, 1)
    shard.log.rest()

    def full(fd: int, offset: int, length: int) -> None:
        list(shard.scan())  # as another thread may just now
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr(real.runtime.files, "allocate", full)
        with pytest.raises(ShardError):
            fill(shard, 2, 2)
    fill(shard, 3, 3)
    assert readable(shard, 1, 3) == [1, 3]


def test_a_segment_that_is_removed_while_it_is_read_gives_its_room_back(real: Ground, short_segments: int) -> None:
    shard = real.new()
    fill(shard, 1, 30)
    with shard.log._readers.using(1) as fd:
        shard.log.remove(1)
        assert real.runtime.files.status(fd).links == 0
    assert f"{real.segment(1)} (deleted)" not in open_descriptors()


def test_after_a_failed_sync_of_a_removal_nothing_more_is_appended_or_removed(real: Ground, short_segments: int) -> None:
    """The segment may come back with a power loss: what buries things in it has to stay."""
    shard = real.new()
    fill(shard, 1, 30)
    segments = shard.segments()
    real.faults.fail("fsync", lambda path: path.endswith("/log"), errno.EIO)
    with pytest.raises(ShardError):
        segments.remove(1)
    assert shard.check() == "failed"
    changes: list[Callable[[], object]] = [lambda: segments.remove(2), lambda: fill(shard, 31, 31), segments.flush]
    for change in changes:
        with pytest.raises(ShardError):
            change()
    assert 2 in shard.log.segments()


def test_what_is_read_from_a_closed_log_is_closed_again(real: Ground) -> None:
    shard = real.new()
    fill(shard, 1, 3)
    reader = shard.open_share(share(1), small=True)
    shard.close()
    before = open_descriptors()
    assert bytes(reader.read(0, 5)) == content(1)[:5]
    assert open_descriptors() == before


def test_when_there_is_no_room_for_the_next_segment_the_log_goes_on_later(real: Ground, short_segments: int) -> None:
    shard = real.new()
    fill(shard, 1, 3)
    real.faults.fail("allocate", lambda path: True, errno.ENOSPC)
    with pytest.raises(ShardError) as caught:
        shard.append([entry(number, content(number)) for number in range(4, 12)], 3)
    assert caught.value.state == "full"
    assert shard.log.segments() == [1]
    fill(shard, 12, 14)
    for opened in real.now_and_after_a_restart():
        assert readable(opened, 1, 14) == [1, 2, 3, 12, 13, 14]


def test_a_disk_that_does_not_answer_when_the_log_has_to_grow_says_so(
    real: Ground, short_segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object) -> None:
        raise DiskStalled

    shard = real.new()
    monkeypatch.setattr(real.faults, "allocate", hang)
    with pytest.raises(ShardError, match="the disk does not answer") as caught:
        shard.append([entry(number, content(number)) for number in range(12)], 3)
    assert caught.value.untouched
    assert shard.check() == "failed"


def until_it_is_full(work: Callable[[int], None]) -> int:
    """Do it again and again. Returns how often that went well."""
    for number in range(1, 100_000):
        try:
            work(number)
        except ShardError:
            return number - 1
    raise AssertionError("there is always room")


def test_a_full_disk_has_room_for_the_voids_of_what_came_last(real: Ground) -> None:
    shard = real.new()
    real.faults.fail("allocate", lambda path: True, errno.ENOSPC, times=None)
    last = until_it_is_full(lambda number: shard.append([entry(number, content(number))], number - 1))
    until_it_is_full(lambda _: shard.free([share(1)], small=True))
    shard.append([entry(last + number, kind=Kind.VOID) for number in (1, 2)], last)
    shard.flush()
    for opened in real.now_and_after_a_restart():
        assert [found.entry.envelope.sequence for found in opened.scan()][-2:] == [last + 1, last + 2]


def test_what_an_append_left_that_broke_off_is_unsettled(real: Ground, short_segments: int, tmp_path: Path) -> None:
    with closing(LogIndex(str(tmp_path / "index.sqlite"))) as index:
        shard = real.new(index=index)
        fill(shard, 1, 3)
        real.faults.fail("allocate", lambda path: path == real.segment(4), errno.ENOSPC)
        with pytest.raises(ShardError):
            shard.append([entry(number, content(number)) for number in range(4, 30)], 3)
        shard.append([entry(40, content(40))], 3)
        shard.flush()
        real.close()
    with closing(LogIndex(str(tmp_path / "index.sqlite"))) as index:
        shard = real.open(index=index, writer=None)
        unsettled = [each.sequence for each in shard.unsettled()]
        assert unsettled == [found.entry.envelope.sequence for found in shard.scan() if found.entry.envelope.sequence > 3]
        assert unsettled[0] == 4
        real.close()


def test_the_newest_segment_bears_the_writer_number(real: Ground) -> None:
    fill(real.new(), 1, 2)
    assert real.opened[0].newest_writer() == 1
    assert real.reopen(writer=7).newest_writer() == 7
    assert real.reopen(writer=None).newest_writer() == 7


def test_files_of_others_in_the_directory_are_left_alone(real: Ground) -> None:
    real.create()
    for name in ("notes.txt", "x.log", ".log", "0000000001.log.bak"):
        fd = real.runtime.files.open(f"{real.root()}/log/{name}", 0o101)
        real.runtime.files.close(fd)
    fill(real.open(), 1, 2)
    assert readable(real.reopen(), 1, 2) == [1, 2]
    assert len(real.names(f"{real.root()}/log")) == 6


def test_an_empty_segment_of_an_interrupted_start_is_passed_over(real: Ground) -> None:
    fill(real.new(), 1, 2)
    real.close()
    fd = real.runtime.files.open(real.segment(2), 0o101)
    real.runtime.files.close(fd)
    shard = real.reopen()
    fill(shard, 3, 4)
    assert readable(real.reopen(), 1, 4) == [1, 2, 3, 4]
