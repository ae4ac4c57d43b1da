"""Turns of the event loop: none lasts long, whatever clients ask for. What is left over goes on in later ones, client by client."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

TURN_SECONDS: Final = 0.02  # of a turn in which calls begin
COSTLY_SECONDS: Final = 0.001  # for one call: some ten small ones


class Turns(trio.abc.Instrument):
    """Whether calls may begin now, or have to wait for the `next` turn. `until` is when this one is over, of trio's clock."""

    def __init__(self) -> None:
        self.until = 0.0
        self._now: Callable[[], float] | None = None  # trio's clock, once it tells when a turn begins
        self._going_on = False  # somebody has been told to go on in the next turn
        self._waiting: dict[object, deque[trio.lowlevel.Task]] = {}

    @property
    def over(self) -> bool:
        """The calls that began in this turn have taken enough of everybody's time."""
        if self._now is None:
            self._now = trio.lowlevel.current_clock().current_time
            trio.lowlevel.add_instrument(self)
            self.after_io_wait(0)
        return self._now() >= self.until

    @property
    def crowded(self) -> bool:
        """It is over, or others wait for the next."""
        return self._going_on or self.over

    async def begin(self, client: object, *, costly: bool) -> None:
        """For what is done where it is read: behind others if it may be costly. No cancel ends this, for what was read is answered."""
        if costly and self.crowded:
            with trio.CancelScope(shield=True):
                await self.next(client)
        elif self.over:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def next(self, client: object) -> None:
        """Wait for a turn. One goes on in each, and no client twice before all others that wait."""
        if self._going_on:
            await self._until_told(client)
        else:
            self._going_on = True
            await trio.lowlevel.cancel_shielded_checkpoint()
        self._going_on = bool(self._waiting)
        if self._going_on:
            following = next(iter(self._waiting))
            tasks = self._waiting.pop(following)
            trio.lowlevel.reschedule(tasks.popleft())
            if tasks:
                self._waiting[following] = tasks  # behind the others

    async def _until_told(self, client: object) -> None:
        task = trio.lowlevel.current_task()
        self._waiting.setdefault(client, deque()).append(task)

        def give_up(_: object) -> trio.lowlevel.Abort:
            self._waiting[client].remove(task)
            if not self._waiting[client]:
                del self._waiting[client]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    def after_io_wait(self, _timeout: float, /) -> None:
        """For trio: a turn begins."""
        if self._now is not None:
            self.until = self._now() + TURN_SECONDS
