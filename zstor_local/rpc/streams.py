"""Streams inside messages, for clients that cannot pass descriptors (docs/wire.md).

A stream is work that outlives the call that opened it, and belongs to that call's connection. `Incoming` takes pieces from the client
and is the source of a write: a piece is answered when its bytes have been taken. `Outgoing` gives pieces to the client and is the sink
of a read: so many may be on their way unacknowledged. Pieces are counted from 0 and come in order. Whatever goes wrong ends the stream,
and what it wrote so far is gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypedDict, TypeVar

import trio

from zstor_local import limits
from zstor_local.errors import Busy, Cancelled, Conflict, InvalidParams, NotFound, TimedOut, TooLarge, ZstorError
from zstor_local.rpc.call import Call
from zstor_local.rpc.descriptors import NO_DESCRIPTORS
from zstor_local.rpc.dispatch import error_object
from zstor_local.rpc.strict_json import Base64
from zstor_local.runtime import Buffer, Randomness
from zstor_local.store.caller import Caller
from zstor_local.store.sources import ChannelSource, StreamSource

Kind = TypeVar("Kind", "Incoming", "Outgoing")


class Opened(TypedDict):
    """A stream inside messages; `stream` is its id, known on this connection alone."""

    stream: str


class Streams:
    """Opens streams for methods that were given no descriptor."""

    def __init__(self, randomness: Randomness) -> None:
        self._randomness = randomness

    async def write(self, call: Call, store: Callable[[StreamSource, Caller], Awaitable[object]]) -> Opened:
        """Begin a write whose bytes the client sends piece by piece. Raises what the write finds wrong before it wants the first."""
        call.require_messages("a stream inside messages")
        own = call.connection.state(OwnStreams)
        stream = Incoming(own.new_id(self._randomness), call, store)
        own.add(stream)
        call.connection.begin(stream)
        try:
            await stream.begun()
        finally:
            if not stream.has_begun:
                stream.call.cancel(call.why_stopped())
        return {"stream": stream.id}

    def read(self, call: Call, send: Callable[[Outgoing, Caller], Awaitable[object]]) -> Opened:
        """Begin a read whose bytes go to the client piece by piece, as soon as the call has been answered."""
        call.require_messages("a stream inside messages")
        own = call.connection.state(OwnStreams)
        stream = Outgoing(own.new_id(self._randomness), call)
        stream.call.bound = partial(send, stream, stream.call)
        own.add(stream)
        call.connection.begin(stream)
        return {"stream": stream.id}


class Incoming:
    """Bytes from the client: the source of a write, and its caller."""

    def __init__(self, identity: str, opener: Call, store: Callable[[StreamSource, Caller], Awaitable[object]]) -> None:
        self.id: Final = identity
        self.call: Final = Call(opener.method, opener.connection, NO_DESCRIPTORS, opener.answered)
        self.call.bound = partial(self._run, store)
        opener.hand_over_room(self.call)
        self._own = opener.connection.state(OwnStreams)
        self._source = ChannelSource()
        self._next = 0
        self._closer: Call | None = None
        self._ended = trio.Event()
        self._outcome: object = None

    # --- For the client ---

    async def take(self, call: Call, seq: int, data: bytes) -> None:
        """Hand over a piece, and wait until it has been taken. After Busy and TooLarge the same seq is due again."""
        self._check_going_on()
        if seq != self._next:
            raise await self._break_off(_wrong_seq("stream.write", seq, self._next))
        if len(data) > limits.STREAM_MESSAGE_BYTES:
            raise TooLarge(
                f"the piece has {len(data)} bytes", limit=limits.STREAM_MESSAGE_BYTES, hint="send it in several, this seq first"
            )
        if self._source.waiting >= limits.STREAM_WINDOW:
            raise Busy(
                f"{limits.STREAM_WINDOW} pieces of the stream wait already",
                limit=limits.STREAM_WINDOW,
                hint="send this one again when one of them has been answered",
            )
        self._next += 1
        piece = self._source.give(data)
        try:
            await piece.let_go.wait()
        finally:
            if not piece.let_go.is_set():  # this call was cancelled: its bytes would be missing
                self.call.cancel(call.why_stopped())
        if piece.rest:
            raise self._failure()

    async def close(self, call: Call) -> object:
        """The bytes are complete: the write's result. Until its commit begins, cancelling this call aborts the stream."""
        self._check_going_on()
        self._closer = call
        self._source.end()
        try:
            await self._ended.wait()
        finally:
            if not self._ended.is_set() and self.call.cancel(call.why_stopped()):
                with trio.CancelScope(shield=True):
                    await self._ended.wait()
        if isinstance(self._outcome, ZstorError):
            raise self._outcome
        return self._outcome

    async def abort(self) -> None:
        """End it; when this returns nothing is left of it. Conflict if its commit has begun."""
        if not self.call.cancel(Cancelled("the stream was aborted")):
            raise Conflict("the stream is being committed", hint="its stream.close tells what became of it")
        await self._ended.wait()
        self._own.forget(self)

    # --- For the write ---

    @property
    def has_reply_room(self) -> bool:
        return self.call.has_reply_room

    def progress(self, done: int, total: int | None) -> None:
        """Each answer to a piece tells the client how far it is."""

    def begin_commit(self) -> None:
        """The commit is that of stream.close too."""
        if self._closer is None or self.call.stopped:
            raise self.call.why_stopped()
        self._closer.begin_commit()
        self.call.begin_commit()

    async def _run(self, store: Callable[[StreamSource, Caller], Awaitable[object]]) -> object:
        try:
            return await store(self._source, self)
        finally:
            self._end()

    # --- For whoever runs it ---

    @property
    def has_begun(self) -> bool:
        """The write wants bytes, or has failed."""
        return self._source.asked.is_set()

    async def begun(self) -> None:
        """Wait until it has; raises why it failed."""
        await self._source.asked.wait()
        if self._ended.is_set():
            raise self._failure()

    def starve(self) -> None:
        if self._closer is None:
            self.call.cancel(Cancelled("the input ended before stream.close"))

    async def conclude(self, outcome: object) -> None:
        self._outcome = outcome
        if self._closer is not None:
            self.call.hand_over_room(self._closer)
        self._end()
        self._own.end(self, remember=isinstance(outcome, ZstorError))

    def _end(self) -> None:
        self._source.abandon()
        self._ended.set()

    def _check_going_on(self) -> None:
        if self._ended.is_set() or self.call.stopped:
            raise self._failure()
        if self._closer is not None:
            raise Conflict("the stream is being closed")

    async def _break_off(self, error: ZstorError) -> ZstorError:
        """The error, when nothing is left of the stream that it ended."""
        self.call.cancel(error)
        await self._ended.wait()
        return error

    def _failure(self) -> ZstorError:
        return self._outcome if isinstance(self._outcome, ZstorError) else self.call.why_stopped()


