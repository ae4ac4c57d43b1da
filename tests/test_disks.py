"""Disks that do not answer: whoever asks is told so, what comes back late does no harm, and the others go on."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from outcome import Outcome, capture

from tests.troubled_files import TroubledFiles
from zstor_local import limits
from zstor_local.disks import LOOP_SECONDS, PATIENCE_SECONDS, Disks, WatchedDevice
from zstor_local.runtime import DiskStalled, SteadyDevice
from zstor_local.system import RealFiles
from zstor_local.threads import RealThreads

T = TypeVar("T")


class Elsewhere:
    """In place of threads: does what it is asked at once, or while the disk hangs holds it back."""

    def __init__(self) -> None:
        self.asked = 0
        self.hangs = False
        self._held: list[Callable[[], None]] = []

    def start(self, fn: Callable[[], T], deliver: Callable[[Outcome[T]], object], name: str) -> None:
        self.asked += 1

        def do() -> None:
            deliver(capture(fn))

        if self.hangs:
            self._held.append(do)
        else:
            do()

    def answer(self) -> None:
        self.hangs = False
        while self._held:
            self._held.pop(0)()


class Ground:
    """A device on a real directory whose disk hangs when it is told to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.elsewhere = Elsewhere()
        self.raw = TroubledFiles()
        self.device = WatchedDevice(self.raw, str(root), self.elsewhere.start, patience=0)
        self.files = self.device.files

    def path(self, name: str) -> str:
        return str(self.root / name)

    def create(self, name: str) -> int:
        return self.files.open(self.path(name), os.O_RDWR | os.O_CREAT)

    def hang(self) -> None:
        self.elsewhere.hangs = True

    def stall(self) -> None:
        """The disk hangs, and somebody has noticed."""
        self.hang()
        with pytest.raises(DiskStalled):
            self.files.list(str(self.root))


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_one_call_waits_and_the_others_are_told_at_once(ground: Ground) -> None:
    ground.stall()
    asked = ground.elsewhere.asked
    for _ in range(3):
        with pytest.raises(DiskStalled):
            ground.files.path_status(str(ground.root))
    assert ground.elsewhere.asked == asked
    assert ground.device.stalled
    assert not ground.device.came_back()


def test_it_goes_on_when_the_disk_answers_again(ground: Ground) -> None:
    fd = ground.create("a")
    ground.hang()
    with pytest.raises(DiskStalled):
        ground.files.pwritev(fd, [b"late"], 0)
    ground.elsewhere.answer()
    assert ground.device.came_back()
    assert ground.files.pread(fd, 10, 0) == b"late"
    ground.files.close(fd)


def test_errors_are_those_of_the_system(ground: Ground) -> None:
    with pytest.raises(FileNotFoundError):
        ground.files.path_status(ground.path("nothing"))


@pytest.mark.parametrize("name", ["fsync", "fdatasync", "syncfs"])
def test_a_sync_that_failed_when_nobody_waited_is_remembered(ground: Ground, name: str) -> None:
    fd = ground.create("a")
    ground.raw.fail(name, lambda path: True, errno.EIO)
    ground.hang()
    with pytest.raises(DiskStalled):
        getattr(ground.files, name)(fd)
    ground.elsewhere.answer()
    assert not ground.device.stalled
    assert not ground.device.came_back()
    ground.files.close(fd)


