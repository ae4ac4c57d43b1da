"""JSON-RPC over HTTP: the state machine, and clients that speak it byte by byte."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11
import pytest
import trio
import trio.testing

from tests.rpc.conftest import Client, World, crowd, error_type, request
from zstor_local import limits
from zstor_local.rpc.call import Call
from zstor_local.rpc.strict_json import Json, JsonObject

PING = request("rpc.ping")


def post(body: str | bytes, *headers: str, version: str = "1.1", path: str = "/") -> bytes:
    body = body.encode() if isinstance(body, str) else body
    lines = [f"POST {path} HTTP/{version}", "Host: zstor", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Browser:
    """Reads responses as any HTTP client does."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._http = h11.Connection(h11.CLIENT)

    async def response(self, method: str = "POST") -> tuple[int, Json, dict[str, str]]:
        """Status, body and headers of the next response. The requests were sent behind h11's back."""
        self._http = h11.Connection(h11.CLIENT)
        self._http.send(h11.Request(method=method, target="/", headers=[("host", "zstor")]))
        self._http.send(h11.EndOfMessage())
        if self.client.received:
            self._http.receive_data(self.client.received)
        self.client.received = b""
        status, body = 0, b""
        headers: dict[str, str] = {}
        while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                self._http.receive_data(await self.client.stream.receive_some())
            elif isinstance(event, (h11.Response, h11.InformationalResponse)):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
                if isinstance(event, h11.InformationalResponse):
                    break
            elif isinstance(event, h11.Data):
                body += event.data
        self.client.received = self._http.trailing_data[0]
        return status, json.loads(body) if body else None, headers


@asynccontextmanager
async def browsing(world: World) -> AsyncIterator[Browser]:
    async with world.serving(), world.client() as client:
        yield Browser(client)


def member(reply: Json, name: str) -> Json:
    assert isinstance(reply, dict)
    return reply[name]


async def test_a_post_is_a_call_and_the_connection_stays(world: World) -> None:
    async with browsing(world) as browser:
        for number in range(3):
            await browser.client.send(post(request("rpc.ping", id=number), path=f"/any/{number}"))
            status, reply, headers = await browser.response()
            assert (status, reply) == (200, {"jsonrpc": "2.0", "result": "pong", "id": number})
            assert headers["content-type"] == "application/json"


@pytest.mark.parametrize("piece", [1, 3, 50])
async def test_however_the_request_is_cut(world: World, piece: int) -> None:
    async with browsing(world) as browser:
        whole = post(PING) + post(PING)
        for start in range(0, len(whole), piece):
            await browser.client.send(whole[start : start + piece])
        assert [(await browser.response())[0] for _ in range(2)] == [200, 200]


