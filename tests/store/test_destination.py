"""A file that is being written has no name: a daemon that is killed on the way leaves nothing in anybody's directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lacking import lacking
from zstor_local.errors import AlreadyExists
from zstor_local.store.paths import Mode, Paths
from zstor_local.store.protected import Protected
from zstor_local.system import RealClientFiles, RealFiles


class OldFileSystem(RealClientFiles):
    """One that has no unnamed files."""

    def open_unnamed(self, directory: str) -> int | None:
        return None


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


def test_one_that_came_meanwhile_is_not_replaced_by_an_exclusive_one(paths: Paths, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExists):
        fill(paths, tmp_path / "f", "exclusive", lambda fd: (tmp_path / "f").write_bytes(b"theirs"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"theirs")]


def test_a_file_that_is_replaced_keeps_its_mode(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o640)
    write(paths, tmp_path / "f", b"new", "truncate")
    assert ((tmp_path / "f").read_bytes(), (tmp_path / "f").stat().st_mode & 0o777) == (b"new", 0o640)
