"""File descriptors that come with messages: each is taken by a call or closed, never left open."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import InvalidParams

KERNEL_MAX: Final = 253  # SCM_MAX_FD: room for fewer makes the kernel close the rest, or hand over one more through padding
# As plain numbers: what Python's enums do to combine them costs as much as a small call.
_FLAGS: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_TRUNCATED: Final = int(socket.MSG_CTRUNC)
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(KERNEL_MAX * array.array("i").itemsize)
CLOSERS: Final = 32  # threads at once
_LACK_SECONDS: Final = 0.1  # between two tries to get one
_LIMITER: Final = trio.lowlevel.RunVar[trio.CapacityLimiter]("closers")


class Truncated(Exception):
    """The kernel could not hand over all descriptors of a message; those that came are closed."""


class Receiver:
    """Reads bytes and descriptors from one socket, which stays its owner's: `detach` before it is closed."""

    def __init__(self, peer: trio.socket.SocketType) -> None:
        self._view = socket.socket(fileno=peer.fileno())

    async def receive(self, size: int) -> tuple[bytes, list[int]]:
        """Up to `size` bytes and all descriptors that came with them, close-on-exec. Empty bytes are the end of the input.

        It waits first: a client that has its reply is still reading it, and an attempt in vain costs as much as the real one.
        """
        while True:
            await trio.lowlevel.wait_readable(self._view)
            try:
                data, ancillary, flags, _ = self._view.recvmsg(size, _ANCILLARY_BYTES, _FLAGS)
            except BlockingIOError:
                continue
            return data, _descriptors_in(ancillary, flags) if ancillary or flags & _TRUNCATED else []

    def detach(self) -> None:
        """Let go of the socket."""
        self._view.detach()


def _descriptors_in(ancillary: list[tuple[int, int, bytes]], flags: int) -> list[int]:
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            fds += numbers
    if flags & _TRUNCATED:
        close_all(fds)
        raise Truncated
    return fds


def close_all(fds: list[int]) -> None:
    """Close descriptors that nobody wants, and forget them: also those of which a network file system or FUSE has something to say.

    It may take long to say it, or hang: what is no pipe or socket is closed in a thread, which nobody waits for. Where CLOSERS hang the
    others stay open: of descriptors there are more than of threads.
    """
    later = [fd for fd in fds if not _closes_at_once(fd)]
    _close([fd for fd in fds if fd not in later])
    fds.clear()
    if later:
        trio.lowlevel.spawn_system_task(_close_in_thread, later)


async def _close_in_thread(fds: list[int]) -> None:
    try:
        limiter = _LIMITER.get()
    except LookupError:
        limiter = trio.CapacityLimiter(CLOSERS)
        _LIMITER.set(limiter)
    while True:
        try:
            await trio.to_thread.run_sync(_close, fds, limiter=limiter, abandon_on_cancel=True)
            return
        except RuntimeError:  # the system lets us have no more threads now
            await trio.sleep(_LACK_SECONDS)


def _closes_at_once(fd: int) -> bool:
    """By its name in procfs: unlike fstat(2) that asks no file system."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(("pipe:", "socket:"))
    except OSError:
        return True


def _close(fds: list[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


class Descriptors:
    """Descriptors in the order they were sent. What is not taken is closed by `close`."""

    __slots__ = ("_fds",)

    def __init__(self, fds: list[int]) -> None:
        self._fds: list[int | None] = [*fds]

    def __len__(self) -> int:
        return len(self._fds)

    @property
    def open(self) -> bool:
        """Some are neither taken nor closed."""
        return any(fd is not None for fd in self._fds)

    def take(self, index: int) -> int:
        """The descriptor at an index; it is the caller's to close from now on. InvalidParams if there is none (any more)."""
        if not 0 <= index < len(self._fds):
            raise InvalidParams(
                f"fd: {index} is not the index of a descriptor sent with this message, which brought {len(self._fds)}",
                hint=f"send at most {limits.FDS_PER_CALL} descriptors (SCM_RIGHTS) with the first byte of the message",
            )
        fd = self._fds[index]
        if fd is None:
            raise InvalidParams(f"fd: descriptor {index} is in use already")
        self._fds[index] = None
        return fd

    def hand_over(self) -> Descriptors:
        """What nobody took yet, under the same indices; it is the new owner's to take or close."""
        rest = Descriptors([])
        rest._fds, self._fds = self._fds, [None] * len(self._fds)
        return rest

    def close(self) -> None:
        """Close what nobody took."""
        left = [fd for fd in self._fds if fd is not None]
        self._fds = [None] * len(self._fds)
        close_all(left)


NO_DESCRIPTORS: Final = Descriptors([])


class Arrivals:
    """Whose the descriptors of a connection are: those of one read belong to the message that holds its last byte."""

    def __init__(self) -> None:
        self._early: list[int] = []  # of a message that is not complete yet
        self._owned: list[Descriptors] = []  # by messages that are not answered yet

    @property
    def early(self) -> int:
        """How many came with a message that is not complete yet."""
        return len(self._early)

    def share_out(self, fds: list[int], messages: int, *, begun: bool) -> Iterator[Descriptors]:
        """Those of each message that a read completed. `begun`: what it brought last is the beginning of another one."""
        if not fds and not self._early:
            return iter(())
        numbers: list[list[int]] = [[] for _ in range(messages)]
        if messages:
            numbers[0] += self._early
            self._early = []
        if begun:
            self._early += fds
        elif messages:
            numbers[-1] += fds
        else:
            close_all(fds)
        owners = [Descriptors(each) for each in numbers]
        self._owned = [descriptors for descriptors in (*self._owned, *owners) if descriptors.open]
        return iter(owners)

    def drop_early(self) -> None:
        """The message that they came with is given up."""
        close_all(self._early)

    def close(self) -> None:
        """Close whatever nobody took."""
        self.drop_early()
        for descriptors in self._owned:
            descriptors.close()
