"""The calls of one connection: so many at once, the others in order; each is answered once, whatever becomes of it."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from zstor_local import limits
from zstor_local.errors import Busy, ZstorError
from zstor_local.rpc.answer import Answer
from zstor_local.rpc.budget import InputBudget
from zstor_local.rpc.call import Call, Work
from zstor_local.rpc.dispatch import Dispatcher, Id, Missing
from zstor_local.rpc.outbox import Outbox
from zstor_local.store.later import Later

log = logging.getLogger("zstor.rpc")

_NOT_BEGUN: Final = object()
_LASTING: Final = (Later, Awaitable)  # what a plain method answers with where its result is yet to come


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
    """What runs and what waits. `start_soon` runs a task of the connection, `outbox` takes the replies.

    `on_idle` is called when the last call has been answered, and when the last work that calls began has ended.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        budget: InputBudget,
        *,
        start_soon: Callable[[Callable[[], Awaitable[object]]], None],
        outbox: Outbox,
        on_idle: Callable[[], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._budget = budget
        self._start_soon = start_soon
        self._outbox = outbox
        self._going_on = False
        self._closed = False
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
        most = limits.URGENT_CALLS_PER_CONNECTION if urgent else limits.CALLS_PER_CONNECTION
        at_once = (self._running[True] < most) if urgent else (not self._queue and self._may_start(size))
        begun: object = _NOT_BEGUN
        if at_once and self._dispatcher.registry[call.method].plain and not self._outbox.full:
            begun = self._dispatcher.begin(call)
            if not isinstance(begun, _LASTING):  # it was never anything that could be waited for or cancelled
                reply = self._word(call, identity, answer, begun)
                if reply is not None:
                    self._outbox.push(reply)
                if answer.complete:
                    answer.sent.set()
                call.replied()
                return
        task = _Task(call, identity, answer, urgent, size)
        if not at_once:
            if urgent or not self._budget.take(size):
                raise Busy(f"{most} calls run and the queue is full", hint="wait for their answers, then send this again", limit=most)
            task.cost = size
            task.waiting = True
            self._queue.append(task)
            self._outbox.on_room = self._start_waiting
        self._tasks.add(task)
        if identity is not None and identity is not Missing.ID:
            # Two calls with one id are the client's mistake; a cancel is for the older one.
            self._by_id.setdefault(identity, task)
        if at_once:  # last: it may have ended when this returns
            self._start(task, begun)

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
        """The connection ends: give back what the waiting calls hold of the input budget, and start nothing more for it."""
        self._closed = True
        self._budget.give(sum(task.cost for task in self._queue))
        self._queue.clear()
        self._outbox.on_room = None
        self._tasks.clear()

    async def reply(self, answer: Answer, identity: Id, reply: bytes | None) -> None:
        """Add a call's reply to its message's answer; with the last one it is sent."""
        whole = answer.add(identity, reply)
        if whole is not None:
            await self._outbox.put(whole)
        if answer.complete:
            answer.sent.set()

    def _may_start(self, size: int) -> bool:
        """Whether a call that is not urgent may run now: not too many or too large ones, none for a client that takes nothing."""
        room = not self._running_bytes or self._running_bytes + size <= limits.RUNNING_INPUT_BYTES
        return room and self._running[False] < limits.CALLS_PER_CONNECTION and not self._outbox.large

    def _start(self, task: _Task, begun: object) -> None:
        """Run it, if it is not `begun`: then that is what a plain method answered."""
        self._running[task.urgent] += 1
        self._running_bytes += task.size
        if begun is _NOT_BEGUN:
            if not self._dispatcher.registry[task.call.method].plain:
                self._start_soon(functools.partial(self._run, task))
                return
            begun = self._dispatcher.begin(task.call)
        if isinstance(begun, Later):
            begun.then(functools.partial(self._come, task, begun))
        elif isinstance(begun, Awaitable):
            self._start_soon(functools.partial(self._run, task, begun))
        else:
            self._finish(task, begun)

    async def _run(self, task: _Task, begun: Awaitable[object] | None = None) -> None:
        await self._finish_in_turn(task, await self._dispatcher.run(task.call, begun))

    def _come(self, task: _Task, later: Later[object]) -> None:
        self._finish(task, self._dispatcher.outcome(task.call, later))

    def _finish(self, task: _Task, outcome: object) -> None:
        """Answer a call that has ended. Where the client has yet to take other replies, a task waits for room."""
        if self._closed:  # what was committed for a client that is gone
            return
        if self._outbox.full:
            self._start_soon(functools.partial(self._finish_in_turn, task, outcome))
            return
        if not task.answered:
            reply = self._conclude(task, outcome)
            if reply is not None:
                self._outbox.push(reply)
            self._concluded(task)
        self._go_on(task)

    async def _finish_in_turn(self, task: _Task, outcome: object) -> None:
        if not task.answered:
            await self._conclude_in_turn(task, outcome)
        self._go_on(task)

    def _go_on(self, ended: _Task) -> None:
        """Its room is free: start what waits for its turn."""
        ended.call.replied()
        self._running[ended.urgent] -= 1
        self._running_bytes -= ended.size
        if self._queue:
            self._start_waiting()

    def _start_waiting(self) -> None:
        if self._going_on:  # what was started below has ended already
            return
        self._going_on = True
        while self._queue and self._may_start(self._queue[0].size):
            following = self._queue.popleft()
            following.waiting = False
            self._budget.give(following.cost)
            self._start(following, _NOT_BEGUN)
        self._going_on = False
        if not self._queue:
            self._outbox.on_room = None

    def _conclude(self, task: _Task, outcome: object) -> bytes | None:
        task.answered = True
        return self._word(task.call, task.id, task.answer, outcome)

    def _word(self, call: Call, identity: Id, answer: Answer, outcome: object) -> bytes | None:
        """Word a call's outcome. Returns the message's whole reply, if this was its last call."""
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%.64r %s: %s", identity, call.method, outcome.type if isinstance(outcome, ZstorError) else "done")
        if identity is not Missing.ID:
            return answer.add(identity, self._dispatcher.reply(identity, outcome))
        if isinstance(outcome, ZstorError):
            log.info("notification %s: %s", call.method, outcome.message)
        return answer.add(identity, None)

    async def _conclude_in_turn(self, task: _Task, outcome: object) -> None:
        try:
            await self._outbox.ready()
            reply = self._conclude(task, outcome)
            if reply is not None:
                self._outbox.push(reply)
        finally:
            self._concluded(task)

    def _concluded(self, task: _Task) -> None:
        """Its reply is out, or never will be."""
        if task.answer.complete:
            task.answer.sent.set()
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
            self._start_soon(functools.partial(self._conclude_in_turn, task, reason))
