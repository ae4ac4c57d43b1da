"""A tree of files on this machine: walked for `put -r`, made for `get -r`. Nothing outside of it is ever read or written.

Everything goes by descriptors of directories that are opened without following symbolic links, so that nobody can lead us astray while
we are at it. Links are made last: no file of the tree is written through one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from zstor_local.cli.handover import naming_errors, part_name
from zstor_local.errors import AlreadyExists, PathRefused

if TYPE_CHECKING:
    from zstor_local.store.protected import Protected

Type = Literal["file", "directory", "symlink"]

MODE_BITS: Final = 0o777  # what is given back; set-id and sticky bits are kept beside the object and never set
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in a tree. `path` is relative, empty for its top; `mtime` in nanoseconds."""

    path: str
    type: Type
    mode: int
    mtime: int
    size: int = 0


class Tree:
    """An existing directory. A context manager; safe to use from several threads."""

    def __init__(self, path: str, *, own: Protected) -> None:
        """Open it, through a symbolic link if it is one: that is what the user named. What is the daemon's `own` is no part of it."""
        with naming_errors(path):
            self._top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._path = path
        self._real = os.path.realpath(path)
        self._own = own

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._top)

    def shown(self, path: str) -> str:
        """What people call something in it."""
        return os.path.join(self._path, path) if path else self._path

    # --- To read ---

    def walk(self) -> Iterator[Entry | OSError]:
        """Everything in it, each directory before what it holds, names in order; what cannot be read as its error,
        with its path as `filename`.

        FIFOs, devices and sockets come as an error too, and so does the daemon's store as one thing.
        """
        found = os.fstat(self._top)
        yield Entry("", "directory", stat.S_IMODE(found.st_mode), found.st_mtime_ns)
        todo = [""]
        while todo:
            path = todo.pop()
            below = []
            try:
                entries = self._list(path)
            except OSError as error:
                yield OSError(error.errno, error.strerror, path)
                continue
            for name, status in entries:
                inside = f"{path}/{name}" if path else name
                type_ = _type(status.st_mode)
                if type_ is None:
                    yield OSError(None, "no file, directory or symbolic link; passed over", inside)
                    continue
                if type_ == "directory" and not self._may_read(inside):
                    yield OSError(None, "the daemon's own store; passed over", inside)
                    continue
                yield Entry(inside, type_, stat.S_IMODE(status.st_mode), status.st_mtime_ns, status.st_size)
                if type_ == "directory":
                    below.append(inside)
            todo += reversed(below)

    def _may_read(self, path: str) -> bool:
        try:
            self._own.check_place(os.path.join(self._real, path), path)
        except PathRefused:
            return False
        return True

    def _list(self, path: str) -> list[tuple[str, os.stat_result]]:
        with self._directory(path) as directory:
            found = []
            for name in sorted(os.listdir(directory)):
                with suppress(FileNotFoundError):  # gone meanwhile
                    found.append((name, os.stat(name, dir_fd=directory, follow_symlinks=False)))
            return found

    @contextmanager
    def reading(self, path: str) -> Iterator[int]:
        """A regular file of the tree, open."""
        with naming_errors(self.shown(path)), self._parent(path) as (directory, name):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise PathRefused(f"{self.shown(path)} is no regular file any more")
            yield fd
        finally:
            os.close(fd)

    def content(self, fd: int, path: str) -> bytes:
        """All that is in an open file of the tree; PathRefused if it changed meanwhile."""
        with naming_errors(self.shown(path)):
            before, content = os.fstat(fd), b""
            while len(content) <= before.st_size and (piece := os.read(fd, before.st_size + 1 - len(content))):
                content += piece
            after = os.fstat(fd)
        if (len(content), after.st_size, after.st_mtime_ns) != (before.st_size, before.st_size, before.st_mtime_ns):
            shown = self.shown(path)
            raise PathRefused(f"{shown} changed while it was read; the old value stays", hint="store it when nothing writes to it")
        return content

    def target(self, path: str) -> str:
        """What a symbolic link of the tree says."""
        with naming_errors(self.shown(path)), self._parent(path) as (directory, name):
            return os.readlink(name, dir_fd=directory)

    # --- To write ---

    def make_directory(self, path: str) -> list[str]:
        """A directory with those above it, where they are not there yet; ours alone until `settle`. Returns the new ones."""
        self._check_own(path)
        parts = path.split("/")
        new = []
        with naming_errors(self.shown(path)):
            for depth in range(1, len(parts) + 1):
                above = "/".join(parts[:depth])
                with self._parent(above) as (directory, name), suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=directory)
                    new.append(above)
            with self._directory(path):
                pass  # it is one, and not a link to one
        return new

    @contextmanager
    def writing(self, path: str, mode: int | None, mtime: int | None, *, force: bool) -> Iterator[int]:
        """A new file that gets its name, whole and durable, when the block ends well; an existing one is replaced only with `force`."""
        with naming_errors(self.shown(path)), self._parent(path) as (directory, name):
            self._check_free(directory, name, path, force=force)
            part = part_name(name)
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=directory)
            try:
                yield fd
                _set(fd, mode, mtime)
                os.fsync(fd)
                if force:
                    os.replace(part, name, src_dir_fd=directory, dst_dir_fd=directory)
                else:
                    self._publish(directory, part, name, path)
            finally:
                os.close(fd)
                with suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=directory)

    def link(self, path: str, target: str, mtime: int | None, *, force: bool, outside: bool) -> None:
        """A symbolic link; all directories are made before. PathRefused for one that leads out of the tree, unless `outside`."""
        if "\0" in target:
            raise PathRefused(f"{self.shown(path)} would lead to a name with a NUL: there is none such")
        if not outside:
            self._check_target(path, target)
        with naming_errors(self.shown(path)), self._parent(path) as (directory, name):
            self._check_free(directory, name, path, force=force)
            part = part_name(name)
            try:
                os.symlink(target, part, dir_fd=directory)
                if mtime is not None:
                    os.utime(part, ns=(mtime, mtime), dir_fd=directory, follow_symlinks=False)
                if force:
                    os.replace(part, name, src_dir_fd=directory, dst_dir_fd=directory)
                else:
                    self._publish(directory, part, name, path)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=directory)

    def _check_target(self, path: str, target: str) -> None:
        """PathRefused unless a link at the path leads to a place below the top, whatever else there is a link or will be one.

        So `..` counts only behind a directory of the tree: behind a link it is the directory above what that one leads to.
        """
        hint = "--links-outside makes it all the same"
        here = path.split("/")[:-1]
        for part in target.split("/"):
            if part == ".." and here and not self._is_directory("/".join(here)):
                what = f"could lead out of the tree, to {target}: {'/'.join(here)!r} is no directory itself"
                raise PathRefused(f"{self.shown(path)} {what}", hint=hint)
            if target.startswith("/") or (part == ".." and not here):
                raise PathRefused(f"{self.shown(path)} would lead out of the tree, to {target}", hint=hint)
            if part == "..":
                here.pop()
            elif part not in ("", "."):
                here.append(part)

    def _is_directory(self, path: str) -> bool:
        try:
            with self._directory(path):
                return True
        except (OSError, PathRefused):
            return False

    def settle(self, path: str, mode: int | None, mtime: int | None) -> None:
        """Give a directory its mode and time and make what it holds durable: when nothing more comes into it."""
        with naming_errors(self.shown(path)), self._directory(path) as directory:
            _set(directory, mode, mtime)
            os.fsync(directory)

    def _publish(self, directory: int, part: str, name: str, path: str) -> None:
        """Give something its name. Linking, unlike renaming, never replaces."""
        try:
            os.link(part, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):  # vfat and its like have no links: look, then rename
                raise
            self._check_free(directory, name, path, force=False)
            os.rename(part, name, src_dir_fd=directory, dst_dir_fd=directory)

    def _check_own(self, path: str) -> None:
        self._own.check_new(os.path.join(self._real, path), self.shown(path))

    def _check_free(self, directory: int, name: str, path: str, *, force: bool) -> None:
        self._check_own(path)
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(found.st_mode):
            raise PathRefused(f"{self.shown(path)} is a directory", hint="move it away")
        if not force:
            raise AlreadyExists(f"{self.shown(path)} is there already", hint="-f replaces it")

    @contextmanager
    def _directory(self, path: str) -> Iterator[int]:
        """A directory of the tree, reached without passing a link."""
        fd = os.dup(self._top)
        try:
            for part in path.split("/") if path else ():
                try:
                    inner = os.open(part, _DIRECTORY, dir_fd=fd)
                except OSError as error:
                    if error.errno in (errno.ENOTDIR, errno.ELOOP):
                        raise PathRefused(f"{self.shown(path)} leads through a file or a symbolic link: not followed") from None
                    raise
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The directory that holds something of the tree, and its name there."""
        above, _, name = path.rpartition("/")
        with self._directory(above) as directory:
            yield directory, name


def write_out(fd: int, content: bytes) -> None:
    """Write every byte."""
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def check_path(path: str) -> str:
    """The relative path itself; PathRefused for what no path below a directory is: `..`, an empty name, a NUL."""
    if any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
        raise PathRefused(f"{path!r} names no place below the directory; it was passed over", hint="`zstor get KEY FILE` gets it alone")
    return path


def _type(mode: int) -> Type | None:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else None


def _set(fd: int, mode: int | None, mtime: int | None) -> None:
    if mode is not None:
        os.fchmod(fd, mode & MODE_BITS)
    if mtime is not None:
        os.utime(fd, ns=(mtime, mtime))
