"""A space on a disk that fails, fills and damages, without HTTP around it."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.descriptors import open_descriptors
from tests.shardserver.server import LIMIT, MARKER, NAMESPACE, SESSION, scanned, share_file, version
from tests.troubled_files import TroubledFiles, troubled_runtime
from zstor_local import limits
from zstor_local.model.ids import NamespaceId, ShareId
from zstor_local.runtime import Buffer
from zstor_local.shards import log_index
from zstor_local.shards.base import Capacity
from zstor_local.shards.http import wire
from zstor_local.shards.http.wire import Batch, Fence, share_name
from zstor_local.shards.segment import HEADER_BYTES
from zstor_local.shardserver import rooms
from zstor_local.shardserver.disk import TEMPORARY, Directories
from zstor_local.shardserver.large import AHEAD_MAX, LargeShares
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.space import Cursor, Space

FENCE = Fence(1, 1, SESSION)
SHARE = ShareId(version(1), 0)
FILE = share_file(SHARE, b"blocks" * 100)
A_MOMENT = 0.2  # in which what is not held up gets done; a machine that takes longer notices less


class Disk:
    """A space's disk; `open` is a start of the server."""

    def __init__(self, parent: Path) -> None:
        self.files = TroubledFiles()
        self.runtime = troubled_runtime(self.files)
        self.root = str(parent / "space")
        Space.create(self.runtime, self.root, "issuer", MARKER, Directories(self.files))
        self.opened: list[Space] = []
        self.reserve = False

    def open(self, quota_bytes: int | None = None, fence: Fence = FENCE) -> Space:
        space = self.only_read(quota_bytes)
        space.raise_fence(fence)
        return space

    def only_read(self, quota_bytes: int | None = None) -> Space:
        """Nobody takes it over."""
        for space in self.opened:
            space.close()
        space = Space(self.runtime, self.root, quota_bytes, self.make_room)
        self.opened = [space]
        return space

    def make_room(self) -> bool:
        """There is something in reserve once."""
        kept, self.reserve = self.reserve, False
        if kept:
            self.files.heal()
        return kept

    def fill(self) -> None:
        """From now on there is room for nothing new."""
        for operation in ("pwritev", "allocate"):
            self.files.fail(operation, lambda path: True, errno.ENOSPC, times=None)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    yield disk
    disk.files.heal()
    for space in disk.opened:
        space.close()


def namespace(number: int) -> NamespaceId:
    return NamespaceId(number.to_bytes(16, "big"))


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as refusal:
        work()
    return refusal.value.type


def shares(space: Space) -> list[bytes]:
    return [each.entry.share for each in space.page(None, Cursor(), 1 << 30)[0].entries]


@pytest.mark.parametrize("name", ["about.json", "fence"])
def test_a_space_that_is_damaged_is_told_so(disk: Disk, name: str) -> None:
    """And whoever asks for it is not told that they ask for something wrong."""
    for damage in (b"", b"\0" * 60, b"[]", b"{}", b"\xff"):
        Path(disk.root, name).write_bytes(damage)
        assert refused(disk.only_read) == "failed"


# --- Logs ---


def sequences(space: Space, cursor: Cursor) -> tuple[list[int], Cursor]:
    """Of what lies behind a cursor, which goes over the wire as text."""
    batch, after = space.page(NAMESPACE, Cursor.parse(str(cursor)), 1 << 20)
    return [each.entry.envelope.sequence for each in batch.entries], after


def test_a_cursor_behind_what_an_older_copy_lacks_is_gone(disk: Disk) -> None:
    """And so it stays when there is more in the log than before."""
    space = disk.open()
    space.append(FENCE, 1, Batch([scanned(1)]))
    _, old = sequences(space, Cursor())
    disk.opened.pop().close()
    shutil.copytree(disk.root, f"{disk.root}.copy")
    space = disk.open(fence=replace(FENCE, opening=2))
    space.append(space.fence, 1, Batch([scanned(2)]))
    found, lost = sequences(space, old)
    assert found == [2]
    disk.opened.pop().close()
    shutil.rmtree(disk.root)
    shutil.move(f"{disk.root}.copy", disk.root)
    space = disk.open(fence=replace(FENCE, opening=2))
    assert refused(lambda: sequences(space, lost)) == "gone"
    for number in (3, 4):
        space.append(space.fence, number, Batch([scanned(number)]))
        assert refused(lambda: sequences(space, lost)) == "gone"
        assert sequences(space, old)[0] == [*range(3, number + 1)]
    assert sequences(space, Cursor())[0] == [1, 3, 4]


def test_a_cursor_behind_the_end_that_a_segment_has_in_an_older_copy_is_gone(disk: Disk) -> None:
    """It was copied while it was written."""
    space = disk.open()
    space.append(FENCE, 1, Batch([scanned(1)]))
    shutil.copytree(disk.root, f"{disk.root}.copy")
    space.append(FENCE, 2, Batch([scanned(2)]))
    _, lost = sequences(space, Cursor())
    disk.opened.pop().close()
    shutil.rmtree(disk.root)
    shutil.move(f"{disk.root}.copy", disk.root)
    space = disk.open(fence=replace(FENCE, opening=2))
    space.append(space.fence, 1, Batch([scanned(3)]))
    assert refused(lambda: sequences(space, lost)) == "gone"
    assert sequences(space, Cursor())[0] == [1, 3]


