"""The calls of one connection: so many at once, the others in order; each is answered once, whatever becomes of it."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import Busy, ZstorError
from zstor_local.rpc.answer import Answer
from zstor_local.rpc.budget import InputBudget
from zstor_local.rpc.call import Call, Work
from zstor_local.rpc.dispatch import Dispatcher, Id, Missing

logger: Final = logging.getLogger("zstor.rpc")


@dataclass(slots=True, eq=False)
class _Task:
    """A request that runs or waits for its turn."""

    call: Call
    id: Id
    answer: Answer
    urgent: bool
    size: int  # bytes of its message
    cost: int = 0  # bytes of the input budget that it holds while it waits
    waiting: bool = False
    answered: bool = False


class Calls:
    """What runs and what waits. `start_soon` runs a task of the connection, `send` takes a reply and waits for room.

    `on_idle` is called when the last call has been answered, and when the last work that calls began has ended.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        budget: InputBudget,
        *,
        start_soon: Callable[[Callable[[], Awaitable[object]]], None],
        send: Callable[[bytes], Awaitable[None]],
        on_idle: Callable[[], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._budget = budget
        self._start_soon = start_soon
        self._send = send
        self._on_idle = on_idle
        self._running = {False: 0, True: 0}  # by urgency
        self._running_bytes = 0
        self._queue: deque[_Task] = deque()
        self._tasks: set[_Task] = set()
        self._begun: set[Work] = set()
        self._by_id: dict[Id, _Task] = {}

    @property
    def idle(self) -> bool:
        """Every call has been answered, and nothing goes on that one of them began."""
        return not self._tasks and not self._begun

    def admit(self, call: Call, identity: Id, answer: Answer, *, urgent: bool, size: int) -> None:
        """Run a bound call now or when its turn comes; Busy if it may not even wait. `size` is what its message took of the input."""
        task = _Task(call, identity, answer, urgent, size)
        most = limits.URGENT_CALLS_PER_CONNECTION if urgent else limits.CALLS_PER_CONNECTION
        if (self._running[True] < most) if urgent else (not self._queue and self._may_start(task)):
            self._start(task)
        elif not urgent and self._budget.take(size):
            task.cost = size
            task.waiting = True
            self._queue.append(task)
        else:
            raise Busy(f"{most} calls run and the queue is full", limit=most)
        self._tasks.add(task)
        if identity is not None and identity is not Missing.ID:
            # Two calls with one id are the client's mistake; a cancel is for the older one.
            self._by_id.setdefault(identity, task)

    def cancel(self, identity: Id, reason: ZstorError) -> None:
        """Stop the call with this id, if there is one and it has not begun to commit."""
        task = self._by_id.get(identity)
        if task is not None:
            self._stop(task, reason)

    def cancel_all(self, reason: Callable[[], ZstorError]) -> None:
        """Stop all calls that have not begun to commit."""
        for task in [*self._tasks]:
            self._stop(task, reason())
        for work in self._begun:
            work.call.cancel(reason())

    def begin(self, work: Work) -> None:
        """Run what outlives the call that began it."""
        self._begun.add(work)
        self._start_soon(functools.partial(self._carry_on, work))

    def starve(self) -> None:
        """The input has ended: tell what goes on that nothing more will come."""
        for work in [*self._begun]:
            work.starve()

    def close(self) -> None:
        """Give back what the waiting calls hold of the input budget, for the connection has ended."""
        self._budget.give(sum(task.cost for task in self._queue))
        self._queue.clear()

    async def reply(self, answer: Answer, identity: Id, reply: bytes | None) -> None:
        """Add a call's reply to its message's answer; with the last one it is sent."""
        whole = answer.add(identity, reply)
        if whole is not None:
            await self._send(whole)
        if answer.complete:
            answer.sent.set()

    def _may_start(self, task: _Task) -> bool:
        """Whether a call that is not urgent may run now: not too many, and not too large ones together."""
        room = not self._running_bytes or self._running_bytes + task.size <= limits.RUNNING_INPUT_BYTES
        return room and self._running[False] < limits.CALLS_PER_CONNECTION

    def _start(self, task: _Task) -> None:
        self._running[task.urgent] += 1
        self._running_bytes += task.size
        self._start_soon(functools.partial(self._run, task))

    async def _run(self, task: _Task) -> None:
        began = trio.current_time()
        outcome = await self._dispatcher.run(task.call)
        if logger.isEnabledFor(logging.DEBUG):
            word = outcome.type if isinstance(outcome, ZstorError) else "done"
            logger.debug("%.64r %s: %s in %.1f ms", task.id, task.call.method, word, (trio.current_time() - began) * 1000)
        if not task.answered:
            await self._conclude(task, outcome)
        task.call.replied()
        self._running[task.urgent] -= 1
        self._running_bytes -= task.size
        while self._queue and self._may_start(self._queue[0]):
            following = self._queue.popleft()
            following.waiting = False
            self._budget.give(following.cost)
            self._start(following)

    async def _conclude(self, task: _Task, outcome: object) -> None:
        task.answered = True
        try:
            if task.id is not Missing.ID:
                await self.reply(task.answer, task.id, self._dispatcher.reply(task.id, outcome))
            else:
                if isinstance(outcome, ZstorError):
                    logger.info("notification %s: %s", task.call.method, outcome.message)
                await self.reply(task.answer, task.id, None)
        finally:
            self._tasks.discard(task)
            if self._by_id.get(task.id) is task:
                del self._by_id[task.id]
            if not self._tasks:
                self._on_idle()

    async def _carry_on(self, work: Work) -> None:
        try:
            await work.conclude(await self._dispatcher.run(work.call))
        finally:
            self._begun.discard(work)
            if not self._begun:
                self._on_idle()

    def _stop(self, task: _Task, reason: ZstorError) -> None:
        if task.call.cancel(reason) and task.waiting and not task.answered:
            task.answered = True
            self._start_soon(functools.partial(self._conclude, task, reason))
