"""Crash points, call sites, faults and pipes of the simulated files."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

import pytest

from tests.simulation.content import PAGE
from tests.simulation.files import SimulatedFiles
from tests.simulation.outcomes import ALL, NOTHING
from tests.simulation.points import PowerLoss, Site, under
from tests.simulation.world import Mount, World
from zstor_local.runtime import sync_directory, write_all

NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR


@pytest.fixture
def world() -> World:
    return World(mounts=[Mount("/d"), Mount("/e", kind="tmpfs", capacity=4 * PAGE)])


@pytest.fixture
def files(world: World) -> SimulatedFiles:
    return world.files


def save(files: SimulatedFiles) -> None:
    """A careful replacement: the program that these tests take apart."""
    fd = files.open("/d/a.tmp", os.O_CREAT | os.O_TRUNC | os.O_RDWR)
    write_all(files, fd, [b"new!"], 0)
    files.fsync(fd)
    files.close(fd)
    files.rename("/d/a.tmp", "/d/a")
    sync_directory(files, "/d")


class Saver:
    def save(self, files: SimulatedFiles) -> None:
        sync_directory(files, "/d")


def test_every_mutating_call_is_a_point_with_its_site(files: SimulatedFiles) -> None:
    save(files)
    here = f"{__name__}.save"
    assert files.sites == [
        Site(1, f"{here}:open", "/d/a.tmp"),
        Site(2, f"{here}:pwritev", "/d/a.tmp"),
        Site(3, f"{here}:fsync", "/d/a.tmp"),
        Site(4, f"{here}:rename", "/d/a.tmp"),
        Site(5, f"{here}:fsync_directory", "/d"),
    ]
    assert files.points == 5


def test_all_other_mutating_calls_are_points_too(files: SimulatedFiles) -> None:
    fd = files.open("/d/a", NEW)
    files.writev(fd, [b"1"])
    files.truncate(fd, 10)
    files.allocate(fd, 0, 20)
    files.fdatasync(fd)
    files.syncfs(fd)
    files.unlink("/d/a")
    files.mkdir("/d/sub")
    files.place("/d/b", b"1")
    files.open("/d/b", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    operations = [site.name.rpartition(":")[2].partition("#")[0] for site in files.sites]
    assert operations == ["open", "writev", "truncate", "allocate", "fdatasync", "syncfs", "unlink", "mkdir", "truncate"]


def test_calls_that_change_nothing_are_no_points(files: SimulatedFiles) -> None:
    files.place("/d/a", b"123")
    fd = files.open("/d/a", os.O_RDWR | os.O_CREAT)
    files.preadv(fd, [bytearray(3)], 0)
    files.pwritev(fd, [], 0)
    files.status(fd)
    files.list("/d")
    files.lock(fd)
    files.close(fd)
    with pytest.raises(FileNotFoundError):
        files.unlink("/d/none")
    assert files.sites == []


def test_sites_tell_methods_of_a_class_apart(files: SimulatedFiles) -> None:
    Saver().save(files)
    save(files)
    assert files.skippable() == [
        f"{__name__}.Saver.save:fsync_directory",
        f"{__name__}.save:fsync",
        f"{__name__}.save:fsync_directory",
        f"{__name__}.save:rename",
    ]


def save_twice(files: SimulatedFiles) -> None:
    """Two calls of the same name in one function, one of them over several lines."""
    for _ in range(2):
        files.mkdir(f"/d/{files.points}")
    sync_directory(files, "/d")
    sync_directory(
        files,
        "/e",
    )


def test_calls_of_one_name_in_one_function_are_numbered(files: SimulatedFiles) -> None:
    save_twice(files)
    here = f"{__name__}.save_twice"
    assert [site.name for site in files.sites] == [
        f"{here}:mkdir",
        f"{here}:mkdir",
        f"{here}:fsync_directory#1",
        f"{here}:fsync_directory#2",
    ]
    files.skip(f"{here}:fsync_directory#2")
    assert files.skippable() == [f"{here}:fsync_directory#1", f"{here}:fsync_directory#2"]


def test_the_power_goes_before_the_call_does_its_work(world: World) -> None:
    for number in range(1, 6):
        trial = world.copy()
        trial.files.crash_at(number)
        with pytest.raises(PowerLoss):
            save(trial.files)
        assert trial.files.points == number
        after = trial.crash(ALL).files
        assert after.list("/d") == {1: [], 5: ["a"]}.get(number, ["a.tmp"])
        if 1 < number < 5:
            assert after.contents("/d/a.tmp") == (b"" if number == 2 else b"new!")


def test_a_dead_world_answers_nothing(world: World, files: SimulatedFiles) -> None:
    fd = files.open("/d/a", NEW)
    files.crash_at(2)
    with pytest.raises(PowerLoss):
        files.pwritev(fd, [b"x"], 0)
    for call in (lambda: files.close(fd), lambda: files.list("/d"), lambda: files.open("/d/a", 0), lambda: world.point("x:commit")):
        with pytest.raises(PowerLoss):
            call()
    assert world.crash(ALL).files.list("/d") == ["a"]


def test_a_torn_write_does_its_first_half(world: World, files: SimulatedFiles) -> None:
    files.crash_at(2, torn=True)
    with pytest.raises(PowerLoss):
        save(files)
    assert world.crash(ALL).files.contents("/d/a.tmp") == b"ne"


def test_other_parts_of_the_world_have_points_too(world: World) -> None:
    world.point("metastore.commit:commit")
    assert world.files.sites == [Site(1, "metastore.commit:commit", "metastore.commit:commit")]
    world.files.crash_at(2)
    with pytest.raises(PowerLoss):
        world.point("metastore.commit:commit")


def test_a_skipped_call_does_nothing_and_says_that_it_worked(world: World) -> None:
    without_sync, without_rename, without_directory = world.copy(), world.copy(), world.copy()
    without_sync.files.skip(f"{__name__}.save:fsync")
    save(without_sync.files)
    assert without_sync.crash(NOTHING).files.contents("/d/a") == b""
    without_directory.files.skip(f"{__name__}.save:fsync_directory")
    save(without_directory.files)
    assert without_directory.crash(NOTHING).files.list("/d") == []
    without_rename.files.skip(f"{__name__}.save:rename")
    save(without_rename.files)
    assert without_rename.crash(NOTHING).files.list("/d") == ["a.tmp"]


def test_a_mutant_stays_one_over_crash_and_copy(world: World) -> None:
    world.files.skip(f"{__name__}.save:rename")
    for after in (world.copy(), world.crash(NOTHING)):
        save(after.files)
        assert after.files.list("/d") == ["a.tmp"]
    with pytest.raises(ValueError, match="not a sync"):
        world.files.skip(f"{__name__}.save:pwritev")


# Faults


def test_a_fault_strikes_as_often_as_told_and_only_there(files: SimulatedFiles) -> None:
    fd, other = files.open("/d/a", NEW), files.open("/d/b", NEW)
    files.fail("pwritev", under("/d/a"), errno.EIO, times=2)
    assert files.pwritev(other, [b"1"], 0) == 1
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            files.pwritev(fd, [b"1"], 0)
        assert caught.value.errno == errno.EIO
    assert files.pwritev(fd, [b"1"], 0) == 1
    assert files.points == 6


def test_reads_may_fail_for_ever_until_healed(files: SimulatedFiles) -> None:
    files.place("/d/a", b"123")
    fd = files.open("/d/a", os.O_RDONLY)
    files.fail("*", under("/d"), errno.EIO, times=None)
    for _ in range(3):
        with pytest.raises(OSError):
            files.preadv(fd, [bytearray(3)], 0)
    files.heal()
    assert files.preadv(fd, [bytearray(3)], 0) == 3


def test_a_rename_fails_by_either_name(files: SimulatedFiles) -> None:
    files.place("/d/a", b"1")
    for name in ("/d/a", "/d/b"):
        files.fail("rename", lambda path, name=name: path == name, errno.ENOSPC)  # type: ignore[misc]
        with pytest.raises(OSError):
            files.rename("/d/a", "/d/b")
    assert files.list("/d") == ["a"]


@pytest.mark.parametrize(("and_after", "failures"), [(False, 1), (True, 4)])
def test_the_nth_point_fails_alone_or_with_all_after_it(files: SimulatedFiles, and_after: bool, failures: int) -> None:
    files.fail_at(2, errno.ENOSPC, and_after=and_after)
    failed = 0
    for name in "abcde":
        with suppress(OSError):
            files.open(f"/d/{name}", NEW)
            continue
        failed += 1
    assert failed == failures


def test_reads_and_writes_may_be_short(files: SimulatedFiles) -> None:
    files.place("/d/a", b"123456")
    fd = files.open("/d/a", os.O_RDWR)
    files.shorten("pwritev", under("/d"), 2, times=1)
    files.shorten("preadv", under("/d"), 4)
    assert files.pwritev(fd, [b"ab", b"cd"], 0) == 2
    assert files.pwritev(fd, [b"x"], 5) == 1
    assert files.preadv(fd, [bytearray(6)], 0) == 4
    assert files.contents("/d/a") == b"ab345x"


def test_a_disk_may_be_missing(files: SimulatedFiles) -> None:
    files.place("/d/sub/a", b"1")
    fd = files.open("/d/sub/a", os.O_RDWR)
    files.take_out("/d")
    for path in ("/d", "/d/sub", "/d/sub/a"):
        with pytest.raises(FileNotFoundError):
            files.path_status(path)
    with pytest.raises(FileNotFoundError):
        files.open("/d/new", NEW)
    for call in (lambda: files.pwritev(fd, [b"2"], 0), lambda: files.preadv(fd, [bytearray(1)], 0), lambda: files.fsync(fd)):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EIO
    files.put_back("/d")
    assert files.list("/d/sub") == ["a"]


def test_a_disk_may_be_read_only(files: SimulatedFiles) -> None:
    files.place("/d/a", b"1")
    fd = files.open("/d/a", os.O_RDWR)
    files.set_read_only("/d")
    for call in (
        lambda: files.open("/d/a", os.O_RDWR),
        lambda: files.open("/d/b", NEW),
        lambda: files.pwritev(fd, [b"2"], 0),
        lambda: files.rename("/d/a", "/d/b"),
        lambda: files.unlink("/d/a"),
        lambda: files.mkdir("/d/sub"),
        lambda: files.allocate(fd, 0, 10),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EROFS
    assert files.open("/d/a", os.O_RDONLY)
    files.set_read_only("/d", False)
    files.unlink("/d/a")


def test_a_disk_fills_up(files: SimulatedFiles) -> None:
    fd = files.open("/e/a", NEW)
    assert files.file_system(fd).free == 4 * PAGE
    assert files.file_system(fd).kind == "tmpfs"
    files.allocate(fd, 0, 2 * PAGE)
    assert files.file_system(fd).free == 2 * PAGE
    assert files.pwritev(fd, [bytes(2 * PAGE)], 0) == 2 * PAGE
    assert files.file_system(fd).free == 2 * PAGE
    assert files.pwritev(fd, [bytes(4 * PAGE)], PAGE + 10) == 3 * PAGE - 10
    for call in (lambda: files.pwritev(fd, [b"1"], 4 * PAGE), lambda: files.allocate(fd, 0, 5 * PAGE)):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ENOSPC
    files.truncate(fd, PAGE)
    assert files.file_system(fd).free == 3 * PAGE
    files.unlink("/e/a")
    files.close(fd)
    top = files.open("/e", os.O_RDONLY)
    assert files.file_system(top).free == 4 * PAGE
    files.set_capacity("/e", 0)
    assert files.file_system(top).free == 0


def test_disks_keep_apart(files: SimulatedFiles) -> None:
    files.place("/d/a", b"1")
    with pytest.raises(OSError) as caught:
        files.rename("/d/a", "/e/a")
    assert caught.value.errno == errno.EXDEV
    assert files.path_status("/d").device != files.path_status("/e").device
    assert files.list("/") == ["d", "e"]
    for path in ("/d", "/e"):
        with pytest.raises(OSError):
            files.unlink(path)
        with pytest.raises(OSError):
            files.rename(path, "/f")


def test_bytes_may_rot(world: World, files: SimulatedFiles) -> None:
    files.place("/d/a", b"12345")
    files.damage("/d/a", 2, b"x")
    assert world.crash(NOTHING).files.contents("/d/a") == b"12x45"
    assert files.sites == []


# Pipes


def test_a_pipe_carries_bytes_until_its_writers_are_gone(files: SimulatedFiles) -> None:
    reading, writing = files.pipe()
    buffer = bytearray(10)
    with pytest.raises(BlockingIOError):
        files.readv(reading, [buffer])
    assert files.writev(writing, [b"hello", b" you"]) == 9
    again = files.reopen(writing, os.O_WRONLY | os.O_NONBLOCK)
    assert files.open_flags(again) & os.O_NONBLOCK
    files.close(writing)
    assert files.readv(reading, [buffer]) == 9
    assert buffer[:9] == b"hello you"
    with pytest.raises(BlockingIOError):
        files.readv(reading, [buffer])
    files.close(again)
    assert files.readv(reading, [buffer]) == 0
    status = files.status(reading)
    assert stat.S_ISFIFO(status.mode)


def test_a_pipe_is_full_at_64_kib_and_broken_without_readers(files: SimulatedFiles) -> None:
    reading, writing = files.pipe()
    assert files.writev(writing, [bytes(100_000)]) == 65_536
    with pytest.raises(BlockingIOError):
        files.writev(writing, [b"1"])
    assert files.readv(reading, [bytearray(10)]) == 10
    assert files.writev(writing, [bytes(20)]) == 10
    with pytest.raises(OSError) as caught:
        files.pwritev(writing, [b"1"], 0)
    assert caught.value.errno == errno.ESPIPE
    for fd, call in ((reading, files.writev), (writing, files.readv)):
        with pytest.raises(OSError) as caught:
            call(fd, [bytearray(1)])
        assert caught.value.errno == errno.EBADF
    files.close(reading)
    with pytest.raises(BrokenPipeError):
        files.writev(writing, [b"1"])