def test_a_cursor_in_a_log_that_went_is_gone(disk: Disk) -> None:
    """With its room, or all that was in it."""
    space = disk.open()
    assert sequences(space, Cursor()) == ([], Cursor())
    for number in (1, 2):
        space.append(FENCE, number, Batch([scanned(number, namespace=namespace(number))]))
    _, other = space.page(namespace(1), Cursor(), 1 << 20)
    assert refused(lambda: space.page(namespace(2), other, 1 << 20)) == "gone"
    assert refused(lambda: space.page(NAMESPACE, other, 1 << 20)) == "gone"
    room = space.rooms.find(namespace(1))
    assert room is not None
    space.rooms.empty(room)
    assert refused(lambda: space.page(namespace(1), other, 1 << 20)) == "gone"
    space.append(FENCE, 3, Batch([scanned(3, namespace=namespace(1))]))
    assert refused(lambda: space.page(namespace(1), other, 1 << 20)) == "gone"


def test_a_page_ends_before_what_is_still_being_written(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel may show the second entry before the first one, which a cursor behind the second would pass over."""
    space = disk.open()
    space.append(FENCE, 1, Batch([scanned(1)]))
    _, cursor = sequences(space, Cursor())
    seen: list[list[int]] = []

    def by_halves(fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        written = b"".join(buffers)
        half = len(written) // 2
        os.pwrite(fd, written[half:], offset + half)
        seen.append(sequences(space, cursor)[0])
        os.pwrite(fd, written[:half], offset)
        return len(written)

    with monkeypatch.context() as patch:
        patch.setattr(disk.files, "pwritev", by_halves)
        space.append(FENCE, 2, Batch([scanned(2), scanned(3)]))
    assert seen
    assert not any(seen)
    assert sequences(space, cursor)[0] == [2, 3]


def test_entries_of_a_page_count_with_the_memory_that_they_take(disk: Disk) -> None:
    """The shortest have a hundred bytes on the wire."""
    space = disk.open()
    space.append(FENCE, 1, Batch([scanned(number) for number in range(1, 1_001)]))
    end = space.page(None, Cursor(), 1 << 30)[1]
    batch, cursor = space.page(None, Cursor(), 100_000)
    assert len(batch.entries) < 200
    while cursor != end:
        batch, cursor = space.page(None, cursor, 100_000)
        assert batch.entries


def test_what_is_told_to_be_unsettled_has_an_end(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner may append without end, and never say that anything was committed."""
    space = disk.open()
    space.append(FENCE, 1, Batch([scanned(number) for number in range(1, 101)]))
    assert len(space.unsettled().entries) == 100
    monkeypatch.setattr(wire, "UNSETTLED_BYTES_MAX", 10_000)
    assert refused(space.unsettled) == "too_large"


def test_what_may_be_unsettled_where_the_disk_cannot_read_is_not_passed_over(disk: Disk) -> None:
    """Its owner may not write meanwhile: the logs of other namespaces would say that all is committed."""
    space = disk.open()
    space.append(FENCE, 1, Batch([scanned(number, namespace=namespace(number)) for number in (1, 2)]))
    space.append(FENCE, 2, Batch([scanned(3, bytes(9_000), namespace=namespace(1), committed=2)]))
    log = space.rooms.log(next(iter(space.rooms)))
    disk.files.ruin(log.path(1), 4_096)
    for later in (Fence(2, 1, SESSION), Fence(3, 1, SESSION)):
        space = disk.open(fence=later)
        assert refused(space.unsettled) == "readonly"
    disk.files.heal()
    for _ in range(2):
        assert [each.entry.envelope.sequence for each in space.unsettled().entries] == [3]
    space.append(later, 1, Batch([scanned(9, namespace=namespace(1), committed=8)]))
    assert space.newest_committed == 8
    assert [each.entry.envelope.sequence for each in space.unsettled().entries] == [9]


@pytest.mark.parametrize("text", ["", "1.1.64", "1.1.64.5", f"1.1.64.{'5' * 31}g", f"0.0.0.{'5' * 33}", f"-1.1.64.{'5' * 32}"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    assert refused(lambda: Cursor.parse(text)) == "bad_request"


def test_what_is_acknowledged_is_flushed_in_every_log_that_it_reached(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """More logs than may be written at once: the first one is put to rest while the batch goes into the others."""
    monkeypatch.setattr(rooms, "OPEN_LOGS", 2)
    space = disk.open()
    disk.files.fail("fdatasync", lambda path: f"/rooms/{namespace(1).hex()}/" in path, errno.EIO)
    batch = Batch([scanned(number, b"share", namespace=namespace(number)) for number in (1, 2, 3)])
    assert refused(lambda: space.append(FENCE, 1, batch)) == "failed"


def test_descriptors_are_enough_for_any_number_of_namespaces(disk: Disk) -> None:
    space = disk.open()
    for number in range(2 * rooms.READ_LOGS):
        space.append(FENCE, number, Batch([scanned(number + 1, b"%d" % number, namespace=namespace(number))]))
    space = disk.open()
    assert shares(space) == [b"%d" % number for number in range(2 * rooms.READ_LOGS)]
    logs = [path for path in open_descriptors() if path.startswith(disk.root) and path.endswith(".log")]
    assert len(logs) == rooms.READ_LOGS


def test_a_namespace_whose_description_is_damaged_keeps_what_it_holds(disk: Disk) -> None:
    space = disk.open()
    for number in (1, 2):
        space.append(FENCE, number, Batch([scanned(number, b"%d" % number, namespace=namespace(number))]))
        space.rooms.describe(namespace(number), f"name{number}", None, None)
    Path(disk.root, "rooms", namespace(1).hex(), "about.json").write_bytes(b"\0" * 60)
    space = disk.open()
    assert sorted(shares(space)) == [b"1", b"2"]
    with space.opened(namespace(1), ShareId(version(1), 0), small=True) as (size, read):
        assert (size, read(0, 9)) == (1, b"1")
    assert [room.name for room in space.rooms] == ["name2", None]


def test_a_log_that_cannot_be_read_hides_no_other_namespace(disk: Disk) -> None:
    """It is told of; nothing is written to the shard until all that lies there can be known again."""
    space = disk.open()
    large = share_file(SHARE, b"blocks", namespace(2))
    put(space, SHARE, large, of=namespace(2))
    space.large.finish(FENCE, namespace(2), SHARE, len(large))
    for number in (1, 2, 3):
        space.append(FENCE, number, Batch([scanned(number, b"%d" % number, namespace=namespace(number))]))
    disk.opened.pop().close()
    bad = f"/rooms/{namespace(2).hex()}/log"
    disk.files.fail("open", lambda path: bad in path, errno.EACCES, times=None)
    space = disk.only_read()
    assert {*space.rooms.unreadable} == {namespace(2)}
    for number in (1, 3):
        assert [each.entry.share for each in space.page(namespace(number), Cursor(), 1 << 20)[0].entries] == [b"%d" % number]
        with space.opened(None, ShareId(version(number), 0), small=True) as (_, read):
            assert read(0, 9) == b"%d" % number
    with space.large.open(namespace(2), SHARE) as (_, size):
        assert size == len(large)
    share = ShareId(version(2), 0)
    unknown: list[Callable[[], object]] = [
        lambda: space.page(namespace(2), Cursor(), 1 << 20),
        lambda: space.page(None, Cursor(), 1 << 20),
        lambda: space.opened(namespace(2), share, small=True).__enter__(),
        lambda: space.opened(None, ShareId(version(7), 0), small=True).__enter__(),
        lambda: space.list_small("", 9),
        space.unsettled,
    ]
    assert [refused(work) for work in unknown] == ["failed"] * len(unknown)
    assert refused(lambda: space.opened(namespace(1), share, small=True).__enter__()) == "not_found"
    later = Fence(2, 1, SESSION)
    assert refused(lambda: space.append(FENCE, 9, Batch([scanned(4)]))) == "readonly"
    assert refused(lambda: space.raise_fence(later)) == "readonly"
    disk.files.heal()
    space.raise_fence(later)
    space.append(later, 1, Batch([scanned(4, b"4", namespace=namespace(2))]))
    assert sorted(shares(space)) == [b"1", b"2", b"3", b"4"]
    assert not space.rooms.unreadable
    assert [(room.shares, room.used_bytes > 0) for room in space.rooms] == [(1, True), (0, True), (0, True)]


def test_what_was_allocated_to_a_server_that_was_killed_counts_for_nothing(disk: Disk, tmp_path: Path) -> None:
    space = disk.open()
    space.append(FENCE, 1, Batch([scanned(1, b"share")]))
    space.append(FENCE, 2, Batch([], [SHARE]))
    (used,) = (room.used_bytes for room in space.rooms)
    shutil.copytree(disk.root, tmp_path / "killed")
    killed = Space(disk.runtime, str(tmp_path / "killed"))
    try:
        assert [room.used_bytes for room in killed.rooms] == [used + HEADER_BYTES]
    finally:
        killed.close()


def test_a_kill_after_a_retirement_looks_like_no_older_copy(disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk.open().append(FENCE, 1, Batch([scanned(1, b"share")]))
    disk.open().retire(NAMESPACE)
    shutil.copytree(disk.root, tmp_path / "killed")
    Space(disk.runtime, str(tmp_path / "killed")).close()
    assert "older copy" not in caplog.text


def test_a_name_that_is_told_again_is_not_written_again(disk: Disk) -> None:
    """All of a store's are, whenever one of them changes."""
    space = disk.open()
    for text in ("photos", "mail", "photos"):
        for changes in (True, False):
            before = disk.files.calls["fsync"]
            space.rooms.describe(NAMESPACE, text, None, None)
            assert (disk.files.calls["fsync"] > before) is changes
    assert [room.name for room in disk.open().rooms] == ["photos"]


def test_namespaces_keep_apart_where_one_could_not_be_made_at_first(disk: Disk) -> None:
    space = disk.open()
    disk.files.fail("open", lambda path: path.endswith("/rooms"), errno.EMFILE)

    def append(number: int) -> None:
        disk.opened[0].append(FENCE, number, Batch([scanned(number, b"%d" % number, namespace=namespace(number))]))

    assert refused(lambda: append(1)) == "failed"
    append(2)
    disk.files.heal()
    space = disk.open()
    append(1)
    assert len({room.number for room in space.rooms}) == 2
    for number in (1, 2):
        with space.opened(None, ShareId(version(number), 0), small=True) as (_, read):
            assert read(0, 9) == b"%d" % number


def test_a_namespace_that_cannot_be_made_takes_one_number_however_often_it_is_tried(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, by whoever writes there again and again."""
    monkeypatch.setattr(rooms, "ROOMS_MAX", 2)
    space = disk.open()
    disk.files.fail("fsync", lambda path: path.endswith("about.json.new"), errno.ENOSPC, times=3)
    for _ in range(3):
        assert refused(lambda: space.append(FENCE, 1, Batch([scanned(1, b"share", namespace=namespace(1))]))) == "full"
    for number in (1, 2):
        space.append(FENCE, number, Batch([scanned(number, b"share", namespace=namespace(number))]))
    assert sorted(room.number for room in space.rooms) == [1, 2]


def test_a_retirement_that_breaks_off_counts_nothing_twice(disk: Disk) -> None:
    disk.open().append(FENCE, 1, Batch([scanned(1, b"share")]))
    space = disk.open()
    (room,) = space.rooms
    before = room.used_bytes
    disk.files.fail("unlink", lambda path: path.endswith(".log"), errno.EIO)
    assert refused(lambda: space.retire(NAMESPACE)) == "failed"
    assert shares(space) == [b"share"]
    assert room.used_bytes == before
    space.retire(NAMESPACE)
    assert (shares(space), room.used_bytes) == ([], 0)


def test_two_namespaces_of_one_number_are_told_apart(disk: Disk) -> None:
    """As an earlier version may have left them."""
    space = disk.open()
    for number in (1, 2, 3):
        space.append(FENCE, number, Batch([scanned(number, b"%d" % number, namespace=namespace(number))]))
        space.rooms.describe(namespace(number), f"name{number}", None, None)
    about = Path(disk.root, "rooms", namespace(2).hex(), "about.json")
    about.write_text(about.read_text().replace('"number": 2', '"number": 1'))
    space = disk.open()
    assert sorted(room.name or "" for room in space.rooms) == ["name1", "name2", "name3"]
    assert len({room.number for room in space.rooms}) == 3
    for number in (1, 2, 3):
        with space.opened(None, ShareId(version(number), 0), small=True) as (_, read):
            assert read(0, 9) == b"%d" % number


def test_namespaces_whose_descriptions_are_damaged_do_not_take_each_others_shares(disk: Disk) -> None:
    space = disk.open()
    for batch, number in enumerate((3, 2, 1)):  # another order than that of their names
        space.append(FENCE, batch, Batch([scanned(number, b"%d" % number, namespace=namespace(number))]))
    for number in (1, 2):
        Path(disk.root, "rooms", namespace(number).hex(), "about.json").write_bytes(b"\0" * 60)
    space = disk.open()
    for number in (1, 2, 3):
        with space.opened(None, ShareId(version(number), 0), small=True) as (_, read):
            assert read(0, 9) == b"%d" % number


def test_a_kill_while_a_namespace_gets_another_number_hides_no_share(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That number is its old one where no namespace came later: what was left of its shares in the index passed for all of them."""
    space = disk.open()
    space.append(FENCE, 1, Batch([scanned(number, b"share") for number in range(1, 6)]))
    disk.opened.pop().close()
    Path(disk.root, "rooms", NAMESPACE.hex(), "about.json").write_bytes(b"")
    monkeypatch.setattr(log_index, "FLUSH_AT", 3)
    disk.only_read()
    shutil.copytree(disk.root, tmp_path / "killed")
    killed = Space(disk.runtime, str(tmp_path / "killed"))
    disk.opened.append(killed)
    for number in range(1, 6):
        with killed.opened(None, ShareId(version(number), 0), small=True) as (size, read):
            assert read(0, size) == b"share"


def test_what_went_with_a_namespace_that_had_got_another_number_is_not_listed(disk: Disk) -> None:
    """The index has it under the old number too, which nobody knows any more."""
    space = disk.open()
    for number in (1, 2):
        space.append(FENCE, number, Batch([scanned(number, b"share", namespace=namespace(number))]))
    disk.opened.pop().close()
    Path(disk.root, "rooms", namespace(1).hex(), "about.json").write_bytes(b"")
    space = disk.open()
    names = [share_name(ShareId(version(number), 0)) for number in (1, 2)]
    assert space.list_small("", 9) == names
    space.retire(namespace(1))
    assert space.list_small("", 9) == names[1:]


def test_no_namespace_is_made_that_the_index_has_no_number_for(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "ROOMS_MAX", 2)
    space = disk.open()
    for number in (1, 2):
        space.append(FENCE, number, Batch([scanned(number, b"share", namespace=namespace(number))]))
    space.retire(namespace(2))
    with pytest.raises(Refusal, match="2 namespaces, deleted ones among them") as full:
        space.append(FENCE, 3, Batch([scanned(3, b"share", namespace=namespace(3))]))
    assert full.value.type == "full"
    space.append(FENCE, 4, Batch([scanned(4, b"share", namespace=namespace(1))]))


def test_a_batch_that_comes_late_brings_nothing_back(disk: Disk) -> None:
    """It was sent once more when its connection broke, and done; then what it says was freed."""
    space = disk.open()
    late = Batch([scanned(1, b"share")])
    space.append(FENCE, 1, late)
    space.append(FENCE, 1, late)
    space.append(FENCE, 2, Batch([], [SHARE]))
    assert refused(lambda: space.append(FENCE, 1, late)) == "bad_request"
    assert space.list_small("", 9) == []
    later = Fence(1, 2, SESSION)
    space.raise_fence(later)
    space.append(later, 1, Batch([scanned(2, b"share")]))


def test_small_shares_are_listed_over_all_namespaces_without_looking_at_those_before(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = disk.open()
    for number in range(1, 21):
        entry = scanned(number, b"share", namespace=namespace(number % 3))
        more = replace(entry, entry=replace(entry.entry, share_index=10))
        space.append(FENCE, number, Batch([entry, more]))
    every = sorted(share_name(ShareId(version(number), index)) for number in range(1, 21) for index in (0, 10))
    found: list[str] = []
    while page := space.list_small(found[-1] if found else "", 3):
        found += page
    assert found == every
    looked_at: list[bytes] = []
    unpack = log_index._unpack

    def unpacking(extents: bytes) -> dict[tuple[int, int], log_index.Extent]:
        looked_at.append(extents)
        return unpack(extents)

    monkeypatch.setattr(log_index, "_PAGE", 2)
    monkeypatch.setattr(log_index, "_unpack", unpacking)
    assert space.list_small(every[30], 3) == every[31:34]
    assert len(looked_at) <= 4


def test_on_a_full_disk_a_new_life_takes_over_and_deletes(disk: Disk) -> None:
    space = disk.open()
    put(space, SHARE, FILE)
    space.large.finish(FENCE, NAMESPACE, SHARE, len(FILE))
    disk.fill()
    assert refused(lambda: disk.open(fence=Fence(2, 1, SESSION))) == "full"
    disk.reserve = True
    later = Fence(3, 1, SESSION)
    disk.open(fence=later).large.free(later, NAMESPACE, [SHARE])


def test_what_is_in_reserve_is_for_records_alone(disk: Disk) -> None:
    space = disk.open()
    disk.fill()
    disk.reserve = True
    assert refused(lambda: space.append(FENCE, 1, Batch([scanned(1, b"a share")]))) == "full"
    assert disk.reserve
    space.append(FENCE, 2, Batch([scanned(2)]))
    assert [each.entry.envelope.sequence for each in space.page(None, Cursor(), 1 << 20)[0].entries] == [2]


def test_a_letter_is_replaced_however_many_there_are(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.shardserver.space.LETTERS_MAX", 1)
    space = disk.open()
    one, other = bytes(16), bytes(range(16))
    space.put_letter(one, b"for a day")
    space.put_letter(one, b"for another day")
    assert refused(lambda: space.put_letter(other, b"one too many")) == "full"
    assert space.letter(one) == b"for another day"


def test_a_letter_is_not_kept_before_its_directory_lasts(disk: Disk) -> None:
    """The first try had no descriptor left to sync where the directory was made; the second one found the directory."""
    space = disk.open()
    disk.files.fail("open", lambda path: path == disk.root, errno.EMFILE)
    with pytest.raises(OSError, match="Too many open files"):
        space.put_letter(b"a letter's 16 id", b"text")
    synced: list[str] = []

    def seen(path: str) -> bool:
        synced.append(path)
        return False

    disk.files.fail("fsync", seen, errno.EIO)
    space.put_letter(b"a letter's 16 id", b"text")
    assert disk.root in synced


def test_letters_that_their_owner_needs_no_more_make_room_for_others(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.shardserver.space.LETTERS_MAX", 2)
    space = disk.open()
    space.keep_letters([])
    one, another, third = (bytes([number]) * 16 for number in range(3))
    for name in (one, another):
        space.put_letter(name, name)
    assert refused(lambda: space.put_letter(third, third)) == "full"
    space.keep_letters([another, third])
    space.put_letter(third, third)
    assert refused(lambda: space.letter(one)) == "not_found"
    assert [space.letter(name) for name in (another, third)] == [another, third]


# --- Large shares ---


def put(space: Space, share: ShareId, data: bytes, offset: int = 0, of: NamespaceId = NAMESPACE) -> None:
    space.large.put_part(FENCE, of, share, offset, data)


def test_a_bad_sector_in_one_share_hides_no_other(disk: Disk) -> None:
    space = disk.open()
    for number in (1, 2):
        share = ShareId(version(number), 0)
        put(space, share, share_file(share, b"blocks"))
        space.large.finish(FENCE, NAMESPACE, share, len(share_file(share, b"blocks")))
    bad, good = (ShareId(version(number), 0) for number in (1, 2))
    for operation in ("preadv", "pread"):
        disk.files.fail(operation, lambda path: path.endswith(share_name(bad)), errno.EIO, times=None)
    space = disk.open()
    with space.large.open(NAMESPACE, good) as (_, size):
        assert size == len(FILE) - 600 + 6
    assert refused(lambda: space.large.open(NAMESPACE, bad).__enter__()) == "not_found"


BAD, GOOD = (ShareId(version(number), 0) for number in (1, 2))
SIZE = len(share_file(BAD, b"blocks"))


def two_shares(disk: Disk) -> Space:
    """One of them is never to be read again."""
    space = disk.open()
    for share in (BAD, GOOD):
        put(space, share, share_file(share, b"blocks"))
        space.large.finish(FENCE, NAMESPACE, share, SIZE)
    disk.opened.pop().close()
    return space


def lose(disk: Disk, *operations: str, code: int = errno.EIO) -> None:
    for operation in operations:
        disk.files.fail(operation, lambda path: path.endswith(share_name(BAD)), code, times=None)


@pytest.mark.parametrize("code", [errno.EIO, errno.EUCLEAN])
@pytest.mark.parametrize("known", [True, False])
def test_a_share_that_cannot_be_opened_is_missed_alone(disk: Disk, known: bool, code: int) -> None:
    two_shares(disk)
    if not known:
        Path(disk.root, "large.sqlite").unlink()
    lose(disk, "open", "path_status", "unlink", code=code)
    space = disk.open()
    assert counted(space) == [(2 * SIZE, 2) if known else (SIZE, 1)]
    with space.opened(None, GOOD, small=False) as (size, _):
        assert size == SIZE
    assert refused(lambda: space.opened(None, BAD, small=False).__enter__()) == "not_found"
    assert space.large.names("", 9) == [share_name(BAD), share_name(GOOD)]
    assert refused(lambda: space.large.free(FENCE, None, [BAD, GOOD])) == "failed"
    assert space.large.names("", 9) == [share_name(BAD)]


@pytest.mark.parametrize("known", [True, False])
def test_a_share_that_cannot_be_opened_is_made_anew_and_freed(disk: Disk, known: bool) -> None:
    two_shares(disk)
    if not known:
        Path(disk.root, "large.sqlite").unlink()
    lose(disk, "open")
    space = disk.open()
    space.large.free(FENCE, None, [GOOD])
    assert counted(space) == [(SIZE, 1) if known else (0, 0)]
    disk.files.heal()
    for _ in range(2):
        put(space, BAD, share_file(BAD, b"blocks"))
        space.large.finish(FENCE, NAMESPACE, BAD, SIZE)
        assert counted(space) == [(SIZE, 1)]
    lose(disk, "open")
    space.large.free(FENCE, None, [BAD])
    assert counted(space) == [(0, 0)]
    assert space.large.names("", 9) == []


@pytest.mark.parametrize("known", [True, False])
def test_a_namespace_goes_with_a_share_that_could_not_be_opened(disk: Disk, known: bool) -> None:
    two_shares(disk)
    if not known:
        Path(disk.root, "large.sqlite").unlink()
    lose(disk, "open")
    space = disk.open()
    space.large.free(FENCE, None, [GOOD])
    if not known:  # then it is told once it can be read
        disk.files.heal()
    space.retire(NAMESPACE)
    assert space.large.names("", 9) == []


@pytest.mark.parametrize("small", [True, False])
def test_a_share_with_a_bad_sector_is_not_there_for_its_owner(disk: Disk, small: bool) -> None:
    """It has it made anew; `failed` would have said so of the whole shard."""
    two_shares(disk)
    space = disk.open()
    space.append(FENCE, 1, Batch([scanned(1, b"in a log")]))
    for operation in ("pread", "preadv"):
        disk.files.fail(operation, lambda path: True, errno.EIO, times=None)

    def some_of_it() -> None:
        with space.opened(None, BAD, small=small) as (_, read):
            read(0, 8)

    assert refused(some_of_it) == "not_found"


def test_what_cannot_be_cleared_away_keeps_no_space_closed(disk: Disk) -> None:
    put(disk.open(), SHARE, FILE)
    assert Path(disk.root, TEMPORARY, share_name(SHARE)).exists()
    disk.files.fail("unlink", lambda path: path.startswith(f"{disk.root}/{TEMPORARY}"), errno.EIO, times=None)
    assert counted(disk.open()) == [(0, 0)]


def test_what_is_on_its_way_in_counts_against_the_quota(disk: Disk) -> None:
    space = disk.open(quota_bytes=1_000)
    other = ShareId(version(2), 0)
    put(space, SHARE, bytes(600))
    assert refused(lambda: put(space, other, bytes(600))) == "quota"
    put(space, SHARE, bytes(600))  # sent again: the answer was lost
    put(space, other, bytes(400))
    batch = Batch([scanned(1, b"a share", namespace=namespace(9))])
    assert refused(lambda: space.append(FENCE, 1, batch)) == "quota"
    space.large.abort(SHARE)
    put(space, other, bytes(500), 400)


def test_what_lies_there_of_a_batch_that_a_full_disk_broke_off_counts(disk: Disk) -> None:
    space = disk.open(quota_bytes=1 << 30)
    space.append(FENCE, 1, Batch([scanned(1, share=b"first")]))
    (room,) = space.rooms
    before = room.used_bytes
    disk.files.fail("allocate", lambda path: True, errno.ENOSPC)
    later = replace(scanned(3, share=bytes(2 * limits.SEGMENT_STEP_BYTES)), committed=2)
    assert refused(lambda: space.append(FENCE, 2, Batch([scanned(2, share=b"second"), later]))) == "full"
    used = room.used_bytes
    assert used > before
    (counted,) = disk.only_read().rooms
    assert counted.used_bytes == used + HEADER_BYTES


def test_a_batch_for_several_namespaces_counts_as_a_whole(disk: Disk) -> None:
    space = disk.open(quota_bytes=1_000)
    two = Batch([scanned(number, bytes(600), namespace=namespace(number)) for number in (1, 2)])
    assert refused(lambda: space.append(FENCE, 1, two)) == "quota"
    assert shares(space) == []
    records = [scanned(number, namespace=namespace(number)) for number in (3, 4)]
    space.append(FENCE, 2, Batch([scanned(1, bytes(600), namespace=namespace(1)), *records]))


def test_a_space_tells_of_what_its_quota_leaves(disk: Disk) -> None:
    space, plenty, little = disk.open(quota_bytes=1_000), Capacity(10_000, 5_000), Capacity(10_000, 50)
    assert (space.rooms.capacity(plenty), space.rooms.capacity(little)) == (Capacity(1_000, 1_000), Capacity(1_000, 50))
    put(space, SHARE, bytes(600))
    assert space.rooms.capacity(plenty) == Capacity(1_000, 400)
    assert disk.open(quota_bytes=0).rooms.capacity(plenty) == Capacity(0, 0)
    assert disk.open().rooms.capacity(plenty) == plenty


def test_what_broke_off_counts_no_more(disk: Disk) -> None:
    space = disk.open(quota_bytes=1_000)
    disk.files.fail("pwritev", lambda path: path.endswith(share_name(SHARE)), errno.ENOSPC)
    assert refused(lambda: put(space, SHARE, bytes(900))) == "full"
    put(space, SHARE, bytes(900))
    space.large.abort(SHARE)
    assert [(room.used_bytes, room.coming_bytes) for room in space.rooms] == [(0, 0)]


def test_parts_of_a_share_do_not_lie_over_each_other(disk: Disk) -> None:
    space = disk.open()
    put(space, SHARE, FILE[:100])
    put(space, SHARE, FILE[200:300], 200)
    for offset, length in ((0, 101), (50, 100), (150, 100), (200, 99), (250, 100), (199, 1_000)):
        assert refused(lambda offset=offset, length=length: put(space, SHARE, bytes(length), offset)) == "bad_request"  # type: ignore[misc]
    assert refused(lambda: space.large.finish(FENCE, NAMESPACE, SHARE, 300)) == "unfinished"
    put(space, SHARE, FILE[100:200], 100)
    put(space, SHARE, FILE[100:200], 100)
    put(space, SHARE, FILE[300:], 300)
    space.large.finish(FENCE, NAMESPACE, SHARE, len(FILE))
    with space.large.open(NAMESPACE, SHARE) as (fd, size):
        assert disk.files.pread(fd, size, 0) == FILE


def test_parts_without_an_end_take_no_memory(disk: Disk) -> None:
    space = disk.open()
    for number in range(AHEAD_MAX):
        put(space, SHARE, b"x", 10 + 2 * number)
    assert refused(lambda: put(space, SHARE, b"x", 10 + 2 * AHEAD_MAX)) == "bad_request"
    put(space, SHARE, b"x")


class TakenOver:
    """The lock of the large shares. Before anybody has it for the first time, a later daemon takes the space over."""

    def __init__(self, space: Space, fence: Fence) -> None:
        self._lock = threading.Lock()
        self._first = [lambda: space.raise_fence(fence)]

    def __enter__(self) -> None:
        if self._first:
            self._first.pop()()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_part_that_a_later_daemon_overtakes_begins_nothing(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would finish it, nor give it up."""
    monkeypatch.setattr("zstor_local.shardserver.large.UPLOADS_MAX", 1)
    space = disk.open()
    later = Fence(2, 1, SESSION)
    monkeypatch.setattr(space.large, "_lock", TakenOver(space, later))
    assert refused(lambda: put(space, SHARE, FILE)) == "fenced"
    space.large.put_part(later, NAMESPACE, ShareId(version(2), 0), 0, FILE)


def test_a_share_on_its_way_in_is_given_up_in_its_own_namespace_alone(disk: Disk) -> None:
    space = disk.open()
    put(space, SHARE, FILE)
    space.large.abort(SHARE, namespace(9))
    space.large.free(FENCE, namespace(9), [SHARE])
    space.large.finish(FENCE, NAMESPACE, SHARE, len(FILE))


def test_a_share_that_is_freed_while_it_is_being_finished_is_gone(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a daemon that has not waited for the end of a slow flush."""
    space = disk.open()
    put(space, SHARE, FILE)
    flushing, go_on, fsync = threading.Event(), threading.Event(), disk.files.fsync

    def slowly(fd: int) -> None:
        flushing.set()
        assert go_on.wait(LIMIT)
        fsync(fd)

    monkeypatch.setattr(disk.files, "fsync", slowly)
    finishing = threading.Thread(target=space.large.finish, args=(FENCE, NAMESPACE, SHARE, len(FILE)))
    finishing.start()
    assert flushing.wait(LIMIT)
    freeing = threading.Thread(target=space.large.free, args=(FENCE, NAMESPACE, [SHARE]))
    freeing.start()
    freeing.join(A_MOMENT)  # where that one does not hold it up
    go_on.set()
    for thread in (finishing, freeing):
        thread.join(LIMIT)
    assert space.large.names("", 9) == []
    assert counted(space) == [(0, 0)]


def test_a_share_that_is_freed_before_it_was_published_is_not(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    space = disk.open()
    put(space, SHARE, FILE)
    publish = LargeShares._publish

    def late(self: LargeShares, *args: Any) -> int | None:
        self.free(FENCE, NAMESPACE, [SHARE])
        return publish(self, *args)

    monkeypatch.setattr(LargeShares, "_publish", late)
    assert refused(lambda: space.large.finish(FENCE, NAMESPACE, SHARE, len(FILE))) == "unfinished"
    assert space.large.names("", 9) == []
    assert counted(space) == [(0, 0)]


def test_a_namespace_has_no_name_while_what_it_holds_is_removed(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or somebody with a token for it might bring something that nobody removes."""
    space = disk.open()
    finished(space)
    space.rooms.describe(NAMESPACE, "photos", None, None)
    names: list[str | None] = []
    remove_all = LargeShares.remove_all

    def removing(self: LargeShares, namespace: NamespaceId) -> None:
        names.extend(room.name for room in space.rooms)
        remove_all(self, namespace)

    monkeypatch.setattr(LargeShares, "remove_all", removing)
    space.retire(NAMESPACE)
    assert names == [None]
    assert counted(space) == [(0, 0)]


def finished(space: Space) -> None:
    put(space, SHARE, FILE)
    space.large.finish(FENCE, NAMESPACE, SHARE, len(FILE))


def test_what_could_not_be_freed_is_not_said_to_be(disk: Disk) -> None:
    space = disk.open()
    finished(space)
    for operation, code, kind in (("unlink", errno.EROFS, "readonly"), ("open", errno.EMFILE, "failed")):
        disk.files.fail(operation, lambda path: path.endswith(share_name(SHARE)), code)
        assert refused(lambda: space.large.free(FENCE, None, [SHARE])) == kind
        assert space.large.names("", 9) == [share_name(SHARE)]
        assert [(room.used_bytes, room.shares) for room in space.rooms] == [(len(FILE), 1)]
    space.large.free(FENCE, None, [SHARE])
    assert space.large.names("", 9) == []


def test_what_is_freed_again_is_made_to_last(disk: Disk) -> None:
    """The first time it was gone, and may have come back with a power loss."""
    space = disk.open()
    finished(space)
    disk.files.fail("fsync", lambda path: path.endswith(f"/shares/{share_name(SHARE)[:2]}"), errno.EIO)
    for _ in range(2):  # no later sync can be believed
        assert refused(lambda: space.large.free(FENCE, None, [SHARE])) == "failed"
    disk.open().large.free(FENCE, None, [SHARE, ShareId(version(9), 0)])


def test_what_a_namespace_held_is_not_said_to_be_gone_before_that_lasts(disk: Disk) -> None:
    space = disk.open()
    finished(space)
    disk.files.fail("fsync", lambda path: path.endswith(f"/shares/{share_name(SHARE)[:2]}"), errno.EIO)
    for _ in range(2):
        assert refused(lambda: space.retire(NAMESPACE)) == "failed"
    disk.open().retire(NAMESPACE)


def test_a_part_that_comes_again_does_not_change_what_was_published(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passed for one of the namespace that it was let in as."""
    space = disk.open()
    put(space, SHARE, FILE)
    writing, ending, published = threading.Event(), threading.Event(), threading.Event()
    write, fsync = disk.files.pwritev, disk.files.fsync

    def slowly(fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        writing.set()
        assert ending.wait(LIMIT)
        return write(fd, buffers, offset)

    def flush(fd: int) -> None:
        published.set()
        fsync(fd)

    monkeypatch.setattr(disk.files, "pwritev", slowly)
    monkeypatch.setattr(disk.files, "fsync", flush)
    late = threading.Thread(target=put, args=(space, SHARE, share_file(SHARE, b"", namespace(9))))
    late.start()
    assert writing.wait(LIMIT)
    outcome: list[str] = []
    finishing = threading.Thread(target=lambda: outcome.append(refused(lambda: space.large.finish(FENCE, NAMESPACE, SHARE, len(FILE)))))
    finishing.start()
    published.wait(A_MOMENT)  # where the late part does not hold it up
    ending.set()
    for thread in (late, finishing):
        thread.join(LIMIT)
    assert outcome == ["bad_request"]
    assert space.large.names("", 9) == []


def counted(space: Space) -> list[tuple[int, int]]:
    return [(room.used_bytes, room.shares) for room in space.rooms]


def test_a_start_opens_no_share(disk: Disk) -> None:
    """There may be a million."""
    finished(disk.open())
    disk.files.fail("open", lambda path: path.endswith(share_name(SHARE)), errno.EIO, times=None)
    assert counted(disk.open()) == [(len(FILE), 1)]


def test_a_space_that_cannot_be_opened_keeps_nothing_open(disk: Disk) -> None:
    """Its owner's daemon asks for it again every few seconds."""
    space = disk.open()
    finished(space)
    space.append(FENCE, 1, Batch([scanned(2, b"in a log")]))
    disk.opened.pop().close()
    Path(disk.root, "large.sqlite").unlink()
    before = open_descriptors()
    disk.files.fail("open", lambda path: path.endswith(share_name(SHARE)), errno.EMFILE, times=None)
    assert refused(disk.only_read) == "failed"
    assert open_descriptors() == before


def test_a_start_counts_what_lies_there_whatever_is_remembered_of_it(disk: Disk) -> None:
    finished(disk.open())
    place = Path(disk.root, "shares", share_name(SHARE)[:2])
    other = ShareId(SHARE.version, 1)
    (place / share_name(other)).write_bytes(share_file(other, b"found"))
    two = len(FILE) + len(share_file(other, b"found"))
    assert counted(disk.open()) == [(two, 2)]
    (place / share_name(SHARE)).unlink()
    assert counted(disk.open()) == [(two - len(FILE), 1)]
    for damage in (b"", b"no database" * 1_000):
        disk.opened.pop().close()
        Path(disk.root, "large.sqlite").write_bytes(damage)
        assert counted(disk.open()) == [(two - len(FILE), 1)]
    disk.open().retire(NAMESPACE)
    assert counted(disk.open()) == [(0, 0)]
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        "drop table share",
        "update share set name = cast(x'ff' as text)",
        "update share set namespace = cast(namespace as text)",
        "update share set size = 'many'",
    ],
)
def test_an_index_of_large_shares_that_is_damaged_within_is_used_by_no_later_start(disk: Disk, damage: str) -> None:
    finished(disk.open())
    disk.opened.pop().close()
    with closing(sqlite3.connect(f"{disk.root}/large.sqlite", isolation_level=None)) as db:
        db.execute("pragma writable_schema=on")
        db.execute(damage)
    for _ in ("found", "begun anew"):
        assert counted(disk.open()) == [(len(FILE), 1)]
    disk.files.fail("open", lambda path: path.endswith(share_name(SHARE)), errno.EIO, times=None)
    assert counted(disk.open()) == [(len(FILE), 1)]
