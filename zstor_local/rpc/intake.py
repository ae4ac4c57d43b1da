"""What of a connection's input is in memory: the message that is coming, and what calls were given that wait or run.

A little of it needs no room, so clients of small calls wait for nobody. Beyond that nothing more is read while there is no room. Room
for a message that is not small is taken before the rest of it is read: whoever waits for room has none that others wait for.
"""

from __future__ import annotations

from typing import Final

from zstor_local import limits
from zstor_local.rpc.budget import Room
from zstor_local.rpc.strict_json import Json

CALL_BYTES: Final = 4 * limits.KIB  # what any call takes
_UNSEEN_BYTES: Final = 8 * limits.KIB  # of a message need no look at what is kept of them


class Intake:
    """One connection's."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._calls = 0  # bytes that calls hold
        self._coming = 0  # bytes that a message on its way has reserved
        self._received = 0  # of it since the last look
        self._receiving = False  # it is the client whom we wait for

    # --- For calls ---

    def hold(self, size: int) -> None:
        """A call has so many bytes."""
        self._calls += size
        self._room.hold(size)

    def give(self, size: int) -> None:
        """It needs them no more."""
        self._calls -= size
        self._room.give(size)

    # --- For the reader ---

    @property
    def small(self) -> bool:
        """Its calls hold so little that this needs no room."""
        return self._calls <= limits.SMALL_MESSAGE_BYTES

    @property
    def has_room(self) -> bool:
        """Another call may be admitted, or looked for."""
        return self.small or self._coming > 0 or self._room.has(CALL_BYTES)

    @property
    def waits(self) -> bool:
        """Its client is not heard, as there is no room for what it says."""
        return self._room.since is not None

    async def wait(self) -> None:
        """Until it may."""
        await self._room.until(lambda: self.has_room)

    def may_go_on(self, pending: int) -> bool:
        """Whether more may be read, as nearly always, where so many bytes of a message have come; else `go_on`."""
        return not self._coming and pending <= limits.SMALL_MESSAGE_BYTES and self._calls <= limits.SMALL_MESSAGE_BYTES

    async def go_on(self, pending: int) -> None:
        """Wait until it may."""
        if pending <= limits.SMALL_MESSAGE_BYTES:
            self.whole()
            await self.wait()
        elif not self._coming:
            await self._room.until(lambda: self._room.take(limits.MESSAGE_BYTES))
            self._coming = limits.MESSAGE_BYTES
        self._receiving = True

    def came(self, size: int) -> None:
        """So much was read."""
        self._received += size
        self._receiving = False

    def whole(self) -> None:
        """The message has come to its end, or was given up."""
        if self._coming:
            self._room.give(self._coming)
            self._coming = 0

    def stalls(self, *, crowded: bool) -> bool:
        """Whether a message holds room that others want, and comes too slowly. To be asked each CROWDED_SECONDS."""
        slow = self._received < limits.CROWDED_SECONDS * limits.CROWDED_BYTES_PER_SECOND
        self._received = 0 if self._coming else limits.MESSAGE_BYTES  # one that begins now has its time
        return crowded and slow and self._coming > 0 and self._receiving

    def close(self) -> None:
        self._room.close()


def call_bytes(length: int, params: Json) -> int:
    """About what a call takes whose part of a message has this length."""
    return CALL_BYTES + (length if length <= _UNSEEN_BYTES else min(length, _kept(params)))


def _kept(value: Json) -> int:
    """Of parameters. What the message had beside them, such as white space, is gone by then."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_kept, value.values()))
    if isinstance(value, list):
        return sum(map(_kept, value)) + 64 * len(value)
    return 0
