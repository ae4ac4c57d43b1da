"""Content-Length frames: the state machine, and a client that speaks them."""

from __future__ import annotations

import json
import os

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.rpc.conftest import Client, World, crowd, error_type, request
from zstor_local import limits
from zstor_local.errors import ParseError, TooLarge
from zstor_local.rpc.call import Call
from zstor_local.rpc.content_length import ContentLengthFramer
from zstor_local.rpc.framing import Event, Fault, Framer, Message
from zstor_local.rpc.http import HttpFramer
from zstor_local.rpc.strict_json import Json, JsonObject
from zstor_local.rpc.wire import wire_of


def framed(value: Json, *, before: str = "", name: str = "Content-Length") -> bytes:
    body = json.dumps(value).encode()
    return f"{before}{name}: {len(body)}\r\n\r\n".encode() + body


def events(framer: ContentLengthFramer, *pieces: bytes, end: bool = False) -> list[Event]:
    found: list[Event] = []
    for piece in pieces:
        framer.receive(piece)
        while (event := framer.next_event()) is not None:
            found.append(event)
    if end:
        framer.end()
        while (event := framer.next_event()) is not None:
            found.append(event)
    return found


def values(found: list[Event]) -> list[Json]:
    assert all(isinstance(event, Message) for event in found), found
    return [event.value for event in found if isinstance(event, Message)]


def test_the_first_byte_tells_what_is_spoken() -> None:
    assert all(isinstance(wire_of(byte), ContentLengthFramer) for byte in b"Cc")
    assert all(isinstance(wire_of(byte), HttpFramer) for byte in b"PGHOD")
    assert all(isinstance(wire_of(byte), Framer) for byte in b'{[ \n"1x')


@given(st.lists(st.recursive(st.none() | st.text(), st.lists), max_size=4), st.data())
def test_however_the_input_is_cut_the_messages_are_the_same(messages: list[Json], data: st.DataObject) -> None:
    whole = b"".join(framed(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert values(events(ContentLengthFramer(), *pieces, end=True)) == messages


def test_other_headers_in_any_order_and_case_are_read_over() -> None:
    kind = "Content-Type: application/vscode-jsonrpc; charset=utf-8\r\n"
    body = b"[1]"
    after = b"content-length:3\r\n" + kind.encode() + b"\r\n" + body
    whole = framed([1], before=kind) + framed([1], name="CONTENT-LENGTH") + after
    assert values(events(ContentLengthFramer(), whole)) == [[1]] * 3


@pytest.mark.parametrize("piece", [1, 2, 5, 100])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_may_end_without_a_carriage_return(end: bytes, piece: int) -> None:
    whole = (b"Content-Type: a" + end + b"content-length: 3" + end * 2 + b"[1]") * 2
    assert values(events(ContentLengthFramer(), *(whole[at : at + piece] for at in range(0, len(whole), piece)))) == [[1], [1]]


def test_what_is_framed_can_be_read() -> None:
    framer = ContentLengthFramer()
    assert values(events(ContentLengthFramer(), framer.frame(b'{"a":1}\n') + framer.frame(b"2\n"))) == [{"a": 1}, 2]


def test_a_body_that_is_no_json_costs_itself_alone() -> None:
    found = events(ContentLengthFramer(), b"Content-Length: 3\r\n\r\n{x}" + framed([1]))
    assert [type(event) for event in found] == [Fault, Message]
    assert isinstance(found[0], Fault)
    assert not found[0].last


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: x\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 1 2\r\n\r\n",
        b"Content-Length: 12345678901234567890\r\n\r\n",
        b"Content-Type: a\r\n\r\n",
        b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"Content-Length: 3\r\nContent-Length: x\r\n\r\n",
        b"Content-Length: 3\r\nno colon\r\n\r\n",
        b"CONNECT x HTTP/1.1\r\n\r\n",
        b"C" * 10_000,
    ],
)
def test_headers_that_cannot_be_read_are_the_end(headers: bytes) -> None:
    found = events(ContentLengthFramer(), headers + framed([1]), framed([1]), end=True)
    assert len(found) == 1
    assert isinstance(found[0], Fault)
    assert isinstance(found[0].error, ParseError)
    assert found[0].last


@pytest.mark.parametrize("piece", [1, 7, 1_000])
def test_a_message_over_the_limit_is_skipped_and_the_next_one_read(piece: int) -> None:
    framer = ContentLengthFramer(limit=100)
    whole = framed("x" * 200) + framed([1])
    found = events(framer, *(whole[start : start + piece] for start in range(0, len(whole), piece)))
    assert [type(event) for event in found] == [Fault, Message]
    assert isinstance(found[0], Fault)
    assert isinstance(found[0].error, TooLarge)
    assert framer.pending == 0


