"""Where a read's bytes go."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from zstor_local.errors import IoError, NoSpace, errno_name, errno_text
from zstor_local.runtime import Buffer, Files, Runtime, write_all

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class OrderedSink(Protocol):
    """Where bytes go in order."""

    async def write(self, parts: Sequence[Buffer]) -> None:
        """Take all of them; they stay as they are until this returns."""
        ...


class MemorySink:
    """A value for a reply."""

    def __init__(self) -> None:
        self._parts: list[Buffer] = []

    async def write(self, parts: Sequence[Buffer]) -> None:
        self._parts.extend(parts)

    def value(self) -> bytes:
        return b"".join(self._parts)


class FileSink:
    """A regular file from `offset` on, written by position, in any order, by any thread."""

    def __init__(self, files: Files, fd: int, offset: int = 0) -> None:
        self._files = files
        self._fd = fd
        self._offset = offset

    def write_at(self, parts: Sequence[Buffer], position: int) -> None:
        with writing():
            write_all(self._files, self._fd, parts, self._offset + position)


class AppendSink:
    """A regular file open with O_APPEND: every write goes to its end, so they come in order."""

    def __init__(self, runtime: Runtime, fd: int) -> None:
        self._runtime = runtime
        self._fd = fd

    async def write(self, parts: Sequence[Buffer]) -> None:
        with writing():
            await self._runtime.threads.run(self._write, parts)

    def _write(self, parts: Sequence[Buffer]) -> None:
        for part in parts:
            todo = memoryview(part)
            while todo:
                todo = todo[self._runtime.files.writev(self._fd, [todo]) :]


class PipeSink:
    """A pipe or socket, in order, as fast as its reader takes it."""

    def __init__(self, runtime: Runtime, fd: int, send: Callable[[int, Sequence[Buffer]], int]) -> None:
        """`send` writes without waiting: Files.writev to a description of our own, or ClientFiles.send to a socket."""
        self._runtime = runtime
        self._fd = fd
        self._send = send

    async def write(self, parts: Sequence[Buffer]) -> None:
        todo = [memoryview(part) for part in parts if len(part)]
        while todo:
            await self._runtime.readiness.writable(self._fd)
            try:
                with writing():
                    count = self._send(self._fd, todo)
            except BlockingIOError:
                continue
            while todo and count >= len(todo[0]):
                count -= len(todo.pop(0))
            if count:
                todo[0] = todo[0][count:]


@contextmanager
def writing() -> Iterator[None]:
    """The system's errors while writing where the caller wanted it, but for that of what would have to wait."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        name = errno_name(error)
        if error.errno in NO_SPACE:
            raise NoSpace("the destination's disk is full", hint="free some room there") from error
        raise IoError(f"writing to the destination failed: {name} ({errno_text(error)})", errno=name) from error
