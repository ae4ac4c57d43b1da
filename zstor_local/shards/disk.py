"""The disk under a directory shard: whether it is still there, and what its errors mean."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import TracebackType
from typing import Final

from zstor_local.errors import errno_name, errno_text
from zstor_local.runtime import Device, DiskStalled, FileStatus, FileSystem
from zstor_local.shards import marker
from zstor_local.shards.base import ShardError, ShardState
from zstor_local.shards.log import LogClosed, NothingAppended

STALLED: Final = "the disk does not answer"


def said(error: OSError) -> str:
    """What a disk says, for people."""
    return STALLED if isinstance(error, DiskStalled) else errno_text(error)


class Disk:
    """One directory by its marker, which `lock_fd` is and `identity` was when the shard was opened. Any thread may ask."""

    def __init__(self, device: Device, root: str, lock_fd: int, identity: FileStatus) -> None:
        self._device = device
        self._files = device.files
        self._root = root
        self._lock_fd = lock_fd
        self._identity = identity
        self.error: str | None = None  # the last one, for people
        self.broken: ShardState | None = None  # once it takes nothing more in this process
        self.log_closed: Callable[[], bool] = lambda: False  # whether an error has ended the log
        self._was_gone = False
        self._stalled = False  # what broke it is that it did not answer
        self._seen: ShardState = "ok"
        self._passing, self._lasting = _Failing(self, lasting=False), _Failing(self, lasting=True)
        self.system = self.file_system()

    def file_system(self) -> FileSystem:
        """What it lies on, and the room there now."""
        return self._files.file_system(self._lock_fd)

    def check(self) -> ShardState:
        """Its state, by a look at the marker."""
        if self.broken is None:
            self._look()
        self._seen = self.broken or "ok"
        return self._seen

    def recent_state(self) -> ShardState:
        """What the last look said, where that was good."""
        return self._seen if self._seen == "ok" and self.broken is None else self.check()

    def may_return(self) -> bool:
        """After a failed flush only from another mount: what the kernel has of this one may not be what lies on the disk. One that did
        not answer may once it has: what nobody waited for any more did not fail then.
        """
        if self.broken in ("missing", "readonly"):
            return True
        if self._stalled:
            return self._device.came_back()
        self._look()
        return self._was_gone

    def must_be_there(self) -> None:
        """ShardError unless it is good."""
        state = self.check()
        if state != "ok":
            raise ShardError(state, self.error or state, untouched=True)

    def give_up(self, reason: str) -> None:
        """It takes nothing more in this process."""
        self.broken, self.error = "failed", reason

    def _look(self) -> None:
        """Look for the marker that was there when the shard was opened. Without it the shard takes nothing more in this process."""
        try:
            seen = self._files.path_status(f"{self._root}/{marker.NAME}")
        except DiskStalled:
            self._stall()
        except OSError as error:
            self._gone(f"the marker cannot be seen ({errno_name(error)}): unmounted or emptied")
        else:
            if (seen.device, seen.inode) != (self._identity.device, self._identity.inode):
                self._gone("another marker lies where this shard's was")

    def _gone(self, error: str) -> None:
        self.broken, self.error, self._was_gone = self.broken or "missing", error, True

    def _stall(self) -> None:
        self._stalled = self._stalled or self.broken is None
        self.broken, self.error = self.broken or "failed", STALLED

    def failing(self, *, lasting: bool = False) -> _Failing:
        """Around work on the disk: the system's errors as ShardErrors.

        After a lasting one the shard takes nothing more in this process. Failed syncs of what is to stay are lasting: no later one of
        the same file or directory can be believed.
        """
        return self._lasting if lasting else self._passing

    def fail(self, error: BaseException, *, lasting: bool) -> None:
        """Raise the ShardError that a system's error is."""
        if isinstance(error, LogClosed):
            self.broken = "failed"
            raise ShardError("failed", str(error)) from error
        if isinstance(error, DiskStalled) or isinstance(error.__cause__, DiskStalled):
            self._stall()
            raise ShardError("failed", STALLED, untouched=isinstance(error, NothingAppended)) from error
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError):
            state = _state(error)
            self.error = f"{errno_name(error)}: {errno_text(error)}"
            if (lasting and error.errno not in (errno.EMFILE, errno.ENFILE)) or self.log_closed():
                self.broken = state = "failed"
            raise ShardError(state, self.error, untouched=isinstance(error, NothingAppended)) from error


class _Failing:
    """What `Disk.failing` gives: two for a disk, entered again and again, as every read of a small share does it twice."""

    __slots__ = ("_disk", "_lasting")

    def __init__(self, disk: Disk, *, lasting: bool) -> None:
        self._disk = disk
        self._lasting = lasting

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is not None:
            self._disk.fail(error, lasting=self._lasting)


def _state(error: OSError) -> ShardState:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "full"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "readonly"
    return "missing" if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESTALE) else "failed"
