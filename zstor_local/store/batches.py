"""Looking at small objects, and making their shares: what several want done is one thread call, as the hop costs more than the work.

What asks another machine is a call by itself: it waits, and others need not wait with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import trio
from outcome import Outcome, capture

from zstor_local.runtime import Runtime
from zstor_local.shards.pool import ShardPool
from zstor_local.store.reading import BATCH_US

FAR: Final = 8  # calls that ask other machines, at once: each has a thread

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Piece:
    """Somebody's work, and the task that waits for it."""

    work: Callable[[], object]
    task: trio.lowlevel.Task
    outcome: Outcome[Any] | None = None


class Batches:
    """One for a store. One batch at a time, so that reads and writes find a worker, and what comes meanwhile is the next one; but as
    many as there are workers while disks keep them waiting.
    """

    def __init__(self, runtime: Runtime, pool: ShardPool) -> None:
        self._threads = runtime.threads
        self._clock = runtime.clock
        self._pool = pool
        self._far = trio.Semaphore(FAR)
        self._waiting: list[_Piece] = []
        self._running = 0  # batches that run, or are just about to
        self._at_once = 1  # of them

    async def run(self, placement: Iterable[int], work: Callable[[], T]) -> T:
        """The result of blocking work on small shares of these shards. Once it has begun it ends before a cancel acts."""
        if not self.is_near(placement):
            async with self._far:
                return await self._threads.run(work)
        piece = _Piece(work, trio.lowlevel.current_task())
        if self._running < self._at_once:
            self._running += 1
        else:
            await self._done_or_next(piece)
        if piece.outcome is None:
            await self._run_batch(piece)
        if piece.outcome is None:
            raise AssertionError("whoever runs a batch is the first in it")
        result: T = piece.outcome.unwrap()
        return result

    def is_near(self, placement: Iterable[int]) -> bool:
        """Whether no other machine is asked."""
        for number in placement:
            shard = self._pool.readable(number)
            if shard is not None and shard.on_disk is None:
                return False
        return True

    async def _done_or_next(self, piece: _Piece) -> None:
        """Until a batch with it has ended, or it is to run the next one."""

        def abort(_: object) -> trio.lowlevel.Abort:
            if piece not in self._waiting:
                return trio.lowlevel.Abort.FAILED
            self._waiting.remove(piece)
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiting.append(piece)
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _run_batch(self, own: _Piece) -> None:
        """Run what waits, as much of it as a thread call may take, and have the next in line go on with the rest."""
        count = -(-len(self._waiting) // self._at_once)
        batch, self._waiting = [own, *self._waiting[:count]], self._waiting[count:]
        done = 0
        try:
            done = await self._threads.run(self._work_off, batch)
        finally:
            rest = batch[max(done, 1) :]  # none was begun where the caller was cancelled first, and nobody waits for its own
            self._at_once = self._threads.workers if rest and done else 1
            self._waiting[:0] = rest
            self._running -= 1
            woken = batch[1:done]
            while self._waiting and self._running < self._at_once:
                woken.append(self._waiting.pop(0))
                self._running += 1
            for piece in woken:
                trio.lowlevel.reschedule(piece.task)

    def _work_off(self, batch: Sequence[_Piece]) -> int:
        until = self._clock.now() + BATCH_US
        for count, piece in enumerate(batch, 1):
            piece.outcome = capture(piece.work)
            if self._clock.now() >= until:
                return count
        return len(batch)
