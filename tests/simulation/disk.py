"""One file system of the simulated world: what a process sees, what is durable, and what lies between.

The model is the strict reading of POSIX. Every inode has its content as seen and its durable content; every directory has its
entries as seen and its durable entries; the changes between the two are kept in order until something pins them:

- fsync and fdatasync of a file pin its content and size, never the directory entry that leads to it;
- fsync of a directory pins the entries that came into it and left it (and what those build on: a rename of a name needs the create
  of that name). Of a rename out of another directory it pins the new name only, so that both names may survive;
- syncfs pins everything of the file system;
- after a failed sync what it should have pinned stays unpinned for ever, even if a later sync succeeds, as under Linux; once the
  cache of the file is dropped, that of it is seen which reached the disk;
- so a name of which a sync failed stays unpinned, until it is given or taken away again: that is a new change, and whoever writes it
  writes the name as it is then. (A journal that cannot be written, of ext4, XFS or btrfs, ends all writing until the next mount;
  after a later sync that succeeds everything before it is there, too.)
"""

from __future__ import annotations

import enum
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from tests.simulation.content import PAGE, Content, Mutation, Reserve, Truncate, Write
from tests.simulation.outcomes import Change, Entry, Left, Outcome, Place

ROOT = 2  # the inode of a file system's top directory
NAME_MAX = 255


def failure(code: int, path: str | None = None) -> OSError:
    """The OSError of an errno; Python picks the subclass."""
    return OSError(code, os.strerror(code), path)


class State(enum.Enum):
    """How sure a change is that was not folded into the durable content."""

    UNPINNED = "unpinned"
    FAILED = "failed"  # a sync of it failed: no later one pins it
    PINNED = "pinned"  # durable, but earlier changes of the same file are not


class FileNode:
    """A regular file. Contents are shared between copies until written: `_own` says whether `content` is ours alone."""

    __slots__ = ("_own", "content", "durable", "hidden", "links", "mode", "modified", "number", "opens", "pending", "unreadable")

    def __init__(self, number: int, mode: int, time: int) -> None:
        self.number = number
        self.mode = stat.S_IFREG | mode
        self.links = 1
        self.opens = 0
        self.modified = time
        self.durable = Content()
        self.content = self.durable
        self._own = False
        self.pending: list[tuple[Mutation, State]] = []
        self.unreadable: frozenset[int] = frozenset()  # pages
        self.hidden: frozenset[int] = frozenset()  # pages that can be read again some day

    def copy(self) -> FileNode:
        other = FileNode(self.number, self.mode, self.modified)
        other.links = self.links
        other.durable, other.content = self.durable, self.content
        other.pending = self.pending.copy()
        other.unreadable, other.hidden = self.unreadable, self.hidden
        self._own = False
        return other

    def change(self, mutation: Mutation, time: int) -> None:
        if not self._own:
            self.content = self.content.copy()
            self._own = True
        mutation.apply(self.content)
        self.pending.append((mutation, State.UNPINNED))
        self.modified = time

    def pin(self) -> None:
        if any(state is State.FAILED for _, state in self.pending):
            self.pending = [(each, State.PINNED if state is State.UNPINNED else state) for each, state in self.pending]
            return
        self.pending.clear()
        self.durable = self.content
        self._own = False

    def fail(self) -> None:
        self.pending = [(each, State.FAILED if state is State.UNPINNED else state) for each, state in self.pending]

    @property
    def dirty(self) -> bool:
        """Whether there are changes that no sync has tried to pin."""
        return any(state is State.UNPINNED for _, state in self.pending)

    def open_changes(self) -> list[Mutation]:
        return [each for each, state in self.pending if state is not State.PINNED]

    def lose(self, left: Iterator[Left]) -> None:
        """Power is lost: the durable content and what is left of the changes since become the content."""
        if not self.pending:
            return
        content = self.durable.copy()
        for mutation, state in self.pending:
            for part in (mutation,) if state is State.PINNED else next(left):
                if not isinstance(part, Entry):
                    part.apply(content)
        self.pending.clear()
        self.content = self.durable = content
        self._own = False


