"""`SimulatedFiles`: the runtime's Files over simulated disks. Its crash points and faults are in `points.py`."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import zlib
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Final

from tests.simulation.content import PAGE
from tests.simulation.disk import DirectoryNode, Disk, FileNode, Node, failure
from tests.simulation.disks import Disks
from tests.simulation.outcomes import Outcome, Subset
from tests.simulation.pipe import PIPE_DEVICE, Pipe
from tests.simulation.points import CrashPoints
from zstor_local.runtime import Buffer, FileStatus, FileSystem

_ACCESS_AND_STATUS: Final = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_SYNC
_FIRST_DESCRIPTOR: Final = 1_000  # far from real ones, and never used twice
_UID: Final = 1_000


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


Look = Callable[["SimulatedFiles", bool], None]


class SimulatedFiles(Disks, CrashPoints):
    """Files of a simulated world; the laws are those of `zstor_local.runtime.Files`.

    `now` gives the time in nanoseconds for inodes. Descriptors and locks die with `copy`; pending changes do not.
    """

    def __init__(self, now: Callable[[], int]) -> None:
        CrashPoints.__init__(self)
        Disks.__init__(self, now)
        self._look: Look | None = None
        self._open: dict[int, Description | PipeEnd] = {}
        self._next_descriptor = _FIRST_DESCRIPTOR
        self._locks: dict[tuple[int, int], int] = {}

    def watch(self, look: Look) -> None:
        """At each crash point, before it does its work, hand over a copy of these files as they are in this moment; of a write a
        second one, torn (True), with the first half of it done. All that a power loss may leave at any point is seen in one run.
        """
        self._look = look

    def open_descriptors(self) -> Sequence[int]:
        """Descriptors that were not closed: a finished program should leave none."""
        return sorted(self._open)

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

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        buffer = bytearray(length)
        count = self._read("pread", fd, [buffer], offset)
        return bytes(buffer[:count])

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

    def drop_cache(self, fd: int) -> None:
        end = self._end(fd, errno.ESPIPE)
        self._begin("drop_cache", end.path)
        if isinstance(end.node, FileNode):
            end.disk.drop_cache(end.node, Subset(zlib.crc32(self.history().encode())))

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
            return FileStatus(PIPE_DEVICE, fd, stat.S_IFIFO | 0o600, 1, _UID, 0, self._now())
        self._begin("status", end.path)
        return self._status(end.disk, end.node)

    def path_status(self, path: str, *, follow: bool = True) -> FileStatus:
        self._begin("path_status", path, follow)
        disk, parts = self._locate(path)
        return self._status(disk, self._look_up(disk, parts, path))

    def descriptors(self) -> int:
        return 1_024

    def own_uid(self) -> int:
        return _UID

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

    def rmdir(self, path: str) -> None:
        self._alive()
        disk, parent, name = self._parent(path)
        node = disk.nodes[self._entry(parent, name, path)]
        if isinstance(node, FileNode):
            raise failure(errno.ENOTDIR, path)
        if node.entries:
            raise failure(errno.ENOTEMPTY, path)
        self._writable(disk)
        self._point("rmdir", path)
        disk.unlink(parent, name)

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

    # --- Inside: descriptors ---

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
        return FileStatus(disk.device, node.number, node.mode, links, _UID, self._size(node), node.modified)

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
        data = end.node.content.read(offset, self._shortened(operation, end.path, length))
        if bad := end.node.unreadable | end.node.hidden:
            data = self._before_bad_page(bad, data, offset)
        return _scatter(data, buffers)

    def _before_bad_page(self, bad: Set[int], data: bytes, offset: int) -> bytes:
        """As the kernel answers: with what lies before it, or EIO if that is nothing."""
        begin = min((page * PAGE for page in bad if offset // PAGE <= page <= (offset + len(data) - 1) // PAGE), default=None)
        if begin is None or not data:
            return data
        if begin <= offset:
            raise failure(errno.EIO)
        return data[: begin - offset]

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
        half = data[: len(data) // 2]
        if self._look is not None and half:
            torn = self._copied(self._now)
            disk = torn._disks[end.disk.path]
            disk.write(disk.file(node.number), offset, half)
            self._look(torn, True)
        if self._tears:
            if half:
                end.disk.write(node, offset, half)
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

    def _show(self) -> None:
        if self._look is not None:
            self._look(self._copied(self._now), False)

    def _copied(self, now: Callable[[], int]) -> SimulatedFiles:
        other = SimulatedFiles(now)
        other._disks = {path: disk.copy(now) for path, disk in self._disks.items()}
        other._mounts = self._mounts.copy()
        other.follow(self)
        return other


def _scatter(data: bytes, buffers: Sequence[bytearray | memoryview]) -> int:
    done = 0
    for buffer in buffers:
        piece = data[done : done + len(buffer)]
        memoryview(buffer).cast("B")[: len(piece)] = piece
        done += len(piece)
        if done == len(data):
            break
    return done
