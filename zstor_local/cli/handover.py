"""Files, pipes and terminals as descriptors that the daemon takes: it opens no path of ours, so it needs no right to it.

The daemon takes regular files, pipes and stream sockets. For anything else (a terminal, /dev/null, another user's pipe) a pipe of
ours stands in, with a thread that moves the bytes.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from types import FrameType
from typing import Literal

from zstor_local.errors import AlreadyExists, IoError, NotFound, PathRefused, ZstorError

Kind = Literal["file", "stream"]  # which of write_file and write_stream, read_file and read_stream takes the descriptor

STDIN = 0
STDOUT = 1
_COPY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Handover:
    """A descriptor to hand over, and how many bytes it holds, where that can be known."""

    fd: int
    kind: Kind
    size: int | None = None


@contextmanager
def source(name: str) -> Iterator[Handover]:
    """The bytes of a file, or of standard input for `-`."""
    if name == "-":
        with _readable(STDIN, "standard input") as handover:
            yield handover
        return
    with naming_errors(name):
        fd = os.open(name, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        with _readable(fd, name) as handover:
            yield handover
    finally:
        os.close(fd)


@contextmanager
def standard_output() -> Iterator[Handover]:
    """Standard output. What a regular file already holds before its offset stays."""
    sys.stdout.flush()
    with _writable(STDOUT, "standard output") as handover:
        yield handover


@contextmanager
def destination(path: Path, *, force: bool) -> Iterator[Handover]:
    """A file that appears under its name, whole and durable, when the block ends well; never over an existing one without `force`.

    An existing file keeps its mode, a symbolic link is replaced and not written through; a device or FIFO is written to.
    """
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
    part = path.with_name(f".{path.name[:64]}.{token_hex(4)}.part")
    with naming_errors(str(path)):
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with termination_raises():
            if mode is not None:
                os.fchmod(fd, stat.S_IMODE(mode))
            yield Handover(fd, "file")
            with naming_errors(str(path)):
                os.fsync(fd)
                _publish(part, path, force=force)
    finally:
        os.close(fd)
        with suppress(FileNotFoundError):
            part.unlink()


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
def _readable(fd: int, name: str) -> Iterator[Handover]:
    with naming_errors(name):
        found = os.fstat(fd)
    if stat.S_ISDIR(found.st_mode):
        raise PathRefused(f"{name} is a directory", hint="tar c DIRECTORY | zstor put - KEY")
    if stat.S_ISREG(found.st_mode):
        yield Handover(fd, "file", found.st_size)
    elif _is_ours(found):
        yield Handover(fd, "stream")
    else:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        threading.Thread(target=_move, args=(os.dup(fd), writer), daemon=True).start()
        try:
            yield Handover(reader, "stream")
        finally:
            os.close(reader)


@contextmanager
def _writable(fd: int, name: str) -> Iterator[Handover]:
    with naming_errors(name):
        found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode):
        yield Handover(fd, "file")
    elif _is_ours(found):
        yield Handover(fd, "stream")
    else:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        mover = threading.Thread(target=_move, args=(reader, os.dup(fd)), daemon=True)
        mover.start()
        try:
            yield Handover(writer, "stream")
        finally:
            os.close(writer)
            mover.join()


def _is_ours(found: os.stat_result) -> bool:
    """A pipe that the daemon may open anew (one that another user's shell made it may not), or a socket."""
    return stat.S_ISSOCK(found.st_mode) or (stat.S_ISFIFO(found.st_mode) and found.st_uid == os.geteuid())


def _move(reader: int, writer: int) -> None:
    """Copy until the end of the input, or until nobody wants the output; then close both."""
    try:
        with suppress(BrokenPipeError):
            while piece := os.read(reader, _COPY_BYTES):
                view = memoryview(piece)
                while view:
                    view = view[os.write(writer, view) :]
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def naming_errors(name: str) -> Iterator[None]:
    """The system's errors as ours, with the file's name."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"there is no {name}") from None
    except FileExistsError:
        raise AlreadyExists(f"{name} is there already", hint="-f replaces it") from None
    except OSError as error:
        raise as_io_error(error, name) from None


def as_io_error(error: OSError, name: str) -> ZstorError:
    return IoError(f"{name}: {error.strerror}", errno=errno.errorcode.get(error.errno or 0, "EIO"))


@contextmanager
def termination_raises() -> Iterator[None]:
    """While it lasts, SIGTERM and SIGHUP leave by an exception, so that the temporary file goes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deadly = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]  # not under nohup
    for number in deadly:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in deadly:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
