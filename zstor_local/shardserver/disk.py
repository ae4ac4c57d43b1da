"""Where the parts of a space lie, its small files whole or not there, and the system's errors in a shard server's words."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from zstor_local.runtime import Files, Runtime, read_exactly, write_all
from zstor_local.shardserver.refusal import Refusal, of_system

ABOUT: Final = "about.json"
ROOMS: Final = "rooms"
SHARES: Final = "shares"
TEMPORARY: Final = "tmp"
SMALL_FILE_BYTES: Final = 1 << 20
_LOST: Final = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)  # what is said of a bad sector, and of damage that the file system finds

log = logging.getLogger("zstor.shardserver")


def read_file(runtime: Runtime, path: str, most: int = SMALL_FILE_BYTES) -> bytes:
    """A small file, whole, at most so many bytes of it. OSError."""
    fd = runtime.files.open(path, os.O_RDONLY)
    try:
        return bytes(read_exactly(runtime.files, fd, most, 0))
    finally:
        runtime.files.close(fd)


def write_file(runtime: Runtime, path: str, data: bytes) -> None:
    """Make or overwrite a file, its content durable when this returns; its name is the caller's to sync. OSError."""
    files = runtime.files
    fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(files, fd, [data], 0)
        files.fsync(fd)
    finally:
        files.close(fd)


class Directories:
    """Makes what came into directories last. Once that failed no later sync can be believed: from then on it is refused."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._failed = False

    def sync(self, path: str) -> None:
        """See runtime.sync_directory. OSError, Refusal `failed`."""
        self.check()
        fd = self._files.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._files.fsync(fd)
        except OSError:
            self._failed = True
            raise
        finally:
            self._files.close(fd)

    def check(self) -> None:
        """Refusal `failed` where nothing new may be believed to last."""
        if self._failed:
            raise Refusal("failed", "a sync of a directory failed before; the shard server must be started again")


@contextmanager
def answering() -> Iterator[None]:
    """The system's errors as refusals."""
    try:
        yield
    except OSError as error:
        raise of_system(error) from error


def is_lost(error: OSError) -> bool:
    """Whether the disk cannot read what lies there, which is no fault of what lies elsewhere."""
    return error.errno in _LOST


@contextmanager
def reading_share() -> Iterator[None]:
    """A share that the disk cannot read is none that is here: its owner makes it anew, and `failed` would say so of the whole shard."""
    try:
        yield
    except OSError as error:
        if is_lost(error):
            log.warning("a share cannot be read: %s", error)
            raise Refusal("not_found", "the disk cannot read that share") from error
        raise
