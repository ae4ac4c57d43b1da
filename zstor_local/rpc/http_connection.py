"""The server's side of an HTTP/1.1 connection: the requests of one client, one after the other, on h11 and a trio stream.

How long a client is waited for and when it is heard no more stands here, once for all servers whose connections speak HTTP alone. What
is asked and answered is theirs. (On the daemon's own socket HTTP is one language of several: `http.py`.)
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from typing import Final

import h11
import trio

from zstor_local import limits
from zstor_local.rpc import http1

LINGER_SECONDS: Final = 2.0
RECEIVE_BYTES: Final = 64 * limits.KIB


@asynccontextmanager
async def ending(stream: trio.abc.Stream, log: logging.Logger) -> AsyncIterator[None]:
    """While a connection is served; then it is closed. Whatever ends it ends no other one: a client may go at any time, and what is a
    fault of ours is told.
    """
    try:
        yield
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        pass
    except Exception:
        log.exception("a connection broke off")
    finally:
        await trio.aclose_forcefully(stream)


class HttpConnection(ABC):
    """One client's. Whoever derives from it says what is answered, each time once: `head`, `data` and `end` are its bytes."""

    def __init__(self, stream: trio.abc.Stream, *, idle_seconds: float, slow_seconds: float) -> None:
        """How long a client may take to ask (the headers, all of them), and to take what is written at once."""
        self._stream = stream
        self._idle_seconds = idle_seconds
        self._slow_seconds = slow_seconds
        self._http = http1.new_connection()
        self._last = False  # no further request is taken
        self.wants_body = True  # what is asked is answered with more than its head

    # --- For whoever derives ---

    @abstractmethod
    async def answer(self, asked: h11.Request) -> None:
        """Answer a request; its body comes from `receive`. What is left of it is not read."""

    @abstractmethod
    async def refuse(self, status: int, why: str) -> None:
        """Answer what is no request of HTTP/1.1."""

    @property
    def stopping(self) -> bool:
        """Whether the request that is being answered is to be the last one."""
        return False

    def idle(self) -> AbstractContextManager[None]:
        """Entered while the client has nothing to come from us."""
        return nullcontext()

    def waiting(self) -> AbstractContextManager[None]:
        """Entered around each wait for the client."""
        return nullcontext()

    # --- Requests ---

    async def serve(self) -> None:
        """Until the client is gone, has asked for the end, or cannot be followed. TooSlowError, and trio's errors of broken streams."""
        while not self.stopping:
            self.wants_body = True
            try:
                with self.idle(), trio.fail_after(self._idle_seconds):
                    asked = await self._next()
                if not isinstance(asked, h11.Request):
                    return
                self.wants_body = asked.method != b"HEAD"
                if http1.has_two_lengths(asked):
                    self._last = True  # RFC 9112 §6.1
                    await self.refuse(400, "Content-Length and Transfer-Encoding exclude each other")
                else:
                    await self.answer(asked)
            except h11.RemoteProtocolError as error:
                self._last = True
                if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                    return
                await self.refuse(error.error_status_hint, f"not HTTP/1.1: {error}")
            if self._last or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                await self._linger()
                return
            self._http = http1.next_request(self._http)

    async def receive(self) -> bytes:
        """The next bytes of the request's body; b"" at its end. h11.RemoteProtocolError where it breaks off."""
        if self._http.they_are_waiting_for_100_continue:
            await self.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        event = await self._next()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        """What the client says next."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            with self.waiting():
                http1.receive(self._http, bytes(await self._stream.receive_some(RECEIVE_BYTES)))
        return event  # type: ignore[return-value]

    # --- Answers ---

    def head(self, status: int, headers: Iterable[tuple[str, str]]) -> bytes:
        """Status and headers. The connection ends with the answer where the request's body is not here yet."""
        self._drop_what_came()
        ends = self._last or self.stopping or self._http.their_state is not h11.DONE
        closing = [("connection", "close")] if ends else []
        return self._http.send(h11.Response(status_code=status, headers=[*headers, *closing])) or b""

    def data(self, piece: bytes) -> bytes:
        """Some of the body."""
        return self._http.send(h11.Data(data=piece)) or b""

    def end(self) -> bytes:
        """The end of the answer."""
        return self._http.send(h11.EndOfMessage()) or b""

    async def write(self, data: bytes) -> None:
        """Send something. TooSlowError where the client does not take it."""
        if data:
            with self.waiting(), trio.fail_after(self._slow_seconds):
                await self._stream.send_all(data)

    def _drop_what_came(self) -> None:
        """Read over what is here of a body that nobody wants; to its end, if that is here too."""
        with suppress(h11.RemoteProtocolError):
            while self._http.their_state is h11.SEND_BODY and isinstance(self._http.next_event(), h11.Data):
                pass

    async def _linger(self) -> None:
        """Take in what is still coming: a close would throw away the answer with it (RFC 9112 §9.6)."""
        with self.idle(), self.waiting(), trio.move_on_after(LINGER_SECONDS):
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
            while await self._stream.receive_some(RECEIVE_BYTES):
                pass
