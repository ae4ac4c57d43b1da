"""What the command hands over, and what becomes of the file that it fills."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from zstor_local.cli.handover import as_io_error, destination, file_to_write, source
from zstor_local.errors import AlreadyExists, NotFound, PathRefused, ZstorError
from zstor_local.store.protected import Protected

NOTHING = Protected([], [])


def fill(path: Path, *, force: bool = False, then: Callable[[], object] = lambda: None) -> None:
    with destination(path, force=force, own=NOTHING) as handover:
        os.write(handover.fd, b"new")
        then()


def fail() -> None:
    raise RuntimeError


def test_a_file_is_handed_over_as_a_file_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    with source(str(path)) as handover:
        assert (handover.kind, handover.size) == ("file", 5)
        assert os.read(handover.fd, 9) == b"12345"


def test_a_fifo_is_handed_over_as_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    keep_open = os.open(path, os.O_RDWR)
    with source(str(path)) as handover:
        assert (handover.kind, handover.size) == ("stream", None)
    os.close(keep_open)


def test_a_device_is_read_through_a_pipe() -> None:
    with source("/dev/null") as handover:
        assert handover.kind == "stream"
        assert stat.S_ISFIFO(os.fstat(handover.fd).st_mode)
        assert os.read(handover.fd, 9) == b""


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no .*/missing"), source(str(tmp_path / "missing")):
        pass
    with pytest.raises(PathRefused, match="is a directory") as caught, source(str(tmp_path), instead="what to do"):
        pass
    assert caught.value.hint == "what to do"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_what_the_system_refuses_comes_with_a_way_out(number: int) -> None:
    assert as_io_error(OSError(number, os.strerror(number)), "f").hint


def test_a_file_is_not_written_where_a_directory_was_named(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for name in ("missing/", "f/"):
        with pytest.raises(NotFound, match="there is no directory"):
            file_to_write(f"{tmp_path}/{name}")
    assert file_to_write(f"{tmp_path}/") == tmp_path
    assert file_to_write("missing") == Path("missing")


def test_a_new_file_appears_whole_and_with_the_usual_mode(tmp_path: Path) -> None:
    path = tmp_path / "f"
    seen: list[bool] = []
    fill(path, then=lambda: seen.append(path.exists()))
    assert seen == [False]
    assert path.read_bytes() == b"new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert os.listdir(tmp_path) == ["f"]


def test_an_existing_file_is_never_replaced_without_force(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(AlreadyExists) as caught:
        fill(path)
    assert caught.value.hint == "-f replaces it"
    assert path.read_bytes() == b"old"


def test_a_file_that_appears_meanwhile_is_not_replaced_either(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(AlreadyExists):
        fill(path, then=lambda: path.write_bytes(b"another's"))
    assert path.read_bytes() == b"another's"
    assert os.listdir(tmp_path) == ["f"]


def test_a_dangling_link_counts_as_there(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(AlreadyExists):
        fill(path)


def test_force_keeps_the_mode_and_replaces_a_link_instead_of_writing_through_it(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    fill(link, force=True)
    assert target.read_bytes() == b"old"
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"
    assert stat.S_IMODE(link.stat().st_mode) == 0o640


@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "f"
    if force:
        path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        fill(path, force=force, then=fail)
    assert os.listdir(tmp_path) == (["f"] if force else [])
    assert not force or path.read_bytes() == b"old"


@pytest.mark.parametrize("place", ["key", "link/key", "linked", "store/f", "link/store/f"])
def test_what_is_the_daemons_own_is_not_written_over(tmp_path: Path, place: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("key", "linked", "store/f"):
        (tmp_path / name).write_bytes(b"own")
    own = Protected([str(tmp_path / "store")], [str(tmp_path / "key"), str(tmp_path / "linked")])
    told = f"{place} (is one of the daemon's own files|lies in the daemon's own store)"
    with pytest.raises(PathRefused, match=told), destination(tmp_path / place, force=True, own=own):
        pass
    assert (tmp_path / place).read_bytes() == b"own"
    with destination(tmp_path / "other", force=True, own=own) as handover:
        os.write(handover.fd, b"new")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under nohup a hangup is ignored
    try:
        with pytest.raises(SystemExit) as caught, destination(tmp_path / "f", force=False, own=NOTHING):
            signal.raise_signal(number)
        assert caught.value.code == 128 + number
        assert os.listdir(tmp_path) == []
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_under_nohup_a_hangup_changes_nothing(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fill(tmp_path / "f", then=lambda: signal.raise_signal(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "f").read_bytes() == b"new"


def test_a_device_is_written_to_and_stays_a_device() -> None:
    with destination(Path("/dev/null"), force=True, own=NOTHING) as handover:
        assert handover.kind == "stream"
        os.write(handover.fd, b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_fifo_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    fill(path)
    reader.join()
    assert read == [b"new"]


@pytest.mark.parametrize("place", ["", "missing/f"])
def test_where_no_file_can_be_it_says_so(tmp_path: Path, place: str) -> None:
    with pytest.raises(ZstorError):
        fill(tmp_path / place)
