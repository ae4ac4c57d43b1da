"""Where a write's bytes come from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import trio

from zstor_local import limits
from zstor_local.errors import Incomplete, IoError, PathRefused, TimedOut, errno_name, errno_text
from zstor_local.runtime import ClientFiles, Files, FileStatus, Runtime, read_full


class StreamSource(Protocol):
    """Bytes that come in order."""

    async def read_into(self, buffer: memoryview) -> int:
        """At least one byte into the buffer, or 0 at the end."""
        ...


async def fill(source: StreamSource, buffer: memoryview) -> int:
    """Fill the buffer from a stream; less only where that ends. Returns how many bytes came."""
    filled = 0
    while filled < len(buffer) and (count := await source.read_into(buffer[filled:])):
        filled += count
    return filled


@dataclass(frozen=True, slots=True)
class BytesSource:
    """A value that came inside a message."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, buffer: memoryview, position: int) -> None:
        """Fill the buffer."""
        buffer[:] = self.data[position : position + len(buffer)]


class FileSource:
    """A regular file from `offset` on, read by position, in any order, by any thread.

    The size is fixed when it is made. `verify` after the last read finds a file that changed meanwhile.
    """

    def __init__(self, files: Files, fd: int, offset: int = 0) -> None:
        self._files = files
        self._fd = fd
        self._offset = offset
        with reading():
            self._before = files.status(fd)
        self.size = max(0, self._before.size - offset)

    def read_at(self, buffer: memoryview, position: int) -> None:
        """Fill the buffer. PathRefused if the file has become shorter, IoError if it cannot be read."""
        with reading():
            count = read_full(self._files, self._fd, buffer, self._offset + position)
        if count < len(buffer):
            raise PathRefused("the file became shorter while it was read", hint="store it when nothing writes to it")

    def read_whole(self) -> bytearray:
        """All of a file that is small; errors as of `read_at` and `verify`."""
        data = bytearray(self.size)
        self.read_at(memoryview(data), 0)
        self.verify()
        return data

    def verify(self) -> None:
        """PathRefused if the file is not the one it was."""
        with reading():
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
            with suppress(BlockingIOError), reading():
                return self._runtime.files.readv(self._fd, [buffer])


class SocketSource:
    """A stream socket, to its end."""

    def __init__(self, runtime: Runtime, client_files: ClientFiles, fd: int) -> None:
        self._runtime = runtime
        self._client_files = client_files
        self._fd = fd

    async def read_into(self, buffer: memoryview) -> int:
        while True:
            await self._runtime.readiness.readable(self._fd)
            with suppress(BlockingIOError), reading():
                return self._client_files.receive(self._fd, buffer)


class CountedSource:
    """A stream that nobody need wait for the end of, for it may have none: `check` is told how many bytes have come, and may raise."""

    def __init__(self, source: StreamSource, check: Callable[[int], None]) -> None:
        self._source = source
        self._check = check
        self._came = 0

    async def read_into(self, buffer: memoryview) -> int:
        count = await self._source.read_into(buffer)
        self._came += count
        self._check(self._came)
        return count


def announced(source: StreamSource, size: int) -> CountedSource:
    """A stream whose sender has told its size. Incomplete where more comes."""

    def check(came: int) -> None:
        if came > size:
            raise Incomplete(f"more than the {size} bytes arrived that were announced; nothing was stored", hint="send it again")

    return CountedSource(source, check)


class Piece:
    """Bytes on their way through a channel. `let_go` is set when `rest` is empty, or when nobody will take it any more."""

    __slots__ = ("let_go", "rest")

    def __init__(self, data: bytes) -> None:
        self.rest = memoryview(data)
        self.let_go = trio.Event()


class ChannelSource:
    """Pieces that are handed over in memory, to the end that is told. TimedOut where the next one does not come within the limit."""

    def __init__(self) -> None:
        self.asked = trio.Event()  # somebody wanted bytes, or never will
        self._pieces: deque[Piece] = deque()
        self._ended = False
        self._news = trio.Event()

    @property
    def waiting(self) -> int:
        """How many pieces have not been taken to their end."""
        return len(self._pieces)

    def give(self, data: bytes) -> Piece:
        """Add bytes behind the others. None at all are taken at once."""
        piece = Piece(data)
        if data:
            self._pieces.append(piece)
            self._news.set()
        else:
            piece.let_go.set()
        return piece

    def end(self) -> None:
        """No more will be given."""
        self._ended = True
        self._news.set()

    def abandon(self) -> None:
        """Nobody reads any more: let go of everyone who waits."""
        self.asked.set()
        while self._pieces:
            self._pieces.popleft().let_go.set()

    async def read_into(self, buffer: memoryview) -> int:
        self.asked.set()
        while not self._pieces:
            if self._ended:
                return 0
            self._news = trio.Event()
            with trio.move_on_after(limits.STREAM_IDLE_SECONDS) as waiting:
                await self._news.wait()
            if waiting.cancelled_caught:
                raise TimedOut(f"nothing came for {limits.STREAM_IDLE_SECONDS:.0f} s", hint="send the next piece sooner")
        piece = self._pieces[0]
        count = min(len(piece.rest), len(buffer))
        buffer[:count] = piece.rest[:count]
        piece.rest = piece.rest[count:]
        if not piece.rest:
            self._pieces.popleft().let_go.set()
        return count


@contextmanager
def reading() -> Iterator[None]:
    """The system's errors while reading what the caller gave, but for that of what would have to wait."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        name = errno_name(error)
        raise IoError(f"reading failed: {name} ({errno_text(error)})", errno=name) from error


def _identity(status: FileStatus) -> tuple[int, int]:
    return status.size, status.modified_ns
