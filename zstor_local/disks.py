"""The real disks behind the seam: one that does not answer takes neither the event loop nor the threads of others with it.

A call to a disk that hangs (a dead network file system, a drive that its controller has lost) comes back late or never, and nothing
ends it. So each call to a directory on another file system than the store's own runs in a thread of its own, which is waited for so
long and then left to itself. Only the edge may import this.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Generic, Protocol, TypeVar, TypeVarTuple

import trio
from outcome import Error, Outcome, Value

from zstor_local import limits
from zstor_local.runtime import Buffer, Device, DiskStalled, Files, FileStatus, FileSystem, SteadyDevice
from zstor_local.threads import lending_place

T = TypeVar("T")
Args = TypeVarTuple("Args")

PATIENCE_SECONDS: Final = 30.0  # as long as the kernel waits for a drive before it resets it
PATIENCE_BYTES: Final = 32 * limits.MIB  # written and not synced: a disk has as long again for them, even a slow one is done then
PATIENCE_AT_MOST: Final = 300.0  # whatever was written: for so long the writes of all may wait for one disk
LOOK_SECONDS: Final = 5.0  # for a first look at a directory
LOOP_SECONDS: Final = 2.0  # in the event loop, where everybody waits
_AT_ONCE: Final = 0.02  # what takes no longer keeps its place among those that compute


class Start(Protocol):
    """Has work done elsewhere, and `deliver` called there with what came of it."""

    def __call__(self, fn: Callable[[], T], deliver: Callable[[Outcome[T]], object], name: str) -> None: ...


class Disks:
    """The devices under directory shards. Any thread may ask."""

    def __init__(
        self,
        files: Files,
        store: str,
        *,
        start: Start = trio.lowlevel.start_thread_soon,
        patience: float = PATIENCE_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`store` is the store's own directory: what lies on its file system is used as it is, for nothing goes on without that.

        `now`: seconds, of which only differences count.
        """
        self._files = files
        self._store = store
        self._start = start
        self._patience = patience
        self._now = now
        self._watched: dict[str, WatchedDevice] = {}  # by directory, as each was when it was last asked for
        self._systems: dict[int, WatchedFileSystem] = {}
        self._real: dict[str, str] = {}  # paths without links
        self._resolving: dict[str, WatchedDevice] = {}  # by path, what was asked last

    def device(self, root: str) -> Device:
        """The device under a directory, there or not. Another file system may be mounted there by now: it is looked at each time."""
        known = self._watched.get(root)
        if known is not None and known.stalled:
            return known
        device = self._watched[root] = self._alone(root)  # a look that takes too long stalls nobody else
        with suppress(OSError):
            own = self._files.path_status(self._store).device
            system = device.look(partial(self._file_system, root))
            if system == own:
                return SteadyDevice(self._files)
            device = self._watched[root] = WatchedDevice(self._systems.setdefault(system, self._new()), root)
        return device

    def _file_system(self, path: str) -> int:
        """That of a directory; what is not there yet will be on that of what is above it."""
        while True:
            try:
                return self._files.path_status(path).device
            except FileNotFoundError:
                if path == "/":
                    raise
                path = os.path.dirname(path)

    def real_path(self, path: str) -> str:
        """The path without links, as it was at the first look; as it is while a disk on the way does not answer."""
        if (real := self._real.get(path)) is not None:
            return real
        looks = self._watched.get(path), self._resolving.get(path)
        if not any(device is not None and device.stalled for device in looks):
            device = self._resolving[path] = self._alone(path)
            with suppress(OSError):
                return self._real.setdefault(path, device.look(lambda: str(os.path.realpath(path))))
        return os.path.normpath(path)

    def must_open(self, directory: str) -> None:
        """OSError for a directory that cannot be opened, or whose disk does not answer."""
        known = self._resolving.get(directory)
        try:
            if known is not None and known.stalled:
                raise DiskStalled
            device = self._resolving[directory] = self._alone(directory)
            device.look(lambda: self._files.close(self._files.open(directory, os.O_PATH | os.O_DIRECTORY)))
        except DiskStalled as error:
            raise OSError(error.errno, error.strerror, directory) from None

    def _alone(self, path: str) -> WatchedDevice:
        return WatchedDevice(self._new(), path)

    def _new(self) -> WatchedFileSystem:
        return WatchedFileSystem(self._files, self._start, self._patience, self._now)


