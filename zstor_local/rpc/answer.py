"""The reply to one message: a line, or for a batch an array of them, with the terminator that its client waits for.

It owns the message's descriptors: what no call took is closed when the last call has ended.
"""

from __future__ import annotations

from typing import Final

import trio

from zstor_local import limits
from zstor_local.rpc.budget import Room
from zstor_local.rpc.descriptors import Descriptors
from zstor_local.rpc.dispatch import Id, Missing, error_reply, reply_too_large

_BRACKETS: Final = 2  # bytes
_ERROR_BYTES: Final = 256  # of a batch's answer, for each member that is left: one that does not fit is told so, under its id


class Ending:
    """What ends the replies to one message: a newline, and an empty line too if the message itself had no newline.

    `line` is None until the byte after the message, or its absence, has told.
    """

    __slots__ = ("line", "owed")

    def __init__(self, line: bool | None) -> None:
        self.line = line
        self.owed = False  # the reply is out, its empty line waits for the decision

    def finish(self, reply: bytes) -> bytes:
        """The reply with its terminator, as far as that is known."""
        if self.line is None:
            self.owed = True
        return reply + (b"\n\n" if self.line is False else b"\n")

    def settle(self, line: bool) -> bytes:
        """The decision; answers what is still to be sent for a reply that is out already."""
        self.line = line
        return b"\n" if self.owed and not line else b""


class Answer:
    """Collects the replies of one message's calls; `room` is where those of a batch wait for the last one, None if it is none."""

    __slots__ = ("_descriptors", "_ending", "_left", "_lines", "_room", "_size", "calls", "sent")

    def __init__(self, ending: Ending, descriptors: Descriptors, *, calls: int, room: Room | None) -> None:
        self._ending = ending
        self._descriptors = descriptors
        self.calls = calls
        self.sent = trio.Event()
        self._left = calls
        self._room = room
        self._lines: list[bytes] = []
        self._size = _BRACKETS

    @property
    def complete(self) -> bool:
        """Every call has given its reply."""
        return not self._left

    def add(self, identity: Id, reply: bytes | None) -> bytes | None:
        """Take a call's reply (None for a notification). With the last one comes the whole, if there is anything to send."""
        self._left -= 1
        if reply is not None and identity is not Missing.ID:
            if self._room is not None and not self._has_room(len(reply), self._room):
                reply = min(reply, error_reply(identity, reply_too_large()), key=len)
            self._size += len(reply) + 1
            self._lines.append(reply)
            if self._room is not None:
                self._room.hold(len(reply) + 1)
        if self._left:
            return None
        self._descriptors.close()
        lines, self._lines = self._lines, []
        if not lines:
            return None
        return self._ending.finish(lines[0] if self._room is None else b"[" + b",".join(lines) + b"]")

    def let_go(self) -> None:
        """The whole is on its way, or there is nothing to send."""
        if self._room is not None:
            self._room.give(self._size - _BRACKETS)
        self.sent.set()

    def _has_room(self, size: int, room: Room) -> bool:
        """Whether a batch may collect so much more: it never waits for others, for those may wait for it. One reply it may have."""
        whole = self._size + size + 1
        known = not self._lines or whole <= limits.SMALL_REPLY_BYTES or room.has(size)
        return known and whole + self._left * _ERROR_BYTES <= limits.MESSAGE_BYTES
