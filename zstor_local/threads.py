"""The worker threads behind the seam, and who has a place among those that compute. Only the edge may import this."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Final, TypeVar, TypeVarTuple

import trio
from outcome import Outcome

from zstor_local.runtime import CLIENT

T = TypeVar("T")
Args = TypeVarTuple("Args")

STUCK_SECONDS: Final = 2.0
STUCK_OF_ONE: Final = 64  # threads of one client that hang: what it asks for then waits until one of them has ended
_LACK_SECONDS: Final = 0.1  # between two tries to get a thread
_THREADS: Final = 256  # at once, those included that wait for other machines

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
        self._places = _Places(self._workers)
        self._left = 0.0  # when a place came free last
        self._watched = False  # whether somebody looks that they do not wait in vain
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._commits: deque[Callable[[], object]] = deque()  # the first is under way

    @property
    def workers(self) -> int:
        return self._workers

    async def run(self, work: Callable[[*Args], T], *args: *Args) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        place = Place(self, CLIENT.get())
        await place.take()
        before, began = _PLACE.set(place), trio.current_time()
        try:
            return await self._in_thread(partial(work, *args))
        finally:
            _PLACE.reset(before)
            place.give(took=trio.current_time() - began)

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

    async def take_place(self, client: object) -> None:
        """A place among those that compute, for a client's task that asks."""
        if not self._places.take_nowait(client):
            if not self._watched:
                self._watched, self._left = True, trio.current_time()
                trio.lowlevel.spawn_system_task(self._watch_places)
            await self._places.take(client)

    def give_place(self, client: object, took: float) -> None:
        """The client's task needs it no more, after so many seconds."""
        self._left = trio.current_time()
        self._places.give(client, was_stuck=took >= STUCK_SECONDS)

    async def _watch_places(self) -> None:
        """While somebody waits for a place."""
        try:
            while self._places.wanted:
                await trio.sleep_until(self._left + STUCK_SECONDS)
                if trio.current_time() - self._left >= STUCK_SECONDS:
                    self._left = trio.current_time()
                    self._places.add()
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


class Place:
    """A client's among those that compute."""

    __slots__ = ("_client", "_threads")

    def __init__(self, threads: RealThreads, client: object) -> None:
        self._threads = threads
        self._client = client

    async def take(self) -> None:
        """Wait for it."""
        await self._threads.take_place(self._client)

    def give(self, *, took: float = 0.0) -> None:
        """It is another's, until `take`. `took`: for so many seconds somebody worked there without a pause."""
        self._threads.give_place(self._client, took)

    async def take_back(self) -> None:
        """The same, whatever is cancelled. It counts as nobody's from now on: others of its client's may be waiting for it."""
        self._client = object()
        with trio.CancelScope(shield=True):
            await self.take()


_PLACE: Final[ContextVar[Place | None]] = ContextVar("place", default=None)


@asynccontextmanager
async def giving_place(place: Place) -> AsyncIterator[None]:
    """While it lasts, the place of the thread that waits for it among those that compute is another's."""
    place.give()
    try:
        yield
    finally:
        await place.take_back()


@contextmanager
def lending_place() -> Iterator[None]:
    """While it lasts, the place that this thread has among those that compute, if it has one, is another's."""
    place = _PLACE.get()
    if place is None:
        yield
        return
    trio.from_thread.run_sync(place.give)
    try:
        yield
    finally:
        trio.from_thread.run(place.take_back)


def place_of_thread() -> Place | None:
    """Where the thread that asks computes, if it is one of RealThreads.run."""
    return _PLACE.get()


class _Places:
    """Places by client. One that comes free goes to whoever has the fewest. Who has as many as there are workers, as whose files hang,
    gets none that was another's: it would be seen too late each time that this one hangs too.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._more = 0  # than there are workers
        self._free: deque[object] = deque([None] * workers)  # whose each was last
        self._taken: Counter[object] = Counter()
        self._waiting: dict[object, deque[trio.lowlevel.Task]] = {}

    @property
    def wanted(self) -> bool:
        """Somebody waits."""
        return bool(self._waiting)

    def take_nowait(self, client: object) -> bool:
        """Take one, or False where none is free for this client."""
        if not self._may_take(client):
            return False
        self._take(client)
        return True

    async def take(self, client: object) -> None:
        """Wait for one."""
        task = trio.lowlevel.current_task()
        self._waiting.setdefault(client, deque()).append(task)

        def give_up(_: object) -> trio.lowlevel.Abort:
            self._waiting[client].remove(task)
            if not self._waiting[client]:
                del self._waiting[client]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    def give(self, client: object, *, was_stuck: bool) -> None:
        """A client has one less. It is free, but where it `was_stuck`, and there is one more for that."""
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]
        if was_stuck and self._more:
            self._more -= 1
        else:
            self._free.append(client)
        while self._free and (able := [each for each in self._waiting if self._may_take(each)]):
            self._hand_on(able)

    def add(self) -> None:
        """One more, for somebody who waits."""
        if able := [each for each in self._waiting if self._taken[each] < STUCK_OF_ONE]:
            self._more += 1
            self._free.append(client := self._fewest(able))
            self._hand_on([client])

    def _may_take(self, client: object) -> bool:
        return bool(self._free) and (self._taken[client] < self._workers or client in self._free)

    def _take(self, client: object) -> None:
        if client in self._free:
            self._free.remove(client)
        else:
            self._free.popleft()
        self._taken[client] += 1

    def _fewest(self, clients: Sequence[object]) -> object:
        """Who of them has the fewest; of several the one that has waited for longer."""
        return min(clients, key=self._taken.__getitem__)

    def _hand_on(self, able: Sequence[object]) -> None:
        client = self._fewest(able)
        tasks = self._waiting.pop(client)
        self._take(client)
        trio.lowlevel.reschedule(tasks.popleft())
        if tasks:
            self._waiting[client] = tasks  # behind the others
