"""How fast background work may read: so many bytes a second, and not at all while it is paused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

RECORDS_A_TURN: Final = 50  # records opened between two turns of other tasks; each KiB of a large one counts as one
BURST_SECONDS: Final = 1.0  # what may be read at once after a rest

Spend = Callable[[int], Awaitable[None]]


async def unpaced(size: int) -> None:
    """A `Spend` for work that somebody waits for: it only lets others go first."""
    await trio.lowlevel.checkpoint()


class Pace:
    """One for each work. `spend` what was read; it returns when more may be."""

    def __init__(self, rate: float) -> None:
        """`rate` in bytes a second, more than 0."""
        self._rate = rate
        self._until = 0.0  # when what was read is paid for
        self._changed = trio.Event()
        self._going = trio.Event()
        self._going.set()

    @property
    def rate(self) -> float:
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        """It counts for what was read already too: a rest at a low rate may be one of days, and somebody wants to go on now."""
        now = trio.current_time()
        if self._until > now:
            self._until = now + (self._until - now) * self._rate / rate
        self._rate = rate
        self._changed.set()
        self._changed = trio.Event()

    @property
    def paused(self) -> bool:
        return not self._going.is_set()

    def pause(self) -> None:
        if not self.paused:
            self._going = trio.Event()

    def resume(self) -> None:
        self._going.set()

    async def spend(self, size: int) -> None:
        await self._going.wait()
        now = trio.current_time()
        self._until = max(self._until, now - BURST_SECONDS) + size / self._rate
        while self._until > trio.current_time():
            with trio.move_on_at(self._until):
                await self._changed.wait()
        await trio.lowlevel.checkpoint()
        await self._going.wait()
