"""What goes to one client, in order: a bounded queue with one writer. A client that takes nothing is given up."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections import deque
from collections.abc import Callable

import trio

from zstor_local import limits


class Outbox:
    """Lines on their way to a socket. Run `run` in a task; it ends with BrokenResourceError when the client is gone."""

    def __init__(self, peer: trio.socket.SocketType) -> None:
        self.frame: Callable[[bytes], bytes] | None = None  # how a line is sent; None: as it is
        self._peer = peer
        self._waiting: deque[memoryview] = deque()
        self._size = 0
        self._broken = False
        self._work = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()

    @property
    def full(self) -> bool:
        """A reply has to wait."""
        return len(self._waiting) >= limits.SEND_QUEUE_MESSAGES or self._size >= limits.MESSAGE_BYTES

    @property
    def empty(self) -> bool:
        """Everything has been handed to the kernel."""
        return not self._waiting

    async def put(self, line: bytes) -> None:
        """Send a line; waits while the queue is full. To a client that is gone it does nothing."""
        while self.full and not self._broken:
            await self._room.park()
        self.push(line)

    def push(self, line: bytes, *, framed: bool = False) -> None:
        """Send a line, whatever waits before it."""
        if self._broken:
            return
        rest = memoryview(line if framed or self.frame is None else self.frame(line))
        if not self._waiting:
            # The kernel nearly always has room: then a reply costs no switch to the writer.
            rest = rest[self._write(rest) :]
        if rest or self._broken:
            self._waiting.append(rest)
            self._size += len(rest)
            self._work.unpark()

    async def run(self) -> None:
        """Write what the kernel did not take at once."""
        while True:
            while not self._waiting:
                await self._work.park()
            if self._broken:
                raise trio.BrokenResourceError("the client is gone")
            await self._writable()
            first = self._waiting[0]
            count = self._write(first)
            self._size -= count
            if count < len(first):
                self._waiting[0] = first[count:]
                continue
            self._waiting.popleft()
            if not self.full:
                self._room.unpark_all()

    async def drained(self) -> None:
        """Wait until everything has been handed to the kernel."""
        while self._waiting:
            await self._room.park()

    async def _writable(self) -> None:
        """Wait for room in the kernel; BrokenResourceError if the client takes nothing for the limit's time."""
        unread = self._unread()
        while True:
            with trio.move_on_after(limits.SLOW_READER_SECONDS):
                await trio.lowlevel.wait_writable(self._peer)
                return
            # A slow client may have taken something without making enough room to wake us.
            before, unread = unread, self._unread()
            if unread >= before:
                raise trio.BrokenResourceError(f"the client took nothing for {limits.SLOW_READER_SECONDS:.0f} s")

    def _unread(self) -> int:
        (count,) = struct.unpack("i", fcntl.ioctl(self._peer.fileno(), termios.TIOCOUTQ, struct.pack("i", 0)))
        return int(count)

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self._peer.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError:
            self._broken = True
            return 0
