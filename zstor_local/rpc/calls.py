"""The calls of one connection: so many at once, the others in order; each is answered once, whatever becomes of it."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from math import inf
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import Busy, Cancelled, InvalidParams, ZstorError
from zstor_local.rpc.answer import Answer
from zstor_local.rpc.budget import Room
from zstor_local.rpc.call import Call, Work
from zstor_local.rpc.dispatch import Dispatcher, Id, Missing, Request
from zstor_local.rpc.intake import CALL_BYTES, Intake
from zstor_local.rpc.outbox import Outbox
from zstor_local.store.later import Later

log = logging.getLogger("zstor.rpc")

CANCELS: Final = {"$/cancelRequest": "id", "notifications/cancelled": "requestId"}  # LSP, MCP
_NOT_BEGUN: Final = object()
_LASTING: Final = (Later, Awaitable)  # what a plain method answers with where its result is yet to come


@dataclass(slots=True, eq=False)
class _Task:
    """A request that runs or waits for its turn."""

    call: Call
    id: Id
    answer: Answer
    urgent: bool
    size: int  # bytes of input that it holds
    waiting: bool = False
    answered: bool = False
    expiring: trio.CancelScope | None = None  # while it waits, if it has a deadline


class Calls:
    """What runs and what waits. `start_soon` runs a task of the connection, `outbox` takes the replies.

    `on_idle` is called when the last call has been answered, and when the last work that calls began has ended.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        intake: Intake,
        reply_room: Room,
        outbox: Outbox,
        *,
        start_soon: Callable[[Callable[[], Awaitable[object]]], None],
        on_idle: Callable[[], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._intake = intake
        self._reply_room = reply_room
        self._start_soon = start_soon
        self._outbox = outbox
        self._going_on = False
        self._closed = False
        self._on_idle = on_idle
        self._running = {False: 0, True: 0}  # by urgency
        self._begun_since = False  # a call that had to wait, since the last look
        self._queue: deque[_Task] = deque()
        self._tasks: set[_Task] = set()
        self._begun: set[Work] = set()
        self._sending: set[Answer] = set()  # whole, and waiting for room
        self._by_id: dict[Id, _Task] = {}

    @property
    def idle(self) -> bool:
        """Every call has been answered, and nothing goes on that one of them began."""
        return not self._tasks and not self._begun and not self._sending

    def admit(self, call: Call, identity: Id, answer: Answer, *, urgent: bool, size: int) -> None:
        """Run a bound call now or when its turn comes. `size` is what it takes of the input; Busy if it is urgent and one too many."""
        most = limits.URGENT_CALLS_PER_CONNECTION if urgent else limits.CALLS_PER_CONNECTION
        at_once = (self._running[True] < most) if urgent else (not self._queue and self._may_start())
        begun: object = _NOT_BEGUN
        if at_once and self._dispatcher.registry[call.method].plain and not self._outbox.full:
            begun = self._dispatcher.begin(call)
            if not isinstance(begun, _LASTING):  # it was never anything that could be waited for or cancelled
                line = self._word(call, identity, begun)
                if self._has_room(call, line):
                    self._add(answer, identity, line)
                    call.replied()
                    return
        task = _Task(call, identity, answer, urgent, size)
        if not at_once:
            if urgent:
                raise Busy(f"{most} calls run", hint="wait for their answers, then send this again", limit=most)
            task.waiting = True
            self._queue.append(task)
            if call.deadline != inf:
                task.expiring = trio.CancelScope()
                self._start_soon(functools.partial(self._expire, task, task.expiring))
            self._outbox.on_room = self._start_waiting
        self._intake.hold(size)
        if len(call.descriptors):
            call.let_go = functools.partial(self._let_go, task)
        self._tasks.add(task)
        if identity is not None and identity is not Missing.ID:
            # Two calls with one id are the client's mistake; a cancel is for the older one.
            self._by_id.setdefault(identity, task)
        if at_once:  # last: it may have ended when this returns
            self._start(task, begun)

    def cancel_by(self, request: Request) -> None:
        """Stop the call that a request of `CANCELS` names, if there is one and it has not begun to commit."""
        name = CANCELS[request.method]
        identity = request.params.get(name) if isinstance(request.params, dict) else None
        if isinstance(identity, (bool, dict, list)) or identity is None:
            raise InvalidParams(f"{request.method} needs {name}")
        task = self._by_id.get(identity)
        if task is not None:
            self._stop(task, Cancelled("the caller cancelled the request"))

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

    def look_at_pace(self, *, crowded: bool) -> None:
        """Others have waited for room: calls that wait behind some that do not end are refused. To be called each CROWDED_SECONDS."""
        if crowded and not self._begun_since:
            for task in sorted(self._queue, key=lambda task: task.size, reverse=True):
                if self._intake.small:
                    break
                self._stop(
                    task, Busy("the calls before it do not end, and others wait for its room", hint="send it again when they have")
                )
                self._queue.remove(task)
                self._let_go(task)
        self._begun_since = not self._queue  # what begins to wait now has its time

    def close(self) -> None:
        """The connection ends: start nothing more for it."""
        self._closed = True
        self._queue.clear()
        self._outbox.on_room = None
        self._tasks.clear()
        self._by_id.clear()

    async def reply(self, answer: Answer, identity: Id, reply: bytes | None) -> None:
        """Add a call's reply to its message's answer; with the last one it is sent."""
        await self._outbox.ready()
        self._add(answer, identity, reply)

    def _add(self, answer: Answer, identity: Id, line: bytes | None) -> None:
        """Send the answer if this was the last that it lacked. A batch's waits for room, if it is large, where its replies wait."""
        whole = answer.add(identity, line)
        if whole is not None:
            room = self._reply_room
            if answer.calls > 1 and len(whole) > limits.SMALL_REPLY_BYTES:
                if not room.take(len(whole)):
                    self._sending.add(answer)
                    self._start_soon(functools.partial(self._send_in_turn, answer, whole))
                    return
                self._outbox.push(whole)
                room.give(len(whole))  # the outbox counts what it could not send
            else:
                self._outbox.push(whole)
        if answer.complete:
            answer.let_go()

    async def _send_in_turn(self, answer: Answer, whole: bytes) -> None:
        room = self._reply_room
        await room.until(lambda: room.take(len(whole)))
        self._outbox.push(whole)
        room.give(len(whole))
        answer.let_go()
        self._sending.discard(answer)
        if self.idle:
            self._on_idle()

    def _may_start(self) -> bool:
        """Whether a call that is not urgent may run now: not too many of them, none for a client that takes nothing."""
        return self._running[False] < limits.CALLS_PER_CONNECTION and not self._outbox.large

    def _start(self, task: _Task, begun: object) -> None:
        """Run it, if it is not `begun`: then that is what a plain method answered."""
        self._running[task.urgent] += 1
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
        if not task.urgent and self._dispatcher.turns.crowded:
            try:
                await self._dispatcher.turns.next(self)
            except BaseException:
                if isinstance(begun, Coroutine):  # which nobody awaits any more
                    begun.close()
                raise
        await self._finish_in_turn(task, await self._dispatcher.run(task.call, begun))

    def _come(self, task: _Task, later: Later[object]) -> None:
        self._finish(task, self._dispatcher.outcome(task.call, later))

    def _finish(self, task: _Task, outcome: object) -> None:
        """Answer a call that has ended. Where the client has yet to take other replies, a task waits for room."""
        if self._closed:  # what was committed for a client that is gone
            return
        self._let_go(task)
        if self._outbox.full:
            self._start_soon(functools.partial(self._finish_in_turn, task, outcome))
            return
        if not task.answered:
            line = self._word(task.call, task.id, outcome)
            if not self._has_room(task.call, line):
                self._start_soon(functools.partial(self._finish_in_turn, task, outcome))
                return
            task.answered = True
            self._add(task.answer, task.id, line)
            self._concluded(task)
        self._go_on(task)

    async def _finish_in_turn(self, task: _Task, outcome: object) -> None:
        self._let_go(task)
        if not task.answered:
            await self._conclude_in_turn(task, outcome)
        self._go_on(task)

    def _let_go(self, task: _Task) -> None:
        """It needs what it was given no more, however long its reply may wait."""
        self._intake.give(task.size)
        task.size = 0

    def _go_on(self, ended: _Task) -> None:
        """Its room is free: start what waits for its turn."""
        ended.call.replied()
        self._running[ended.urgent] -= 1
        if self._queue:
            self._start_waiting()

    def _start_waiting(self) -> None:
        if self._going_on:  # what was started below has ended already
            return
        self._going_on = True
        while self._queue and self._may_start():
            following = self._queue.popleft()
            following.waiting = False
            if following.expiring is not None:
                following.expiring.cancel()
            self._begun_since = True
            self._start(following, _NOT_BEGUN)
            if self._queue and self._dispatcher.turns.crowded:
                self._start_soon(self._start_in_turn)
                return
        self._going_on = False
        if not self._queue:
            self._outbox.on_room = None

    async def _start_in_turn(self) -> None:
        await self._dispatcher.turns.next(self)
        self._going_on = False
        self._start_waiting()

    def _word(self, call: Call, identity: Id, outcome: object) -> bytes | None:
        """Word a call's outcome; None for a notification's."""
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%.64r %s: %s", identity, call.method, outcome.type if isinstance(outcome, ZstorError) else "done")
        if identity is not Missing.ID:
            return self._dispatcher.reply(identity, outcome)
        if isinstance(outcome, ZstorError):
            log.info("notification %s: %s", call.method, outcome.type)  # its words may name keys
        return None

    def _has_room(self, call: Call, line: bytes | None) -> bool:
        """Whether this reply may be kept until the client has taken it. If not it is worded again when there is room."""
        return line is None or call.has_reply_room or call.take_reply_room(len(line))

    async def _conclude_in_turn(self, task: _Task, outcome: object) -> None:
        task.answered = True
        try:
            while True:
                await self._outbox.ready()
                line = self._word(task.call, task.id, outcome)
                if self._has_room(task.call, line):
                    break
                del line
                await self._reply_room.wait()
            self._add(task.answer, task.id, line)
        finally:
            self._concluded(task)

    def _concluded(self, task: _Task) -> None:
        """Its reply is out, or never will be."""
        self._tasks.discard(task)
        if self._by_id.get(task.id) is task:
            del self._by_id[task.id]
        if not self._tasks:
            self._on_idle()

    async def _carry_on(self, work: Work) -> None:
        try:
            await work.conclude(await self._dispatcher.run(work.call))
        finally:
            work.call.replied()
            self._begun.discard(work)
            if not self._begun:
                self._on_idle()

    async def _expire(self, task: _Task, waiting: trio.CancelScope) -> None:
        """Its deadline may come before its turn."""
        with waiting:
            await trio.sleep_until(task.call.deadline)
            self._stop(task, task.call.why_stopped())

    def _stop(self, task: _Task, reason: ZstorError) -> None:
        if task.call.cancel(reason) and task.waiting and not task.answered:
            task.answered = True
            task.call.bound = None
            if task.expiring is not None:
                task.expiring.cancel()
            self._intake.give(task.size - CALL_BYTES)  # it stays in the queue
            task.size = CALL_BYTES
            self._start_soon(functools.partial(self._conclude_in_turn, task, reason))
