"""What a method sees of its call: descriptors, progress, the moment of commit, the client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Final, Protocol, TypeVar, cast

import trio

from zstor_local import limits
from zstor_local.errors import Busy, InvalidParams, NotSupported, ShuttingDown, TimedOut, ZstorError
from zstor_local.rpc.budget import Room
from zstor_local.rpc.descriptors import Descriptors
from zstor_local.rpc.strict_json import JsonObject

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who made the connection, as the kernel saw it then. `mounts`: see runtime.ClientFiles.mount_namespace.

    Later nothing more is asked of the process: it may have ended, and another one may bear its id.
    """

    pid: int
    uid: int
    mounts: str | None = None


class Connection(ABC):
    """The part of a connection that methods use. `reply_room` is its part of the memory for large replies."""

    def __init__(self, peer: Peer, reply_room: Room) -> None:
        self.peer: Final = peer
        self.reply_room: Final = reply_room
        self._states: dict[type, object] = {}

    def state(self, kind: type[T]) -> T:
        """This connection's own `kind`, made without arguments when first asked for."""
        if kind not in self._states:
            self._states[kind] = kind()
        return cast(T, self._states[kind])

    @property
    @abstractmethod
    def replies_only(self) -> bool:
        """Nothing but replies can be sent to this client, and each of its messages stands alone."""

    @abstractmethod
    def begin(self, work: Work) -> None:
        """Run what outlives the call that began it. It ends, at the latest, with the connection, which stays open for it."""

    @abstractmethod
    async def notify(self, method: str, params: object) -> None:
        """Send a notification, waiting for room as a reply does."""

    @abstractmethod
    def offer(self, method: str, params: object) -> None:
        """Send a notification if there is room at once; else drop it."""

    @abstractmethod
    def client_gone(self) -> bool:
        """The client has closed the connection (a half-close does not count)."""


class Work(Protocol):
    """What goes on when the call that began it has been answered."""

    @property
    def call(self) -> Call:
        """A call of its own, bound to what is to be done; by it the work is cancelled."""
        ...

    def starve(self) -> None:
        """The client has ended its input: no message will come any more. May be called again."""
        ...

    async def conclude(self, outcome: object) -> None:
        """It has ended with this result or ZstorError. Not called where the connection ended first."""
        ...


@dataclass(slots=True)
class LongPolls:
    """A connection's calls that only wait for news; they need not be waited for when the daemon stops."""

    waiting: set[trio.CancelScope] = field(default_factory=set)
    ended: bool = False

    def end(self) -> None:
        """Of those too that only come to it now."""
        self.ended = True
        for scope in self.waiting:
            scope.cancel()