class WatchedFileSystem:
    """A file system, under all the directories there that are used: what is under way, and whether it answers.

    What is asked of it runs in other threads, the raw `files` are used there alone.
    """

    def __init__(self, files: Files, start: Start, patience: float, now: Callable[[], float] = time.monotonic) -> None:
        """`patience`: how many seconds a call may take."""
        self.raw = files
        self.now = now
        self._start = start
        self._patience = patience
        self._lock = threading.Lock()
        self._out: set[object] = set()  # calls under way
        self._given_up: set[object] = set()  # those of them that nobody waits for
        self._to_close: list[int] = []  # once none of those is left: none may come upon another file under its descriptor's number
        self._unsynced: dict[int, int] = {}  # bytes by descriptor

    @property
    def stalled(self) -> bool:
        """Whether a call that was given up has not come back."""
        return bool(self._given_up)

    def begin(self, call: _Call[T], work: Callable[[], T], name: str, closes: int | None) -> None:
        """Begin a call. DiskStalled where others wait in vain: a descriptor that it was to close is closed after them."""
        with self._lock:
            if self._given_up:
                if closes is not None:
                    self._to_close.append(closes)
                raise DiskStalled
            self._out.add(call)
        try:
            self._start(work, call.arrive, name)
        except RuntimeError as error:  # the system lets us have no more threads
            call.arrive(Error(OSError(errno.ENOMEM, str(error))))
            if closes is not None:
                with self._lock:
                    self._to_close.append(closes)  # behind the next call: here somebody may not wait

    def ended(self, call: _Call[T], *, lost: bool) -> bool:
        """A call has come back; `lost`: with it what it was to sync. Returns whether anybody waits for it."""
        with self._lock:
            wanted = call not in self._given_up
            if lost and not wanted:
                call.device.lost = True  # first: `came_back` looks at any moment
            self._out.discard(call)
            self._given_up.discard(call)
            closing: list[int] = []
            if not self._given_up:
                closing, self._to_close = self._to_close, closing
        for fd in closing:
            with suppress(OSError):
                self.raw.close(fd)
        return wanted

    def give_up(self, call: object) -> bool:
        """Nobody waits for a call any more. False if it has just come back."""
        with self._lock:
            if call not in self._out:
                return False
            self._given_up.add(call)
            return True

    def wrote(self, fd: int, count: int) -> None:
        with self._lock:
            self._unsynced[fd] = self._unsynced.get(fd, 0) + count

    def synced(self, fd: int | None) -> None:
        """What was written to a file, or (None) to all of them, is on the disk, or is not to be any more."""
        with self._lock:
            if fd is None:
                self._unsynced.clear()
            else:
                self._unsynced.pop(fd, None)

    def patience(self, *, in_event_loop: bool) -> float:
        """How many seconds a call may take now: what was written and not synced may come first."""
        if in_event_loop:
            return min(LOOP_SECONDS, self._patience)
        with self._lock:
            return min(self._patience * (1 + sum(self._unsynced.values()) / PATIENCE_BYTES), PATIENCE_AT_MOST)

    def patience_to_look(self) -> float:
        return min(LOOK_SECONDS, self._patience)


class WatchedDevice:
    """See runtime.Device. One for each time that a directory is opened."""

    def __init__(self, system: WatchedFileSystem, root: str) -> None:
        self.files: Files = _WatchedFiles(self, system)
        self.lost = False  # a sync that was given up failed
        self._system = system
        self._root = root

    @property
    def stalled(self) -> bool:
        return self._system.stalled

    def came_back(self) -> bool:
        return not self._system.stalled and not self.lost

    def begin_fdatasync(self, fd: int) -> Callable[[], None]:
        call = self.start(partial(self._system.raw.fdatasync, fd), syncs=True)

        def wait() -> None:
            call.wait()
            self._system.synced(fd)

        return wait

    def look(self, work: Callable[[], T]) -> T:
        """What a first look tells, or OSError."""
        return self.start(work).within(self._system.patience_to_look())

    def start(
        self, work: Callable[[], T], *, syncs: bool = False, undo: Callable[[T], object] | None = None, closes: int | None = None
    ) -> _Call[T]:
        """Begin a call; `undo` takes back what it brings once nobody waits for it. DiskStalled where others wait in vain: what it
        `closes` is closed after them.
        """
        call = _Call(self, self._system, syncs=syncs, undo=undo)
        self._system.begin(call, work, self._root, closes)
        return call