class Outgoing:
    """Bytes to the client: the sink of a read."""

    def __init__(self, identity: str, opener: Call) -> None:
        self.id: Final = identity
        self.call: Final = Call(opener.method, opener.connection, NO_DESCRIPTORS, opener.answered)
        opener.hand_over_room(self.call)
        self._own = opener.connection.state(OwnStreams)
        self._sent = 0
        self._acknowledged = 0
        self._moved = trio.Event()
        self._starved = False
        self._ended = trio.Event()
        self._outcome: object = None

    # --- For the client ---

    async def acknowledge(self, seq: int) -> None:
        """The client has taken the piece. What was sent may be acknowledged after the end, too."""
        if isinstance(self._outcome, ZstorError):
            raise self._outcome
        if seq != self._acknowledged or seq >= self._sent:
            error = _wrong_seq("stream.ack", seq, self._acknowledged)
            if self.call.cancel(error):
                await self._ended.wait()
            raise error
        self._acknowledged += 1
        self._moved.set()
        if self._ended.is_set() and self._acknowledged == self._sent:
            self._own.forget(self)

    async def abort(self) -> None:
        """End it; when this returns its stream.end has been sent."""
        self.call.cancel(Cancelled("the stream was aborted"))
        await self._ended.wait()
        self._own.forget(self)

    # --- For the read ---

    async def write(self, parts: Sequence[Buffer]) -> None:
        whole = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
        for start in range(0, len(whole), limits.STREAM_MESSAGE_BYTES):
            await self.send({"value_b64": Base64(whole[start : start + limits.STREAM_MESSAGE_BYTES])})

    async def send(self, members: dict[str, object]) -> None:
        """The next piece, when the client has acknowledged enough of those before it."""
        await self.ready()
        await self.call.connection.notify("stream.data", {"stream": self.id, "seq": self._sent, **members})
        self._sent += 1

    async def ready(self) -> None:
        """Until the next piece may be sent. What is read after this is not kept for a client that acknowledges nothing."""
        await self.call.answered.wait()
        while self._sent - self._acknowledged >= limits.STREAM_WINDOW:
            if self._starved:
                raise Cancelled("the input ended, and with it the acknowledgements")
            self._moved = trio.Event()
            with trio.move_on_after(limits.STREAM_IDLE_SECONDS) as waiting:
                await self._moved.wait()
            if waiting.cancelled_caught:
                raise TimedOut(f"nothing was acknowledged for {limits.STREAM_IDLE_SECONDS:.0f} s", hint="send stream.ack for each")

    # --- For whoever runs it ---

    def starve(self) -> None:
        self._starved = True
        self._moved.set()

    async def conclude(self, outcome: object) -> None:
        self._outcome = outcome if isinstance(outcome, ZstorError) else None  # a result is told here, and remembered no longer
        await self.call.answered.wait()
        how = {"error": error_object(outcome)} if isinstance(outcome, ZstorError) else {"result": outcome}
        await self.call.connection.notify("stream.end", {"stream": self.id, **how})
        self._own.end(self, remember=isinstance(outcome, ZstorError) or self._acknowledged < self._sent)
        self._ended.set()


