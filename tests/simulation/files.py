"""`SimulatedFiles`: the runtime's Files over simulated disks, with crash points, faults and call sites.

Every call that changes something, or makes a change durable, is a *crash point*: it is counted, and logged with its *site*, the
function that made it: `zstor_local.shards.log.Log.append:pwritev`. Functions of `runtime.py` stand for their callers; an fsync of a
directory is called `fsync_directory`. The number lets a sweep cut the power before each call, the site lets it take a single call
out of the program (`skip`) to see whether the sweep notices.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Final, NamedTuple, NoReturn

from tests.simulation.content import PAGE
from tests.simulation.disk import DirectoryNode, Disk, FileNode, Node, failure
from tests.simulation.outcomes import Change, Outcome
from tests.simulation.pipe import PIPE_DEVICE, Pipe
from zstor_local.runtime import Buffer, FileStatus, FileSystem

SKIPPABLE: Final = ("fsync", "fsync_directory", "fdatasync", "syncfs", "rename")
_WRITES: Final = ("pwritev", "writev")
_ACCESS_AND_STATUS: Final = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_SYNC
_OUTSIDE: Final = ("zstor_local.runtime", "tests.simulation.files", "tests.simulation.world")
_FIRST_DESCRIPTOR: Final = 1_000  # far from real ones, and never used twice
_UID: Final = 1_000

Where = Callable[[str], bool]


class PowerLoss(BaseException):  # not an error that a program may handle
    """The power went. The world it went in is dead: every later call raises this too."""


class Site(NamedTuple):
    """One crash point that was reached: its number (from 1), who called what, on which path."""

    number: int
    name: str
    path: str


@dataclass(slots=True)
class Fault:
    """Something that goes wrong with an operation, `times` times or (None) for ever."""

    operation: str
    where: Where
    code: int | None = None
    at_most: int | None = None
    times: int | None = None


@dataclass(slots=True)
class Description:
    """An open file description."""

    path: str
    disk: Disk
    node: Node
    flags: int
    offset: int = 0


@dataclass(slots=True)
class PipeEnd:
    """An open end of a pipe."""

    pipe: Pipe
    flags: int


class SimulatedFiles:
    """Files of a simulated world; the laws are those of `zstor_local.runtime.Files`.

    `now` gives the time in nanoseconds for inodes. Descriptors and locks die with `copy`; pending changes do not.
    """

    def __init__(self, now: Callable[[], int]) -> None:
        self.sites: list[Site] = []
        self._now = now
        self._disks: dict[str, Disk] = {}
        self._mounts: list[str] = []  # longest first
        self._open: dict[int, Description | PipeEnd] = {}
        self._next_descriptor = _FIRST_DESCRIPTOR
        self._locks: dict[tuple[int, int], int] = {}
        self._dead = False
        self._crash_at = 0
        self._torn = False
        self._fail_from: tuple[int, int, bool] | None = None
        self._faults: list[Fault] = []
        self._skipped: set[str] = set()
        self._history = hashlib.blake2b(digest_size=16)
        self.mount("/")

    # --- The world's side: disks ---

    def mount(self, path: str, *, kind: str = "ext4", capacity: int | None = None) -> None:
        """A new empty file system at a path; the directories above it are made, durably."""
        if path != "/":
            self._make_durable_directories(path)
        self._disks[path] = Disk(2_049 + len(self._disks), path, kind, capacity, self._now)
        self._mounts = sorted(self._disks, key=len, reverse=True)

    def take_out(self, path: str) -> None:
        """The disk at this mount point is gone: paths answer ENOENT, open descriptors EIO."""
        self._disks[path].missing = True

    def put_back(self, path: str) -> None:
        self._disks[path].missing = False

    def set_read_only(self, path: str, read_only: bool = True) -> None:
        self._disks[path].read_only = read_only

    def set_capacity(self, path: str, capacity: int | None) -> None:
        """How many bytes the disk at this mount point holds; less than are there means that it is full."""
        self._disks[path].capacity = capacity

    def place(self, path: str, data: bytes) -> None:
        """Make a durable file, not a crash point. The directories above it are made if they are missing."""
        self._make_durable_directories(posixpath.dirname(path))
        disk, parent, name = self._parent(path)
        node = disk.create(parent, name, 0o600)
        if isinstance(node, FileNode) and data:
            disk.write(node, 0, data)
            disk.sync_file(node)
        disk.sync_directory(parent)

    def contents(self, path: str) -> bytes:
        """All bytes of a file as a program would read them now, even after the power went."""
        node = self._file(path)
        return node.content.read(0, node.content.size)

    def damage(self, path: str, offset: int, data: bytes) -> None:
        """Bytes on the disk change by themselves, durably and silently. The file's other changes become durable with it."""
        disk, _ = self._locate(path)
        node = self._file(path)
        disk.write(node, offset, data)
        disk.sync_file(node)

    def unpinned(self) -> list[Change]:
        """The changes that a power loss now may undo: what an `Outcome` decides on."""
        return [change for disk in self._disks.values() for change in disk.unpinned()]

    def digest(self) -> str:
        """A hash of all names and contents on all disks, to leave out states that were seen before."""
        return b"".join(disk.digest() for disk in self._disks.values()).hex()

    def history(self) -> str:
        """A hash of all calls so far, their arguments included: equal for equal runs."""
        return self._history.hexdigest()

    def copy(self, now: Callable[[], int]) -> SimulatedFiles:
        """The same disks after every process was killed: the page cache survives; descriptors, locks and faults do not."""
        other = self._copied(now)
        for disk in other._disks.values():
            disk.sweep()
        return other

    def crash(self, outcome: Outcome, now: Callable[[], int]) -> SimulatedFiles:
        """The disks after a power loss."""
        other = self._copied(now)
        left = iter(outcome.left(other.unpinned()))
        for disk in other._disks.values():
            disk.lose(left)
        return other

    # --- The world's side: crash points, faults, mutants ---

    @property
    def points(self) -> int:
        """How many crash points have been passed."""
        return len(self.sites)

    def crash_at(self, number: int, *, torn: bool = False) -> None:
        """Cut the power before crash point `number` (from 1) does its work; torn: a write does the first half of it first."""
        self._crash_at, self._torn = number, torn

    def fail_at(self, number: int, code: int, *, and_after: bool = False) -> None:
        """Crash point `number`, and with `and_after` all later ones, fail with this errno instead of doing their work."""
        self._fail_from = (number, code, and_after)

    def fail(self, operation: str, where: Where, code: int, times: int | None = 1) -> None:
        """The operation (a method's name, `fsync_directory`, or `*` for all) fails with this errno on paths where `where` holds."""
        self._faults.append(Fault(operation, where, code=code, times=times))

    def shorten(self, operation: str, where: Where, at_most: int, times: int | None = None) -> None:
        """Reads or writes (`pwritev`, `preadv`, ... or `*`) move at most so many bytes."""
        self._faults.append(Fault(operation, where, at_most=at_most, times=times))

    def heal(self) -> None:
        """No more crash, no more faults; skipped sites stay skipped."""
        self._crash_at, self._torn, self._fail_from = 0, False, None
        self._faults.clear()

    def skip(self, site: str) -> None:
        """The call at this site (see `skippable`) does nothing and says that it worked. Stays in force over crash and copy."""
        if site.rpartition(":")[2] not in SKIPPABLE:
            raise ValueError(f"{site} is not a sync or a rename")
        self._skipped.add(site)

    def skippable(self) -> list[str]:
        """The sites of syncs and renames reached so far, each once, sorted: the mutants to make."""
        return sorted({site.name for site in self.sites if site.name.rpartition(":")[2] in SKIPPABLE})

    def point(self, name: str) -> None:
        """A crash point of somebody else, as a simulated metastore's commit."""
        self._point(name.rpartition(":")[2], name, site=name)

    def pipe(self) -> tuple[int, int]:
        """Both ends of a new pipe, reading end first, without waiting: an empty or full one answers EAGAIN."""
        pipe = Pipe(readers=1, writers=1)
        return self._add(PipeEnd(pipe, os.O_RDONLY | os.O_NONBLOCK)), self._add(PipeEnd(pipe, os.O_WRONLY | os.O_NONBLOCK))

    # --- The program's side ---

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self._alive()
        disk, parts = self._locate(path)
        try:
            node = disk.look_up(parts)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                self._begin("open", path, flags)
                raise failure(errno.ENOENT, path) from None
            disk, parent, name = self._parent(path)
            self._writable(disk)
            self._point("open", path, flags)
            node = disk.create(parent, name, mode & 0o7777)
            return self._add(Description(path, disk, node, flags))
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise failure(errno.EEXIST, path)
        if isinstance(node, DirectoryNode) and (writes or flags & os.O_CREAT):
            raise failure(errno.EISDIR, path)
        if isinstance(node, FileNode) and flags & os.O_DIRECTORY:
            raise failure(errno.ENOTDIR, path)
        if writes:
            self._writable(disk)
        self._begin("open", path, flags)
        self._cut_open(disk, node, flags, path)
        return self._add(Description(path, disk, node, flags))

    def close(self, fd: int) -> None:
        end = self._any_end(fd)
        self._begin("close", "", fd)
        del self._open[fd]
        if isinstance(end, PipeEnd):
            end.pipe.close(end.flags)
            return
        key = (end.disk.device, end.node.number)
        if self._locks.get(key) == fd:
            del self._locks[key]
        end.disk.closed(end.node)

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        return self._read("preadv", fd, buffers, offset)

    def preadv_nowait(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        return self._read("preadv_nowait", fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        end = self._end(fd, errno.ESPIPE)
        return self._write("pwritev", end, buffers, offset)

    def readv(self, fd: int, buffers: Sequence[bytearray | memoryview]) -> int:
        end = self._any_end(fd)
        if isinstance(end, PipeEnd):
            self._begin("readv", "pipe", fd)
            return _scatter(end.pipe.read(end.flags, sum(len(buffer) for buffer in buffers)), buffers)
        count = self._read("readv", fd, buffers, end.offset)
        end.offset += count
        return count

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        end = self._any_end(fd)
        if isinstance(end, PipeEnd):
            self._begin("writev", "pipe", fd)
            return end.pipe.write(end.flags, b"".join(buffers))
        count = self._write("writev", end, buffers, end.offset)
        end.offset = end.node.content.size if isinstance(end.node, FileNode) and end.flags & os.O_APPEND else end.offset + count
        return count

    def seek(self, fd: int, offset: int, whence: int) -> int:
        end = self._end(fd, errno.ESPIPE)
        self._begin("seek", end.path, offset, whence)
        base = {os.SEEK_SET: 0, os.SEEK_CUR: end.offset, os.SEEK_END: self._size(end.node)}.get(whence)
        if base is None or base + offset < 0:
            raise failure(errno.EINVAL)
        end.offset = base + offset
        return end.offset

    def fsync(self, fd: int) -> None:
        end = self._end(fd, errno.EINVAL)
        node = end.node
        if isinstance(node, FileNode):
            self._sync("fsync", end, lambda: end.disk.sync_file(node), node.fail)
        else:
            self._sync("fsync_directory", end, lambda: end.disk.sync_directory(node), lambda: end.disk.fail_directory(node))

    def fdatasync(self, fd: int) -> None:
        end = self._end(fd, errno.EINVAL)
        node = end.node
        if isinstance(node, FileNode):
            self._sync("fdatasync", end, lambda: end.disk.sync_file(node), node.fail)
        else:  # only fsync is promised to make a directory durable
            self._sync("fdatasync", end, lambda: None, lambda: None)

    def syncfs(self, fd: int) -> None:
        end = self._end(fd, errno.EINVAL)
        self._sync("syncfs", end, end.disk.sync_all, end.disk.fail_all)

    def truncate(self, fd: int, length: int) -> None:
        end = self._end(fd, errno.EINVAL)
        node = self._written(end, errno.EINVAL)
        if length < 0:
            raise failure(errno.EINVAL)
        self._point("truncate", end.path, length)
        end.disk.truncate(node, length)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        end = self._end(fd, errno.ESPIPE)
        node = self._written(end, errno.EBADF)
        if offset < 0 or length <= 0:
            raise failure(errno.EINVAL)
        self._point("allocate", end.path, offset, length)
        end.disk.reserve(node, offset, length)

    def status(self, fd: int) -> FileStatus:
        end = self._any_end(fd)
        if isinstance(end, PipeEnd):
            self._begin("status", "pipe", fd)
            return FileStatus(PIPE_DEVICE, fd, stat.S_IFIFO | 0o600, 1, _UID, 0, self._now(), self._now())
        self._begin("status", end.path)
        return self._status(end.disk, end.node)

    def path_status(self, path: str, *, follow: bool = True) -> FileStatus:
        self._begin("path_status", path, follow)
        disk, parts = self._locate(path)
        return self._status(disk, self._look_up(disk, parts, path))

    def file_system(self, fd: int) -> FileSystem:
        end = self._end(fd, errno.EINVAL)
        self._begin("file_system", end.path)
        return FileSystem(end.disk.device, end.disk.kind, end.disk.total, end.disk.free)

    def rename(self, old: str, new: str) -> None:
        self._alive()
        disk, parent, name = self._parent(old)
        new_disk, new_parent, new_name = self._parent(new)
        moved = disk.nodes[self._entry(parent, name, old)]
        if disk is not new_disk:
            raise failure(errno.EXDEV, old)
        if old in self._disks or new in self._disks:
            raise failure(errno.EBUSY, old)
        self._writable(disk)
        replaced = disk.nodes[new_parent.entries[new_name]] if new_name in new_parent.entries else None
        if isinstance(moved, DirectoryNode):
            if posixpath.normpath(new).startswith(posixpath.normpath(old) + "/"):
                raise failure(errno.EINVAL, old)
            if isinstance(replaced, FileNode):
                raise failure(errno.ENOTDIR, new)
            if isinstance(replaced, DirectoryNode) and replaced is not moved and replaced.entries:
                raise failure(errno.ENOTEMPTY, new)
        elif isinstance(replaced, DirectoryNode):
            raise failure(errno.EISDIR, new)
        if not self._point("rename", old, other=new) and replaced is not moved:
            disk.rename(parent, name, new_parent, new_name)

    def unlink(self, path: str) -> None:
        self._alive()
        disk, parent, name = self._parent(path)
        if isinstance(disk.nodes[self._entry(parent, name, path)], DirectoryNode):
            raise failure(errno.EISDIR, path)
        self._writable(disk)
        self._point("unlink", path)
        disk.unlink(parent, name)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        self._alive()
        disk, parts = self._locate(path)
        if not parts:
            raise failure(errno.EEXIST, path)
        disk, parent, name = self._parent(path)
        if name in parent.entries:
            raise failure(errno.EEXIST, path)
        self._writable(disk)
        self._point("mkdir", path, mode)
        disk.create(parent, name, mode, directory=True)

    def list(self, path: str) -> list[str]:
        self._begin("list", path)
        disk, parts = self._locate(path)
        node = self._look_up(disk, parts, path)
        if isinstance(node, FileNode):
            raise failure(errno.ENOTDIR, path)
        return sorted(node.entries)

    def lock(self, fd: int) -> bool:
        end = self._end(fd, errno.EBADF)
        self._begin("lock", end.path)
        return self._locks.setdefault((end.disk.device, end.node.number), fd) == fd

    def open_flags(self, fd: int) -> int:
        end = self._any_end(fd)
        self._begin("open_flags", "", fd)
        return end.flags & _ACCESS_AND_STATUS

    def reopen(self, fd: int, flags: int) -> int:
        end = self._any_end(fd)
        if isinstance(end, PipeEnd):
            self._begin("reopen", "pipe", fd, flags)
            end.pipe.open(flags)
            return self._add(PipeEnd(end.pipe, flags))
        if isinstance(end.node, DirectoryNode) and flags & os.O_ACCMODE != os.O_RDONLY:
            raise failure(errno.EISDIR, end.path)
        self._begin("reopen", end.path, flags)
        self._cut_open(end.disk, end.node, flags, end.path)
        return self._add(Description(end.path, end.disk, end.node, flags))

    # --- Inside: paths and descriptors ---

    def _locate(self, path: str) -> tuple[Disk, Sequence[str]]:
        """The disk that holds the path, and the names from its top."""
        if not path.startswith("/"):
            raise failure(errno.ENOENT, path)
        path = posixpath.normpath(path)
        for mount in self._mounts:
            if path == mount or mount == "/" or path.startswith(mount + "/"):
                disk = self._disks[mount]
                if disk.missing:
                    raise failure(errno.ENOENT, path)
                return disk, [name for name in path[len(mount) :].split("/") if name]
        raise failure(errno.ENOENT, path)

    def _look_up(self, disk: Disk, parts: Sequence[str], path: str) -> Node:
        try:
            return disk.look_up(parts)
        except OSError as error:
            raise failure(error.errno or errno.EIO, path) from None

    def _parent(self, path: str) -> tuple[Disk, DirectoryNode, str]:
        disk, parts = self._locate(path)
        if not parts:
            raise failure(errno.EBUSY, path)
        parent = self._look_up(disk, parts[:-1], path)
        if isinstance(parent, FileNode):
            raise failure(errno.ENOTDIR, path)
        return disk, parent, parts[-1]

    def _entry(self, parent: DirectoryNode, name: str, path: str) -> int:
        if name not in parent.entries:
            raise failure(errno.ENOENT, path)
        return parent.entries[name]

    def _file(self, path: str) -> FileNode:
        node = self._look_up(*self._locate(path), path)
        if isinstance(node, DirectoryNode):
            raise failure(errno.EISDIR, path)
        return node

    def _make_durable_directories(self, path: str) -> None:
        disk, parts = self._locate(path)
        directory = disk.look_up([])
        for name in parts:
            assert isinstance(directory, DirectoryNode), path
            if name not in directory.entries:
                disk.create(directory, name, 0o700, directory=True)
                disk.sync_directory(directory)
            directory = disk.nodes[directory.entries[name]]

    def _any_end(self, fd: int) -> Description | PipeEnd:
        self._alive()
        if fd not in self._open:
            raise failure(errno.EBADF)
        return self._open[fd]

    def _end(self, fd: int, if_pipe: int) -> Description:
        end = self._any_end(fd)
        if isinstance(end, PipeEnd):
            raise failure(if_pipe)
        return end

    def _add(self, end: Description | PipeEnd) -> int:
        fd = self._next_descriptor
        self._next_descriptor += 1
        self._open[fd] = end
        if isinstance(end, Description):
            end.node.opens += 1
        return fd

    def _writable(self, disk: Disk) -> None:
        if disk.read_only:
            raise failure(errno.EROFS)

    def _written(self, end: Description, if_not: int) -> FileNode:
        """The file behind a descriptor that is open for writing."""
        if end.flags & os.O_ACCMODE == os.O_RDONLY or isinstance(end.node, DirectoryNode):
            raise failure(if_not)
        self._present(end)
        self._writable(end.disk)
        return end.node

    def _present(self, end: Description) -> None:
        if end.disk.missing:
            raise failure(errno.EIO, end.path)

    def _cut_open(self, disk: Disk, node: Node, flags: int, path: str) -> None:
        """O_TRUNC of a file that is there already is a crash point of its own."""
        if flags & os.O_TRUNC and isinstance(node, FileNode) and node.content.size:
            self._writable(disk)
            self._point("truncate", path, 0)
            disk.truncate(node, 0)

    def _size(self, node: Node) -> int:
        return node.content.size if isinstance(node, FileNode) else PAGE

    def _status(self, disk: Disk, node: Node) -> FileStatus:
        links = node.links if isinstance(node, FileNode) else 2
        return FileStatus(disk.device, node.number, node.mode, links, _UID, self._size(node), node.modified, node.changed)

    # --- Inside: reading, writing, syncing ---

    def _read(self, operation: str, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        end = self._end(fd, errno.ESPIPE)
        if end.flags & os.O_ACCMODE == os.O_WRONLY:
            raise failure(errno.EBADF)
        if isinstance(end.node, DirectoryNode):
            raise failure(errno.EISDIR, end.path)
        if offset < 0:
            raise failure(errno.EINVAL)
        self._present(end)
        length = sum(len(buffer) for buffer in buffers)
        self._begin(operation, end.path, offset, length)
        return _scatter(end.node.content.read(offset, self._shortened(operation, end.path, length)), buffers)

    def _write(self, operation: str, end: Description, buffers: Sequence[Buffer], offset: int) -> int:
        node = self._written(end, errno.EBADF)
        if offset < 0:
            raise failure(errno.EINVAL)
        data = b"".join(buffers)
        if not data:
            return 0
        if end.flags & os.O_APPEND:
            offset = node.content.size
        self._point(operation, end.path, offset, len(data), zlib.crc32(data))
        if self._crash_at == self.points:  # the torn half
            if len(data) > 1:
                end.disk.write(node, offset, data[: len(data) // 2])
            self._die()
        return end.disk.write(node, offset, data[: self._shortened(operation, end.path, len(data))])

    def _sync(self, operation: str, end: Description, work: Callable[[], None], on_failure: Callable[[], None]) -> None:
        try:
            self._present(end)
            skipped = self._point(operation, end.path)
        except OSError:
            on_failure()
            raise
        if not skipped:
            work()

    # --- Inside: points and faults ---

    def _alive(self) -> None:
        if self._dead:
            raise PowerLoss

    def _die(self) -> NoReturn:
        self._dead = True
        raise PowerLoss

    def _begin(self, operation: str, path: str, *details: object) -> None:
        """Every call that changes nothing passes here."""
        self._alive()
        self._history.update(repr((operation, path, details)).encode())
        self._break(operation, path)

    def _point(self, operation: str, path: str, *details: object, other: str = "", site: str = "") -> bool:
        """Every crash point passes here. True if the call is to be skipped."""
        self._alive()
        site = site or f"{_caller()}:{operation}"
        self.sites.append(Site(len(self.sites) + 1, site, path))
        self._history.update(repr((operation, path, other, details)).encode())
        if self._crash_at == len(self.sites) and not (self._torn and operation in _WRITES):
            self._die()
        if self._fail_from is not None:
            number, code, and_after = self._fail_from
            if len(self.sites) == number or (and_after and len(self.sites) > number):
                raise failure(code, path)
        self._break(operation, path, other)
        return site in self._skipped

    def _break(self, operation: str, *paths: str) -> None:
        for fault in self._faults:
            if fault.code is not None and self._strikes(fault, operation, paths):
                raise failure(fault.code, paths[0])

    def _shortened(self, operation: str, path: str, length: int) -> int:
        for fault in self._faults:
            if fault.at_most is not None and self._strikes(fault, operation, (path,)):
                return min(length, fault.at_most)
        return length

    def _strikes(self, fault: Fault, operation: str, paths: Sequence[str]) -> bool:
        if fault.operation not in ("*", operation) or fault.times == 0 or not any(fault.where(path) for path in paths if path):
            return False
        if fault.times is not None:
            fault.times -= 1
        return True

    def _copied(self, now: Callable[[], int]) -> SimulatedFiles:
        other = SimulatedFiles(now)
        other._disks = {path: disk.copy(now) for path, disk in self._disks.items()}
        other._mounts = self._mounts.copy()
        other._skipped = self._skipped.copy()
        other._history = self._history.copy()
        return other


def under(prefix: str) -> Where:
    """A predicate for `fail` and `shorten`: the path itself or anything below it."""
    return lambda path: path == prefix or path.startswith(prefix.rstrip("/") + "/")


def _scatter(data: bytes, buffers: Sequence[bytearray | memoryview]) -> int:
    done = 0
    for buffer in buffers:
        piece = data[done : done + len(buffer)]
        memoryview(buffer).cast("B")[: len(piece)] = piece
        done += len(piece)
        if done == len(data):
            break
    return done


def _caller() -> str:
    """The innermost function outside of the seam and the simulation."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module not in _OUTSIDE:
            return f"{module}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "?"