@pytest.mark.parametrize("length", range(1, len(framed([1]))))
def test_an_input_that_ends_inside_a_message_is_a_fault(length: int) -> None:
    found = events(ContentLengthFramer(), framed([1])[:length], end=True)
    assert [type(event) for event in found] == [Fault]


def test_what_is_discarded_is_skipped_to_its_end() -> None:
    framer = ContentLengthFramer()
    whole = framed("a long one") + framed([1])
    assert events(framer, whole[:25]) == []
    assert framer.pending > 0
    framer.discard()
    assert framer.pending == 0
    assert values(events(framer, whole[25:])) == [[1]]


# --- A connection ---


async def read(client: Client) -> JsonObject:
    length = 0
    while (line := (await client.line()).strip()) != b"":
        name, _, value = line.partition(b":")
        assert name == b"Content-Length"
        length = int(value)
    while len(client.received) < length:
        client.received += await client.stream.receive_some()
    body, client.received = client.received[:length], client.received[length:]
    reply: JsonObject = json.loads(body)
    return reply


async def test_calls_batches_and_faults(world: World) -> None:
    async with world.serving(), world.client() as client:
        ping = json.loads(request("rpc.ping", id="a"))
        await client.send(framed(ping) + framed([ping, ping]) + framed([]) + framed(7) + b"Content-Length: 1\r\n\r\n{")
        await client.send(framed({"jsonrpc": "2.0", "method": "rpc.ping"}))
        replies: list[object] = [await read(client) for _ in range(5)]
        assert {"jsonrpc": "2.0", "result": "pong", "id": "a"} in replies
        assert [[member["id"] for member in reply] for reply in replies if isinstance(reply, list)] == [["a", "a"]]
        errors = [error_type(reply) for reply in replies if isinstance(reply, dict) and "error" in reply]
        assert sorted(map(str, errors)) == ["invalid_request", "invalid_request", "parse_error"]
        await client.half_close()
        assert await client.rest() == b""


async def test_progress_comes_in_frames_too_and_a_cancel_is_heard(world: World) -> None:
    @world.registry.method("wait")
    async def wait(call: Call, /) -> None:
        """Wait for ever."""
        call.progress(1, 2, "half")
        await trio.sleep_forever()

    async with world.serving(), world.client() as client:
        await client.send(framed(json.loads(request("wait", {"_meta": {"progressToken": 1}}, id=5))))
        assert (await read(client))["method"] == "notifications/progress"
        await client.send(framed({"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": 5}}))
        assert error_type(await read(client)) == "cancelled"


@pytest.mark.parametrize("with_them", [1, len(b"Content-Length: 12\r\n\r\n")])
async def test_descriptors_come_with_the_first_byte_as_ever_or_with_the_headers(world: World, with_them: int) -> None:
    @world.registry.method("read")
    async def read_fd(call: Call, /, fd: int) -> str:
        """What a pipe holds."""
        taken = call.take_fd(fd)
        try:
            return os.read(taken, 100).decode()
        finally:
            os.close(taken)

    reader, writer = os.pipe()
    os.write(writer, b"through a pipe")
    async with world.serving(), world.client() as client:
        whole = framed(json.loads(request("read", {"fd": 0})))
        await client.send_with(whole[:with_them], [reader])
        await client.send(whole[with_them:])
        assert (await read(client))["result"] == "through a pipe"
    os.close(reader)
    os.close(writer)


async def test_a_header_that_cannot_be_read_is_answered_and_ends_the_connection(world: World) -> None:
    async with world.serving(), world.client() as client:
        await client.send(b"Content-Length: many\r\n\r\n")
        assert error_type(await read(client)) == "parse_error"
        assert await client.rest() == b""


async def test_a_message_that_comes_too_slowly_while_others_wait_costs_itself_alone(
    world: World, mock_clock: trio.testing.MockClock
) -> None:
    async with world.serving() as server, world.client() as client:
        whole = framed("x" * 500_000)
        await client.send(whole[:400_000])
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with crowd(server.dispatcher.inputs, mock_clock):
            assert error_type(await read(client)) == "busy"
        await client.send(whole[400_000:])
        await client.send(framed(json.loads(request("rpc.ping"))))
        assert (await read(client))["result"] == "pong"
        assert server.dispatcher.inputs.left == limits.INPUT_BUDGET_BYTES
