"""Twirp over HTTP/1.1: requests in, answers out (twitchtv.github.io/twirp/docs/spec_v7).

A request is a POST whose content type says what its body is: protobuf or JSON; the answer is of the same kind, an error always JSON.
Web pages may not ask: browsers send `Origin`, and a name in `Host` that is not this machine's was rebound to it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import h11
import trio

from zstor_local import limits
from zstor_local.errors import ParseError, ZstorError
from zstor_local.formats.protobuf import Malformed, Message
from zstor_local.rpc.budget import Room
from zstor_local.rpc.http_connection import HttpConnection, ending
from zstor_local.rpc.strict_json import decode
from zstor_local.twirp.crowd import Crowd
from zstor_local.twirp.refusals import Refusal, refusal_of
from zstor_local.twirp.services import Route

JSON: Final = "application/json"
PROTOBUF: Final = "application/protobuf"
BODY_BYTES: Final = limits.MESSAGE_BYTES  # 8 MiB in base64, and room
SMALL_BODY_BYTES: Final = 64 * limits.KIB
LARGE_BODIES: Final = 4  # at once, over all connections
CONNECTIONS: Final = 64
IDLE_SECONDS: Final = 75.0
BODY_SECONDS: Final = 60.0
_HERE: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})

log = logging.getLogger("zstor.twirp")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back."""

    status: int
    kind: str
    body: bytes


class Server:
    """All connections."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = routes
        self._bodies = Crowd(LARGE_BODIES)  # each large one is one of it
        self._answers = Crowd(limits.REPLY_BUDGET_BYTES)
        self._connections = 0

    async def make_room(self) -> None:
        """Have clients that hold much and are slow give way to those who have waited for long; for ever."""
        while True:
            await trio.sleep(limits.CROWDED_SECONDS)
            self._bodies.look()
            self._answers.look()

    async def serve_client(self, stream: trio.SocketStream, *, may_connect: Callable[[trio.SocketStream], bool], rebound: bool) -> None:
        """One client until it is gone, or silent for too long. `rebound`: over TCP, where a web page's host may be named in `Host`."""
        if self._connections >= CONNECTIONS:
            await stream.aclose()
            return
        self._connections += 1
        try:
            async with ending(stream, log):
                if may_connect(stream):
                    await _Connection(self._routes, self._bodies, self._answers, stream, rebound).serve()
                else:
                    log.warning("refused a connection of another user")
        finally:
            self._connections -= 1


class _Connection(HttpConnection):
    """Requests of one client."""

    def __init__(
        self, routes: Mapping[str, Route], bodies: Crowd, answers: Crowd, stream: trio.SocketStream, rebound: bool
    ) -> None:  # fmt: skip
        super().__init__(stream, idle_seconds=IDLE_SECONDS, slow_seconds=limits.SLOW_READER_SECONDS)
        self._routes = routes
        self._bodies = bodies
        self._answers = answers
        self._rebound = rebound

    async def answer(self, asked: h11.Request) -> None:
        room = Room(self._answers.budget)
        try:
            answer = await self._answered(asked, room)
            with self._answers.waited_for() if room.held else trio.CancelScope() as sending:
                await self._send(answer)
            if sending.cancelled_caught:
                raise trio.TooSlowError
        finally:
            room.close()

    async def refuse(self, status: int, why: str) -> None:
        await self._send(_refused(Refusal("malformed", why), status=status))

    async def _answered(self, request: h11.Request, room: Room) -> Answer:
        try:
            route, kind = self._route(request)
            size = _header(request, b"content-length")
            if size.isdecimal() and int(size) <= SMALL_BODY_BYTES:
                return await self._run(route, kind, room, trio.move_on_after(BODY_SECONDS))
            large = Room(self._bodies.budget, 1)
            try:
                await large.until(lambda: large.take(1))
                return await self._run(route, kind, room, self._bodies.waited_for(BODY_SECONDS))
            finally:
                large.close()
        except Refusal as refusal:
            return _refused(refusal)

    async def _run(self, route: Route, kind: str, room: Room, coming: AbstractContextManager[trio.CancelScope]) -> Answer:
        with coming as reading:
            body = await self._body()
        if reading.cancelled_caught:
            raise Refusal("deadline_exceeded", f"the body did not come within {BODY_SECONDS:.0f} s, or others waited for its room")
        try:
            message = _parsed(route, kind, body)
        except (Malformed, ParseError) as error:
            raise Refusal("malformed", f"the body is not {route.request.name}: {error}") from None

        async def room_for(size: int) -> None:
            if size > limits.SMALL_REPLY_BYTES:
                await room.until(lambda: room.take(size))

        try:
            return _encoded(await route.run(message, room_for), kind)
        except ZstorError as error:
            raise refusal_of(error) from None
        except Exception:
            log.exception("a request failed")
            raise Refusal("internal", "a fault of the daemon's; its log has more") from None

    def _route(self, request: h11.Request) -> tuple[Route, str]:
        """What was asked for, and the kind of its body; Refusal."""
        path = request.target.decode().partition("?")[0]
        asked = f"{request.method.decode()} {path}"
        if _header(request, b"origin") or (self._rebound and _host(request) not in _HERE):
            raise Refusal("permission_denied", "this is not for web pages")
        route = self._routes.get(path)
        kind = _header(request, b"content-type").partition(";")[0].strip().lower()
        why = (
            "there is no such method"
            if route is None
            else "only POST is understood"
            if request.method != b"POST"
            else f"the content type has to be {PROTOBUF} or {JSON}"
            if kind not in (JSON, PROTOBUF)
            else None
        )
        if route is None or why is not None:
            raise Refusal("bad_route", why or "", {"twirp_invalid_route": asked})
        return route, kind

    async def _body(self) -> bytes:
        body = bytearray()
        while piece := await self.receive():
            body += piece
            if len(body) > BODY_BYTES:
                raise Refusal("resource_exhausted", f"the body is longer than {BODY_BYTES} bytes")
        return bytes(body)

    async def _send(self, answer: Answer) -> None:
        headers = [("content-type", answer.kind), ("content-length", str(len(answer.body))), ("x-content-type-options", "nosniff")]
        head = self.head(answer.status, headers)
        await self.write(head + (self.data(answer.body) if self.wants_body else b"") + self.end())


def _parsed(route: Route, kind: str, body: bytes) -> Message:
    if kind == PROTOBUF:
        return route.request.parse(body)
    return route.request.from_json(decode(body), ignore_unknown=True)


def _encoded(message: Message, kind: str) -> Answer:
    return Answer(200, kind, message.encode() if kind == PROTOBUF else _json(message.to_json()))


def _refused(refusal: Refusal, *, status: int | None = None) -> Answer:
    return Answer(status or refusal.status, JSON, _json(refusal.to_json()))


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _header(request: h11.Request, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in request.headers if key == name), "")


def _host(request: h11.Request) -> str:
    """The name in `Host`, without the port."""
    host = _header(request, b"host").lower()
    name, _, port = host.rpartition(":")
    return name if name and port.isdecimal() else host
