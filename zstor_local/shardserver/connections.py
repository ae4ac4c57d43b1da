"""The shard server's connections: how many there may be, and which one goes where they are too many.

A client is waited for in many places: for its request, for the rest of a body, until it takes an answer, while it wants to hear of
news. Where more come than there may be, the one goes that is waited for the longest: nobody keeps the others out by being there.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Final, Protocol
from urllib.parse import parse_qsl, unquote

import h11
import trio

from zstor_local.rpc.http_connection import HttpConnection, ending
from zstor_local.shardserver.answer import SEND_BYTES, Answer, refused
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.request import Request

CONNECTIONS: Final = 1_024
CONNECTIONS_PART: Final = 4  # and no more than this part of the descriptors that the process may have
HANDSHAKE_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 75.0  # longer than a daemon keeps an idle connection, so that it is never cut off in the middle of asking
SLOW_SECONDS: Final = 30.0  # for a client to take a piece of an answer

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
            async with ending(stream, log):
                with trio.CancelScope() as life:
                    connection = _Connection(self, stream, life)
                    if isinstance(stream, trio.SSLStream):
                        with connection.idle(), connection.waiting(), trio.fail_after(HANDSHAKE_SECONDS):
                            await stream.do_handshake()
                    await connection.serve()
        finally:
            self._open -= 1

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


class _Connection(HttpConnection):
    """One client's. `life` ends it."""

    def __init__(self, connections: Connections, stream: Stream, life: trio.CancelScope) -> None:
        super().__init__(stream, idle_seconds=IDLE_SECONDS, slow_seconds=SLOW_SECONDS)
        self._connections = connections
        self._life = life

    @property
    def stopping(self) -> bool:
        return self._connections.stopping

    def idle(self) -> AbstractContextManager[None]:
        return self._connections.idle(self._life)

    def waiting(self) -> AbstractContextManager[None]:
        return self._connections.waiting(self._life)

    async def answer(self, asked: h11.Request) -> None:
        path, _, query = asked.target.decode("ascii").partition("?")
        request = Request(
            asked.method.decode("ascii"),
            [unquote(part) for part in path.split("/")[1:]],
            dict(parse_qsl(query, keep_blank_values=True)),
            {name.decode("latin-1"): value.decode("latin-1") for name, value in asked.headers},
            self._body,
            self.waiting,
        )
        await self._connections.app.serve(request, self._give)

    async def refuse(self, status: int, why: str) -> None:
        await self._give(refused(Refusal("bad_request", why)))

    async def _body(self) -> bytes:
        """The next bytes of the request's body; b"" at its end. Refusal where it breaks off."""
        try:
            return await self.receive()
        except h11.RemoteProtocolError as error:
            raise Refusal("bad_request", f"the body is not HTTP/1.1: {error}") from None

    async def _give(self, answer: Answer) -> None:
        """Send it. BrokenResourceError where its pieces end early: the client is to notice."""
        headers = [*answer.headers]
        if answer.status != 204:
            headers += [("content-type", answer.kind), ("content-length", str(answer.size))]
        head = self.head(answer.status, headers)
        at, size = 0, answer.size if self.wants_body else 0
        while at < size:
            piece = answer.body[at : at + SEND_BYTES]
            if not piece and answer.pieces is not None:
                piece = await answer.pieces(at)
            if not piece:
                raise trio.BrokenResourceError("an answer ends early")
            at += len(piece)
            await self.write(head + self.data(piece))
            head = b""
        await self.write(head + self.end())