class Call:
    """One request while it is known. Methods get it as their first argument."""

    __slots__ = (
        "_committed",
        "_done",
        "_progress_due",
        "_progress_token",
        "_reason",
        "_reply_bytes",
        "_scope",
        "answered",
        "bound",
        "connection",
        "deadline",
        "descriptors",
        "detach",
        "let_go",
        "method",
        "refused",
    )

    def __init__(self, method: str, connection: Connection, descriptors: Descriptors, answered: trio.Event) -> None:
        self.method = method
        self.connection = connection
        self.descriptors = descriptors
        self.answered = answered  # set when the reply, or the batch's that it is a part of, is on its way
        self.bound: Callable[[], object] | None = None  # the method and its arguments, once they are checked
        self.refused: InvalidParams | None = None
        self.detach = False  # the caller wants a job
        self.let_go: Callable[[], object] | None = None  # to be called when it waits for a descriptor, whose stream counts by itself
        self._progress_token: str | int | None = None
        self._progress_due = -inf
        self._done = -inf
        self.deadline = inf  # of trio's clock
        self._committed = False
        self._reason: ZstorError | None = None
        self._reply_bytes = 0
        self._scope: trio.CancelScope | None = None

    # --- For methods ---

    @property
    def peer(self) -> Peer:
        """Who asks."""
        return self.connection.peer

    def take_fd(self, index: int) -> int:
        """The descriptor at an index of those sent with the message. The method owns it from now on and closes it."""
        if self.let_go is not None:
            self.let_go()
        return self.descriptors.take(index)

    def require_messages(self, what: str) -> None:
        """Raise NotSupported if nothing but a reply can be sent to this client."""
        if self.connection.replies_only:
            raise NotSupported(f"{what} cannot come over HTTP", hint="speak JSON lines or Content-Length frames (docs/wire.md)")

    def client_gone(self) -> bool:
        """The client is dead. Ask before committing what came from a pipe: its end may be the client's."""
        return self.connection.client_gone()

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Tell the client how far the call is, if it asked to be told. Never waits; too frequent and falling values are dropped."""
        if self._progress_token is None or done <= self._done:
            return
        now = trio.current_time()
        if now < self._progress_due:
            return
        self._progress_due = now + 1 / limits.PROGRESS_PER_SECOND
        self._done = done
        params: JsonObject = {"progressToken": self._progress_token, "progress": done}
        if total is not None:
            params["total"] = total
        if message is not None:
            params["message"] = message
        self.connection.offer("notifications/progress", params)

    @property
    def has_reply_room(self) -> bool:
        """Some of it was taken for this call: it may be kept, and others may wait for it."""
        return self._reply_bytes > 0

    def take_reply_room(self, size: int) -> bool:
        """Whether a reply of about `size` bytes (a message's at most) has room beside those that clients have yet to take.

        Ask before reading them: clients that take nothing must not fill our memory with what they asked for. A connection has few calls
        at once, so small replies always have room.
        """
        if size <= limits.SMALL_REPLY_BYTES:
            return True
        if not self.connection.reply_room.take(size):
            return False
        self._reply_bytes += size
        return True

    def give_back(self, size: int) -> None:
        """Of the room that was taken so much is not needed after all."""
        self._reply_bytes -= size
        self.connection.reply_room.give(size)

    def hand_over_room(self, to: Call) -> None:
        """Another call of the connection's tells what the room was taken for."""
        to._reply_bytes += self._reply_bytes
        self._reply_bytes = 0

    async def reply_room(self, size: int) -> None:
        """The same, after waiting for it. What is to be told may be another by then: look again."""
        await self.connection.reply_room.until(lambda: self.take_reply_room(size))

    def begin_commit(self) -> None:
        """From here on the call's true result is answered: a later cancel, deadline or disconnect does nothing.

        Raises the reason instead if one of them came first. Another task than the call's may commit for it. Waiting for a commit is
        nothing that could be cancelled.
        """
        if self._scope is not None:
            if self._scope.cancel_called or trio.current_effective_deadline() == -inf:
                raise self.why_stopped()
            self._scope.deadline = inf
        self._committed = True

    @contextmanager
    def long_poll(self) -> Iterator[None]:
        """Around waiting for news; Busy if too many calls of this connection do so, ShuttingDown when the daemon stops."""
        polls = self.connection.state(LongPolls)
        if polls.ended:
            raise stopping()
        if len(polls.waiting) >= limits.LONG_POLLS_PER_CONNECTION:
            raise Busy(
                f"{len(polls.waiting)} calls of this connection wait for news already",
                hint="cancel one of them, or open another connection",
                limit=limits.LONG_POLLS_PER_CONNECTION,
            )
        with trio.CancelScope() as scope:
            polls.waiting.add(scope)
            try:
                yield
            finally:
                polls.waiting.discard(scope)
        if scope.cancelled_caught:
            raise stopping()

    # --- For the connection ---

    def configure(self, *, progress_token: str | int | None, timeout: float | None) -> None:
        """What `_meta` asked for."""
        self._progress_token = progress_token
        if timeout is not None:
            self.deadline = trio.current_time() + min(timeout, limits.SAFE_INTEGER)  # a float, however many digits it came with

    def follow_by_job(self) -> None:
        """Progress is wanted for the job that this call has become; a progressToken was for its reply, which is out."""
        self._progress_token = "job"  # noqa: S105 (no secret)

    def cancel(self, reason: ZstorError) -> bool:
        """Stop the call, which then answers the reason; False if it has begun to commit."""
        if self._committed:
            return False
        self._reason = self._reason or reason
        if self._scope is not None:
            self._scope.cancel()
        return True

    def replied(self) -> None:
        """The reply, or a message of its kind, is sent or never will be: its room is free."""
        if self._reply_bytes:
            self.give_back(self._reply_bytes)

    @property
    def stopped(self) -> bool:
        """Cancelled before it ran, or its deadline passed while it waited for its turn."""
        return self._reason is not None or (self.deadline != inf and self.deadline <= trio.current_time())

    def why_stopped(self) -> ZstorError:
        """The reason why the call ended early."""
        if self._reason is not None:
            return self._reason
        if self.deadline <= trio.current_time():
            return TimedOut("the deadline passed before a commit began", hint="call again with more time")
        return stopping()  # the connection ended: nobody will read this

    def scope(self) -> trio.CancelScope:
        """The scope in which the method runs."""
        self._scope = scope = trio.CancelScope()
        if self.deadline != inf:
            scope.deadline = self.deadline
        if self._reason is not None:  # cancelled between its beginning and the first step of its task
            scope.cancel()
        return scope


def stopping() -> ShuttingDown:
    """What a call gets that the daemon's stop has overtaken."""
    return ShuttingDown("the daemon is stopping", hint="try again when it is back")
