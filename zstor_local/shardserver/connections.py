"""The shard server's connections: HTTP/1.1 on h11 and trio streams, the requests of a client one after the other.

A client is waited for in many places: for its request, for the rest of a body, until it takes an answer, while it wants to hear of
news. Where more come than there may be, the one goes that is waited for the longest: nobody keeps the others out by being there.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, Protocol
from urllib.parse import parse_qsl, unquote

import h11
import trio

from zstor_local import limits
from zstor_local.rpc import http1
from zstor_local.shardserver.answer import SEND_BYTES, Answer, refused
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.request import Request

CONNECTIONS: Final = 1_024
CONNECTIONS_PART: Final = 4  # and no more than this part of the descriptors that the process may have
HANDSHAKE_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 75.0  # longer than a daemon keeps an idle connection, so that it is never cut off in the middle of asking
SLOW_SECONDS: Final = 30.0  # for a client to take a piece of an answer
LINGER_SECONDS: Final = 2.0
RECEIVE_BYTES: Final = 64 * limits.KIB

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]
Give = Callable[[Answer], Awaitable[None]]

log = logging.getLogger("zstor.shardserver")


class Application(Protocol):
    """What answers."""

    async def serve(self, request: Request, give: Give) -> None:
        """Answer once, with `give`."""
        ...


class Connections:
    """All of a server's. Those of clients that wait for the server are never let go for others."""

    def __init__(self, app: Application, most: int = CONNECTIONS) -> None:
        self.app = app
        self.stopping = False
        self._most = most
        self._open = 0
        self._waiting: dict[trio.CancelScope, None] = {}  # the connections whose clients are waited for, the longest first
        self._idle: set[trio.CancelScope] = set()

    async def serve(
        self, bound: socket.socket, tls: ssl.SSLContext | None, *, until: Callable[[], Awaitable[None]], grace: float
    ) -> None:
        """Serve on a listening socket until `until` returns. What runs then has `grace` seconds to end."""
        plain = trio.SocketListener(trio.socket.from_stdlib_socket(bound))
        listener = plain if tls is None else trio.SSLListener(plain, tls, https_compatible=True)
        async with trio.open_nursery() as clients:
            async with trio.open_nursery() as accepting:
                # It waits and tries again where the process is out of descriptors.
                accepting.start_soon(partial(trio.serve_listeners, self._serve_client, [listener], handler_nursery=clients))
                await until()
                accepting.cancel_scope.cancel()
            self.stopping = True
            for idle in self._idle:
                idle.cancel()
            clients.cancel_scope.deadline = trio.current_time() + grace

    async def _serve_client(self, stream: Stream) -> None:
        if self._open >= self._most and not self._let_one_go():
            await trio.aclose_forcefully(stream)
            return
        self._open += 1
        try:
            with trio.CancelScope() as life:
                await _Connection(self, stream, life).serve()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass
        except Exception:
            log.exception("a connection broke off")
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)

    def _let_one_go(self) -> bool:
        """End the connection whose client is waited for the longest; False if the server is at work for all of them."""
        longest = next(iter(self._waiting), None)
        if longest is None:
            return False
        del self._waiting[longest]
        longest.cancel()
        return True

    @contextmanager
    def waiting(self, life: trio.CancelScope) -> Iterator[None]:
        """While a client is waited for."""
        self._waiting[life] = None
        try:
            yield
        finally:
            self._waiting.pop(life, None)

    @contextmanager
    def idle(self, life: trio.CancelScope) -> Iterator[None]:
        """While a client is waited for that has not asked."""
        self._idle.add(life)
        try:
            yield
        finally:
            self._idle.discard(life)


class _Connection:
    """One client's. `life` ends it."""

    def __init__(self, connections: Connections, stream: Stream, life: trio.CancelScope) -> None:
        self._connections = connections
        self._stream = stream
        self._waiting = partial(connections.waiting, life)
        self._idle = partial(connections.idle, life)
        self._http = http1.new_connection()

    async def serve(self) -> None:
        if isinstance(self._stream, trio.SSLStream):
            with self._idle(), self._waiting(), trio.fail_after(HANDSHAKE_SECONDS):
                await self._stream.do_handshake()
        while not self._connections.stopping:
            try:
                with self._idle(), trio.fail_after(IDLE_SECONDS):
                    asked = await self._next()
                if not isinstance(asked, h11.Request):
                    return
                await self._answer(asked)
            except h11.RemoteProtocolError as error:
                if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await self._give(b"", refused(Refusal("bad_request", f"not HTTP/1.1: {error}")))
                    await self._linger()
                return
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                await self._linger()
                return
            self._http = http1.next_request(self._http)

    async def _answer(self, asked: h11.Request) -> None:
        give = partial(self._give, asked.method)
        if http1.has_two_lengths(asked):
            await give(refused(Refusal("bad_request", "Content-Length and Transfer-Encoding exclude each other")))
            return
        path, _, query = asked.target.decode("ascii").partition("?")
        request = Request(
            asked.method.decode("ascii"),
            [unquote(part) for part in path.split("/")[1:]],
            dict(parse_qsl(query, keep_blank_values=True)),
            {name.decode("latin-1"): value.decode("latin-1") for name, value in asked.headers},
            self._receive,
            self._waiting,
        )
        await self._connections.app.serve(request, give)

    async def _receive(self) -> bytes:
        """The next bytes of the request's body; b"" at its end. Refusal where it breaks off."""
        try:
            if self._http.they_are_waiting_for_100_continue:
                await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
            event = await self._next()
        except h11.RemoteProtocolError as error:
            raise Refusal("bad_request", f"the body is not HTTP/1.1: {error}") from None
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        """What the client says next."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            with self._waiting():
                http1.receive(self._http, bytes(await self._stream.receive_some(RECEIVE_BYTES)))
        return event  # type: ignore[return-value]

    async def _give(self, method: bytes, answer: Answer) -> None:
        """Send it. BrokenResourceError where its pieces end early: the client is to notice."""
        self._drop_what_came()
        headers = [*answer.headers]
        if answer.status != 204:
            headers += [("content-type", answer.kind), ("content-length", str(answer.size))]
        if self._connections.stopping or self._http.their_state is not h11.DONE:
            headers.append(("connection", "close"))
        head = self._http.send(h11.Response(status_code=answer.status, headers=headers)) or b""
        at, size = 0, 0 if method == b"HEAD" else answer.size
        while at < size:
            piece = answer.body[at : at + SEND_BYTES]
            if not piece and answer.pieces is not None:
                piece = await answer.pieces(at)
            if not piece:
                raise trio.BrokenResourceError("an answer ends early")
            at += len(piece)
            await self._write(head + (self._http.send(h11.Data(data=piece)) or b""))
            head = b""
        await self._write(head + (self._http.send(h11.EndOfMessage()) or b""))

    def _drop_what_came(self) -> None:
        """Read over what is here of a body that nobody wants; to its end, if that is here too."""
        with suppress(h11.RemoteProtocolError):
            while self._http.their_state is h11.SEND_BODY and isinstance(self._http.next_event(), h11.Data):
                pass

    async def _write(self, data: bytes | None) -> None:
        if data:
            with self._waiting(), trio.fail_after(SLOW_SECONDS):
                await self._stream.send_all(data)

    async def _linger(self) -> None:
        """Take in what is still coming: a close would throw away the answer with it (RFC 9112 §9.6)."""
        with self._idle(), self._waiting(), trio.move_on_after(LINGER_SECONDS):
            if isinstance(self._stream, trio.SocketStream):
                await self._stream.send_eof()
            while await self._stream.receive_some(RECEIVE_BYTES):
                pass
