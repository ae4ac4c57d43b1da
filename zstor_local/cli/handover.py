"""Files, pipes and terminals as descriptors that the daemon takes: it opens no path of ours, so it needs no right to it.

The daemon takes regular files, pipes and stream sockets. For anything else (a terminal, /dev/null, another user's pipe) a pipe of
ours stands in, with a thread that moves the bytes.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Final, Literal

from zstor_local.errors import AlreadyExists, Cancelled, IoError, NotFound, PathRefused, ZstorError, errno_name, errno_text
from zstor_local.signals import termination_raises

if TYPE_CHECKING:
    from zstor_local.store.protected import Protected

Kind = Literal["file", "stream"]  # which of write_file and write_stream, read_file and read_stream takes the descriptor

STDIN = 0
STDOUT = 1
_COPY_BYTES = 64 * 1024


class Handover:
    """A descriptor to hand over, and how many bytes it holds, where that can be known."""

    def __init__(self, fd: int, kind: Kind, size: int | None = None, *, mover: _Mover | None = None) -> None:
        self.kind = kind
        self.size = size
        self._fd = fd
        self._mover = mover

    @property
    def fd(self) -> int:
        """The descriptor. Where it is a pipe that stands in for something, the bytes move from the moment it is asked for."""
        if self._mover is not None:
            self._mover.start()
        return self._fd


@contextmanager
def source(name: str, *, instead: str = "name a file") -> Iterator[Handover]:
    """The bytes of a file, or of standard input for `-`; `instead` is what to do with a directory."""
    if name == "-":
        with _readable(STDIN, "standard input", instead) as handover:
            yield handover
        return
    with naming_errors(name):
        fd = os.open(name, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        with _readable(fd, name, instead) as handover:
            yield handover
    finally:
        os.close(fd)


def bytes_of(text: str, most: int) -> bytes:
    """The bytes of an argument; for `-` what standard input holds, of more than `most` bytes one more than that."""
    if text != "-":
        return text.encode(errors="surrogateescape")
    with naming_errors("standard input"):
        return sys.stdin.buffer.read(most + 1)


@contextmanager
def standard_output() -> Iterator[Handover]:
    """Standard output. What a regular file already holds before its offset stays.

    Where its reader has enough, the program ends without a word, as `cat` does.
    """
    sys.stdout.flush()
    try:
        with _writable(STDOUT, "standard output") as handover:
            yield handover
    except IoError as error:
        if error.data.get("errno") == "EPIPE":
            raise BrokenPipeError from None
        raise


@contextmanager
def destination(path: Path, *, force: bool, own: Protected) -> Iterator[Handover]:
    """A file that appears under its name, whole and durable, when the block ends well; never over an existing one without `force`,
    and never over one of the daemon's `own`.

    An existing file keeps its mode, a symbolic link is replaced and not written through; a device or FIFO is written to.
    """
    own.check_new(os.path.join(os.path.realpath(path.parent), path.name), str(path))
    with naming_errors(str(path)):
        mode = _existing_mode(path, force=force)
    if mode is not None and not stat.S_ISREG(mode):
        with naming_errors(str(path)):
            fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            with _writable(fd, str(path)) as handover:
                yield handover
        finally:
            os.close(fd)
        return
    part = path.with_name(part_name(path.name))
    new: int | None = None
    try:  # before there is a file: Ctrl-C may come at once
        with termination_raises():
            with naming_errors(str(path), missing=f"directory {path.parent}"):
                new = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            if mode is not None:
                os.fchmod(new, stat.S_IMODE(mode))
            yield Handover(new, "file")
            with naming_errors(str(path)):
                os.fsync(new)
                _publish(part, path, force=force)
    finally:
        if new is not None:
            os.close(new)
        with suppress(OSError):  # there is none, or nothing of ours
            part.unlink()


def file_to_write(name: str) -> Path:
    """The path of that name. NotFound for `missing/`: it names a directory, as it does for every other program."""
    if name.endswith("/") and not os.path.isdir(name):
        raise NotFound(f"there is no directory {name}", hint="make it first, or name a file: without the slash")
    return Path(name)


def part_name(name: str) -> str:
    """What a file is called, beside its name, until it is whole: at most 79 bytes, whatever the name is written in."""
    return f".{name[:16]}.{token_hex(4)}.part"


def _existing_mode(path: Path, *, force: bool) -> int | None:
    """The mode of what stands under the name: None for nothing. AlreadyExists for a file that may not be replaced."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    if stat.S_ISDIR(mode or 0):
        raise PathRefused(f"{path} is a directory", hint="name the file to write")
    if (mode is None or stat.S_ISREG(mode)) and not force and os.path.lexists(path):
        raise AlreadyExists(f"{path} is there already", hint="-f replaces it")
    return mode


