"""A file that is being written has no name: a daemon that is killed on the way leaves nothing in anybody's directory."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from tests.lacking import lacking
from tests.troubled_files import TroubledFiles, troubled_runtime
from zstor_local.errors import AlreadyExists, IoError, NoSpace
from zstor_local.rpc.methods.handover import Handover
from zstor_local.runtime import Buffer
from zstor_local.store.paths import Mode, Paths
from zstor_local.store.protected import Protected
from zstor_local.store.reading import Range
from zstor_local.system import RealClientFiles, RealFiles


class OldFileSystem(RealClientFiles):
    """One that has no unnamed files."""

    def open_unnamed(self, directory: str) -> int | None:
        return None


class NearlyFull(RealFiles):
    """On its disk there is room for so many bytes more, behind what the daemon wrote first; `others` do something when it is full."""

    def __init__(self, left: int, others: Callable[[], object] = lambda: None) -> None:
        self._left = left
        self._others = others

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        if not self._left:
            self._others()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = super().writev(fd, [memoryview(buffers[0])[: self._left]])
        self._left -= count
        return count


class Random:
    def bytes(self, count: int) -> bytes:
        return os.urandom(count)


@pytest.fixture(params=[RealClientFiles, OldFileSystem])
def paths(request: pytest.FixtureRequest) -> Iterator[Paths]:
    made = Paths(RealFiles(), request.param(), Random(), Protected(directories=[], files=[]), [])
    yield made
    made.close()


def write(paths: Paths, path: Path, data: bytes, mode: Mode) -> list[str]:
    """Write a file as a read does; returns what lay in its directory meanwhile."""
    with paths.destination(str(path), None, mode, sync=True) as fd:
        os.write(fd, data)
        return sorted(name.name for name in path.parent.iterdir())


def fill(paths: Paths, path: Path, mode: Mode, work: Callable[[int], object]) -> None:
    with paths.destination(str(path), None, mode, sync=False) as fd:
        work(fd)


def test_while_it_is_written_nothing_lies_there(tmp_path: Path) -> None:
    paths = Paths(RealFiles(), RealClientFiles(), Random(), Protected(directories=[], files=[]), [])
    if RealClientFiles().open_unnamed(str(tmp_path)) is None:
        lacking("a file system with unnamed files (O_TMPFILE)")
    target = tmp_path / "f"
    assert write(paths, target, b"1", "truncate") == []
    assert write(paths, target, b"2", "append") == ["f"]
    assert write(paths, tmp_path / "g", b"3", "exclusive") == ["f"]
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"12", b"3"]
    paths.close()


@pytest.mark.parametrize("mode", ["truncate", "append", "exclusive"])
def test_in_the_end_it_is_there_and_nothing_else(paths: Paths, tmp_path: Path, mode: Mode) -> None:
    write(paths, tmp_path / "f", b"whole", mode)
    assert [(path.name, path.read_bytes(), path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [("f", b"whole", 0o600)]


def test_after_an_error_the_old_file_is_there_and_nothing_else(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")

    def half(fd: int) -> None:
        os.write(fd, b"half")
        raise KeyError

    with pytest.raises(KeyError):
        fill(paths, tmp_path / "f", "truncate", half)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"old")]


def test_what_a_full_disk_took_of_an_appended_object_goes_again(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_bytes(b"old")
    paths = Paths(NearlyFull(3), RealClientFiles(), Random(), Protected(directories=[], files=[]), [])
    with pytest.raises(NoSpace):
        write(paths, target, b"new bytes", "append")
    assert target.read_bytes() == b"old"
    paths.close()


def test_what_others_appended_behind_it_stays(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_bytes(b"old")

    def others() -> None:
        with target.open("ab") as file:
            file.write(b", theirs")

    files = NearlyFull(3, others)
    paths = Paths(files, RealClientFiles(), Random(), Protected(directories=[], files=[]), [])
    with pytest.raises(NoSpace):
        write(paths, target, b"new bytes", "append")
    assert target.read_bytes() == b"oldnew, theirs"
    paths.close()


@pytest.mark.parametrize("mode", ["truncate", "exclusive"])
def test_where_it_cannot_be_put_in_place_everything_is_as_it_was(tmp_path: Path, mode: Mode) -> None:
    files, target = TroubledFiles(), tmp_path / "f"
    files.fail("rename", lambda path: True, errno.EIO)
    if mode == "truncate":
        target.write_bytes(b"old")
    paths = Paths(files, OldFileSystem(), Random(), Protected(directories=[], files=[]), [])
    with pytest.raises(IoError):
        write(paths, target, b"new", mode)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([b"old"] if mode == "truncate" else [])
    paths.close()


async def test_a_descriptors_disk_that_fails_at_last_is_told_as_the_destinations(paths: Paths, tmp_path: Path) -> None:
    files = TroubledFiles()
    files.fail("fsync", lambda path: True, errno.EDQUOT)
    fd = os.open(tmp_path / "f", os.O_WRONLY | os.O_CREAT)
    call, objects, stored = (
        cast(Any, SimpleNamespace(**members))
        for members in ({"take_fd": lambda index: fd}, {"read_to_file": lambda *_: trio.lowlevel.checkpoint(), "kept": nullcontext}, {})
    )
    handover = Handover(troubled_runtime(files), paths)
    with pytest.raises(NoSpace):
        async with handover.output(call, 0, None, "truncate", stream=False, sync=True) as take:
            await take(objects, stored, Range(0, 3, 256))


@pytest.mark.parametrize("mode", ["truncate", "append", "exclusive"])
async def test_while_a_disk_takes_what_was_written_everybody_else_goes_on(tmp_path: Path, mode: Mode) -> None:
    """It may take minutes to."""
    main, at_work = threading.current_thread(), set()

    class Slow(TroubledFiles):
        def fsync(self, fd: int) -> None:
            at_work.add(threading.current_thread())
            super().fsync(fd)

        def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
            at_work.add(threading.current_thread())
            return super().writev(fd, buffers)

    if mode == "append":
        (tmp_path / "f").write_bytes(b"old ")
    files = Slow()
    paths = Paths(files, RealClientFiles(), Random(), Protected(directories=[], files=[]), [])
    call = cast(Any, SimpleNamespace(peer=SimpleNamespace(mounts=None)))
    async with Handover(troubled_runtime(files), paths).sink_at(call, str(tmp_path / "f"), mode) as sink:
        await sink.write([b"new"])
    assert (tmp_path / "f").read_bytes() == (b"old new" if mode == "append" else b"new")
    assert at_work
    assert main not in at_work
    paths.close()


def test_one_that_came_meanwhile_is_not_replaced_by_an_exclusive_one(paths: Paths, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExists):
        fill(paths, tmp_path / "f", "exclusive", lambda fd: (tmp_path / "f").write_bytes(b"theirs"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"theirs")]


def test_two_that_append_to_a_file_that_was_not_there_both_come_into_it(paths: Paths, tmp_path: Path) -> None:
    first, second = (paths.destination(str(tmp_path / "f"), None, "append", sync=True) for _ in range(2))
    with first as one, second as other:  # that is left first
        os.write(one, b", one")
        os.write(other, b"other")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"other, one")]


def test_what_cannot_be_cleared_away_hides_no_error(tmp_path: Path) -> None:
    """As of a disk that failed, and that the system made read-only then."""
    files = TroubledFiles()
    paths = Paths(files, OldFileSystem(), Random(), Protected(directories=[], files=[]), [])

    def failing(fd: int) -> None:
        files.fail("unlink", lambda path: True, errno.EROFS)
        raise IoError("the disk failed")

    with pytest.raises(IoError, match="the disk failed"):
        fill(paths, tmp_path / "f", "truncate", failing)
    paths.close()


def test_what_a_file_system_says_at_the_end_is_told(tmp_path: Path) -> None:
    """As of bytes that a server did not take, where nobody asked for a sync."""
    files = TroubledFiles()
    paths = Paths(files, OldFileSystem(), Random(), Protected(directories=[], files=[]), [])
    files.fail("close", lambda path: path.endswith(".part"), errno.EDQUOT)
    with pytest.raises(NoSpace):
        fill(paths, tmp_path / "f", "truncate", lambda fd: os.write(fd, b"new"))
    paths.close()


def test_a_file_system_that_changes_no_modes_is_told_of(tmp_path: Path) -> None:
    class WithoutModes(RealClientFiles):
        def set_mode(self, fd: int, mode: int) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    (tmp_path / "f").write_bytes(b"old")
    paths = Paths(RealFiles(), WithoutModes(), Random(), Protected(directories=[], files=[]), [])
    with pytest.raises(IoError) as refused:
        write(paths, tmp_path / "f", b"new", "truncate")
    assert refused.value.data["errno"] == "EPERM"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"old")]
    paths.close()


def test_a_file_that_is_replaced_keeps_its_mode(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o640)
    write(paths, tmp_path / "f", b"new", "truncate")
    assert ((tmp_path / "f").read_bytes(), (tmp_path / "f").stat().st_mode & 0o777) == (b"new", 0o640)
