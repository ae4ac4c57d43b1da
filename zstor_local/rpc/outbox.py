"""What goes to one client, in order: a bounded queue with one writer. A client that takes nothing is given up."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

import trio

from zstor_local import limits
from zstor_local.rpc.budget import Room

_HELD: Final = 8  # replies that wait for a turn's end: more are sent, so that the first of them is not kept for long
_AT_ONCE: Final = 64  # pieces in one call of the kernel, which takes no more than IOV_MAX


class Cork(trio.abc.Instrument):
    """Keeps replies together that come in one turn of the event loop: the first goes out at once, those behind it with the turn's end.

    Sending wakes a client that sleeps, which costs as much as a small call; one that has just been woken takes the rest as they come.
    """

    def __init__(self) -> None:
        self._loop: trio.lowlevel.TrioToken | None = None  # that tells when a turn ends
        self._begun = False
        self._held: list[Outbox] = []

    def hold(self, box: Outbox) -> bool:
        """Whether the box may wait: `deliver` of it is called before anything else is waited for."""
        if not self._begun:
            self._begun = True
            if self._loop is None:
                self._loop = trio.lowlevel.current_trio_token()
                trio.lowlevel.add_instrument(self)
            return False
        self._held.append(box)
        if len(self._held) == _HELD:
            self._deliver()
        return True

    def before_io_wait(self, _timeout: float, /) -> None:
        """For trio: the turn has ended."""
        self._begun = False
        if self._held and self._deliver() and self._loop is not None:
            self._loop.run_sync_soon(_nothing, idempotent=True)  # it has decided already how long it waits, with nobody to go on

    def _deliver(self) -> bool:
        """Whether a task goes on."""
        held, self._held = self._held, []
        return sum(box.deliver() for box in held) > 0


def _nothing() -> None:
    """Only wakes the event loop."""


class Outbox:
    """Lines on their way to a socket. Run `run` in a task; it ends with BrokenResourceError when the client is gone."""

    def __init__(self, peer: trio.socket.SocketType, cork: Cork | None = None, reply_room: Room | None = None) -> None:
        """What the client has yet to take counts in `reply_room`."""
        self.frame: Callable[[bytes], bytes] | None = None  # how a line is sent; None: as it is
        self.on_room: Callable[[], object] | None = None  # to be called when it is not full
        self._reply_room = reply_room
        self._counted = 0  # bytes in the reply room
        self._peer = peer
        self._cork = cork
        self._waiting: deque[memoryview] = deque()
        self._size = 0
        self._blocked = False  # the kernel has no room: the task goes on
        self._broken = False
        self._taken = 0  # bytes since the last look
        self._slow = False  # since then there was always much to take
        self._waiting_for_client: trio.CancelScope | None = None
        self._work = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()

    @property
    def full(self) -> bool:
        """A reply has to wait."""
        return len(self._waiting) >= limits.SEND_QUEUE_MESSAGES or self.large

    @property
    def large(self) -> bool:
        """What waits takes so much memory that nothing should be begun whose reply would wait behind it."""
        return self._size >= limits.SEND_QUEUE_BYTES

    @property
    def empty(self) -> bool:
        """Everything has been handed to the kernel."""
        return not self._waiting

    async def put(self, line: bytes) -> None:
        """Send a line; waits while the queue is full. To a client that is gone it does nothing."""
        await self.ready()
        self.push(line)

    async def ready(self) -> None:
        """Wait while the queue is full. What is made after this may be sent at once, and what is not made takes no memory."""
        while self.full and not self._broken:
            await self._room.park()

    def push(self, line: bytes, *, framed: bool = False) -> None:
        """Send a line, whatever waits before it."""
        if self._broken:
            return
        data = memoryview(line if framed or self.frame is None else self.frame(line))
        held = bool(self._waiting)
        self._waiting.append(data)
        self._size += len(data)
        if self._blocked:
            self._count()
            return
        if self.full or not (held or (self._cork is not None and self._cork.hold(self))):
            self.deliver()

    def deliver(self) -> bool:
        """Hand over what the kernel has room for, which nearly always is all: then no reply costs a switch to the task.

        Whether one goes on.
        """
        count = self._write()
        self._size -= count
        self._taken += count
        if not self._much:
            self._slow = False
        if self._size:
            while count >= len(self._waiting[0]):
                count -= len(self._waiting.popleft())
            self._waiting[0] = self._waiting[0][count:]
        else:
            self._waiting.clear()
        woken = 0
        if self._size or self._counted:
            self._count()
        if self._size or self._broken:
            self._blocked = True
            woken += len(self._work.unpark())
        if self._room and not self.full:
            woken += len(self._room.unpark_all())
        if self.on_room is not None and not self.full:
            woken += 1
            self.on_room()
        return woken > 0

    def stalls(self, *, crowded: bool) -> bool:
        """Whether the client takes what fills room that others want, and too slowly. To be asked each CROWDED_SECONDS."""
        slow = self._slow and self._taken < limits.CROWDED_SECONDS * limits.CROWDED_BYTES_PER_SECOND
        self._slow, self._taken = self._much, 0
        return crowded and slow

    @property
    def _much(self) -> bool:
        """The client has much to take, or a little before replies that hold room."""
        held = 0 if self._reply_room is None else self._reply_room.held
        return self._size > limits.SMALL_REPLY_BYTES or (self._size > 0 and held > limits.SMALL_REPLY_BYTES)

    def give_up(self) -> None:
        """Take nothing more, and end `run`."""
        self._broken = True
        if self._waiting_for_client is not None:
            self._waiting_for_client.cancel()

    def _count(self) -> None:
        """Tell the reply room what the client has yet to take."""
        more, self._counted = self._size - self._counted, self._size
        if self._reply_room is not None:
            self._reply_room.hold(more) if more > 0 else self._reply_room.give(-more)

    def close(self) -> None:
        """The connection ends: let go of what was not sent, and take nothing more."""
        self._broken = True
        self._waiting.clear()
        self._size = 0
        self._room.unpark_all()

    async def run(self) -> None:
        """Write what the kernel did not take at once."""
        while True:
            while not self._blocked:
                await self._work.park()
            if self._broken:
                raise trio.BrokenResourceError("the client is gone")
            await self._writable()
            self._blocked = False
            self.deliver()

    async def drained(self) -> None:
        """Wait until everything has been handed to the kernel."""
        while self._waiting:
            await self._room.park()

    async def _writable(self) -> None:
        """Wait for room in the kernel; BrokenResourceError if the client takes nothing for the limit's time."""
        unread = self._unread()
        while True:
            with trio.move_on_after(limits.SLOW_READER_SECONDS) as self._waiting_for_client:
                await trio.lowlevel.wait_writable(self._peer)
                return
            if self._broken:
                raise trio.BrokenResourceError("the client took its replies too slowly")
            # A slow client may have taken something without making enough room to wake us.
            before, unread = unread, self._unread()
            if unread >= before:
                raise trio.BrokenResourceError(f"the client took nothing for {limits.SLOW_READER_SECONDS:.0f} s")

    def _unread(self) -> int:
        (count,) = struct.unpack("i", fcntl.ioctl(self._peer.fileno(), termios.TIOCOUTQ, struct.pack("i", 0)))
        return int(count)

    def _write(self) -> int:
        try:
            if len(self._waiting) == 1:  # as nearly always
                return os.write(self._peer.fileno(), self._waiting[0])
            return os.writev(self._peer.fileno(), [*islice(self._waiting, _AT_ONCE)])
        except BlockingIOError:
            return 0
        except OSError:
            self._broken = True
            return 0