class OwnStreams:
    """The streams of one connection, and the last ones that ended with something left to say: a failure, or acknowledgements."""

    def __init__(self) -> None:
        self._open: dict[str, Incoming | Outgoing] = {}
        self._remembered: dict[str, Incoming | Outgoing] = {}

    def new_id(self, randomness: Randomness) -> str:
        """An id that no other connection can know; Busy if there are too many streams."""
        if len(self._open) >= limits.STREAMS_PER_CONNECTION:
            raise Busy(
                f"{limits.STREAMS_PER_CONNECTION} streams are open on this connection",
                limit=limits.STREAMS_PER_CONNECTION,
                hint="close or abort one, or open another connection",
            )
        return randomness.bytes(8).hex()

    def add(self, stream: Incoming | Outgoing) -> None:
        self._open[stream.id] = stream

    def end(self, stream: Incoming | Outgoing, *, remember: bool) -> None:
        """It takes no room among the open ones any more."""
        known = self._open.pop(stream.id, None) is not None
        if known and remember:
            self._remembered[stream.id] = stream
            if len(self._remembered) > limits.STREAMS_PER_CONNECTION:
                del self._remembered[next(iter(self._remembered))]

    def forget(self, stream: Incoming | Outgoing) -> None:
        self._open.pop(stream.id, None)
        self._remembered.pop(stream.id, None)

    def any(self, identity: str) -> Incoming | Outgoing:
        """The stream with this id. NotFound if this connection has none, or none any more."""
        stream = self._open.get(identity) or self._remembered.get(identity)
        if stream is None:
            raise NotFound(f'no stream "{identity[:64]}" here', hint="it has ended, or another connection has it")
        return stream

    def of(self, kind: type[Kind], identity: str) -> Kind:
        """The same, InvalidParams if it goes the other way."""
        stream = self.any(identity)
        if not isinstance(stream, kind):
            raise InvalidParams(f"stream {identity} goes the other way", parameter="stream")
        return stream


def _wrong_seq(method: str, seq: int, expected: int) -> Conflict:
    what = f"{method} with seq {seq} where {expected} was due; the stream is aborted"
    return Conflict(what, hint="open another one, and send its pieces in order", current=expected)
