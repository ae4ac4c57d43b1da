"""What may come over a connection to a shard server: an answer to the request, or a shard's error, whatever the bytes are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from tests.shards.test_http import NoTokens
from zstor_local.network import open_network
from zstor_local.shards.base import ShardError
from zstor_local.shards.http.ask import Ask, Deadlines
from zstor_local.shards.http.peer import Peer
from zstor_local.shards.http.server import Server
from zstor_local.system import real_runtime

Serve = Callable[[trio.SocketStream], Awaitable[None]]

JSON = b"content-type: application/json"


def head(status: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *headers]) + b"\r\n\r\n"


def answer(body: bytes, status: bytes = b"200 OK", *headers: bytes) -> bytes:
    return head(status, JSON, b"content-length: %d" % len(body), *headers) + body


@asynccontextmanager
async def asking(serve: Serve, deadlines: Deadlines) -> AsyncIterator[Peer]:
    """A peer of a server that does this with each connection."""

    async def each(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):
                await serve(stream)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, each, 0, host="127.0.0.1"))
        async with open_network() as network:
            port = listener.socket.getsockname()[1]
            yield Peer(Server(f"http://127.0.0.1:{port}", network, real_runtime().randomness, deadlines), NoTokens())
        nursery.cancel_scope.cancel()


async def request(stream: trio.SocketStream) -> bytes:
    """The path of the next request; nothing once there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some()
        if not piece:
            return b""
        data += piece
    return data.split()[1]


WHERE = (b"http://xn--a.b/", b"http://[::1", b"//", b"http://\xff\xfe/", b"http:///", b"http://a:b/", b"http://a:99999/", b"\x7f", b"")
CODES = (b"301", b"302", b"303", b"307", b"308")


@pytest.mark.parametrize(
    "raw",
    [
        *(answer(b"", status + b" Moved", b"location: " + where) for status in CODES for where in WHERE),
        b"",
        b"\x00\xff" * 100,
        head(b"101 Switching Protocols", b"upgrade: x", b"connection: upgrade"),
        answer(b"{}", b"999 What"),
        answer(b"{}", b"000 What"),
        b"HTTP/2 200 OK\r\n\r\n",
        head(b"200 OK", JSON, b"content-length: -1"),
        head(b"200 OK", JSON, b"content-length: 2", b"content-length: 3") + b"{}",
        head(b"200 OK", JSON, b"content-length: " + b"9" * 30) + b"{}",
        head(b"200 OK", JSON, b"content-length: 3") + b"{}",
        head(b"200 OK", JSON, b"transfer-encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
        head(b"200 OK", JSON, b"transfer-encoding: gzip") + b"{}",
        head(b"200 OK", b"content-type: \xff; charset=\xff", b"content-length: 2") + b"{}",
        head(b"200 OK", b"a: " + b"b" * 200_000),
        answer(b"{}", b"200 OK", b"content-encoding: gzip"),
        answer(b"x" * 2_000_000),
        answer(b"x" * 2_000_000, b"500 What"),
    ],
)
async def test_what_is_no_answer_is_a_shards_error(raw: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        if await request(stream):
            await stream.send_all(raw)

    async with asking(serve, Deadlines()) as peer:
        for _ in range(2):
            with pytest.raises(ShardError):
                await peer.ask(Ask("GET", "/v1/x", expect=(200,), most=1_000))


async def test_what_a_server_sets_is_not_sent_back() -> None:
    seen: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        while data := await stream.receive_some():
            seen.append(data)
            await stream.send_all(answer(b"{}", b"200 OK", b"set-cookie: more=and more; path=/"))

    async with asking(serve, Deadlines()) as peer:
        for _ in range(3):
            await peer.ask(Ask("GET", "/v1/x", expect=(200,), most=1_000))
    assert b"more" not in b"".join(seen)


async def test_an_answer_that_nobody_waited_for_is_not_taken_for_another_ones() -> None:
    """Requests are cancelled while they are sent, while their answers come, and before."""
    asked: list[bytes] = []
    begun, go_on = trio.Event(), trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        while path := await request(stream):
            asked.append(path)
            whole = answer(b'"%s"' % path)
            if path.startswith(b"/slow/"):
                await stream.send_all(whole[: int(path[6:])])
                begun.set()
                await go_on.wait()
                whole = whole[int(path[6:]) :]
            await stream.send_all(whole)

    async with asking(serve, Deadlines()) as peer:
        for cut in (0, 10, len(answer(b"")), len(answer(b"")) + 3):
            begun, go_on = trio.Event(), trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.ask, Ask("GET", f"/slow/{cut}", expect=(200,), most=1_000))
                await begun.wait()
                nursery.cancel_scope.cancel()
            go_on.set()
            for number in range(3):
                reply = await peer.ask(Ask("GET", f"/{cut}/{number}", expect=(200,), most=1_000))
                assert reply.body == b'"/%d/%d"' % (cut, number)
