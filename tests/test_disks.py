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
from zstor_local import daemon, limits
from zstor_local.config import Config
from zstor_local.disks import LOOP_SECONDS, PATIENCE_AT_MOST, PATIENCE_SECONDS, Disks, WatchedDevice, WatchedFileSystem
from zstor_local.runtime import DiskStalled, SteadyDevice
from zstor_local.store.faults import StoreFault
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
        self.device = WatchedDevice(WatchedFileSystem(self.raw, self.elsewhere.start, patience=0), str(root))
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

    device = WatchedDevice(WatchedFileSystem(RealFiles(), start, PATIENCE_SECONDS), str(tmp_path))
    with pytest.raises(OSError) as caught:
        device.begin_fdatasync(0)()
    assert caught.value.errno == errno.ENOMEM


def test_what_could_not_be_closed_for_lack_of_threads_is_closed_behind_the_next_call(tmp_path: Path) -> None:
    """The lock of a shard's directory would be held as long as we live."""
    elsewhere, lacking = Elsewhere(), [True]

    def start(fn: Callable[[], T], deliver: Callable[[Outcome[T]], object], name: str) -> None:
        if lacking:
            raise RuntimeError("can't start new thread")
        elsewhere.start(fn, deliver, name)

    device = WatchedDevice(WatchedFileSystem(RealFiles(), start, PATIENCE_SECONDS), str(tmp_path))
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError):
        device.files.close(fd)
    assert is_open(fd)
    lacking.clear()
    device.files.list(str(tmp_path))
    assert not is_open(fd)


def test_a_slow_disk_has_longer_for_what_it_was_given(tmp_path: Path) -> None:
    system = WatchedFileSystem(RealFiles(), Elsewhere().start, PATIENCE_SECONDS)
    one, other = (WatchedDevice(system, str(tmp_path / name)).files for name in "ab")
    assert system.patience(in_event_loop=False) == PATIENCE_SECONDS
    fd = one.open(str(tmp_path / "a"), os.O_RDWR | os.O_CREAT)
    for _ in range(16):
        one.pwritev(fd, [bytes(limits.MIB)], 0)
        other.pwritev(fd, [bytes(limits.MIB)], 0)
    assert system.patience(in_event_loop=False) == 2 * PATIENCE_SECONDS
    assert system.patience(in_event_loop=True) == LOOP_SECONDS
    one.fdatasync(fd)
    assert system.patience(in_event_loop=False) == PATIENCE_SECONDS
    one.pwritev(fd, [bytes(limits.MIB)], 0)
    one.close(fd)
    assert system.patience(in_event_loop=False) == PATIENCE_SECONDS


def test_no_disk_has_very_long(tmp_path: Path) -> None:
    """In the middle of a large write one that hangs would have hours, and whoever writes waits for it."""
    system = WatchedFileSystem(RealFiles(), Elsewhere().start, PATIENCE_SECONDS)
    system.wrote(0, 1024 * limits.MIB)
    assert system.patience(in_event_loop=False) == PATIENCE_AT_MOST


def test_those_that_were_begun_together_are_given_up_together(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the flushes of several disks: each of them would be waited for in its turn."""
    now = 0.0
    monkeypatch.setattr("zstor_local.disks.PATIENCE_AT_MOST", threading.TIMEOUT_MAX)
    system = WatchedFileSystem(RealFiles(), ground.elsewhere.start, threading.TIMEOUT_MAX, lambda: now)
    device = WatchedDevice(system, str(ground.root))
    ground.hang()
    wait = device.begin_fdatasync(0)
    now = threading.TIMEOUT_MAX
    with pytest.raises(DiskStalled):
        wait()


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
    assert device.came_back()
    assert disks.device(str(tmp_path)).files.list(str(tmp_path)) == []


def test_directories_on_one_file_system_hang_together(disks: Disks, elsewhere: Elsewhere, tmp_path: Path) -> None:
    """Else each of them would be waited for, one after the other."""
    one, other = (disks.device(str(tmp_path / name)) for name in "ab")
    elsewhere.hangs = True
    with pytest.raises(DiskStalled):
        one.files.list(str(tmp_path))
    asked = elsewhere.asked
    for device in (other, disks.device(str(tmp_path / "a"))):
        with pytest.raises(DiskStalled):
            device.files.list(str(tmp_path))
    assert elsewhere.asked == asked
    assert not other.came_back()
    elsewhere.answer()
    assert other.came_back()
    assert other.files.list(str(tmp_path)) == []


def test_a_first_look_that_takes_too_long_is_one_directorys_alone(disks: Disks, elsewhere: Elsewhere, tmp_path: Path) -> None:
    """It is waited for less than what goes on there."""
    known = disks.device(str(tmp_path / "a"))
    elsewhere.hangs = True
    assert not disks.device(str(tmp_path / "b")).came_back()
    elsewhere.hangs = False
    assert known.files.list(str(tmp_path)) == []


def test_another_file_system_in_its_place_is_another_disk(
    disks: Disks, elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = disks.device(str(tmp_path))
    monkeypatch.setattr(Disks, "_file_system", lambda self, path: -1)
    now = disks.device(str(tmp_path))
    elsewhere.hangs = True
    with pytest.raises(DiskStalled):
        before.files.list(str(tmp_path))
    assert not before.came_back()
    assert now.came_back()


def test_a_lost_sync_counts_until_the_directory_is_opened_anew(disks: Disks, elsewhere: Elsewhere, tmp_path: Path) -> None:
    device, other = (disks.device(str(tmp_path / name)) for name in "ab")
    elsewhere.hangs = True
    with pytest.raises(DiskStalled):
        device.files.fsync(-1)
    elsewhere.answer()
    assert not device.came_back()
    assert other.came_back()  # of which nothing is lost
    assert disks.device(str(tmp_path / "a")).came_back()


def test_links_are_resolved_as_far_as_disks_answer(disks: Disks, elsewhere: Elsewhere, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("there")
    assert disks.real_path(f"{tmp_path}/link/a") == f"{tmp_path}/there/a"
    elsewhere.hangs = True
    for _ in range(2):
        assert disks.real_path(f"{tmp_path}/link/b") == f"{tmp_path}/link/b"
    assert elsewhere.asked == 2
    elsewhere.answer()
    assert disks.real_path(f"{tmp_path}/link/b") == f"{tmp_path}/there/b"


def test_no_links_are_looked_for_below_a_directory_that_hangs(disks: Disks, elsewhere: Elsewhere, tmp_path: Path) -> None:
    """Each look takes seconds, and a start does both."""
    elsewhere.hangs = True
    disks.device(str(tmp_path))
    assert disks.real_path(str(tmp_path)) == str(tmp_path)
    assert elsewhere.asked == 1


def test_allowed_roots_that_hang_are_told_of(disks: Disks, elsewhere: Elsewhere, tmp_path: Path) -> None:
    """At a start, and when the configuration is read again: both would wait for good."""
    disks.must_open(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        disks.must_open(f"{tmp_path}/nothing")
    elsewhere.hangs = True
    config = Config(store="/store", socket="/s", master_key_file="/key", allowed_roots=(str(tmp_path),))
    for _ in range(2):
        with pytest.raises(StoreFault, match=f"allowed_roots: {tmp_path} cannot be opened: the disk does not answer"):
            daemon._check(RealFiles(), disks, config)
    assert elsewhere.asked == 3


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
