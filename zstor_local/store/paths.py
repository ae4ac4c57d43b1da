"""Files that clients name or hand over: opened without blocking, checked on the open descriptor, never the daemon's own.

By default a path works as with cp(1): symbolic links are followed. With `allowed_roots`, or for a client in another mount namespace,
only paths beneath a root count, opened without passing a link (docs/security.md).
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Literal, Protocol

from zstor_local.errors import AlreadyExists, IoError, NoSpace, PathRefused, ZstorError, errno_name, errno_text
from zstor_local.runtime import ClientFiles, Files, FileStatus, Randomness, close_anyhow, sync_directory
from zstor_local.store.protected import Protected, own_file
from zstor_local.store.sinks import NO_SPACE

Mode = Literal["truncate", "append", "exclusive"]

_UNREADABLE_KINDS: Final = frozenset({"proc", "sysfs"})  # files that are no files: reading may have effects, sizes lie
_SANDBOXED: Final = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS})
_DESCRIPTOR_HINT: Final = "open it yourself, where you may, and hand the descriptor over (`fd`)"


class _Root:
    """A directory that paths may lie beneath, open for as long as somebody has it: threads may be at work there when others take its
    place.
    """

    def __init__(self, files: Files, path: str) -> None:
        """OSError."""
        self.path = path
        self.fd = files.open(path, os.O_PATH | os.O_DIRECTORY)
        weakref.finalize(self, close_anyhow, files, self.fd)


class Surroundings(Protocol):
    """What a sandbox around the daemon hides from it."""

    def hides(self, path: str) -> bool:
        """Whether what lies there for us is not what lies there for everybody else."""
        ...

    def advice(self, directory: str, *, write: bool) -> str | None:
        """What to change so that the daemon may use a directory; None where the sandbox is not to blame."""
        ...


class Paths:
    """Opens clients' paths and judges their descriptors."""

    def __init__(
        self,
        files: Files,
        client_files: ClientFiles,
        randomness: Randomness,
        protected: Protected,
        allowed_roots: Sequence[str],
        surroundings: Surroundings | None = None,
    ) -> None:
        """OSError if a root cannot be opened. No `surroundings`: nothing is hidden."""
        self.files = files
        self.client_files = client_files
        self._randomness = randomness
        self._protected = protected
        self._surroundings = surroundings
        self.allow(allowed_roots)
        self._own_namespace = client_files.mount_namespace(None)

    def allow(self, roots: Sequence[str]) -> None:
        """Paths must lie beneath one of these from now on; none: anywhere. OSError, and nothing changed, if one cannot be opened."""
        self._roots = tuple(_Root(self.files, root) for root in roots)

    def close(self) -> None:
        self._roots = ()

    # --- Paths ---

    def open_input(self, path: str, mounts: str | None) -> int:
        """A regular file, open for reading; the caller closes it. `mounts`: the client's mount namespace. PathRefused or IoError."""
        _must_be_absolute(path)
        with self._found(path, mounts, os.O_PATH) as fd, self._errors(path, write=False):
            self._must_be_seen(fd, path, write=False)
            self._must_be_plain_file(fd, path)
            return self.files.reopen(fd, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)

    @contextmanager
    def destination(self, path: str, mounts: str | None, mode: Mode, *, sync: bool) -> Iterator[int]:
        """A descriptor to write an object to for the file `path`. To that happens nothing before the end, nor where an error comes.

        `truncate` and `exclusive` make a new file beside it and rename or create it into place, keeping an existing file's mode and
        replacing a link; `append` writes a new file first and then appends its bytes, or gives it the name where nothing has it.
        """
        _must_be_absolute(path)
        name = posixpath.basename(path)
        if name in ("", ".", ".."):
            raise PathRefused(f"{path} names no file", hint="give the path of the file to write")
        with self._found(posixpath.dirname(path), mounts, os.O_PATH | os.O_DIRECTORY, write=True) as parent:
            self._must_be_seen(parent, path, write=True)
            self._protected.check_new(posixpath.join(self.client_files.real_path(parent), name), path)
            beneath = f"/proc/self/fd/{parent}"
            target, part = f"{beneath}/{name}", f"{beneath}/.{self._randomness.bytes(8).hex()}.part"
            with self._errors(path, write=True):
                existing = self._existing(target, path)
                if existing is not None and mode == "exclusive":
                    raise AlreadyExists(f"{path} is there already", hint="use mode `truncate` to replace it")
                unnamed = self.client_files.open_unnamed(beneath)  # so that a killed daemon leaves nothing lying about
                fd = self.files.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOCTTY, 0o600) if unnamed is None else unnamed

            def finish() -> None:
                with self._errors(path, write=True):
                    if mode == "append" and existing is not None:
                        self._append(fd, target, path, sync=sync)
                        return
                    if sync:
                        self.files.fsync(fd)
                    try:
                        self._put_in_place(unnamed, part, target, path, replaces=mode == "truncate")
                    except AlreadyExists:
                        if mode != "append":
                            raise
                        self._append(fd, target, path, sync=sync)  # it came meanwhile, by another append perhaps
                    if sync:
                        sync_directory(self.files, beneath)

            try:
                if existing is not None and existing.is_regular:
                    with self._errors(path, write=True):
                        self.client_files.set_mode(fd, stat.S_IMODE(existing.mode))
                yield fd
                finish()
            except BaseException:
                close_anyhow(self.files, fd)
                raise
            else:
                with self._errors(path, write=True):  # a network file system may say only now what it could not write
                    self.files.close(fd)
            finally:
                with suppress(OSError):  # it is there only after an error, which is the one to tell
                    self.files.unlink(part)

    @contextmanager
    def _found(self, path: str, mounts: str | None, flags: int, *, write: bool = False) -> Iterator[int]:
        """An O_PATH descriptor: nothing is opened yet, so nothing blocks and no device notices."""
        if "\0" in path:
            raise PathRefused("a path holds no NUL", hint=_DESCRIPTOR_HINT)
        with self._errors(path, write=write, directory=path if write else None):
            roots = self._roots
            fd = self._open_in(roots, path, flags) if roots or self._is_foreign(mounts) else self.files.open(path, flags)
        try:
            yield fd
        finally:
            self.files.close(fd)

    def _open_in(self, roots: Sequence[_Root], path: str, flags: int) -> int:
        path = posixpath.normpath(path) if ".." not in path.split("/") else path
        for root in roots:
            relative = posixpath.relpath(path, root.path) if f"{path}/".startswith(root.path.rstrip("/") + "/") else None
            if relative is None:
                continue
            try:
                return self.client_files.open_beneath(root.fd, relative, flags)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.EXDEV):
                    raise PathRefused(f"{path} leaves {root.path} or passes a symbolic link", hint=_DESCRIPTOR_HINT) from None
                raise
        if not roots:
            raise PathRefused(
                f"{path} may be another file for this client than for the daemon (another mount namespace, or none to be seen)",
                hint=f"{_DESCRIPTOR_HINT}; or name in `allowed_roots` what both see",
            )
        raise PathRefused(f"{path} is not beneath one of the allowed roots", hint=f"{_DESCRIPTOR_HINT}; or add to `allowed_roots`")

    def _is_foreign(self, mounts: str | None) -> bool:
        """Whether the client sees other files than we do under the same names, or lets nobody know."""
        return None not in (mounts, self._own_namespace) and mounts != self._own_namespace

    def _existing(self, target: str, path: str) -> FileStatus | None:
        try:
            existing = self.files.path_status(target, follow=False)
        except FileNotFoundError:
            return None
        if not existing.is_regular and not stat.S_ISLNK(existing.mode):
            raise PathRefused(f"{path} is there and not a regular file", hint="name another file, or hand a descriptor over")
        if _identity(existing) in self._protected_identities():
            raise own_file(path)
        return existing

    def _put_in_place(self, unnamed: int | None, part: str, target: str, path: str, *, replaces: bool) -> None:
        """Give the whole file its name, in one step. AlreadyExists if something has it, and is not to be replaced."""
        if unnamed is not None and not replaces:
            try:
                self.client_files.name_it(unnamed, target)
            except FileExistsError:
                raise AlreadyExists(f"{path} is there already", hint="use mode `truncate` to replace it") from None
            return
        if unnamed is not None:
            self.client_files.name_it(unnamed, part)
        elif not replaces:
            self._must_still_be_missing(target, path)
        try:
            self.files.rename(part, target)
        except OSError:
            if not replaces:
                self.files.unlink(target)  # the empty one
            raise

    def _must_still_be_missing(self, target: str, path: str) -> None:
        """An empty file of our own takes the name first, so that the rename replaces nothing of anybody else's."""
        try:
            self.files.close(self.files.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise AlreadyExists(f"{path} is there already", hint="use mode `truncate` to replace it") from None

    def _append(self, fd: int, target: str, path: str, *, sync: bool) -> None:
        output = self.files.open(target, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = self.files.status(output)
            if not status.is_regular or _identity(status) in self._protected_identities():  # something else took its place
                raise PathRefused(f"{path} was replaced meanwhile", hint="name another file")
            if status.links > 1:
                raise PathRefused(f"{path} has other names (hard links)", hint="append to a file of its own")
            appended = 0
            try:
                while piece := self.files.pread(fd, 1 << 20, appended):
                    appended += self.files.writev(output, [piece])
            except OSError:
                if self.files.status(output).size == status.size + appended:  # else others have appended behind it
                    self.files.truncate(output, status.size)
                raise
            if sync:
                self.files.fsync(output)
        finally:
            self.files.close(output)

    # --- Descriptors ---

    def check_input(self, fd: int, *, stream: bool) -> FileStatus:
        """A descriptor to read an object from: a regular file, or where a stream will do a pipe or stream socket."""
        status = self._check(fd, stream=stream)
        if self.files.open_flags(fd) & os.O_ACCMODE == os.O_WRONLY:
            raise PathRefused("the descriptor is open for writing only", hint="open it for reading")
        return status

    def check_output(self, fd: int, *, stream: bool) -> FileStatus:
        """A descriptor to write an object to."""
        status = self._check(fd, stream=stream)
        if self.files.open_flags(fd) & os.O_ACCMODE == os.O_RDONLY and not stat.S_ISSOCK(status.mode):
            raise PathRefused("the descriptor is open for reading only", hint="open it for writing")
        return status

    def _check(self, fd: int, *, stream: bool) -> FileStatus:
        with self._errors("the descriptor", write=False):
            flags = self.files.open_flags(fd)
            status = self.files.status(fd)
        if flags & (os.O_PATH | os.O_DIRECT):
            raise PathRefused("the descriptor is of a kind that cannot be read piecemeal (O_PATH or O_DIRECT)", hint="open it plainly")
        if status.is_regular:
            self._must_be_plain_file(fd)
        elif not (stat.S_ISFIFO(status.mode) or stat.S_ISSOCK(status.mode)):
            raise PathRefused("the descriptor is no regular file, pipe or socket", hint="hand over one of those")
        elif not stream:
            raise PathRefused("the descriptor is a pipe or socket", hint="hand over a regular file; _stream methods take this")
        elif stat.S_ISSOCK(status.mode) and not self.client_files.is_stream(fd):
            raise PathRefused("the descriptor is a socket that carries no stream", hint="hand over a connected stream socket")
        return status

    # --- What both share ---

    def _must_be_plain_file(self, fd: int, path: str | None = None) -> None:
        real = self.client_files.real_path(fd)
        path = path or real  # a descriptor has no other name
        status = self.files.status(fd)
        if not status.is_regular:
            raise PathRefused(f"{path} is not a regular file", hint="pipes and sockets go by descriptor to the _stream methods")
        if self.files.file_system(fd).kind in _UNREADABLE_KINDS:
            raise PathRefused(f"{path} lies in procfs or sysfs", hint="copy it to a regular file first")
        self._protected.check_place(real, path)
        if _identity(status) in self._protected_identities():
            raise own_file(path)

    def _must_be_seen(self, fd: int, path: str, *, write: bool) -> None:
        """Where a sandbox covers a directory, what is written there is lost, and what is read there is nobody's."""
        if self._surroundings is not None and self._surroundings.hides(real := self.client_files.real_path(fd)):
            directory = real if write else posixpath.dirname(real)
            hint = self._surroundings.advice(directory, write=write)
            raise PathRefused(f"{path} is hidden from the daemon, which is a service of its own", hint=hint)

    @contextmanager
    def _errors(self, path: str, *, write: bool, directory: str | None = None) -> Iterator[None]:
        """The system's errors as ours, with errno's name; where a sandbox is to blame, with the way out of it."""
        try:
            yield
        except ZstorError:
            raise
        except OSError as error:
            if write and error.errno in NO_SPACE:
                raise NoSpace(f"{path}: its disk is full", hint="free some room there") from None
            name = errno_name(error)
            directory = directory or posixpath.dirname(path)
            around = self._surroundings if error.errno in _SANDBOXED and path.startswith("/") else None
            if around is not None and (advice := around.advice(directory, write=write)):
                raise PathRefused(f"{path} is closed to the daemon, which is a service of its own ({name})", hint=advice) from None
            hint = "check the path" if error.errno in (errno.ENOENT, errno.ENOTDIR) else _DESCRIPTOR_HINT
            raise IoError(f"{path}: {errno_text(error)} ({name})", hint=hint, errno=name) from None

    def _protected_identities(self) -> set[tuple[int, int]]:
        """Device and inode of the daemon's own files, for those who come by another name."""
        found = set()
        for path in self._protected.files:
            with suppress(OSError):
                found.add(_identity(self.files.path_status(path)))
        return found


def _identity(status: FileStatus) -> tuple[int, int]:
    return status.device, status.inode


def _must_be_absolute(path: str) -> None:
    if not path.startswith("/"):
        raise PathRefused(f"{path!r} is not absolute", hint="the daemon has a working directory of its own: give the whole path")
