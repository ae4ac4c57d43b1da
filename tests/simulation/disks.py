"""The disks of a world at their mount points, and paths over all of them."""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Callable, Mapping, Sequence

from tests.simulation.content import PAGE
from tests.simulation.disk import DirectoryNode, Disk, FileNode, Node, failure
from tests.simulation.outcomes import Change


class Disks:
    """The part of `SimulatedFiles` that stands for the machine: tests set it up, look at it and damage it without crash points."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._disks: dict[str, Disk] = {}
        self._mounts: list[str] = []  # longest first
        self.mount("/")

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

    def fill(self, path: str, left: int) -> None:
        """So many bytes are left on the disk at this mount point."""
        disk = self._disks[path]
        disk.capacity = disk.used + left

    def exchange(self, path: str, other: str) -> None:
        """Each of two disks is mounted where the other one was. Nothing on them may be open."""
        one, two = self._disks[path], self._disks[other]
        one.path, two.path = other, path
        self._disks[path], self._disks[other] = two, one

    def place(self, path: str, data: bytes) -> None:
        """Make a new durable file, not a crash point. The directories above it are made if they are missing."""
        self._make_durable_directories(posixpath.dirname(path))
        disk, parent, name = self._parent(path)
        if name in parent.entries:
            raise failure(errno.EEXIST, path)
        node = disk.create(parent, name, 0o600)
        if isinstance(node, FileNode) and data:
            disk.write(node, 0, data)
            disk.sync_file(node)
        disk.sync_directory(parent)

    def tree(self, root: str) -> dict[str, bytes]:
        """Every file below a directory, by its path, as a program would read it now."""
        node = self._look_up(*self._locate(root), root)
        if isinstance(node, FileNode):
            return {root: self.contents(root)}
        return {path: data for name in sorted(node.entries) for path, data in self.tree(f"{root}/{name}").items()}

    def put_back_tree(self, root: str, tree: Mapping[str, bytes]) -> None:
        """A copy takes the place of all files below a directory, durably. Nothing there may be open."""
        for path in self.tree(root):
            disk, parent, name = self._parent(path)
            disk.unlink(parent, name)
            disk.sync_directory(parent)
        for path, data in tree.items():
            self.place(path, data)

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

    def spoil(self, path: str, offset: int, *, lasting: bool = True) -> None:
        """The page of a file at this offset cannot be read any more, for as long as the file is there, or until `read_again`."""
        node = self._file(path)
        if lasting:
            node.unreadable |= {offset // PAGE}
        else:
            node.hidden |= {offset // PAGE}

    def read_again(self) -> None:
        """Every page can be read that was not lost for good."""
        for disk in self._disks.values():
            for _, node in disk.walk():
                if isinstance(node, FileNode):
                    node.hidden = frozenset()

    def unpinned(self) -> list[Change]:
        """The changes that a power loss now may undo: what an `Outcome` decides on."""
        return [change for disk in self._disks.values() for change in disk.unpinned()]

    def digest(self) -> str:
        """A hash of all names and contents on all disks, to leave out states that were seen before."""
        return b"".join(disk.digest() for disk in self._disks.values()).hex()

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
