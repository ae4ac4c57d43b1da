"""One client: read, run, reply, cancel.

One nursery holds everything that lives as long as the connection: the reader (this task), the writer, a watch on idleness, a task for
each request that has to wait. Replies go out as they are ready. The end of the input means that no more requests follow: what runs is
finished and answered, then the connection is closed. A client that is gone (a failed write, POLLHUP) takes its calls with it, except
those that have begun to commit.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import Busy, InvalidParams, InvalidRequest, IoError, TooLarge, ZstorError
from zstor_local.rpc.answer import Answer, Ending
from zstor_local.rpc.budget import Room
from zstor_local.rpc.call import Call, Connection, LongPolls, Peer, Work, stopping
from zstor_local.rpc.calls import CANCELS, Calls
from zstor_local.rpc.content_length import ContentLengthFramer
from zstor_local.rpc.descriptors import KERNEL_MAX, NO_DESCRIPTORS, Arrivals, Descriptors, Receiver, Truncated, close_all
from zstor_local.rpc.dispatch import Dispatcher, Request, bind, error_reply, parse_request
from zstor_local.rpc.framing import Event, Fault, Framer, Message, Terminator
from zstor_local.rpc.http import HttpFramer, NoDescriptors
from zstor_local.rpc.intake import Intake, call_bytes
from zstor_local.rpc.outbox import Cork, Outbox
from zstor_local.rpc.strict_json import Json, encode
from zstor_local.rpc.turns import COSTLY_SECONDS
from zstor_local.rpc.wire import Wire, wire_of

log = logging.getLogger("zstor.rpc")

_READ_BYTES: Final = 64 * limits.KIB
_READ_BYTES_MAX: Final = 256 * limits.KIB  # about what a Unix socket buffers
_HANGUP_CHECK_SECONDS: Final = 1.0
_LITTLE_BYTES: Final = 16 * limits.KIB  # that are parsed without waiting for a turn: small objects too


class ClientConnection(Connection):
    """Serve one socket with `serve`; `stop` and `abort` end it early."""

    def __init__(self, socket: trio.socket.SocketType, peer: Peer, dispatcher: Dispatcher, cork: Cork) -> None:
        super().__init__(peer, Room(dispatcher.replies))
        self._socket = socket
        self._dispatcher = dispatcher
        self._intake = Intake(Room(dispatcher.inputs, limits.RUNNING_INPUT_BYTES))
        self._framer: Wire = Framer()
        self._http: HttpFramer | None = None  # the framer, if the client speaks HTTP
        self._receiver = Receiver(socket)
        self._batch_room = Room(dispatcher.batches)
        self._outbox = Outbox(socket, cork, self.reply_room)
        self._nursery: trio.Nursery | None = None
        self._reading = trio.CancelScope()
        self._read_size = _READ_BYTES
        self._first = True
        self._arrivals = Arrivals()
        self._undecided: Ending | None = None
        self._bad_in_a_row = 0
        self._now = trio.lowlevel.current_clock().current_time
        self._turns = dispatcher.turns
        self._costly = 0  # calls in a row that took long: one may be chance
        self._closing = False
        self.stopping = False  # it takes no more requests
        self._handling = False  # what was read: it is answered, whatever ends the reading
        self._calls = Calls(
            dispatcher, self._intake, self.reply_room, start_soon=self._start_soon, outbox=self._outbox, on_idle=self._on_idle
        )
        self._idle = trio.Event()
        self._active = trio.current_time()
        self._poll = select.poll()
        self._poll.register(socket.fileno(), 0)  # POLLHUP and POLLERR are always told

    # --- For methods ---

    @property
    def replies_only(self) -> bool:
        return self._http is not None

    def begin(self, work: Work) -> None:
        self._calls.begin(work)

    async def notify(self, method: str, params: object) -> None:
        await self._outbox.ready()
        self._outbox.push(_notification(method, params))

    def offer(self, method: str, params: object) -> None:
        if self._outbox.empty:
            self._outbox.push(_notification(method, params))

    def client_gone(self) -> bool:
        return self._socket.fileno() < 0 or any(events & (select.POLLHUP | select.POLLERR) for _, events in self._poll.poll(0))

    # --- For the server ---

    @property
    def silent(self) -> float:
        """For so many seconds its client has said nothing, and waited for nothing; it may have sent half a message."""
        if not self._idling or not self._outbox.empty or self._intake.waits:
            return 0.0
        return trio.current_time() - self._active

    async def serve(self) -> None:
        """Until the client ends its input and has its replies, or is gone, or the connection is stopped."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._outbox.run)
                self._nursery.start_soon(self._watch_idle)
                try:
                    with self._reading:
                        await self._read()
                    await self._finish()
                finally:
                    self.stopping = True
                    if not self._calls.idle:  # many may go at once, with many calls: client by client
                        with trio.CancelScope(shield=True):
                            await self._turns.next(self)
                    self._calls.close()  # before the nursery takes no more tasks
                    # Not by an error that leaves the nursery: what it cancels then refers to itself, with all that calls hold.
                    self._nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, ConnectionError) as gone:
            log.debug("client %s: %s", self.peer, gone.exceptions[0])
        finally:
            self._arrivals.close()
            self._framer = Framer()  # it and its tasks refer to each other: what is large must not wait until garbage is looked for
            self._outbox.close()
            self._intake.close()
            self.reply_room.close()
            self._batch_room.close()
            self._receiver.detach()
            self._socket.close()

    def stop(self) -> None:
        """Take no more requests; close when those that run have been answered. What only waits for news ends now."""
        self.stopping = True
        self.state(LongPolls).end()
        if self._idling:
            self._reading.cancel()

    def abort(self) -> None:
        """Stop the running calls too; they answer `shutting_down`."""
        self.stop()
        self._calls.cancel_all(stopping)

    def _start_soon(self, work: Callable[[], Awaitable[object]]) -> None:
        if self._nursery is None:
            raise RuntimeError("the connection is not being served")
        self._nursery.start_soon(work)

    # --- Reading ---

    @property
    def _idling(self) -> bool:
        """Nothing is done for the client, and nothing that it said waits."""
        return self._calls.idle and not self._handling

    async def _read(self) -> None:
        while not self._closing and not (self.stopping and self._calls.idle):
            self._handling = False
            try:
                received = await self._receive()
            except Truncated:
                error = IoError("some descriptors could not be received", hint="send fewer, or close some", errno="EMFILE")
                await self._outbox.put(error_reply(None, error) + b"\n")
                return
            if received is None:
                continue
            data, fds = received
            self._handling = True
            self._intake.came(len(data))
            self._active = trio.current_time()
            if len(data) > _LITTLE_BYTES:
                await self._turns.begin(self._calls, costly=True)
            if len(data) == self._read_size:
                self._read_size = _READ_BYTES_MAX
            if self._first and (begun := data.lstrip(b"\r\n")):
                self._first = False
                self._speak(wire_of(begun[0]))
                data = begun
            if self._http is None:
                await self._take(data, fds)
            else:
                close_all(fds)
                await self._take_turns(self._http, data)
            if not data:
                return
            del received, data  # not kept until the next bytes come

    async def _receive(self) -> tuple[bytes, list[int]] | None:
        """Read once. None where the time is up that the last message's terminator had."""
        if not self._intake.may_go_on(pending := self._framer.pending):
            await self._intake.go_on(pending)
        if self._undecided is None:
            return await self._receiver.receive(self._read_size)
        with trio.move_on_after(limits.TERMINATOR_GRACE_SECONDS):
            return await self._receiver.receive(self._read_size)
        self._settle(line=False)
        return None

    def _speak(self, wire: Wire) -> None:
        """What the client's first byte told."""
        self._framer = wire
        if isinstance(wire, (HttpFramer, ContentLengthFramer)):
            self._outbox.frame = wire.frame
        if isinstance(wire, HttpFramer):
            self._http = wire

    async def _take(self, data: bytes, fds: list[int]) -> None:
        """Handle what one read brought; empty data is the end of the input."""
        if data:
            self._framer.receive(data)
        else:
            self._framer.end()
        events: list[Event] = []
        while (event := self._framer.next_event()) is not None:
            events.append(event)
        if len(events) == 1 and isinstance(events[0], Message) and not fds and not self._arrivals.early and not self._closing:
            await self._message(events[0], NO_DESCRIPTORS)  # as nearly always
            return
        messages = sum(not isinstance(event, Terminator) for event in events)
        owners = self._arrivals.share_out(fds, messages, begun=self._framer.pending > 0)
        for event in events:
            descriptors = next(owners, NO_DESCRIPTORS) if not isinstance(event, Terminator) else NO_DESCRIPTORS
            if self._closing:
                descriptors.close()
            elif isinstance(event, Terminator):
                self._settle(event.line)
            elif isinstance(event, Fault):
                descriptors.close()
                await self._bad(event.error, self._ending(event.line))
                self._closing = self._closing or event.last
            else:
                await self._message(event, descriptors)
        if self._arrivals.early > KERNEL_MAX:
            self._arrivals.drop_early()
            await self._refuse(InvalidParams(f"a call takes at most {limits.FDS_PER_CALL} descriptors"))

    async def _take_turns(self, http: HttpFramer, data: bytes) -> None:
        """As `_take`, for HTTP: one message after the other, each answered before the next is looked at."""
        if data:
            http.receive(data)
        else:
            http.end()
        while not self._closing and (event := http.next_event()) is not None:
            if isinstance(event, Fault):
                await self._bad(event.error, Ending(True))
            elif isinstance(event, Message):
                await self._message(event, NoDescriptors([]))
                await self._until_idle()
                if http.unanswered:
                    await self._outbox.put(b"")
            self._closing = self._closing or http.closing
        if told := http.continues():
            self._outbox.push(told, framed=True)
        self._closing = self._closing or http.closing

    def look_at_pace(self, *, inputs_crowded: bool, replies_crowded: bool) -> None:
        """What it holds while others wait has to move: half a message that stalls is given up, so are calls behind others that do not
        end, and with a client that takes its replies too slowly the connection. To be called each CROWDED_SECONDS.
        """
        if self._intake.stalls(crowded=inputs_crowded):
            log.info("client %s: a message that came too slowly was given up", self.peer)
            self._framer.discard()
            self._arrivals.drop_early()
            self._intake.whole()
            hint = f"send it again, {limits.CROWDED_BYTES_PER_SECOND} bytes a second at least"
            error = Busy("others wait for the room of this message, and it came slowly", hint=hint, limit=limits.INPUT_BUDGET_BYTES)
            self._outbox.push(error_reply(None, error) + b"\n")
            if self._http is not None:
                self._reading.cancel()
        self._calls.look_at_pace(crowded=inputs_crowded)
        if self._outbox.stalls(crowded=replies_crowded):
            log.info("client %s: it took its replies too slowly while others waited", self.peer)
            self._outbox.give_up()

    # --- Messages ---

    async def _message(self, message: Message, descriptors: Descriptors) -> None:
        ending = self._ending(message.line)
        batch = isinstance(message.value, list)
        members: list[Json] = message.value if isinstance(message.value, list) else [message.value]
        try:
            if not members:
                raise InvalidRequest("an empty batch")
            if len(members) > limits.BATCH_ITEMS:
                raise TooLarge(f"a batch of {len(members)} requests", hint="send several batches", limit=limits.BATCH_ITEMS)
        except ZstorError as error:
            descriptors.close()
            await self._bad(error, ending)
            return
        answer = Answer(ending, descriptors, calls=len(members), room=self._batch_room if batch else None)
        good = 0
        for member in members:
            try:
                request = parse_request(member)
            except InvalidRequest as error:
                if batch:
                    await self._calls.reply(answer, None, error_reply(None, error))
                else:
                    descriptors.close()
                    await self._bad(error, ending)
                    return
            else:
                good += 1
                await self._request(request, answer, descriptors, call_bytes(message.length // len(members), request.params))
        self._judge(good=good > 0)

    async def _request(self, request: Request, answer: Answer, descriptors: Descriptors, size: int) -> None:
        if not self._intake.has_room:
            await self._intake.wait()
        began = self._now()
        if began >= self._turns.until or self._costly > 1:
            await self._turns.begin(self._calls, costly=self._costly > 1)
            began = self._now()
        call = Call(request.method, self, descriptors, answer.sent)
        try:
            if request.method in CANCELS:
                self._calls.cancel_by(request)
                await self._calls.reply(answer, request.id, self._dispatcher.reply(request.id, None) if request.wants_reply else None)
                return
            if len(descriptors) > limits.FDS_PER_CALL * answer.calls:
                raise InvalidParams(f"{len(descriptors)} descriptors, where a call takes at most {limits.FDS_PER_CALL}")
            bind(self._dispatcher.registry, request, call)
            if call.detach:
                self._dispatcher.detach(request, call, size)
            urgent = self._dispatcher.registry[request.method].urgent
            if self.stopping and not urgent:  # urgent ones belong to what runs
                raise stopping()
            self._calls.admit(call, request.id, answer, urgent=urgent, size=size)
            self._costly = self._costly + 1 if self._now() - began >= COSTLY_SECONDS else 0
            if urgent:
                # It takes its first step before the next of its kind comes: messages of a stream keep their order.
                await trio.lowlevel.cancel_shielded_checkpoint()
        except ZstorError as error:
            if not request.wants_reply:
                log.info("notification %s: %s", request.method if request.method in self._dispatcher.registry else "?", error.type)
            await self._calls.reply(answer, request.id, error_reply(request.id, error))

    # --- Bad input and the end ---

    def _ending(self, line: bool | None) -> Ending:
        ending = Ending(line)
        if line is None:
            self._undecided = ending
        return ending

    def _settle(self, line: bool) -> None:
        if self._undecided is not None:
            rest = self._undecided.settle(line)
            self._undecided = None
            if rest:
                self._outbox.push(rest)

    async def _bad(self, error: ZstorError, ending: Ending) -> None:
        """Answer what was no request. After too many of them in a row the client is not speaking our language."""
        await self._outbox.put(ending.finish(error_reply(None, error)))
        self._judge(good=False)

    def _judge(self, *, good: bool) -> None:
        self._bad_in_a_row = 0 if good else self._bad_in_a_row + 1
        if self._bad_in_a_row >= limits.BAD_MESSAGES_IN_A_ROW:
            self._closing = True

    async def _refuse(self, error: ZstorError) -> None:
        await self._outbox.put(error_reply(None, error) + b"\n")
        self._closing = True

    async def _finish(self) -> None:
        """After the last request: let the calls end, and their replies go out."""
        await self._until_idle()
        await self._outbox.drained()

    async def _until_idle(self) -> None:
        """While nothing is read: let the calls end, look whether the client is still there."""
        while not self._calls.idle:
            if self.client_gone():
                raise trio.BrokenResourceError("the client is gone")
            self._idle = trio.Event()
            self._calls.starve()
            with trio.move_on_after(_HANGUP_CHECK_SECONDS):
                await self._idle.wait()

    def _on_idle(self) -> None:
        self._active = trio.current_time()
        self._idle.set()
        if self.stopping and self._idling:
            self._reading.cancel()

    async def _watch_idle(self) -> None:
        while (left := limits.IDLE_CONNECTION_SECONDS - self.silent) > 0:
            await trio.sleep(left)
        log.debug("client %s: idle", self.peer)
        self._reading.cancel()


def _notification(method: str, params: object) -> bytes:
    return encode({"jsonrpc": "2.0", "method": method, "params": params}) + b"\n"
