"""The worker threads behind the seam, and who has a place among those that compute. Only the edge may import this."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Final, TypeVar, TypeVarTuple

import trio
from outcome import Outcome

T = TypeVar("T")
Args = TypeVarTuple("Args")

STUCK_SECONDS: Final = 2.0
_LACK_SECONDS: Final = 0.1  # between two tries to get a thread
_THREADS: Final = 256  # at once, those included that wait for other machines
_PLACES: Final[ContextVar[RealThreads | None]] = ContextVar("places", default=None)

log = logging.getLogger("zstor.threads")


class RealThreads:
    """trio's worker threads: as many at once as there are cores compute, and one for the committer.

    Those that wait for another machine (network.py) or a disk (disks.py) give their place to others meanwhile, so there may be more of
    them. Nobody can tell of a client's file that its disk hangs: where no place came free for STUCK_SECONDS there is one more, until
    something that took as long has ended.

    Where the system lets us have no more threads, they are waited for: nothing has begun, so nothing need fail.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or max(2, len(os.sched_getaffinity(0)))
        self._places = trio.CapacityLimiter(self._workers)
        self._left = 0.0  # when a place came free last
        self._waiting = 0  # for a place
        self._watched = False  # whether somebody looks that they do not wait in vain
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._commits: deque[Callable[[], object]] = deque()  # the first is under way

    @property
    def workers(self) -> int:
        return self._workers

    async def run(self, work: Callable[[*Args], T], *args: *Args) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.take_place()
        before, began = _PLACES.set(self), trio.current_time()
        try:
            return await self._in_thread(partial(work, *args))
        finally:
            _PLACES.reset(before)
            self._left = trio.current_time()
            if self._left - began >= STUCK_SECONDS and self._places.total_tokens > self._workers:
                self._places.total_tokens -= 1
            self._places.release()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        begun = False

        def begin() -> T:
            nonlocal begun
            begun = True
            return work()

        while True:
            try:
                return await trio.to_thread.run_sync(begin, limiter=self._limiter)
            except RuntimeError as error:
                if begun:
                    raise
                log.warning("waiting for a thread: %s", error)
            await trio.sleep(_LACK_SECONDS)

    async def take_place(self) -> None:
        """A place among those that compute, for the task that asks."""
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            await self._wait_for_place()

    def lend_place(self) -> None:
        """That of the task that asks is another's until `take_place`."""
        self._left = trio.current_time()
        self._places.release()

    async def _wait_for_place(self) -> None:
        self._waiting += 1
        if not self._watched:
            self._watched, self._left = True, trio.current_time()
            trio.lowlevel.spawn_system_task(self._watch_places)
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1

    async def _watch_places(self) -> None:
        """While somebody waits for a place."""
        try:
            while self._waiting:
                await trio.sleep_until(self._left + STUCK_SECONDS)
                if self._waiting and trio.current_time() - self._left >= STUCK_SECONDS:
                    self._left = trio.current_time()
                    self._places.total_tokens += 1
        finally:  # also where a run of trio ends before they do: another one may follow
            self._watched = False

    def start_commit(self, work: Callable[[], T], done: Callable[[Outcome[T]], object]) -> None:
        # A fraction of the price of trio.to_thread: what is begun is not cancelled, does not call back and has no task of its own. The
        # committer is not alone here: freeing, compaction and shards that come back append to logs too, and only one at a time may.
        token = trio.lowlevel.current_trio_token()

        def deliver(outcome: Outcome[T]) -> None:
            token.run_sync_soon(arrive, outcome)

        def arrive(outcome: Outcome[T]) -> None:
            self._commits.popleft()
            if self._commits:
                self._commits[0]()
            done(outcome)

        def begin() -> None:
            try:
                trio.lowlevel.start_thread_soon(work, deliver)
            except RuntimeError as error:
                log.warning("a commit waits for a thread: %s", error)
                trio.lowlevel.spawn_system_task(begin_later)

        async def begin_later() -> None:
            await trio.sleep(_LACK_SECONDS)
            begin()

        self._commits.append(begin)
        if len(self._commits) == 1:
            self._commits[0]()

    async def run_commit(self, work: Callable[[*Args], T], *args: *Args) -> T:
        self.start_commit(partial(work, *args), partial(trio.lowlevel.reschedule, trio.lowlevel.current_task()))
        result: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return result


@asynccontextmanager
async def giving_place(places: RealThreads) -> AsyncIterator[None]:
    """While it lasts, the place of the thread that waits for it among those that compute is another's.

    For functions that trio.from_thread.run runs: they are run by the task that waits for the thread.
    """
    places.lend_place()
    try:
        yield
    finally:
        await _take_back(places)


@contextmanager
def lending_place() -> Iterator[None]:
    """While it lasts, the place that this thread has among those that compute, if it has one, is another's."""
    places = _PLACES.get()
    if places is None:
        yield
        return
    trio.from_thread.run_sync(places.lend_place)
    try:
        yield
    finally:
        trio.from_thread.run(_take_back, places)


async def _take_back(places: RealThreads) -> None:
    with trio.CancelScope(shield=True):
        await places.take_place()


def places_of_thread() -> RealThreads | None:
    """Where the thread that asks has its place, if it is one of RealThreads.run."""
    return _PLACES.get()