def _publish(part: Path, path: Path, *, force: bool) -> None:
    """Give the finished file its name and make that durable. Linking, unlike renaming, never replaces."""
    if force:
        part.replace(path)
    else:
        try:
            os.link(part, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):  # vfat and its like have no links: look, then rename
                raise
            _existing_mode(path, force=False)
            part.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def _readable(fd: int, name: str, instead: str) -> Iterator[Handover]:
    with naming_errors(name):
        found = os.fstat(fd)
    if stat.S_ISDIR(found.st_mode):
        raise PathRefused(f"{name} is a directory", hint=instead)
    with naming_errors(name):
        os.read(fd, 0)  # not open for reading: said before anything is sent
    if stat.S_ISREG(found.st_mode):
        yield Handover(fd, "file", found.st_size)
    elif _is_ours(found):
        yield Handover(fd, "stream")
    else:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        mover = _Mover(os.dup(fd), writer, stop=interrupt_main)
        try:
            yield Handover(reader, "stream", mover=mover)
        except (Cancelled, KeyboardInterrupt):
            mover.check(name)  # it was not the user who interrupted
            raise
        finally:
            os.close(reader)


@contextmanager
def _writable(fd: int, name: str) -> Iterator[Handover]:
    with naming_errors(name):
        found = os.fstat(fd)
        os.write(fd, b"")
    if stat.S_ISREG(found.st_mode):
        yield Handover(fd, "file")
    elif _is_ours(found):
        yield Handover(fd, "stream")
    else:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        mover = _Mover(reader, os.dup(fd))
        try:
            yield Handover(writer, "stream", mover=mover)
        except IoError:
            mover.check(name)  # it knows better why nobody took the bytes
            raise
        finally:
            os.close(writer)
            mover.join()
        mover.check(name)


def _is_ours(found: os.stat_result) -> bool:
    """A pipe that the daemon may open anew (one that another user's shell made it may not), or a socket."""
    return stat.S_ISSOCK(found.st_mode) or (stat.S_ISFIFO(found.st_mode) and found.st_uid == os.geteuid())


class _Mover:
    """A thread that copies until the end of the input, or until nobody wants the output; then it closes both.

    Where the input fails, `stop` is called and the output stays open: its end would look like the end of the bytes.
    """

    def __init__(self, reader: int, writer: int, *, stop: Callable[[], None] | None = None) -> None:
        self._reader = reader
        self._writer = writer
        self._stop = stop
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Once; not before somebody is there to be stopped."""
        if self._thread.ident is None:
            self._thread.start()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def check(self, name: str) -> None:
        """Raise what went wrong with the file of that name."""
        if self._error is not None:
            raise as_io_error(self._error, name) from None

    def _run(self) -> None:
        try:
            self._copy()
        except OSError as error:
            self._error = error
            if self._stop is not None and error.errno != errno.EPIPE:
                self._stop()
                return
        os.close(self._reader)
        os.close(self._writer)

    def _copy(self) -> None:
        while piece := os.read(self._reader, _COPY_BYTES):
            view = memoryview(piece)
            while view:
                view = view[os.write(self._writer, view) :]


@contextmanager
def naming_errors(name: str, *, missing: str | None = None) -> Iterator[None]:
    """The system's errors as ours, with the file's name; `missing` is what is not there where the file is only to come."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"there is no {missing or f'file or directory {name}'}") from None
    except FileExistsError:
        raise AlreadyExists(f"{name} is there already", hint="-f replaces it") from None
    except OSError as error:
        raise as_io_error(error, name) from None


def as_io_error(error: OSError, name: str) -> ZstorError:
    return IoError(f"{name}: {errno_text(error)}", hint=_WAYS_OUT.get(error.errno or 0), errno=errno_name(error))


# What to do where the system refuses one of the user's files.
_WAYS_OUT: Final = {
    errno.EACCES: "`ls -ld` on it and on its directory shows who may; or name another place",
    errno.EROFS: "that file system is mounted read-only: name another place",
    errno.ENOSPC: "free some room there, or name another place",
    errno.EDQUOT: "free some room there, or name another place",
    errno.ENOTDIR: "a part of that path is a file and no directory",
    errno.ENAMETOOLONG: "name a file whose name is shorter",
}
