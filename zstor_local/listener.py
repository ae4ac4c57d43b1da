"""The daemon's socket: bound under a lock, 0600 from its first moment, gone at the end; or a service manager's, which stays its own."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio

from zstor_local.runtime import Files
from zstor_local.store.faults import StoreFault
from zstor_local.store.keyfile import make_directories
from zstor_local.unix_socket import bind_own

BACKLOG: Final = 128
SOCKET_NAME_BYTES: Final = 80  # of the 107 that sun_path holds; the others are for /proc/self/fd/N/ and .new
_NEW: Final = ".new"  # behind its name until it listens


class AlreadyServed(Exception):
    """Another daemon has this socket."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@contextmanager
def listening(files: Files, path: str) -> Iterator[trio.SocketListener]:
    """The socket, bound under its name while its lock is held, and gone at the end.

    Its directory is 0700 and ours, itself 0600 from the first moment. A socket that a dead daemon left is replaced: the lock tells
    that nobody serves it. Raises AlreadyServed, or StoreFault for a directory that others can enter.
    """
    with _locked(files, path) as beneath:
        name = os.path.basename(path)
        _must_be_no_file(beneath, name, path)
        if _is_served(f"{beneath}/{name}"):
            raise AlreadyServed(f"a service manager listens at {path}", "systemctl --user start zstor.service")
        with _naming(path):
            listener = _bind(beneath, name)
        try:
            yield trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        finally:
            with suppress(FileNotFoundError):
                os.unlink(f"{beneath}/{name}")
            listener.close()


@contextmanager
def handed_down(files: Files, listener: socket.socket) -> Iterator[trio.SocketListener]:
    """A socket that a service manager opened, with the same lock held: it is neither bound nor removed by us."""
    with listener, _locked(files, os.path.abspath(listener.getsockname())):
        yield trio.SocketListener(trio.socket.from_stdlib_socket(listener))


@contextmanager
def _locked(files: Files, path: str) -> Iterator[str]:
    """Hold the lock of a socket; yields a name for its directory that is short and cannot be redirected."""
    directory, name = os.path.split(path)
    if len(os.fsencode(name)) > SOCKET_NAME_BYTES:
        raise StoreFault(
            f"the socket's name {name} is too long", f"at most {SOCKET_NAME_BYTES} bytes; its directory may be as long as it likes"
        )
    make_directories(files, directory)
    directory_fd = os.open(directory, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(directory_fd)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise StoreFault(f"the socket's directory {directory} is open to others", f"chmod 700 {directory}, or set another socket")
        # Names relative to the directory's descriptor: any length of path works, and nobody can put another directory in its place.
        beneath = f"/proc/self/fd/{directory_fd}"
        with _naming(f"{path}.lock"):
            lock_fd = _lock(f"{beneath}/{name}.lock", path)
        try:
            yield beneath
        finally:
            os.close(lock_fd)
    finally:
        os.close(directory_fd)


def _must_be_no_file(beneath: str, name: str, path: str) -> None:
    """What we replace, and what is gone at the end, is a socket."""
    for suffix in ("", _NEW):
        try:
            found = os.stat(f"{beneath}/{name}{suffix}", follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISSOCK(found.st_mode):
            raise StoreFault(f"{path}{suffix} is there already and no socket", "move it away, or set another socket")


def _is_served(path: str) -> bool:
    """Whether a living process has the socket that lies there: a service manager that has not started its service.

    Asked so that it does not notice: a socket of another type is told that this one is there, and not connected. The kernel's list of
    sockets (/proc/net/unix) would not do, as any user can have any line in it, by a newline in a name.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        try:
            asking.connect(path)
        except OSError as error:
            return error.errno == errno.EPROTOTYPE
    return True


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """The system's errors with the name that people know: ours leads through a descriptor, or is none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def _lock(path: str, shown: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise AlreadyServed(f"another daemon serves {shown}", "use that one: `zstor status` tells how it is") from None
    return fd


def _bind(beneath: str, name: str) -> socket.socket:
    """Bound under a temporary name with mode 0600, then renamed: nobody ever meets a socket that is not ready."""
    temporary = f"{beneath}/{name}{_NEW}"
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        bind_own(listener, temporary)
        listener.listen(BACKLOG)
        os.rename(temporary, f"{beneath}/{name}")
    except BaseException:
        listener.close()
        raise
    return listener
