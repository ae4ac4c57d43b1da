"""What connections may hold together: bytes of input before it is run, bytes of replies before their clients have taken them."""

from __future__ import annotations

import trio

from zstor_local import limits


class InputBudget:
    """A count of bytes with a limit. What was taken must be given back."""

    __slots__ = ("left",)

    def __init__(self, size: int = limits.INPUT_BUDGET_BYTES) -> None:
        self.left = size

    def take(self, count: int) -> bool:
        """Reserve bytes; False, and nothing taken, if there are too few left."""
        if count > self.left:
            return False
        self.left -= count
        return True

    def give(self, count: int) -> None:
        """Give bytes back."""
        self.left += count


class ReplyBudget:
    """Bytes that all connections share; each has its `ReplyRoom` in it."""

    __slots__ = ("crowd", "left")

    def __init__(self, size: int = limits.REPLY_BUDGET_BYTES) -> None:
        self.left = size
        self.crowd: dict[ReplyRoom, None] = {}  # rooms in which somebody waits, the longest first


class ReplyRoom:
    """What one connection holds of a `ReplyBudget`: up to a message's size, and no more than is left for others."""

    __slots__ = ("_budget", "_held", "_open", "_waiting")

    def __init__(self, budget: ReplyBudget) -> None:
        self._budget = budget
        self._held = 0
        self._open = True
        self._waiting = trio.lowlevel.ParkingLot()

    def take(self, size: int) -> bool:
        """Reserve bytes; False, and nothing taken, if there is no room for them now."""
        if not self.has(size):
            return False
        self.hold(size)
        self._waiting.unpark()  # there may be room for the next one too
        return True

    def has(self, size: int) -> bool:
        """Whether there is room for so many bytes more."""
        return self._held + size <= min(limits.MESSAGE_BYTES, self._budget.left)

    def hold(self, size: int) -> None:
        """Count what is in memory already, room or not."""
        if self._open:
            self._held += size
            self._budget.left -= size

    def give(self, size: int) -> None:
        """Give bytes back; whoever waits may look again."""
        if self._open:
            self._held -= size
            self._budget.left += size
            for room in [*self._budget.crowd]:
                room._waiting.unpark()

    async def wait(self) -> None:
        """Until some bytes were given back, by whomever."""
        self._budget.crowd[self] = None
        try:
            await self._waiting.park()
        finally:
            if not self._waiting:
                self._budget.crowd.pop(self, None)

    def close(self) -> None:
        """The connection has ended: nothing of it counts any more."""
        self.give(self._held)
        self._open = False
