"""Who holds room and is slow makes way for those who have waited for it for long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from zstor_local import limits
from zstor_local.formats.messages import ADDRESS, CONTENT, RESPONSE
from zstor_local.formats.protobuf import Message
from zstor_local.twirp.http import BODY_SECONDS, LARGE_BODIES, PROTOBUF, SMALL_BODY_BYTES, Server
from zstor_local.twirp.services import RoomFor, Route

GET, ADD = "/twirp/get", "/twirp/add"
LARGE = limits.INLINE_VALUE_BYTES
ANSWERS = limits.REPLY_BUDGET_BYTES // LARGE  # that there is room for
WAIT = 2 * limits.CROWDED_SECONDS  # for what others hold, at most


async def _get(_: Message, room: RoomFor) -> Message:
    await room(LARGE)
    return CONTENT.make(data=bytes(LARGE))


async def _add(_: Message, __: RoomFor) -> Message:
    return RESPONSE.make(data=b"ok")


class Client:
    """One at the other end of a connection that keeps nothing: what is sent is taken at once or waited for."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream

    async def ask(self, path: str, size: int, body: bytes = b"") -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: h\r\nconnection: close\r\ncontent-type: {PROTOBUF}\r\ncontent-length: {size}\r\n\r\n"
        await self.stream.send_all(head.encode() + body)

    async def taken(self) -> bytes:
        """All that comes."""
        answer = bytearray()
        while piece := await self.stream.receive_some():
            answer += piece
        return bytes(answer)


@asynccontextmanager
async def served() -> AsyncIterator[list[Client]]:
    server = Server({GET: Route(ADDRESS, _get), ADD: Route(CONTENT, _add)})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.make_room)
        clients = []
        for _ in range(ANSWERS + LARGE_BODIES + 1):
            ours, theirs = trio.testing.lockstep_stream_pair()

            async def serve(stream: trio.abc.Stream = theirs) -> None:
                await server.serve_client(stream, may_connect=lambda _: True, rebound=False)  # type: ignore[arg-type]

            nursery.start_soon(serve)
            clients.append(Client(ours))
        yield clients
        nursery.cancel_scope.cancel()


async def test_clients_that_take_no_answer_do_not_keep_it_from_others(autojump_clock: trio.testing.MockClock) -> None:
    async with served() as clients:
        stalled, other = clients[:ANSWERS], clients[-1]
        for client in stalled:
            await client.ask(GET, 0)
        await other.ask(GET, 0)
        assert (await other.taken()).endswith(bytes(LARGE))
        assert trio.current_time() <= WAIT


async def test_clients_that_send_no_body_do_not_keep_others_from_sending(autojump_clock: trio.testing.MockClock) -> None:
    async with served() as clients:
        stalled, other = clients[:LARGE_BODIES], clients[-1]
        for client in stalled:
            await client.ask(ADD, SMALL_BODY_BYTES + 1)
        body = CONTENT.make(data=bytes(SMALL_BODY_BYTES)).encode()
        await other.ask(ADD, len(body), body)
        assert b" 200 " in await other.taken()
        assert trio.current_time() <= WAIT
        for client in stalled:
            assert b'"deadline_exceeded"' in await client.taken()


async def test_who_keeps_nobody_waiting_may_be_slow(autojump_clock: trio.testing.MockClock) -> None:
    async with served() as clients:
        slow = clients[0]
        body = CONTENT.make(data=bytes(SMALL_BODY_BYTES)).encode()
        await slow.ask(ADD, len(body), body[:1])
        await trio.sleep(BODY_SECONDS - 1)
        await slow.stream.send_all(body[1:])
        assert b" 200 " in await slow.taken()
