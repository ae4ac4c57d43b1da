"""What connections may hold together: bytes of input until its calls have ended, bytes of replies until clients have taken them.

Nobody gets more than is left for others. Who waits for room is woken by whatever is given back; where somebody has waited for long the
budget is crowded, and those who hold much and are slow have to make room (`Server`).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import trio

from zstor_local import limits


class Budget:
    """Bytes that all connections share; each has its `Room` in it."""

    __slots__ = ("_patience", "crowd", "left")

    def __init__(self, size: int, *, patience: float = inf) -> None:
        """Who wants much is not passed by for ever by those who want little: after `patience` seconds its turn is before theirs."""
        self.left = size
        self._patience = patience
        self.crowd: dict[Room, None] = {}  # rooms in which somebody waits, the longest first

    @property
    def crowded(self) -> bool:
        """Somebody has waited for long."""
        now = trio.current_time()
        return any(room.since is not None and now - room.since >= limits.CROWDED_SECONDS for room in self.crowd)

    def others_come_before(self, room: Room) -> bool:
        """Whether somebody's turn is first: who holds nothing waits for what others hold, and has waited for longer."""
        since = room.since if room.held == 0 and room.since is not None else inf
        return any(
            other.held == 0 and other.since is not None and other.since < since and self.has_waited(other) for other in self.crowd
        )

    def has_waited(self, room: Room) -> bool:
        """Whether it is passed by no longer."""
        return room.since is not None and self._patience < inf and trio.current_time() - room.since >= self._patience


class Room:
    """What one connection holds of a `Budget`: up to `most`, and no more than is left for others."""

    __slots__ = ("_budget", "_most", "_open", "_waiting", "held", "since")

    def __init__(self, budget: Budget, most: int = limits.MESSAGE_BYTES) -> None:
        self.held = 0
        self.since: float | None = None  # when somebody began to wait here who has not been served
        self._budget = budget
        self._most = most
        self._open = True
        self._waiting = trio.lowlevel.ParkingLot()

    def take(self, size: int) -> bool:
        """Reserve bytes; False, and nothing taken, if there is no room for them now."""
        if not self.has(size) or self._budget.others_come_before(self):
            return False
        self.hold(size)
        if self._budget.has_waited(self):
            self._wake()  # others had to let it go first
        self.since = None
        self._waiting.unpark()  # there may be room for the next one too
        return True

    def has(self, size: int) -> bool:
        """Whether there is room for so many bytes more, or who wants more than the whole room has it alone."""
        size = min(size, self._most)
        return self.held + size <= self._most and self.held + size <= self._budget.left

    def hold(self, size: int) -> None:
        """Count what is in memory already, room or not."""
        if self._open:
            self.held += size
            self._budget.left -= size

    def give(self, size: int) -> None:
        """Give bytes back; whoever waits may look again."""
        if self._open:
            self.held -= size
            self._budget.left += size
            if self._budget.crowd:
                self._wake()

    def _wake(self) -> None:
        for room in [*self._budget.crowd]:
            room._waiting.unpark()

    async def wait(self) -> None:
        """Until some bytes were given back, by whomever."""
        self._budget.crowd[self] = None
        if self.since is None:
            self.since = trio.current_time()
        try:
            await self._waiting.park()
        except BaseException:
            self.since = None
            self._wake()  # others may have let this one go first
            raise
        finally:
            if not self._waiting:
                self._budget.crowd.pop(self, None)

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until this is so; it is asked at once, and whenever something was given back."""
        while not ready():
            await self.wait()
        self.since = None

    def close(self) -> None:
        """The connection has ended: nothing of it counts any more."""
        self.give(self.held)
        self._open = False
