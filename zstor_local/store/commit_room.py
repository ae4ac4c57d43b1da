"""How many coded bytes may wait for their commit: shares of small objects are in memory until the logs have them."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from zstor_local import limits
from zstor_local.model.policy import Policy

COMMIT_ROOM_BYTES: Final = 32 * limits.MIB  # some groups of the committer; more than the largest small object (255 shares) takes
SHARE_BYTES: Final = 256  # of a share beside its part of the object, and of what else a write has


class CommitRoom:
    """One for a store. Whoever has room waits for nobody but workers and committer, so it is given back; who waits has it in order."""

    def __init__(self, size: int = COMMIT_ROOM_BYTES) -> None:
        self.left = size
        self._waiting: deque[tuple[int, trio.lowlevel.Task]] = deque()

    def take(self, size: int) -> bool:
        """Take room if there is some now and nobody waits for it."""
        if self._waiting or size > self.left:
            return False
        self.left -= size
        return True

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Wait for room, and have it while the block runs."""
        if not self.take(size):
            await self._wait(size)
        try:
            yield
        finally:
            self.give(size)

    async def _wait(self, size: int) -> None:
        turn = size, trio.lowlevel.current_task()
        self._waiting.append(turn)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiting.remove(turn)
            self._serve()  # it may have been the first, and in the way of smaller ones
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def give(self, size: int) -> None:
        """Give room back."""
        self.left += size
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.left:
            size, task = self._waiting.popleft()
            self.left -= size
            trio.lowlevel.reschedule(task)


def coded_bytes(size: int, policy: Policy) -> int:
    """What a small object of so many bytes takes until it is committed, with its bytes themselves."""
    return size + policy.m * (-(-size // policy.k) + SHARE_BYTES)
