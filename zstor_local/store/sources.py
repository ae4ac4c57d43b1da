"""Where a write's bytes come from."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Protocol

from zstor_local.errors import IoError, PathRefused, ZstorError
from zstor_local.runtime import ClientFiles, Files, FileStatus, Runtime, read_full


class StreamSource(Protocol):
    """Bytes that come in order."""

    async def read_into(self, buffer: memoryview) -> int:
        """At least one byte into the buffer, or 0 at the end."""
        ...


@dataclass(frozen=True, slots=True)
class BytesSource:
    """A value that came inside a message."""

    data: bytes


class FileSource:
    """A regular file from `offset` on, read by position, in any order, by any thread.

    The size is fixed when it is made. `verify` after the last read finds a file that changed meanwhile.
    """

    def __init__(self, files: Files, fd: int, offset: int = 0) -> None:
        self._files = files
        self._fd = fd
        self._offset = offset
        self._before = files.status(fd)
        self.size = max(0, self._before.size - offset)

    def read_at(self, buffer: memoryview, position: int) -> None:
        """Fill the buffer. PathRefused if the file has become shorter, IoError if it cannot be read."""
        try:
            count = read_full(self._files, self._fd, buffer, self._offset + position)
        except OSError as error:
            raise read_error(error) from error
        if count < len(buffer):
            raise PathRefused("the file became shorter while it was read", hint="store it when nothing writes to it")

    def verify(self) -> None:
        """PathRefused if the file is not the one it was."""
        now = self._files.status(self._fd)
        if _identity(now) != _identity(self._before):
            raise PathRefused("the file changed while it was read; the old value stays", hint="store it when nothing writes to it")


class PipeSource:
    """A pipe, to its end."""

    def __init__(self, runtime: Runtime, fd: int) -> None:
        """`fd` must not block: a description of our own (Files.reopen)."""
        self._runtime = runtime
        self._fd = fd

    async def read_into(self, buffer: memoryview) -> int:
        while True:
            await self._runtime.readiness.readable(self._fd)
            try:
                return self._runtime.files.readv(self._fd, [buffer])
            except BlockingIOError:
                continue
            except OSError as error:
                raise read_error(error) from error


class SocketSource:
    """A stream socket, to its end."""

    def __init__(self, runtime: Runtime, client_files: ClientFiles, fd: int) -> None:
        self._runtime = runtime
        self._client_files = client_files
        self._fd = fd

    async def read_into(self, buffer: memoryview) -> int:
        while True:
            await self._runtime.readiness.readable(self._fd)
            try:
                return self._client_files.receive(self._fd, buffer)
            except BlockingIOError:
                continue
            except OSError as error:
                raise read_error(error) from error


def read_error(error: OSError) -> ZstorError:
    """The system's error while reading what the caller gave."""
    name = errno.errorcode.get(error.errno or 0, "unknown")
    return IoError(f"reading failed: {name} ({os.strerror(error.errno or 0)})", errno=name)


def _identity(status: FileStatus) -> tuple[int, int]:
    return status.size, status.modified_ns
