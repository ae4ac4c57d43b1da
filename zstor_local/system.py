"""The real world behind the seam: the kernel's files, clock, randomness and threads. Only the edge may import this.

`runtime.py` states what each part promises; a simulated world in the tests keeps the same promises.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar, TypeVarTuple

import trio

from zstor_local.runtime import Buffer, FileStatus, FileSystem, Runtime
from zstor_local.threads import RealThreads

T = TypeVar("T")
Args = TypeVarTuple("Args")

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_FILE_SYSTEM_KINDS: Final = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x01021994: "tmpfs",
    0x2FC12FC1: "zfs",
    0x9FA0: "proc",
    0x62656572: "sysfs",
}  # statfs(2)
_ALL_USERS: Final = ["0", "0", "4294967295"]  # the initial user namespace: user_namespaces(7)
_IOV_MAX: Final = 1024  # writev(2)
_RANDOM_BYTES: Final = 4096  # enough for some fifty small objects


class RealFiles:
    """The kernel's files."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        return os.preadv(fd, buffers, offset)

    def preadv_nowait(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        try:
            return os.preadv(fd, buffers, offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
            raise

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers[:_IOV_MAX], offset)

    def readv(self, fd: int, buffers: Sequence[bytearray | memoryview]) -> int:
        return os.readv(fd, buffers)

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        return os.writev(fd, buffers[:_IOV_MAX])

    def seek(self, fd: int, offset: int, whence: int) -> int:
        return os.lseek(fd, offset, whence)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def syncfs(self, fd: int) -> None:
        if _LIBC.syncfs(fd):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def drop_cache(self, fd: int) -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        os.posix_fallocate(fd, offset, length)

    def status(self, fd: int) -> FileStatus:
        return _status(os.fstat(fd))

    def path_status(self, path: str, *, follow: bool = True) -> FileStatus:
        return _status(os.stat(path, follow_symlinks=follow))

    def descriptors(self) -> int:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def own_uid(self) -> int:
        return os.geteuid()

    def file_system(self, fd: int) -> FileSystem:
        room = os.fstatvfs(fd)
        return FileSystem(os.fstat(fd).st_dev, _kind(fd), room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def list(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def lock(self, fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def open_flags(self, fd: int) -> int:
        return fcntl.fcntl(fd, fcntl.F_GETFL)

    def reopen(self, fd: int, flags: int) -> int:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_OPENAT2: Final = 437  # the number of openat2 on every architecture (Linux 5.6)
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08


class RealClientFiles:
    """The kernel's, through openat2(2) and procfs."""

    def open_beneath(self, root: int, path: str, flags: int, mode: int = 0o600) -> int:
        resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
        how = _OpenHow(flags | os.O_CLOEXEC, mode if flags & os.O_CREAT else 0, resolve)
        fd = int(_LIBC.syscall(_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)))
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return fd

    def open_unnamed(self, directory: str) -> int | None:
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS):  # see O_TMPFILE in open(2)
                return None
            raise

    def name_it(self, fd: int, path: str) -> None:
        # With a directory descriptor (which an absolute path ignores) Python calls linkat(2) with AT_SYMLINK_FOLLOW, else link(2).
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)

    def real_path(self, fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    def mount_namespace(self, pid: int | None) -> str | None:
        try:
            return os.readlink(f"/proc/{'self' if pid is None else pid}/ns/mnt")
        except (FileNotFoundError, ProcessLookupError):
            return "" if pid is not None and os.path.exists("/proc/self/ns/mnt") else None
        except OSError:
            return "" if _sees_processes() else None

    def set_mode(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def is_stream(self, fd: int) -> bool:
        with _borrowed_socket(fd) as peer:
            return peer.type == socket.SOCK_STREAM and not peer.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

    def receive(self, fd: int, buffer: memoryview) -> int:
        with _borrowed_socket(fd) as peer:
            return peer.recv_into(buffer, 0, socket.MSG_DONTWAIT)

    def send(self, fd: int, buffers: Sequence[Buffer]) -> int:
        with _borrowed_socket(fd) as peer:
            return peer.sendmsg(buffers[:_IOV_MAX], [], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _sees_processes() -> bool:
    """Whether we may look at other processes of our user, as long as they let us: not from a user namespace of our own (ptrace(2))."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as mapped:
            return mapped.read().split() == _ALL_USERS
    except OSError:
        return False


@contextmanager
def _borrowed_socket(fd: int) -> Iterator[socket.socket]:
    """A socket object around a descriptor that stays its owner's."""
    peer = socket.socket(fileno=fd)
    try:
        yield peer
    finally:
        peer.detach()


def _status(result: os.stat_result) -> FileStatus:
    return FileStatus(
        device=result.st_dev,
        inode=result.st_ino,
        mode=result.st_mode,
        links=result.st_nlink,
        uid=result.st_uid,
        size=result.st_size,
        modified_ns=result.st_mtime_ns,
    )


def _kind(fd: int) -> str:
    """The file system's type: the first word of struct statfs is its magic number."""
    buffer = ctypes.create_string_buffer(512)
    if _LIBC.fstatfs(fd, buffer):
        return "unknown"
    magic = ctypes.c_long.from_buffer(buffer).value
    return _FILE_SYSTEM_KINDS.get(magic, f"{magic:#x}")


class RealClock:
    """The system's clock."""

    def now(self) -> int:
        return time.time_ns() // 1_000


class RealRandomness:
    """The kernel's generator, asked for some kilobytes at a time: a call of its own for each id and key is dear to small writes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drawn = b""
        self._used = 0

    def bytes(self, count: int) -> bytes:
        with self._lock:
            if self._used + count > len(self._drawn):
                self._drawn = os.urandom(max(count, _RANDOM_BYTES))
                self._used = 0
            self._used += count
            return self._drawn[self._used - count : self._used]


class RealReadiness:
    """epoll, through trio."""

    async def readable(self, fd: int) -> None:
        await trio.lowlevel.wait_readable(fd)

    async def writable(self, fd: int) -> None:
        await trio.lowlevel.wait_writable(fd)


def real_runtime(workers: int | None = None) -> Runtime:
    """The world of production, with so many worker threads (None: as many as cores). Call it inside or outside of trio."""
    return Runtime(RealFiles(), RealClock(), RealRandomness(), RealThreads(workers), RealReadiness())