def test_an_error_that_somebody_was_told_is_not(ground: Ground) -> None:
    fd = ground.create("a")
    ground.raw.fail("fsync", lambda path: True, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        ground.files.fsync(fd)
    assert ground.device.came_back()
    ground.files.close(fd)


def test_a_flush_that_was_begun_is_waited_for_later(ground: Ground) -> None:
    fd = ground.create("a")
    wait = ground.device.begin_fdatasync(fd)
    assert ground.raw.calls["fdatasync"] == 1
    wait()
    ground.raw.fail("fdatasync", lambda path: True, errno.EIO)
    wait = ground.device.begin_fdatasync(fd)
    with pytest.raises(OSError, match="Input/output"):
        wait()
    ground.hang()
    wait = ground.device.begin_fdatasync(fd)
    with pytest.raises(DiskStalled):
        wait()
    ground.elsewhere.answer()
    ground.files.close(fd)


def test_what_was_opened_too_late_is_closed(ground: Ground) -> None:
    fd = ground.create("a")
    ground.files.close(fd)
    ground.hang()
    with pytest.raises(DiskStalled):
        ground.files.open(ground.path("a"), os.O_RDONLY)
    ground.elsewhere.answer()
    assert not is_open(fd)  # the lowest number that is free is given next


def test_no_descriptor_is_closed_under_a_call(ground: Ground) -> None:
    fd = ground.create("a")
    ground.stall()
    ground.files.close(fd)
    assert is_open(fd)
    ground.elsewhere.answer()
    assert not is_open(fd)


def test_a_late_read_leaves_memory_alone_that_serves_others(ground: Ground) -> None:
    fd = ground.create("a")
    ground.files.pwritev(fd, [b"late"], 0)
    buffer = bytearray(b"used")
    ground.hang()
    with pytest.raises(DiskStalled):
        ground.files.readv(fd, [buffer])
    ground.elsewhere.answer()
    assert buffer == b"used"
    assert ground.files.preadv(fd, [buffer], 0) == 4
    assert buffer == b"late"
    ground.files.close(fd)


def test_nothing_is_read_ahead_of_a_disk_that_hangs(ground: Ground) -> None:
    fd = ground.create("a")
    ground.files.pwritev(fd, [b"cached"], 0)
    assert ground.files.preadv_nowait(fd, [bytearray(6)], 0) == 6
    ground.stall()
    with pytest.raises(BlockingIOError):
        ground.files.preadv_nowait(fd, [bytearray(6)], 0)
    ground.elsewhere.answer()
    ground.files.close(fd)


def test_one_for_which_there_is_no_thread_fails_and_nothing_else(tmp_path: Path) -> None:
    """An error that a shard takes for its own: one of waiting would go on to the committer, and end all writes."""

    def start(fn: Callable[[], T], deliver: Callable[[Outcome[T]], object], name: str) -> None:
        raise RuntimeError("can't start new thread")

    device = WatchedDevice(RealFiles(), str(tmp_path), start, PATIENCE_SECONDS)
    with pytest.raises(OSError) as caught:
        device.begin_fdatasync(0)()
    assert caught.value.errno == errno.ENOMEM


def test_a_slow_disk_has_longer_for_what_it_was_given(tmp_path: Path) -> None:
    device = WatchedDevice(RealFiles(), str(tmp_path), Elsewhere().start, PATIENCE_SECONDS)
    assert device.patience(in_event_loop=False) == PATIENCE_SECONDS
    fd = device.files.open(str(tmp_path / "a"), os.O_RDWR | os.O_CREAT)
    for _ in range(32):
        device.files.pwritev(fd, [bytes(limits.MIB)], 0)
    assert device.patience(in_event_loop=False) == 2 * PATIENCE_SECONDS
    assert device.patience(in_event_loop=True) == LOOP_SECONDS
    device.files.fdatasync(fd)
    assert device.patience(in_event_loop=False) == PATIENCE_SECONDS
    device.files.pwritev(fd, [bytes(limits.MIB)], 0)
    device.files.close(fd)
    assert device.patience(in_event_loop=False) == PATIENCE_SECONDS


def test_the_disk_of_the_store_is_used_as_it_is(tmp_path: Path) -> None:
    disks = Disks(RealFiles(), str(tmp_path), start=Elsewhere().start)
    for _ in range(2):
        assert isinstance(disks.device(f"{tmp_path}"), SteadyDevice)


def test_so_is_a_directory_on_it_that_is_made_later(tmp_path: Path) -> None:
    """As at a store's first start: what is not there yet is no other disk."""
    disks = Disks(RealFiles(), str(tmp_path), start=Elsewhere().start)
    root = tmp_path / "shards" / "0"
    assert isinstance(disks.device(str(root)), SteadyDevice)
    root.mkdir(parents=True)
    assert isinstance(disks.device(str(root)), SteadyDevice)


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere()


@pytest.fixture
def disks(elsewhere: Elsewhere, tmp_path: Path) -> Iterator[Disks]:
    """Disks of a store that lies on another file system than the directories of these tests."""
    yield Disks(RealFiles(), "/proc", start=elsewhere.start, patience=0)
    elsewhere.answer()


def test_a_directory_that_hangs_is_looked_at_once(disks: Disks, elsewhere: Elsewhere, tmp_path: Path) -> None:
    elsewhere.hangs = True
    device = disks.device(str(tmp_path))
    for _ in range(3):
        with pytest.raises(DiskStalled):
            disks.device(str(tmp_path)).files.list(str(tmp_path))
    assert elsewhere.asked == 1
    elsewhere.answer()
    assert disks.device(str(tmp_path)) is device
    assert device.files.list(str(tmp_path)) == []


def test_a_lost_sync_counts_until_the_directory_is_opened_anew(disks: Disks, elsewhere: Elsewhere, tmp_path: Path) -> None:
    device = disks.device(str(tmp_path))
    elsewhere.hangs = True
    with pytest.raises(DiskStalled):
        device.files.fsync(-1)
    elsewhere.answer()
    assert not device.came_back()
    assert disks.device(str(tmp_path)).came_back()


def test_links_are_resolved_as_far_as_disks_answer(disks: Disks, elsewhere: Elsewhere, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("there")
    assert disks.real_path(f"{tmp_path}/link/a") == f"{tmp_path}/there/a"
    elsewhere.hangs = True
    assert disks.real_path(f"{tmp_path}/link/../b") == f"{tmp_path}/b"


async def test_who_waits_for_a_disk_lets_others_compute(tmp_path: Path) -> None:
    opened = threading.Event()

    class Slow(RealFiles):
        def list(self, path: str) -> list[str]:
            opened.wait()
            return super().list(path)

    threads = RealThreads(workers=1)
    disks = Disks(Slow(), "/proc")
    (tmp_path / "a").touch()
    device = await threads.run(disks.device, str(tmp_path))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                assert await threads.run(device.files.list, str(tmp_path)) == ["a"]

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await threads.run(opened.set)