class _Call(Generic[T]):
    """One call on its way. It is waited for once."""

    def __init__(self, device: WatchedDevice, system: WatchedFileSystem, *, syncs: bool, undo: Callable[[T], object] | None) -> None:
        self.device = device
        self._system = system
        self._begun = system.now()
        self._syncs = syncs
        self._undo = undo
        self._over = threading.Lock()
        self._over.acquire()
        self._outcome: Outcome[T] | None = None

    def arrive(self, outcome: Outcome[T]) -> None:
        """In the thread that did it."""
        self._outcome = outcome
        wanted = self._system.ended(self, lost=self._syncs and isinstance(outcome, Error))
        if not wanted and self._undo is not None and isinstance(outcome, Value):
            with suppress(OSError):
                self._undo(outcome.value)
        self._over.release()

    def wait(self) -> T:
        """What became of it. DiskStalled when it takes too long."""
        if trio.lowlevel.in_trio_run():
            return self.within(self._system.patience(in_event_loop=True))
        if not self._over.acquire(timeout=_AT_ONCE):
            with lending_place():
                until = self._begun + self._system.patience(in_event_loop=False)  # several begun together are over together
                return self.within(max(0.0, until - self._system.now()))
        return self._result()

    def within(self, seconds: float) -> T:
        """What becomes of it in so many seconds, or DiskStalled."""
        if not self._over.acquire(timeout=seconds) and self._system.give_up(self):
            raise DiskStalled
        return self._result()

    def _result(self) -> T:
        if self._outcome is None:
            raise AssertionError("a call that is over has an outcome")
        return self._outcome.unwrap()


class _WatchedFiles:
    """The files of a watched device."""

    def __init__(self, device: WatchedDevice, system: WatchedFileSystem) -> None:
        self._device = device
        self._system = system
        self._raw = system.raw

    def _do(self, work: Callable[[*Args], T], *args: *Args) -> T:
        return self._device.start(partial(work, *args)).wait()

    def _sync(self, work: Callable[[int], None], fd: int) -> None:
        self._device.start(partial(work, fd), syncs=True).wait()

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        return self._device.start(partial(self._raw.open, path, flags, mode), undo=self._raw.close).wait()

    def close(self, fd: int) -> None:
        self._system.synced(fd)
        with suppress(DiskStalled):
            self._device.start(partial(self._raw.close, fd), closes=fd).wait()

    def descriptors(self) -> int:
        return self._raw.descriptors()

    def own_uid(self) -> int:
        return self._raw.own_uid()

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return self._do(self._raw.pread, fd, length, offset)

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        return _scatter(self.pread(fd, sum(map(len, buffers)), offset), buffers)

    def preadv_nowait(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        if self._system.stalled:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self._raw.preadv_nowait(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        count = self._do(self._raw.pwritev, fd, buffers, offset)
        self._system.wrote(fd, count)
        return count

    def readv(self, fd: int, buffers: Sequence[bytearray | memoryview]) -> int:
        # Into memory of its own: when nobody waits for it any more, the caller's is used for something else.
        own = bytearray(sum(map(len, buffers)))
        return _scatter(memoryview(own)[: self._do(self._raw.readv, fd, [own])], buffers)

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        return self._do(self._raw.writev, fd, buffers)

    def seek(self, fd: int, offset: int, whence: int) -> int:
        return self._do(self._raw.seek, fd, offset, whence)

    def fsync(self, fd: int) -> None:
        self._sync(self._raw.fsync, fd)
        self._system.synced(fd)

    def fdatasync(self, fd: int) -> None:
        self._sync(self._raw.fdatasync, fd)
        self._system.synced(fd)

    def syncfs(self, fd: int) -> None:
        self._sync(self._raw.syncfs, fd)
        self._system.synced(None)

    def drop_cache(self, fd: int) -> None:
        self._do(self._raw.drop_cache, fd)

    def truncate(self, fd: int, length: int) -> None:
        self._do(self._raw.truncate, fd, length)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self._do(self._raw.allocate, fd, offset, length)

    def status(self, fd: int) -> FileStatus:
        return self._do(self._raw.status, fd)

    def path_status(self, path: str, *, follow: bool = True) -> FileStatus:
        return self._do(partial(self._raw.path_status, follow=follow), path)

    def file_system(self, fd: int) -> FileSystem:
        return self._do(self._raw.file_system, fd)

    def rename(self, old: str, new: str) -> None:
        self._do(self._raw.rename, old, new)

    def unlink(self, path: str) -> None:
        self._do(self._raw.unlink, path)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        self._do(self._raw.mkdir, path, mode)

    def rmdir(self, path: str) -> None:
        self._do(self._raw.rmdir, path)

    def list(self, path: str) -> list[str]:
        return self._do(self._raw.list, path)

    def lock(self, fd: int) -> bool:
        return self._do(self._raw.lock, fd)

    def open_flags(self, fd: int) -> int:
        return self._do(self._raw.open_flags, fd)

    def reopen(self, fd: int, flags: int) -> int:
        return self._device.start(partial(self._raw.reopen, fd, flags), undo=self._raw.close).wait()


def _scatter(data: bytes | memoryview, buffers: Sequence[bytearray | memoryview]) -> int:
    """Fill the buffers, one after the other, as far as the data goes. Returns how many bytes these are."""
    at = 0
    for buffer in buffers:
        part = data[at : at + len(buffer)]
        buffer[: len(part)] = part
        at += len(part)
    return at