async def test_a_chunked_body_is_taken_too(world: World) -> None:
    async with browsing(world) as browser:
        half = len(PING) // 2
        chunks = "".join(f"{len(part):x}\r\n{part}\r\n" for part in (PING[:half], PING[half:]))
        await browser.client.send(f"POST / HTTP/1.1\r\nHost: z\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
        assert member((await browser.response())[1], "result") == "pong"


async def test_a_client_that_waits_for_100_continue_is_told_to_go_on(world: World) -> None:
    async with browsing(world) as browser:
        whole = post(PING, "Expect: 100-continue")
        head, _, body = whole.partition(b"\r\n\r\n")
        await browser.client.send(head + b"\r\n\r\n")
        assert (await browser.response())[0] == 100
        await browser.client.send(body)
        assert member((await browser.response())[1], "result") == "pong"


async def test_errors_of_json_rpc_are_answered_with_200(world: World) -> None:
    async with browsing(world) as browser:
        for body, kind in (
            ("{", "parse_error"),
            ("7", "invalid_request"),
            (request("no.such"), "method_not_found"),
            ("", "parse_error"),
        ):
            await browser.client.send(post(body))
            status, reply, _ = await browser.response()
            assert (status, error_type(reply)) == (200, kind)


async def test_a_batch_is_answered_as_one(world: World) -> None:
    async with browsing(world) as browser:
        await browser.client.send(post(f"[{PING},{PING},7]"))
        status, reply, _ = await browser.response()
        assert isinstance(reply, list)
        assert (status, len(reply)) == (200, 3)


async def test_notifications_are_run_and_answered_with_204(world: World) -> None:
    heard: list[int] = []

    @world.registry.method("hear")
    async def hear(call: Call, /, number: int) -> None:
        """Note a number."""
        heard.append(number)

    async with browsing(world) as browser:
        note = {"jsonrpc": "2.0", "method": "hear", "params": {"number": 1}}
        for body in (json.dumps(note), json.dumps([note, note])):
            await browser.client.send(post(body))
            assert (await browser.response())[:2] == (204, None)
        await browser.client.send(post(PING))
        assert (await browser.response())[0] == 200
    assert heard == [1, 1, 1]


async def test_requests_sent_ahead_are_answered_in_their_order(world: World) -> None:
    begun: list[int] = []

    @world.registry.method("slow")
    async def slow(call: Call, /, turn: int) -> int:
        """Let the other tasks run first."""
        begun.append(turn)
        await trio.testing.wait_all_tasks_blocked()
        assert begun[-1] == turn, "the next one has begun already"
        return turn

    async with browsing(world) as browser:
        await browser.client.send(b"".join(post(request("slow", {"turn": turn}, id=turn)) for turn in range(4)))
        await browser.client.half_close()
        assert [member((await browser.response())[1], "result") for _ in range(4)] == [0, 1, 2, 3]
        assert await browser.client.rest() == b""


@pytest.mark.parametrize(("version", "header"), [("1.1", "Connection: close"), ("1.0", "Accept: */*")])
async def test_the_connection_ends_where_the_client_says_so(world: World, version: str, header: str) -> None:
    async with browsing(world) as browser:
        await browser.client.send(post(PING, header, version=version))
        assert (await browser.response())[0] == 200
        assert await browser.client.rest() == b""


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
async def test_only_post_carries_requests(world: World, method: str) -> None:
    async with browsing(world) as browser:
        await browser.client.send(f"{method} /metrics HTTP/1.1\r\nHost: zstor\r\n\r\n")
        status, reply, headers = await browser.response(method)
        assert (status, headers["allow"]) == (405, "POST")
        if method != "HEAD":
            assert error_type(reply) == "not_supported"
        await browser.client.send(post(PING))
        assert (await browser.response())[0] == 200


@pytest.mark.parametrize("blank", ["\r\n", "\n", "\r\n\r\n"])
@pytest.mark.parametrize("piece", [1, 3, 1_000])
async def test_blank_lines_around_requests_are_read_over(world: World, blank: str, piece: int) -> None:
    sent = blank.encode() + post(PING) + blank.encode() + post(PING) + blank.encode()
    async with browsing(world) as browser:
        for begin in range(0, len(sent), piece):
            await browser.client.send(sent[begin : begin + piece])
        await browser.client.half_close()
        assert [(await browser.response())[0] for _ in range(2)] == [200, 200]
        assert await browser.client.rest() == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"Hello, is anybody there?\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: z\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"POST / HTTP/1.1\r\nHost: z\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: z\r\nX: " + b"x" * 30_000, 431),
        (b"POST / HTTP/1.1\r\nHost: z\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ],
)
async def test_what_is_not_http_gets_a_clear_error_and_the_end(world: World, sent: bytes, status: int) -> None:
    async with browsing(world) as browser:
        await browser.client.send(sent)
        found, reply, headers = await browser.response()
        assert (found, error_type(reply), headers["connection"]) == (status, "invalid_request", "close")
        assert await browser.client.rest() == b""


async def test_what_is_not_http_behind_a_head_has_a_body_in_its_answer(world: World) -> None:
    async with browsing(world) as browser:
        await browser.client.send(b"HEAD / HTTP/1.1\r\nHost: zstor\r\n\r\n" + b"nonsense\r\n\r\n")
        status, _, _ = await browser.response("HEAD")
        assert status == 405
        status, reply, _ = await browser.response()
        assert (status, error_type(reply)) == (400, "invalid_request")


async def test_an_input_that_ends_inside_a_body_is_an_error(world: World) -> None:
    async with browsing(world) as browser:
        await browser.client.send(post(PING)[:-3])
        await browser.client.half_close()
        assert (await browser.response())[0] == 400


async def test_a_message_over_the_limit_is_told_and_the_connection_stays(world: World) -> None:
    async with browsing(world) as browser:
        await browser.client.send(post(b"x" * (limits.MESSAGE_BYTES + 1)))
        status, reply, _ = await browser.response()
        assert (status, error_type(reply)) == (413, "too_large")
        await browser.client.send(post(PING))
        assert (await browser.response())[0] == 200


async def test_a_message_over_the_limit_is_refused_before_it_is_sent(world: World) -> None:
    async with browsing(world) as browser:
        await browser.client.send(f"POST / HTTP/1.1\r\nHost: z\r\nExpect: 100-continue\r\nContent-Length: {10**12}\r\n\r\n")
        status, reply, _ = await browser.response()
        assert (status, error_type(reply)) == (413, "too_large")
        assert await browser.client.rest() == b""


async def test_a_body_that_comes_too_slowly_while_others_wait_is_given_up(world: World, mock_clock: trio.testing.MockClock) -> None:
    async with world.serving() as server, world.client() as client:
        await client.send(post(b"x" * 500_000)[:300_000])
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with crowd(server.dispatcher.inputs, mock_clock):
            status, reply, _ = await Browser(client).response()
            assert (status, error_type(reply)) == (503, "busy")
            assert await client.rest() == b""
        assert server.dispatcher.inputs.left == limits.INPUT_BUDGET_BYTES


async def test_what_http_cannot_carry_is_not_supported(world: World) -> None:
    @world.registry.method("read")
    async def read(call: Call, /, fd: int) -> None:
        """Take a descriptor."""
        call.take_fd(fd)

    async with browsing(world) as browser:
        for body in (request("read", {"fd": 0}), request("rpc.ping", {"_meta": {"progressToken": 1}})):
            await browser.client.send(post(body))
            assert error_type((await browser.response())[1]) == "not_supported"


async def test_a_descriptor_that_comes_all_the_same_is_closed(world: World) -> None:
    reader, writer = trio.socket.socketpair()
    async with browsing(world) as browser:
        whole = post(PING)
        await browser.client.send_with(whole[:1], [reader.fileno()])
        reader.close()
        await browser.client.send(whole[1:])
        assert (await browser.response())[0] == 200
        assert await writer.recv(1) == b""  # nobody has its other end
    writer.close()


async def test_a_client_that_hangs_up_takes_its_call_with_it(world: World) -> None:
    begun, ended = trio.Event(), trio.Event()

    @world.registry.method("wait")
    async def wait(call: Call, /) -> None:
        """Wait for ever."""
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with world.serving():
        async with world.client() as client:
            await client.send(post(request("wait")))
            await begun.wait()
        await ended.wait()


async def test_a_stop_lets_the_running_call_answer(world: World) -> None:
    begun, go_on = trio.Event(), trio.Event()

    @world.registry.method("wait")
    async def wait(call: Call, /) -> str:
        """Wait to be told."""
        begun.set()
        await go_on.wait()
        return "done"

    async with world.serving() as server, world.client() as client:
        await client.send(post(request("wait")) + post(PING))
        await begun.wait()
        server.stop()
        go_on.set()
        reply: JsonObject | Json = (await Browser(client).response())[1]
        assert member(reply, "result") == "done"
