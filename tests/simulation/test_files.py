"""What Files promise, asked of the kernel's and of the simulated ones: the simulation is worth what this suite finds equal."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.simulation.world import Mount, World
from zstor_local.runtime import Files, read_exactly, sync_directory, write_all
from zstor_local.system import RealFiles

NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR


@contextmanager
def refused(code: int) -> Iterator[None]:
    """The block raises an OSError with this errno."""
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]


def put(files: Files, path: str, data: bytes) -> None:
    fd = files.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    write_all(files, fd, [data], 0)
    files.close(fd)


def get(files: Files, path: str) -> bytes:
    fd = files.open(path, os.O_RDONLY)
    try:
        return bytes(read_exactly(files, fd, files.status(fd).size, 0))
    finally:
        files.close(fd)


class FilesContract:
    """The laws, over a `files` and an empty directory `root` that the subclass gives."""

    def test_they_are_files(self, files: Files) -> None:
        assert isinstance(files, Files)

    # Reading and writing

    def test_a_file_reads_the_same_when_its_cache_was_dropped(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW)
        files.pwritev(fd, [b"synced"], 0)
        files.fsync(fd)
        files.drop_cache(fd)
        assert files.pread(fd, 20, 0) == b"synced"
        files.pwritev(fd, [b", and not"], 6)
        files.drop_cache(fd)
        assert files.pread(fd, 20, 0) == b"synced, and not"

    def test_what_was_written_at_an_offset_is_read_there(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW)
        assert files.pwritev(fd, [b"hello ", bytearray(b"wor"), memoryview(b"ld")], 4_090) == 11
        first, second = bytearray(3), bytearray(20)
        assert files.preadv(fd, [first, second], 4_092) == 9
        assert bytes(first + second[:6]) == b"llo world"
        assert second[6:] == bytes(14)

    def test_holes_read_as_zeros(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW)
        files.pwritev(fd, [b"x"], 100_000)
        assert files.status(fd).size == 100_001
        assert read_exactly(files, fd, 200_000, 0) == bytes(100_000) + b"x"

    def test_an_overwrite_changes_only_its_range(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW)
        files.pwritev(fd, [b"a" * 10_000], 0)
        files.pwritev(fd, [b"b" * 5_000], 4_000)
        assert read_exactly(files, fd, 10_000, 0) == b"a" * 4_000 + b"b" * 5_000 + b"a" * 1_000

    def test_reads_are_short_at_the_end_and_empty_behind_it(self, files: Files, root: str) -> None:
        put(files, f"{root}/a", b"12345")
        fd = files.open(f"{root}/a", os.O_RDONLY)
        assert files.preadv(fd, [bytearray(10)], 3) == 2
        assert files.preadv(fd, [bytearray(10)], 5) == 0
        assert files.preadv(fd, [bytearray(10)], 50) == 0
        assert files.preadv(fd, [], 0) == 0

    def test_writing_nothing_writes_nothing(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW)
        assert files.pwritev(fd, [b"", b""], 100) == 0
        assert files.status(fd).size == 0

    def test_a_read_without_waiting_gives_the_same_or_says_so(self, files: Files, root: str) -> None:
        put(files, f"{root}/a", b"12345")
        fd = files.open(f"{root}/a", os.O_RDONLY)
        buffer = bytearray(3)
        try:
            assert files.preadv_nowait(fd, [buffer], 1) == 3
        except BlockingIOError:
            files.preadv(fd, [buffer], 1)
        assert buffer == b"234"

    def test_readv_writev_and_seek_share_one_offset(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW)
        assert files.writev(fd, [b"abc", b"def"]) == 6
        assert files.seek(fd, -4, os.SEEK_CUR) == 2
        buffer = bytearray(2)
        assert files.readv(fd, [buffer]) == 2
        assert buffer == b"cd"
        assert files.seek(fd, 0, os.SEEK_CUR) == 4
        assert files.seek(fd, 10, os.SEEK_END) == 16
        assert files.seek(fd, 1, os.SEEK_SET) == 1
        with refused(errno.EINVAL):
            files.seek(fd, -2, os.SEEK_CUR)

    def test_append_goes_to_the_end(self, files: Files, root: str) -> None:
        put(files, f"{root}/a", b"123")
        fd = files.open(f"{root}/a", os.O_WRONLY | os.O_APPEND)
        files.writev(fd, [b"45"])
        files.writev(fd, [b"67"])
        assert get(files, f"{root}/a") == b"1234567"

    def test_truncate_cuts_and_extends_with_zeros(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW)
        files.pwritev(fd, [b"x" * 9_000], 0)
        files.truncate(fd, 5_000)
        files.truncate(fd, 20_000)
        assert read_exactly(files, fd, 30_000, 0) == b"x" * 5_000 + bytes(15_000)
        files.truncate(fd, 0)
        assert files.status(fd).size == 0

    def test_allocate_grows_with_zeros_and_keeps_what_is_there(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW)
        files.pwritev(fd, [b"abc"], 0)
        files.allocate(fd, 0, 10_000)
        assert read_exactly(files, fd, 20_000, 0) == b"abc" + bytes(9_997)
        files.allocate(fd, 0, 5)
        assert files.status(fd).size == 10_000
        with refused(errno.EINVAL):
            files.allocate(fd, 0, 0)

    def test_a_descriptor_does_only_what_it_was_opened_for(self, files: Files, root: str) -> None:
        put(files, f"{root}/a", b"123")
        reading = files.open(f"{root}/a", os.O_RDONLY)
        writing = files.open(f"{root}/a", os.O_WRONLY)
        with refused(errno.EBADF):
            files.pwritev(reading, [b"x"], 0)
        with refused(errno.EBADF):
            files.writev(reading, [b"x"])
        with refused(errno.EBADF):
            files.preadv(writing, [bytearray(1)], 0)
        with refused(errno.EINVAL):
            files.truncate(reading, 0)
        with refused(errno.EBADF):
            files.allocate(reading, 0, 1)

    def test_negative_offsets_are_refused(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW)
        with refused(errno.EINVAL):
            files.pwritev(fd, [b"x"], -2)
        with refused(errno.EINVAL):
            files.preadv(fd, [bytearray(1)], -2)
        with refused(errno.EINVAL):
            files.truncate(fd, -1)

    def test_a_closed_descriptor_is_bad(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW)
        files.close(fd)
        with refused(errno.EBADF):
            files.close(fd)
        with refused(errno.EBADF):
            files.fsync(fd)
        with refused(errno.EBADF):
            files.status(fd)

    def test_syncs_return(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW)
        files.pwritev(fd, [b"x"], 0)
        files.fsync(fd)
        files.fdatasync(fd)
        files.syncfs(fd)
        sync_directory(files, root)
        assert get(files, f"{root}/a") == b"x"

    # Opening

    def test_exclusive_creation_happens_once(self, files: Files, root: str) -> None:
        files.close(files.open(f"{root}/a", NEW))
        with refused(errno.EEXIST):
            files.open(f"{root}/a", NEW)

    def test_opening_with_create_takes_what_is_there(self, files: Files, root: str) -> None:
        put(files, f"{root}/a", b"123")
        fd = files.open(f"{root}/a", os.O_CREAT | os.O_RDWR)
        assert files.status(fd).size == 3
        fd = files.open(f"{root}/a", os.O_CREAT | os.O_RDWR | os.O_TRUNC)
        assert files.status(fd).size == 0

    def test_opening_what_is_not_there(self, files: Files, root: str) -> None:
        for path in (f"{root}/a", f"{root}/none/a"):
            with refused(errno.ENOENT):
                files.open(path, os.O_RDONLY)
        with refused(errno.ENOENT):
            files.open(f"{root}/none/a", NEW)
        with refused(errno.ENAMETOOLONG):
            files.open(f"{root}/{'x' * 256}", NEW)

    def test_files_are_no_directories(self, files: Files, root: str) -> None:
        put(files, f"{root}/a", b"")
        files.mkdir(f"{root}/d")
        with refused(errno.ENOTDIR):
            files.open(f"{root}/a", os.O_RDONLY | os.O_DIRECTORY)
        with refused(errno.ENOTDIR):
            files.open(f"{root}/a/b", NEW)
        with refused(errno.ENOTDIR):
            files.list(f"{root}/a")
        with refused(errno.ENOTDIR):
            files.mkdir(f"{root}/a/b")
        with refused(errno.EISDIR):
            files.open(f"{root}/d", os.O_RDWR)
        fd = files.open(f"{root}/d", os.O_RDONLY | os.O_DIRECTORY)
        with refused(errno.EISDIR):
            files.preadv(fd, [bytearray(1)], 0)

    def test_reopening_gives_an_offset_of_its_own(self, files: Files, root: str) -> None:
        put(files, f"{root}/a", b"12345")
        fd = files.open(f"{root}/a", os.O_RDONLY)
        files.seek(fd, 3, os.SEEK_SET)
        other = files.reopen(fd, os.O_RDWR)
        assert files.seek(other, 0, os.SEEK_CUR) == 0
        assert files.pwritev(other, [b"x"], 0) == 1
        assert files.open_flags(fd) & os.O_ACCMODE == os.O_RDONLY
        assert files.open_flags(other) & os.O_ACCMODE == os.O_RDWR
        files.close(other)
        assert files.status(fd).size == 5

    def test_flags_of_opening_are_remembered(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW | os.O_APPEND)
        assert files.open_flags(fd) & os.O_APPEND
        assert not files.open_flags(fd) & os.O_CREAT

    def test_one_of_two_openings_has_the_lock(self, files: Files, root: str) -> None:
        first = files.open(f"{root}/a", NEW)
        second = files.open(f"{root}/a", os.O_RDWR)
        assert files.lock(first)
        assert files.lock(first)
        assert not files.lock(second)
        files.close(first)
        assert files.lock(second)

    # Names

    def test_names_are_listed_in_order(self, files: Files, root: str) -> None:
        for name in ("b", "a", "c.tmp", "B", "ä"):
            put(files, f"{root}/{name}", b"")
        files.mkdir(f"{root}/aa")
        assert files.list(root) == ["B", "a", "aa", "b", "c.tmp", "ä"]
        assert files.list(f"{root}/aa") == []
        with refused(errno.ENOENT):
            files.list(f"{root}/none")

    def test_renaming_replaces_what_is_there(self, files: Files, root: str) -> None:
        put(files, f"{root}/new", b"new")
        put(files, f"{root}/old", b"old")
        fd = files.open(f"{root}/old", os.O_RDONLY)
        files.rename(f"{root}/new", f"{root}/old")
        assert files.list(root) == ["old"]
        assert get(files, f"{root}/old") == b"new"
        assert read_exactly(files, fd, 10, 0) == b"old"
        assert files.status(fd).links == 0

    def test_renaming_to_itself_does_nothing(self, files: Files, root: str) -> None:
        put(files, f"{root}/a", b"1")
        files.rename(f"{root}/a", f"{root}/a")
        assert get(files, f"{root}/a") == b"1"

    def test_renaming_between_directories(self, files: Files, root: str) -> None:
        files.mkdir(f"{root}/d")
        files.mkdir(f"{root}/e")
        put(files, f"{root}/d/a", b"1")
        files.rename(f"{root}/d/a", f"{root}/e/b")
        assert (files.list(f"{root}/d"), files.list(f"{root}/e")) == ([], ["b"])
        files.rename(f"{root}/e", f"{root}/d/e")
        assert get(files, f"{root}/d/e/b") == b"1"

    def test_renames_that_make_no_sense(self, files: Files, root: str) -> None:
        put(files, f"{root}/a", b"")
        files.mkdir(f"{root}/d")
        files.mkdir(f"{root}/full")
        put(files, f"{root}/full/a", b"")
        for old, new, code in (
            ("none", "b", errno.ENOENT),
            ("a", "none/b", errno.ENOENT),
            ("a", "d", errno.EISDIR),
            ("d", "a", errno.ENOTDIR),
            ("d", "full", errno.ENOTEMPTY),
            ("d", "d/d", errno.EINVAL),
            ("a", "a/b", errno.ENOTDIR),
        ):
            with refused(code):
                files.rename(f"{root}/{old}", f"{root}/{new}")
        files.rename(f"{root}/full", f"{root}/d")
        assert files.list(f"{root}/d") == ["a"]

    def test_an_unlinked_file_is_readable_while_open(self, files: Files, root: str) -> None:
        put(files, f"{root}/a", b"123")
        fd = files.open(f"{root}/a", os.O_RDWR)
        files.unlink(f"{root}/a")
        assert files.list(root) == []
        assert read_exactly(files, fd, 10, 0) == b"123"
        assert files.pwritev(fd, [b"4"], 3) == 1
        assert (files.status(fd).links, files.status(fd).size) == (0, 4)
        put(files, f"{root}/a", b"other")
        assert files.path_status(f"{root}/a").inode != files.status(fd).inode

    def test_unlinking_what_cannot_be(self, files: Files, root: str) -> None:
        files.mkdir(f"{root}/d")
        with refused(errno.ENOENT):
            files.unlink(f"{root}/a")
        with refused(errno.EISDIR):
            files.unlink(f"{root}/d")

    def test_directories_are_made_once_and_below_others(self, files: Files, root: str) -> None:
        files.mkdir(f"{root}/d")
        with refused(errno.EEXIST):
            files.mkdir(f"{root}/d")
        with refused(errno.ENOENT):
            files.mkdir(f"{root}/none/d")
        with refused(errno.EEXIST):
            files.mkdir("/")

    # What is known about them

    def test_status_tells_the_same_by_path_and_descriptor(self, files: Files, root: str) -> None:
        fd = files.open(f"{root}/a", NEW, 0o640)
        files.pwritev(fd, [b"123"], 0)
        status = files.status(fd)
        assert status == files.path_status(f"{root}/a") == files.path_status(f"{root}/a", follow=False)
        assert (status.size, status.links, status.is_regular) == (3, 1, True)
        assert status.mode & 0o777 == 0o640
        assert status.modified_ns > 0
        above = files.path_status(root)
        assert (stat.S_ISDIR(above.mode), above.device) == (True, status.device)
        with refused(errno.ENOENT):
            files.path_status(f"{root}/none")

    def test_inodes_tell_files_apart_and_stay_over_a_rename(self, files: Files, root: str) -> None:
        put(files, f"{root}/a", b"")
        put(files, f"{root}/b", b"")
        number = files.path_status(f"{root}/a").inode
        assert files.path_status(f"{root}/b").inode != number
        files.rename(f"{root}/a", f"{root}/b")
        assert files.path_status(f"{root}/b").inode == number

    def test_the_file_system_has_a_kind_and_room(self, files: Files, root: str) -> None:
        fd = files.open(root, os.O_RDONLY | os.O_DIRECTORY)
        system = files.file_system(fd)
        assert system.device == files.status(fd).device
        assert system.kind
        assert 0 <= system.free <= system.total

    def test_paths_may_have_dots_and_doubled_slashes(self, files: Files, root: str) -> None:
        files.mkdir(f"{root}/d")
        put(files, f"{root}//d/.././a", b"1")
        assert files.list(f"{root}/") == ["a", "d"]


class TestRealFiles(FilesContract):
    """The kernel keeps the laws."""

    @pytest.fixture
    def files(self) -> Files:
        return RealFiles()

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return str(tmp_path)


class TestSimulatedFiles(FilesContract):
    """The simulation keeps the same laws."""

    @pytest.fixture
    def files(self) -> Files:
        return World(mounts=[Mount("/disk")]).files

    @pytest.fixture
    def root(self) -> str:
        return "/disk"