class DirectoryNode:
    """A directory: its names as seen and as durable, each leading to an inode."""

    __slots__ = ("durable", "entries", "mode", "modified", "number", "opens")

    def __init__(self, number: int, mode: int, time: int) -> None:
        self.number = number
        self.mode = stat.S_IFDIR | mode
        self.opens = 0
        self.modified = time
        self.durable: dict[str, int] = {}
        self.entries: dict[str, int] = {}

    def copy(self) -> DirectoryNode:
        other = DirectoryNode(self.number, self.mode, self.modified)
        other.durable = self.durable.copy()
        other.entries = self.entries.copy()
        return other


Node = FileNode | DirectoryNode


class Disk:
    """A file system. `capacity` in bytes (None: no end), `missing`: taken out, `read_only`: writes answer EROFS."""

    def __init__(self, device: int, path: str, kind: str, capacity: int | None, now: Callable[[], int]) -> None:
        self.device = device
        self.path = path
        self.kind = kind
        self.capacity = capacity
        self.now = now  # nanoseconds
        self.missing = False
        self.read_only = False
        self.nodes: dict[int, Node] = {ROOT: DirectoryNode(ROOT, 0o755, now())}
        self._next = ROOT + 1
        self._used = 0  # pages
        self._dirty: dict[int, FileNode] = {}  # files with pending changes
        self._entries: list[tuple[Entry, State]] = []  # pending changes of directories, in order

    def copy(self, now: Callable[[], int]) -> Disk:
        """The same file system with the same changes pending, and no descriptors open."""
        other = Disk(self.device, self.path, self.kind, self.capacity, now)
        other.missing, other.read_only = self.missing, self.read_only
        other.nodes = {number: node.copy() for number, node in self.nodes.items()}
        other._next, other._used = self._next, self._used
        other._dirty = {number: node for number in self._dirty if isinstance(node := other.nodes[number], FileNode)}
        other._entries = self._entries.copy()
        return other

    def sweep(self) -> None:
        """Drop the inodes that nothing leads to, now or after a power loss. No descriptor may be open."""
        needed = {entry.inode for entry, _ in self._entries} | {ROOT}
        for node in self.nodes.values():
            if isinstance(node, DirectoryNode):
                needed.update(node.entries.values(), node.durable.values())
        self.nodes = {number: node for number, node in self.nodes.items() if number in needed}
        self._dirty = {number: node for number, node in self._dirty.items() if number in needed}
        self._count_room()

    # --- What a process sees ---

    def directory(self, number: int) -> DirectoryNode:
        node = self.nodes[number]
        if not isinstance(node, DirectoryNode):
            raise failure(errno.ENOTDIR)
        return node

    def file(self, number: int) -> FileNode:
        node = self.nodes[number]
        if not isinstance(node, FileNode):
            raise failure(errno.EISDIR)
        return node

    def look_up(self, parts: Sequence[str]) -> Node:
        """The node at a path of names below the top."""
        node: Node = self.nodes[ROOT]
        for name in parts:
            if not isinstance(node, DirectoryNode):
                raise failure(errno.ENOTDIR)
            if len(name.encode()) > NAME_MAX:
                raise failure(errno.ENAMETOOLONG)
            if name not in node.entries:
                raise failure(errno.ENOENT)
            node = self.nodes[node.entries[name]]
        return node

    @property
    def total(self) -> int:
        return self.capacity if self.capacity is not None else 1 << 40

    @property
    def used(self) -> int:
        return self._used * PAGE

    @property
    def free(self) -> int:
        return max(0, self.total - self.used)

    def create(self, parent: DirectoryNode, name: str, mode: int, *, directory: bool = False) -> Node:
        node: Node = (DirectoryNode if directory else FileNode)(self._next, mode, self.now())
        self._next += 1
        self.nodes[node.number] = node
        self._enter(Entry(self.device, node.number, gained=(parent.number, name)))
        return node

    def unlink(self, parent: DirectoryNode, name: str) -> None:
        number = parent.entries[name]
        self._enter(Entry(self.device, number, lost=(parent.number, name)))
        self._unlinked(number)

    def rename(self, old_parent: DirectoryNode, old: str, new_parent: DirectoryNode, new: str) -> None:
        number, replaced = old_parent.entries[old], new_parent.entries.get(new)
        self._enter(Entry(self.device, number, gained=(new_parent.number, new), lost=(old_parent.number, old)))
        if replaced is not None:
            self._unlinked(replaced)

    def write(self, node: FileNode, offset: int, data: bytes) -> int:
        """Write as much as there is room for; ENOSPC if there is none."""
        fits = len(data)
        while (lacking := node.content.lacking(offset, fits)) * PAGE > self.free:
            fits -= (offset + fits - 1) % PAGE + 1  # one page less
            if fits <= 0:
                raise failure(errno.ENOSPC)
        self._used += lacking
        self._change(node, Write(offset, data[:fits]))
        return fits

    def truncate(self, node: FileNode, length: int) -> None:
        before = node.content.used
        self._change(node, Truncate(length))
        self._used += node.content.used - before

    def reserve(self, node: FileNode, offset: int, length: int) -> None:
        lacking = node.content.lacking(offset, length)
        if lacking * PAGE > self.free:
            raise failure(errno.ENOSPC)
        self._used += lacking
        self._change(node, Reserve(offset, length))

    def closed(self, node: Node) -> None:
        node.opens -= 1
        if isinstance(node, FileNode) and not node.links and not node.opens:
            self._used -= node.content.used

    # --- What is durable ---

    def sync_file(self, node: FileNode) -> None:
        node.pin()
        if not node.pending:
            self._dirty.pop(node.number, None)

    def sync_directory(self, node: DirectoryNode) -> None:
        """Pin the entries of one directory and what they build on, but not removals from other directories."""
        here = node.number
        needed: set[Place] = set()
        pinned = []
        for entry, _ in reversed(self._entries):
            pinned.append(here in entry.directories or not needed.isdisjoint(entry.places))
            if pinned[-1]:
                needed.update(entry.places)
        self._settle(reversed(pinned), here)

    def sync_all(self) -> None:
        for node in list(self._dirty.values()):
            self.sync_file(node)
        self._settle((True for _ in self._entries), None)

    def fail_directory(self, node: DirectoryNode) -> None:
        """A sync of the directory failed."""
        self._entries = [(entry, State.FAILED if node.number in entry.directories else state) for entry, state in self._entries]

    def drop_cache(self, node: FileNode, outcome: Outcome) -> None:
        """The file is seen as it is on the disk, where `outcome` says what is left of changes whose sync failed. Not a dirty one."""
        if node.dirty:
            return
        before = node.content.used
        node.lose(iter(outcome.left(node.open_changes())))
        self._dirty.pop(node.number, None)
        self._used += node.content.used - before

    def fail_all(self) -> None:
        """A syncfs failed."""
        for node in self._dirty.values():
            node.fail()
        self._entries = [(entry, State.FAILED) for entry, _ in self._entries]

    def unpinned(self) -> list[Change]:
        """All changes that a power loss may undo: those of files by inode, then those of directories."""
        changes: list[Change] = []
        for node in self._dirty_in_order():
            changes.extend(node.open_changes())
        changes.extend(entry for entry, _ in self._entries)
        return changes

    def lose(self, left: Iterator[Left]) -> None:
        """Power is lost. `left` says what remains of each change in `unpinned`, in that order.

        A change of a directory remains only if those that it builds on do.
        """
        for node in self._dirty_in_order():
            node.lose(left)
        self._dirty.clear()
        blocked: set[Place] = set()
        for entry, _ in self._entries:
            if next(left) and blocked.isdisjoint(entry.places):
                self._apply(entry, durable=True)
            else:
                blocked.update(entry.places)
        self._entries.clear()
        self._rebuild()

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every path below the top with its node, sorted."""
        todo = [("", self.directory(ROOT))]
        while todo:
            path, directory = todo.pop()
            for name, number in sorted(directory.entries.items()):
                node = self.nodes[number]
                yield f"{path}/{name}", node
                if isinstance(node, DirectoryNode):
                    todo.append((f"{path}/{name}", node))

    def digest(self) -> bytes:
        """A hash of all names and contents: equal disks look equal to a program."""
        state = hashlib.blake2b(digest_size=16)
        for path, node in self.walk():
            state.update(f"{path}\0{node.mode}\0".encode())
            if isinstance(node, FileNode):
                state.update(f"{node.content.size}\0{node.content.used}\0".encode())
                for page, data in sorted(node.content.pages.items()):
                    if data.count(0) != PAGE:
                        state.update(page.to_bytes(8))
                        state.update(data)
        return state.digest()

    # --- Inside ---

    def _change(self, node: FileNode, mutation: Mutation) -> None:
        node.change(mutation, self.now())
        self._dirty[node.number] = node

    def _enter(self, entry: Entry) -> None:
        self._entries.append((entry, State.UNPINNED))
        for number in entry.directories:
            self.directory(number).modified = self.now()
        self._apply(entry, durable=False)

    def _settle(self, chosen: Iterable[bool], here: int | None) -> None:
        """Pin the chosen entries, but for those whose sync once failed; what was open of a name before it is open no more.

        Synced through one directory (`here`), a rename that came from another is pinned as to the new name only.
        """
        kept: list[tuple[Entry, State]] = []
        for (entry, state), wanted in zip(self._entries, chosen, strict=True):
            if not wanted or state is State.FAILED:
                kept.append((entry, state))
                continue
            rest: list[tuple[Entry, State]] = []
            if here is not None and entry.gained and entry.lost and entry.gained[0] != entry.lost[0] != here:
                rest = [(replace(entry, gained=None), state)]
                entry = replace(entry, lost=None)
            self._apply(entry, durable=True)
            kept = [(left, each) for open_entry, each in kept if (left := open_entry.without(entry.places))] + rest
        self._entries = kept

    def _apply(self, entry: Entry, *, durable: bool) -> None:
        if entry.lost is not None:
            directory = self.directory(entry.lost[0])
            (directory.durable if durable else directory.entries).pop(entry.lost[1], None)
        if entry.gained is not None:
            directory = self.directory(entry.gained[0])
            (directory.durable if durable else directory.entries)[entry.gained[1]] = entry.inode

    def _dirty_in_order(self) -> list[FileNode]:
        return [self._dirty[number] for number in sorted(self._dirty)]

    def _unlinked(self, number: int) -> None:
        node = self.nodes[number]
        if isinstance(node, FileNode):
            node.links -= 1
            if not node.links and not node.opens:
                self._used -= node.content.used  # free, though a power loss may bring the file back

    def _rebuild(self) -> None:
        """Take the durable entries for true, drop what they do not lead to, count links and room anew."""
        reached: dict[int, int] = {ROOT: 1}
        todo = [ROOT]
        while todo:
            node = self.nodes[todo.pop()]
            if isinstance(node, DirectoryNode):
                node.entries = node.durable.copy()
                for number in node.entries.values():
                    if number not in reached:
                        todo.append(number)
                    reached[number] = reached.get(number, 0) + 1
        self.nodes = {number: node for number, node in self.nodes.items() if number in reached}
        for number, node in self.nodes.items():
            if isinstance(node, FileNode):
                node.links = reached[number]
        self._count_room()

    def _count_room(self) -> None:
        self._used = sum(node.content.used for node in self.nodes.values() if isinstance(node, FileNode) and node.links)
