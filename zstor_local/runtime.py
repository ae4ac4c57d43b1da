"""The seam: clock, randomness, files and worker threads come in through one object, the `Runtime`.

Nothing below the edge (daemon, shard server, command) calls `time`, `os.urandom`, `open` or `trio.to_thread`. In production the
runtime is the real world (`system.py`, which only the edge may import); in tests it may be a simulated one whose disks tear and fail,
so that the same seed gives the same history. Timeouts use trio's clock, which trio's own test tools replace.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar, TypeVarTuple, runtime_checkable

from outcome import Outcome

from zstor_local.value import value

T = TypeVar("T")
R = TypeVar("R", covariant=True)
Args = TypeVarTuple("Args")
Buffer = bytes | bytearray | memoryview


@value()
class FileStatus:
    """The parts of stat(2) that the store looks at. Sizes in bytes, times in nanoseconds."""

    device: int
    inode: int
    mode: int
    links: int
    uid: int
    size: int
    modified_ns: int

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)


@dataclass(frozen=True, slots=True)
class FileSystem:
    """Where a file lies: the file system's id and type name, and its room in bytes (free = what an ordinary user may take)."""

    device: int
    kind: str
    total: int
    free: int


@runtime_checkable
class Files(Protocol):
    """POSIX files, one call each. Paths are absolute. All calls may raise OSError; all descriptors are close-on-exec.

    Laws: what a write, truncate or allocate did to a file is durable after a later fsync, fdatasync (data and size) or syncfs of it
    returned; what create, rename and unlink did to a directory is durable after an fsync of that directory or a syncfs returned.
    Before that a power loss may keep any part of it. Reads and writes may be short. After a failed sync reads show what was written,
    and later syncs say nothing of it: only after `drop_cache` they show what lies on the disk.
    """

    def open(self, path: str, flags: int, mode: int = 0o600) -> int: ...
    def close(self, fd: int) -> None:
        """The descriptor is gone also where this raises, as it does on a network file system or FUSE that has something to say."""
        ...

    def descriptors(self) -> int:
        """How many may be open at a time in this process."""
        ...

    def own_uid(self) -> int:
        """The user whose files are this process's own."""
        ...

    def pread(self, fd: int, length: int, offset: int) -> bytes: ...
    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int: ...
    def preadv_nowait(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """As preadv, but BlockingIOError where it would wait for the disk."""
        ...

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int: ...
    def readv(self, fd: int, buffers: Sequence[bytearray | memoryview]) -> int: ...
    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int: ...
    def seek(self, fd: int, offset: int, whence: int) -> int: ...
    def fsync(self, fd: int) -> None: ...
    def fdatasync(self, fd: int) -> None: ...
    def syncfs(self, fd: int) -> None: ...
    def drop_cache(self, fd: int) -> None:
        """What was synced of a file, or failed to be, is read from the disk again."""
        ...

    def truncate(self, fd: int, length: int) -> None: ...
    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Reserve room; the file grows to offset + length and reads as zeros there."""
        ...

    def status(self, fd: int) -> FileStatus: ...
    def path_status(self, path: str, *, follow: bool = True) -> FileStatus: ...
    def file_system(self, fd: int) -> FileSystem: ...
    def rename(self, old: str, new: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def mkdir(self, path: str, mode: int = 0o700) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def list(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        ...

    def lock(self, fd: int) -> bool:
        """Take an exclusive flock(2) without waiting; False if another open file has it."""
        ...

    def open_flags(self, fd: int) -> int:
        """The flags an open descriptor has (F_GETFL)."""
        ...

    def reopen(self, fd: int, flags: int) -> int:
        """A new open file description of the same file or pipe, so that its offset and O_NONBLOCK are ours alone."""
        ...


class DiskStalled(OSError):
    """A disk did not answer in time, or has yet to answer what was asked before. Until it has, what was asked may still happen."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "the disk does not answer")


class Device(Protocol):
    """What a directory shard lies on."""

    @property
    def files(self) -> Files:
        """Its files. Where a call takes too long DiskStalled, and for each further one at once until that has come back."""
        ...

    def begin_fdatasync(self, fd: int) -> Callable[[], None]:
        """Begin it, so that several devices are waited for at once. What is returned waits for it; call that once."""
        ...

    def came_back(self) -> bool:
        """Whether what raised DiskStalled has come to an end since, and every sync among it to a good one."""
        ...


class SteadyDevice:
    """One that is waited for however long it takes."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def begin_fdatasync(self, fd: int) -> Callable[[], None]:
        return partial(self.files.fdatasync, fd)

    def came_back(self) -> bool:
        return True


class ClientFiles(Protocol):
    """What only the files and sockets of clients need. All calls may raise OSError."""

    def open_beneath(self, root: int, path: str, flags: int, mode: int = 0o600) -> int:
        """Open a relative path that neither leaves the directory `root` nor passes a symbolic link: ELOOP or EXDEV otherwise."""
        ...

    def open_unnamed(self, directory: str) -> int | None:
        """A new file without a name, open for reading and writing: gone when it is closed, unless `name_it`. None where none can be."""
        ...

    def name_it(self, fd: int, path: str) -> None:
        """Give an unnamed file a name in its directory's file system; FileExistsError if it is taken."""
        ...

    def real_path(self, fd: int) -> str:
        """Where an open file lies, without links; what procfs says for things that lie nowhere."""
        ...

    def mount_namespace(self, pid: int | None) -> str | None:
        """The id of a process's mount namespace (None: ours); "" if it is gone or lets nobody look, None if we may look at none.

        Whoever wants to pass for one of us need only have another process connect and end.
        """
        ...

    def set_mode(self, fd: int, mode: int) -> None: ...
    def is_stream(self, fd: int) -> bool:
        """Whether a socket carries a stream of bytes: no datagrams, and not one that only listens."""
        ...

    def receive(self, fd: int, buffer: memoryview) -> int:
        """Bytes from a socket, without waiting: BlockingIOError where there are none."""
        ...

    def send(self, fd: int, buffers: Sequence[Buffer]) -> int:
        """Bytes to a socket, without waiting."""
        ...


SECOND_US: Final = 1_000_000  # a second in microseconds, the clock's unit


class Clock(Protocol):
    """Calendar time. Only timestamps and token validity may depend on it."""

    def now(self) -> int:
        """Microseconds since 1970 UTC."""
        ...


class Randomness(Protocol):
    """The source of keys, ids and salts."""

    def bytes(self, count: int) -> bytes: ...


CLIENT: Final[ContextVar[object]] = ContextVar("client", default=None)  # whose work a task does; None: the store's own


class Threads(Protocol):
    """Where blocking work runs. A simulated runtime runs it in place."""

    async def run(self, work: Callable[[*Args], T], *args: *Args) -> T:
        """Coding, sealing and file work for one call, at most `workers` at once. It ends before a cancel acts.

        What hangs keeps only its own CLIENT waiting for long.
        """
        ...

    def start_commit(self, work: Callable[[], T], done: Callable[[Outcome[T]], object]) -> None:
        """Have the committer's work done, or that of others on the logs' ends: apart from all other threads, so that large writes never
        delay a commit, and one at a time, in order.

        `done` is called with what came of it in the event loop, and must not raise.
        """
        ...

    async def run_commit(self, work: Callable[[*Args], T], *args: *Args) -> T:
        """The same, waiting for it, which nothing cancels."""
        ...

    @property
    def workers(self) -> int: ...


class Readiness(Protocol):
    """Waiting for pipes and sockets that a client handed over."""

    async def readable(self, fd: int) -> None: ...
    async def writable(self, fd: int) -> None: ...


class Pending(Protocol[R]):
    """Something that goes on in the event loop."""

    def wait(self, seconds: float | None = None) -> R:
        """What became of it; TimeoutError if that takes longer than `seconds` from its beginning. It goes on then."""
        ...

    def cancel(self) -> None:
        """Nobody wants it any more. Never waits."""
        ...


class Network(Protocol):
    """How work in a thread of `Threads` asks other machines: what waits, waits in the event loop."""

    def run(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Wait for it here. Meanwhile the thread's place among those that compute is another's; it ends with its call's deadline."""
        ...

    def start(self, ask: Callable[[], Awaitable[T]]) -> Pending[T]:
        """Begin it and go on; also from the event loop."""
        ...

    def at_end(self, close: Callable[[], Awaitable[None]]) -> None:
        """Have it called when the network is not used any more."""
        ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """The world as the store sees it."""

    files: Files
    clock: Clock
    randomness: Randomness
    threads: Threads
    readiness: Readiness


def write_all(files: Files, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Write every byte of the buffers at the offset, going on after short writes. Returns the number of bytes written."""
    todo = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    total = 0
    while todo:
        count = files.pwritev(fd, todo, offset + total)
        if count == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        total += count
        todo = _after(todo, count)
    return total


def read_full(files: Files, fd: int, buffer: bytearray | memoryview, offset: int) -> int:
    """Fill the buffer from the offset, going on after short reads; fewer bytes only at the end of the file."""
    view = memoryview(buffer).cast("B")
    total = 0
    while total < len(view):
        count = files.preadv(fd, [view[total:]], offset + total)
        if count == 0:
            break
        total += count
    return total


def read_exactly(files: Files, fd: int, length: int, offset: int) -> bytes:
    """`length` bytes from the offset, going on after short reads; fewer only at the end of the file."""
    data = files.pread(fd, length, offset)
    while len(data) < length and (more := files.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data


def close_anyhow(files: Files, fd: int) -> None:
    """Close what nothing hangs on any more: what was to be durable was synced, and a disk that has gone away says so of each file."""
    with suppress(OSError):
        files.close(fd)


def settle_file(files: Files, path: str) -> None:
    """What an earlier process wrote is durable from now on, or not seen any more: of what a failed sync did not write the kernel shows
    the bytes as if they lay on the disk, and a power loss would take back what was told on the strength of them.
    """
    fd = files.open(path, os.O_RDONLY)
    try:
        files.fsync(fd)
        files.drop_cache(fd)
    finally:
        files.close(fd)


def sync_directory(files: Files, path: str) -> None:
    """Make what was created, renamed or unlinked in a directory durable."""
    fd = files.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.fsync(fd)
    finally:
        files.close(fd)


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """The buffers less their first `count` bytes."""
    for position, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[position + 1 :]]
        count -= len(buffer)
    return []
