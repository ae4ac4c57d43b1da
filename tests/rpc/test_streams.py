"""Streams inside messages: exact at every size, in order, bounded, owned by their connection; whatever ends one leaves nothing."""

from __future__ import annotations

import base64
import gc
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import blake3
import jsonschema  # type: ignore[import-untyped]
import pytest
import trio
import trio.testing

from tests.rpc.conftest import Client, CountingRandomness, World, crowd, error_type, request
from tests.rpc.test_registry import resolve
from tests.store.home import CHUNK, Home, content, freed, get, keys, opened_blocks, put
from tests.store.test_links import put_list
from zstor_local import limits
from zstor_local.errors import NoSpace
from zstor_local.model.ids import ObjectName
from zstor_local.rpc.budget import Room
from zstor_local.rpc.call import Call, Work
from zstor_local.rpc.connection import ClientConnection
from zstor_local.rpc.methods import health as health_methods
from zstor_local.rpc.methods import objects as object_methods
from zstor_local.rpc.methods import references, renaming
from zstor_local.rpc.methods import streams as stream_methods
from zstor_local.rpc.methods import walk as walk_methods
from zstor_local.rpc.server import Server
from zstor_local.rpc.streams import Opened, Streams
from zstor_local.store.caller import Caller
from zstor_local.store.paths import Paths
from zstor_local.store.protected import Protected
from zstor_local.store.sinks import OrderedSink
from zstor_local.store.sources import StreamSource
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import WriteOptions
from zstor_local.system import RealClientFiles

PIECE = limits.STREAM_MESSAGE_BYTES
WINDOW = limits.STREAM_WINDOW
SIZES = [0, 1, CHUNK, CHUNK + 1, 5 * limits.MIB]

Object = dict[str, Any]


class Peer:
    """A client with several requests on their way: keeps what it is not asked for, by request and by stream."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.told: list[Object] = []
        self._last = 0

    async def send(self, method: str, **params: Any) -> int:
        self._last += 1
        await self.client.request(method, params, id=self._last)
        return self._last

    async def _next(self, wanted: Callable[[Object], bool]) -> Object:
        while True:
            for message in self.told:
                if wanted(message):
                    self.told.remove(message)
                    return message
            self.told.append(dict(await self.client.reply()))

    async def reply(self, identity: int) -> Object:
        return await self._next(lambda message: message.get("id") == identity)

    async def notification(self, stream: str) -> Object:
        """The next one of a stream, of whichever kind."""
        return await self._next(lambda message: "method" in message and message["params"]["stream"] == stream)

    async def result(self, method: str, **params: Any) -> Any:
        reply = await self.reply(await self.send(method, **params))
        assert "error" not in reply, reply
        return reply["result"]

    async def refusal(self, method: str, **params: Any) -> Object:
        """The error of a call that must fail."""
        reply = await self.reply(await self.send(method, **params))
        assert "error" in reply, reply
        return dict(reply["error"])

    # --- Streams ---

    async def open_write(self, key: str, **params: Any) -> str:
        return str((await self.result("object.write_stream", key=key, **params))["stream"])

    async def open_read(self, key: str, **params: Any) -> str:
        return str((await self.result("object.read_stream", key=key, **params))["stream"])

    async def give(self, stream: str, seq: int, data: bytes) -> int:
        return await self.send("stream.write", stream=stream, seq=seq, value_b64=encoded(data))

    async def write(self, stream: str, data: bytes, *, first: int = 0) -> int:
        """All bytes, each piece when the one before has been answered; how many pieces."""
        pieces = pieces_of(data)
        for seq, piece in enumerate(pieces, first):
            assert await self.result("stream.write", stream=stream, seq=seq, value_b64=encoded(piece)) == {"stream": stream, "seq": seq}
        return len(pieces)

    async def read(self, stream: str) -> tuple[bytes, Object]:
        """All bytes, each piece acknowledged, and what stream.end said."""
        found = bytearray()
        seq = 0
        while (message := await self.notification(stream))["method"] == "stream.data":
            params = message["params"]
            assert params.keys() == {"stream", "seq", "value_b64"}
            assert params["seq"] == seq
            piece = base64.b64decode(params["value_b64"], validate=True)
            assert 0 < len(piece) <= PIECE
            found += piece
            await self.result("stream.ack", stream=stream, seq=seq)
            seq += 1
        assert message["method"] == "stream.end"
        return bytes(found), message["params"]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pieces_of(data: bytes, size: int = PIECE) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@dataclass
class Scene:
    """A store behind a server."""

    world: World
    home: Home
    store: Store
    server: Server

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[Peer]:
        async with self.world.client() as client:
            yield Peer(client)

    async def nothing_is_left(self) -> None:
        """No connection but those that are open, no file of a share that no object has, no intent."""
        while self.store.metastore.intents():
            await trio.testing.wait_all_tasks_blocked(0.001)
        await freed(self.store)
        assert self.home.share_files() == []
        assert self.store.metastore.garbage_count() == 0


@pytest.fixture
async def scene(world: World, tmp_path: Path) -> AsyncIterator[Scene]:
    home = Home(tmp_path / "home")
    home.path.mkdir()
    async with home.open() as store:
        paths = Paths(home.files, RealClientFiles(), store.runtime.randomness, Protected([], []), [])
        object_methods.register(world.registry, store, paths)
        stream_methods.register(world.registry)
        world.make_way = store.streams.make_way
        async with world.serving() as server:
            yield Scene(world, home, store, server)


@pytest.fixture
async def peer(scene: Scene) -> AsyncIterator[Peer]:
    async with scene.peer() as connected:
        yield connected


# --- There and back ---


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_written_in_pieces_is_read_in_pieces(scene: Scene, peer: Peer, size: int) -> None:
    data = content(size, size)
    stream = await peer.open_write("a", references=["x", "y"], user={"mine": 1})
    await peer.write(stream, data)
    metadata = (await peer.result("stream.close", stream=stream))["metadata"]
    assert (metadata["size"], metadata["digest"]) == (size, "blake3:" + blake3.blake3(data).hexdigest())
    assert (metadata["references"], metadata["user"]) == (["x", "y"], {"mine": 1})
    assert await get(scene.store, "a") == data
    found, end = await peer.read(await peer.open_read("a"))
    assert found == data
    assert end["result"] == {"metadata": metadata, "references": ["x", "y"], "bytes": size}
    by_metadata, _ = await peer.read(str((await peer.result("object.read_stream", metadata=metadata))["stream"]))
    assert by_metadata == data


async def test_pieces_may_have_any_length(scene: Scene, peer: Peer) -> None:
    data = content(1, CHUNK + 1_000)
    stream = await peer.open_write("a")
    lengths = [0, 1, 0, 999, CHUNK - 1, 1, 0]
    for seq, length in enumerate(lengths):
        start = sum(lengths[:seq])
        await peer.result("stream.write", stream=stream, seq=seq, value_b64=encoded(data[start : start + length]))
    await peer.result("stream.close", stream=stream)
    assert await get(scene.store, "a") == data[: sum(lengths)]


async def test_pieces_that_come_at_once_keep_their_order(scene: Scene, peer: Peer) -> None:
    """As many as may wait, and the close behind them, in one send: trio runs tasks that start together in any order."""
    for round_number in range(12):
        data = content(round_number, WINDOW * 1_000)
        stream = await peer.open_write("a")
        lines = [
            request("stream.write", {"stream": stream, "seq": seq, "value_b64": encoded(piece)}, id=f"{round_number}.{seq}")
            for seq, piece in enumerate(pieces_of(data, 1_000))
        ]
        lines.append(request("stream.close", {"stream": stream}, id=f"{round_number}"))
        await peer.client.send("".join(line + "\n" for line in lines))
        replies = [await peer.client.reply() for _ in lines]
        assert [reply for reply in replies if "error" in reply] == []
        assert await get(scene.store, "a") == data


async def test_several_streams_at_once(scene: Scene, peer: Peer) -> None:
    contents = {f"{number}": content(number, CHUNK + number) for number in range(5)}
    streams = {key: await peer.open_write(key) for key in contents}
    for seq in range(2):
        for key, stream in streams.items():
            await peer.result("stream.write", stream=stream, seq=seq, value_b64=encoded(contents[key][seq * CHUNK :][:CHUNK]))
    for stream in streams.values():
        await peer.result("stream.close", stream=stream)
    opened = {key: await peer.open_read(key) for key in contents}
    for key, stream in opened.items():
        assert (await peer.read(stream))[0] == contents[key]


async def test_a_stream_needs_no_turn_behind_other_calls(scene: Scene, peer: Peer) -> None:
    gate = trio.Event()

    @scene.world.registry.method("hold")
    async def hold(call: Call, /) -> None:
        """Run until the test lets go."""
        await gate.wait()

    writing = await peer.open_write("a")
    held = [await peer.send("hold") for _ in range(limits.CALLS_PER_CONNECTION + 1)]
    await peer.write(writing, b"value")
    await peer.result("stream.close", stream=writing)
    assert await get(scene.store, "a") == b"value"
    gate.set()
    for identity in held:
        await peer.reply(identity)


async def test_the_document_tells_both_results(scene: Scene, peer: Peer) -> None:
    document = await peer.result("rpc.discover")
    methods = {method["name"]: method for method in document["methods"]}
    assert {"stream.write", "stream.close", "stream.abort", "stream.ack"} <= methods.keys()
    await put(scene.store, "a", b"value")
    metadata = (await peer.result("object.stat", key="a"))["metadata"]
    results = {
        "object.write_stream": {"metadata": metadata},
        "object.read_stream": {"metadata": metadata, "references": [], "bytes": 5},
    }
    for name, with_descriptor in results.items():
        schema = resolve(document, methods[name]["result"]["schema"])
        jsonschema.Draft7Validator.check_schema(schema)
        for result in (with_descriptor, await peer.result(name, key="a")):
            jsonschema.validate(result, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({}, schema)
    for name, value in {
        "stream_message_bytes": PIECE,
        "stream_window": WINDOW,
        "streams_per_connection": limits.STREAMS_PER_CONNECTION,
        "stream_idle_seconds": limits.STREAM_IDLE_SECONDS,
    }.items():
        assert document["x-limits"][name] == value


# --- Conditions ---


async def test_what_the_write_finds_wrong_at_once_is_told_at_once(scene: Scene, peer: Peer) -> None:
    await put(scene.store, "a", b"old")
    assert error_type(await peer.refusal("object.write_stream", key="a", exclusive=True)) == "already_exists"
    assert error_type(await peer.refusal("object.write_stream", key="a", if_version="0" * 32)) == "conflict"
    assert error_type(await peer.refusal("object.write_stream")) == "invalid_params"
    assert error_type(await peer.refusal("object.read_stream", key="b")) == "not_found"
    assert error_type(await peer.refusal("object.read_stream")) == "invalid_params"
    for number in range(limits.STREAMS_PER_CONNECTION):  # none of them was counted
        await peer.open_write(f"{number}")


@pytest.mark.parametrize("wrong", [{"expected_size": 3 * CHUNK}, {"expected_digest": "blake3:" + "0" * 64}])
@pytest.mark.parametrize("size", [5, 2 * CHUNK])
async def test_other_bytes_than_announced_are_refused(scene: Scene, peer: Peer, size: int, wrong: Object) -> None:
    await put(scene.store, "a", b"old")
    stream = await peer.open_write("a", **wrong)
    await peer.write(stream, bytes(size))
    assert error_type(await peer.refusal("stream.close", stream=stream)) == "incomplete"
    assert await get(scene.store, "a") == b"old"
    await scene.nothing_is_left()


async def test_more_bytes_than_announced_are_refused_as_they_come(scene: Scene, peer: Peer) -> None:
    await put(scene.store, "a", b"old")
    stream = await peer.open_write("a", expected_size=CHUNK)
    piece = encoded(bytes(4 * CHUNK))
    assert error_type(await peer.refusal("stream.write", stream=stream, seq=0, value_b64=piece)) == "incomplete"
    assert error_type(await peer.refusal("stream.close", stream=stream)) == "incomplete"
    assert await get(scene.store, "a") == b"old"
    await scene.nothing_is_left()


async def test_a_version_that_changed_meanwhile_is_a_conflict(scene: Scene, peer: Peer) -> None:
    version = (await put(scene.store, "a", b"old")).version.hex()
    stream = await peer.open_write("a", if_version=version)
    await peer.write(stream, bytes(2 * CHUNK))
    await put(scene.store, "a", b"newer")
    assert error_type(await peer.refusal("stream.close", stream=stream)) == "conflict"
    assert await get(scene.store, "a") == b"newer"
    await scene.nothing_is_left()


async def test_references_can_be_kept(scene: Scene, peer: Peer) -> None:
    await put(scene.store, "a", b"old", WriteOptions(references=("x",)))
    stream = await peer.open_write("a", keep_references=True)
    assert (await peer.result("stream.close", stream=stream))["metadata"]["references"] == ["x"]


# --- Ranges ---


RANGES = [(0, 1), (CHUNK - 1, 1), (CHUNK, CHUNK), (CHUNK - 1, 2), (2 * CHUNK + 5, 2 * CHUNK), (4 * CHUNK, None), (9 * CHUNK, 1), (7, 0)]


@pytest.mark.parametrize("way", ["stream", "value", "file"])
@pytest.mark.parametrize(("offset", "length"), RANGES)
async def test_a_range_touches_only_the_chunks_it_needs(
    scene: Scene, peer: Peer, monkeypatch: pytest.MonkeyPatch, offset: int, length: int | None, way: str
) -> None:
    data = content(3, 5 * CHUNK - 3)
    await put(scene.store, "a", data)
    opened = opened_blocks(monkeypatch)
    part: Object = {"offset": offset} if length is None else {"offset": offset, "length": length}
    wanted = data[offset:] if length is None else data[offset : offset + length]
    if way == "stream":
        found, end = await peer.read(await peer.open_read("a", **part))
        assert end["result"]["bytes"] == len(wanted)
    elif way == "value":
        found = base64.b64decode((await peer.result("object.read", key="a", **part))["value_b64"])
    else:
        path = scene.home.path / "file"
        await peer.result("object.read_file", key="a", path=str(path), **part)
        found = path.read_bytes()
    assert found == wanted
    chunks = {place // CHUNK for place in range(offset, offset + len(wanted))}
    assert sorted(opened) == sorted([*chunks] * scene.home.policy.k)


# --- What a client does wrong ---


@pytest.mark.parametrize("seq", [0, 2, 7])
async def test_a_wrong_seq_aborts_the_write(scene: Scene, peer: Peer, seq: int) -> None:
    await put(scene.store, "a", b"old")
    stream = await peer.open_write("a")
    await peer.write(stream, bytes(PIECE))
    error = await peer.refusal("stream.write", stream=stream, seq=seq, value_b64="")
    assert (error_type(error), error["data"]["current"]) == ("conflict", 1)
    await scene.nothing_is_left()
    assert await get(scene.store, "a") == b"old"
    later: dict[str, Object] = {"stream.write": {"seq": 1, "value_b64": ""}, "stream.close": {}}
    for method, params in later.items():
        assert await peer.refusal(method, stream=stream, **params) == error  # why it is gone


@pytest.mark.parametrize("seq", [1, 2, 99])
async def test_a_wrong_acknowledgement_aborts_the_read(scene: Scene, peer: Peer, seq: int) -> None:
    await put(scene.store, "a", bytes(8 * CHUNK))
    stream = await peer.open_read("a")
    for _ in range(2):
        await peer.notification(stream)
    await peer.result("stream.ack", stream=stream, seq=0)
    wrong = 0 if seq == 1 else seq
    error = await peer.refusal("stream.ack", stream=stream, seq=wrong)
    assert (error_type(error), error["data"]["current"]) == ("conflict", 1)
    while (message := await peer.notification(stream))["method"] == "stream.data":
        pass
    assert message["params"] == {"stream": stream, "error": error}
    assert await peer.refusal("stream.ack", stream=stream, seq=1) == error


async def test_what_was_not_sent_cannot_be_acknowledged(scene: Scene, peer: Peer) -> None:
    await put(scene.store, "a", bytes(3 * CHUNK))
    stream = await peer.open_read("a")
    _, end = await peer.read(stream)
    assert "result" in end
    again = await peer.open_read("a")
    while (await peer.notification(again))["method"] == "stream.data":
        pass
    for seq in range(3):
        await peer.result("stream.ack", stream=again, seq=seq)
    for stream_id in (stream, again):  # all has been acknowledged: nothing is known of them any more
        assert error_type(await peer.refusal("stream.ack", stream=stream_id, seq=3)) == "not_found"


async def test_long_chunks_are_cut_and_no_piece_is_acknowledged_before_it_was_sent(scene: Scene, peer: Peer) -> None:
    data = content(1, 2 * PIECE + 5)
    go = trio.Event()
    streams = Streams(CountingRandomness())

    async def send(sink: OrderedSink, caller: Caller) -> object:
        await go.wait()
        await sink.write([data[:7], data[7:]])
        await sink.write([])
        return None

    @scene.world.registry.method("late")
    async def late(call: Call, /) -> Opened:
        """A read that sends when the test says so."""
        return streams.read(call, send)

    early, stream = [str((await peer.result("late"))["stream"]) for _ in range(2)]
    assert error_type(await peer.refusal("stream.ack", stream=early, seq=0)) == "conflict"
    go.set()
    assert await peer.read(stream) == (data, {"stream": stream, "result": None})


async def test_a_version_that_was_freed_before_the_read_began_is_not_missed(
    scene: Scene, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = content(1, 3 * CHUNK), content(2, 3 * CHUNK)
    await put(scene.store, "a", old)
    begin = ClientConnection.begin

    async def write_again_and_begin(connection: ClientConnection, work: Work) -> None:
        await put(scene.store, "a", new)
        await freed(scene.store)
        begin(connection, work)

    monkeypatch.setattr(ClientConnection, "begin", lambda self, work: self._start_soon(partial(write_again_and_begin, self, work)))
    found, end = await peer.read(await peer.open_read("a"))
    assert found == new
    assert end["result"]["metadata"] == (await peer.result("object.stat", key="a"))["metadata"]


async def test_a_version_that_was_freed_before_a_read_had_its_turn_is_not_missed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = content(1, 3 * CHUNK), content(2, 3 * CHUNK)
    await put(scene.store, "a", old)
    start_soon = ClientConnection._start_soon

    async def write_again_and_start(work: Callable[[], Awaitable[object]]) -> None:
        await put(scene.store, "a", new)
        await freed(scene.store)
        await work()

    monkeypatch.setattr(ClientConnection, "_start_soon", lambda self, work: start_soon(self, partial(write_again_and_start, work)))
    async with scene.peer() as peer:
        assert base64.b64decode((await peer.result("object.read", key="a"))["value_b64"]) == new


async def test_a_piece_that_is_too_large_is_refused_and_the_stream_goes_on(scene: Scene, peer: Peer) -> None:
    stream = await peer.open_write("a")
    error = await peer.refusal("stream.write", stream=stream, seq=0, value_b64=encoded(bytes(PIECE + 1)))
    assert (error_type(error), error["data"]["limit"]) == ("too_large", PIECE)
    await peer.write(stream, b"smaller")
    await peer.result("stream.close", stream=stream)
    assert await get(scene.store, "a") == b"smaller"


async def test_a_stream_belongs_to_its_connection(scene: Scene, peer: Peer) -> None:
    await put(scene.store, "b", bytes(8 * CHUNK))
    writing, reading = await peer.open_write("a"), await peer.open_read("b")
    async with scene.peer() as other:
        calls: dict[str, Object] = {
            "stream.write": {"stream": writing, "seq": 0, "value_b64": ""},
            "stream.close": {"stream": writing},
            "stream.abort": {"stream": writing},
            "stream.ack": {"stream": reading, "seq": 0},
        }
        for method, params in calls.items():
            assert error_type(await other.refusal(method, **params)) == "not_found"
    await peer.result("stream.close", stream=writing)
    assert (await peer.read(reading))[0] == bytes(8 * CHUNK)


async def test_a_stream_has_one_direction(scene: Scene, peer: Peer) -> None:
    await put(scene.store, "b", bytes(8 * CHUNK))
    writing, reading = await peer.open_write("a"), await peer.open_read("b")
    assert error_type(await peer.refusal("stream.write", stream=reading, seq=0, value_b64="")) == "invalid_params"
    assert error_type(await peer.refusal("stream.close", stream=reading)) == "invalid_params"
    assert error_type(await peer.refusal("stream.ack", stream=writing, seq=0)) == "invalid_params"


async def test_so_many_streams_a_connection(scene: Scene, peer: Peer) -> None:
    await put(scene.store, "a", b"value")
    streams = [await peer.open_write(f"{number}") for number in range(limits.STREAMS_PER_CONNECTION)]
    for method in ("object.write_stream", "object.read_stream"):
        error = await peer.refusal(method, key="a")
        assert (error_type(error), error["data"]["limit"]) == ("busy", limits.STREAMS_PER_CONNECTION)
    async with scene.peer() as other:
        assert (await other.read(await other.open_read("a")))[0] == b"value"
    await peer.result("stream.abort", stream=streams[0])
    assert (await peer.read(await peer.open_read("a")))[0] == b"value"
    await peer.result("stream.close", stream=streams[1])
    for _ in range(2):
        await peer.open_write("b")


async def test_failures_of_only_so_many_streams_are_remembered(scene: Scene, peer: Peer) -> None:
    first = await peer.open_write("a")
    for number in range(limits.STREAMS_PER_CONNECTION + 1):
        stream = first if number == 0 else await peer.open_write("a")
        assert error_type(await peer.refusal("stream.write", stream=stream, seq=9, value_b64="")) == "conflict"
    assert error_type(await peer.refusal("stream.close", stream=first)) == "not_found"
    assert error_type(await peer.refusal("stream.close", stream=stream)) == "conflict"


# --- Ends ---


async def test_an_aborted_write_leaves_nothing(scene: Scene, peer: Peer) -> None:
    stream = await peer.open_write("a")
    await peer.write(stream, content(1, 3 * PIECE))
    assert scene.home.share_files() != []
    assert await peer.result("stream.abort", stream=stream) == {"stream": stream}
    assert scene.store.metastore.intents() == []
    await scene.nothing_is_left()
    assert await keys(scene.store) == []
    later: dict[str, Object] = {"stream.write": {"seq": 3, "value_b64": ""}, "stream.close": {}, "stream.abort": {}}
    for method, params in later.items():
        assert error_type(await peer.refusal(method, stream=stream, **params)) == "not_found"


async def test_an_aborted_read_ends_before_the_answer(scene: Scene, peer: Peer) -> None:
    await put(scene.store, "a", bytes(12 * CHUNK))
    stream = await peer.open_read("a")
    await peer.notification(stream)
    aborting = await peer.send("stream.abort", stream=stream)
    while (message := await peer.client.reply())["method"] == "stream.data":
        pass
    assert message["method"] == "stream.end"
    assert isinstance(message["params"], dict)
    assert error_type(message["params"]) == "cancelled"
    assert (await peer.reply(aborting))["result"] == {"stream": stream}
    assert error_type(await peer.refusal("stream.ack", stream=stream, seq=0)) == "not_found"


async def test_a_client_that_goes_leaves_nothing(scene: Scene) -> None:
    async with scene.peer() as peer:
        stream = await peer.open_write("a")
        await peer.write(stream, content(1, 3 * PIECE))
        assert scene.home.share_files() != []
    while scene.server.connections:
        await trio.testing.wait_all_tasks_blocked(0.001)
    await scene.nothing_is_left()
    assert await keys(scene.store) == []


async def test_a_write_whose_client_ends_its_input_before_the_close_leaves_nothing(scene: Scene, peer: Peer) -> None:
    stream = await peer.open_write("a")
    await peer.write(stream, content(1, 3 * PIECE))
    await peer.client.half_close()
    assert await peer.client.rest() == b""  # it closed the connection
    await scene.nothing_is_left()
    assert await keys(scene.store) == []


async def test_a_close_before_the_end_of_the_input_is_answered(scene: Scene, peer: Peer) -> None:
    stream = await peer.open_write("a")
    await peer.write(stream, bytes(2 * PIECE))
    closing = await peer.send("stream.close", stream=stream)
    await peer.client.half_close()
    assert (await peer.reply(closing))["result"]["metadata"]["size"] == 2 * PIECE
    assert await peer.client.rest() == b""


@pytest.mark.parametrize("chunks", [WINDOW, WINDOW + 1])
async def test_a_client_that_only_listens_gets_as_much_as_needs_no_acknowledgement(scene: Scene, peer: Peer, chunks: int) -> None:
    """So a shell can read small objects with one line. And never are more pieces on their way than the window has."""
    data = content(1, chunks * CHUNK)
    await put(scene.store, "a", data)
    await peer.client.send(request("object.read_stream", {"key": "a"}) + "\n")
    await peer.client.half_close()
    opened, *pieces, end = [json.loads(line) for line in (await peer.client.rest()).splitlines()]
    assert [piece["params"]["seq"] for piece in pieces] == list(range(WINDOW))
    assert b"".join(base64.b64decode(piece["params"]["value_b64"]) for piece in pieces) == data[: WINDOW * CHUNK]
    assert end["method"] == "stream.end"
    assert {message["params"]["stream"] for message in (*pieces, end)} == {opened["result"]["stream"]}
    if chunks == WINDOW:
        assert end["params"]["result"]["bytes"] == len(data)
    else:
        assert error_type(end["params"]) == "cancelled"


async def test_each_acknowledgement_lets_one_more_piece_come(scene: Scene, peer: Peer) -> None:
    await put(scene.store, "a", bytes(10 * CHUNK))
    stream = await peer.open_read("a")
    for seq in range(3):
        await peer.notification(stream)
        await peer.send("stream.ack", stream=stream, seq=seq)
    await peer.client.half_close()
    lines = [json.loads(line) for line in (await peer.client.rest()).splitlines()]
    seqs = [line["params"]["seq"] for line in [*peer.told, *lines] if line.get("method") == "stream.data"]
    assert seqs == list(range(3, 3 + WINDOW))


async def test_an_idle_write_is_aborted(scene: Scene, peer: Peer, mock_clock: trio.testing.MockClock) -> None:
    stream = await peer.open_write("a")
    await peer.write(stream, content(1, 3 * PIECE - 1))
    mock_clock.jump(limits.STREAM_IDLE_SECONDS - 1)
    await peer.write(stream, b"more", first=3)
    mock_clock.jump(limits.STREAM_IDLE_SECONDS + 1)
    await scene.nothing_is_left()
    assert error_type(await peer.refusal("stream.write", stream=stream, seq=4, value_b64="")) == "timed_out"
    assert error_type(await peer.refusal("stream.close", stream=stream)) == "timed_out"


async def test_an_idle_read_is_aborted(scene: Scene, peer: Peer, mock_clock: trio.testing.MockClock) -> None:
    await put(scene.store, "a", bytes(10 * CHUNK))
    stream = await peer.open_read("a")
    for _ in range(WINDOW):
        await peer.notification(stream)

    async def let_time_pass() -> None:
        while True:  # the sink may still be on its way to where it waits
            await trio.testing.wait_all_tasks_blocked(0.005)
            mock_clock.jump(limits.STREAM_IDLE_SECONDS + 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_time_pass)
        end = await peer.notification(stream)
        nursery.cancel_scope.cancel()
    assert end["method"] == "stream.end"
    assert error_type(end["params"]) == "timed_out"
    assert error_type(await peer.refusal("stream.ack", stream=stream, seq=0)) == "timed_out"


@pytest.mark.parametrize("value", [b"value", b""])
async def test_a_reply_in_a_batch_comes_before_the_pieces(scene: Scene, peer: Peer, value: bytes) -> None:
    gate = trio.Event()

    @scene.world.registry.method("hold")
    async def hold(call: Call, /) -> None:
        """Run until the test lets go."""
        await gate.wait()

    await put(scene.store, "a", value)
    await peer.client.send(f"[{request('object.read_stream', {'key': 'a'})},{request('hold', id=2)}]\n")
    await peer.result("rpc.ping")  # nothing came before the reply to this
    await trio.testing.wait_all_tasks_blocked(0.01)
    gate.set()
    assert isinstance(json.loads(await peer.client.line()), list)
    methods = [(await peer.client.reply())["method"] for _ in range(2 if value else 1)]
    assert methods == (["stream.data", "stream.end"] if value else ["stream.end"])


# --- Stopping ---


async def test_a_stop_lets_streams_end(scene: Scene, peer: Peer) -> None:
    await put(scene.store, "b", bytes(8 * CHUNK))
    stream, reading = await peer.open_write("a"), await peer.open_read("b")
    await peer.write(stream, b"one, ")
    scene.server.stop()
    await trio.testing.wait_all_tasks_blocked()
    assert error_type(await peer.refusal("rpc.ping")) == "shutting_down"
    await peer.write(stream, b"two", first=1)
    assert (await peer.read(reading))[0] == bytes(8 * CHUNK)
    await peer.result("stream.close", stream=stream)
    assert await peer.client.rest() == b""
    assert await get(scene.store, "a") == b"one, two"


async def test_a_stop_waits_for_streams_only_so_long(scene: Scene, peer: Peer, mock_clock: trio.testing.MockClock) -> None:
    await put(scene.store, "b", bytes(8 * CHUNK))
    writing, reading = await peer.open_write("a"), await peer.open_read("b")
    await peer.write(writing, bytes(PIECE))
    for _ in range(WINDOW):
        await peer.notification(reading)
    scene.server.stop()
    await trio.testing.wait_all_tasks_blocked()
    assert error_type(await peer.refusal("rpc.ping")) == "shutting_down"
    mock_clock.jump(limits.STOP_SECONDS)
    end = await peer.notification(reading)
    assert error_type(end["params"]) == "shutting_down"
    assert await peer.client.rest() == b""
    assert "a" not in await keys(scene.store)


# --- Slow and deaf clients ---


async def test_a_client_that_reads_nothing_harms_only_itself(scene: Scene, peer: Peer) -> None:
    data = content(2, WINDOW * PIECE)
    await put(scene.store, "a", data)
    async with scene.peer() as deaf:
        for number in range(3):
            await deaf.client.request("object.read_stream", {"key": "a"}, id=number)
        await trio.testing.wait_all_tasks_blocked(0.05)
        for number in range(3):
            stream = await peer.open_write(f"{number}")
            await peer.write(stream, data)
            await peer.result("stream.close", stream=stream)
            assert (await peer.read(await peer.open_read(f"{number}")))[0] == data


async def test_a_walks_values_are_read_when_they_can_be_sent(scene: Scene, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    walk_methods.register(scene.world.registry, scene.store)
    await put_list(scene.store, *"abcdefgh")
    budget, read, original = scene.server.dispatcher.replies, 0, scene.store.objects.read

    async def reading(stored: Stored) -> bytes:
        nonlocal read
        read += 1
        assert budget.left < limits.REPLY_BUDGET_BYTES
        return await original(stored)

    monkeypatch.setattr(scene.store.objects, "read", reading)
    monkeypatch.setattr(limits, "SMALL_REPLY_BYTES", 0)
    stream = (await peer.result("object.walk", start_key="a", values=True, stream=True))["stream"]
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert read == WINDOW
    assert budget.left == limits.REPLY_BUDGET_BYTES
    for seq in range(8):
        await peer.notification(stream)
        await peer.result("stream.ack", stream=stream, seq=seq)
    assert (await peer.notification(stream))["params"]["result"] == {"items": 8}
    assert read == 8


MANY = [f"{number:0250}" for number in range(1_000)]


@asynccontextmanager
async def no_room(scene: Scene) -> AsyncIterator[None]:
    """Others hold all the room for replies; at the end of the block they give it back."""
    budget = scene.server.dispatcher.replies
    held, left = Room(budget, budget.left), budget.left
    held.hold(left)
    yield
    held.give(left)


@pytest.mark.parametrize("method", ["object.stat", "object.read", "object.read_file", "object.read_stream", "object.repair"])
async def test_much_metadata_is_gathered_when_there_is_room(scene: Scene, peer: Peer, tmp_path: Path, method: str) -> None:
    """And not before: what waits for room would be in memory."""
    health_methods.register(scene.world.registry, scene.store)
    await put(scene.store, "a", b"", WriteOptions(references=MANY))
    budget = scene.server.dispatcher.replies
    held, left = Room(budget, budget.left), budget.left
    held.hold(left)
    if method == "object.read_stream":
        reading, writing = os.pipe()
        line = request(method, {"key": "a", "fd": 0}, id=(asked := -1)).encode() + b"\n"
        await peer.client.send_with(line, [writing])
        os.close(reading)
        os.close(writing)
    else:
        asked = await peer.send(method, key="a", **({"path": str(tmp_path / "file")} if method == "object.read_file" else {}))
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert budget.left == 0
    await peer.result("rpc.ping")
    await put(scene.store, "a", b"", WriteOptions(references=["meanwhile"]))
    held.give(left)
    assert (await peer.reply(asked))["result"]["metadata"]["references"] == ["meanwhile"]
    assert budget.left == limits.REPLY_BUDGET_BYTES


async def test_a_read_that_waits_for_room_does_not_look_at_the_object_whenever_others_give_some_back(
    scene: Scene, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of them would, at some milliseconds each."""
    looks = 0
    find = scene.store.objects.find

    def counted(name: ObjectName) -> Stored:
        nonlocal looks
        looks += 1
        return find(name)

    monkeypatch.setattr(scene.store.objects, "find", counted)
    await put(scene.store, "a", b"", WriteOptions(references=MANY[:500]))
    budget = scene.server.dispatcher.replies
    held, left = Room(budget, budget.left), budget.left
    held.hold(left)
    asked = await peer.send("object.read", key="a")
    for _ in range(3):
        await trio.testing.wait_all_tasks_blocked(0.01)
        held.give(1)
        held.hold(1)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert looks == 1
    await put(scene.store, "a", b"", WriteOptions(references=MANY))  # it takes more room than was waited for
    held.give(left)
    assert (await peer.reply(asked))["result"]["references"] == MANY
    assert budget.left == limits.REPLY_BUDGET_BYTES


async def test_an_object_is_looked_at_when_what_is_known_of_it_has_room(scene: Scene, peer: Peer) -> None:
    health_methods.register(scene.world.registry, scene.store)
    await put(scene.store, "a", b"", WriteOptions(references=MANY))
    async with no_room(scene):
        asked = await peer.send("object.check", key="a")
        await trio.testing.wait_all_tasks_blocked(0.01)
        await peer.result("rpc.ping")
        assert peer.told == []
    assert (await peer.reply(asked))["result"]["status"] == "optimal"


async def test_a_stream_begins_when_there_is_room_for_its_end(scene: Scene, peer: Peer) -> None:
    await put(scene.store, "a", bytes(10), WriteOptions(references=MANY))
    async with no_room(scene):
        asked = await peer.send("object.read_stream", key="a")
        await trio.testing.wait_all_tasks_blocked(0.01)
        await peer.result("rpc.ping")
        assert peer.told == []
    data, end = await peer.read((await peer.reply(asked))["result"]["stream"])
    assert (data, end["result"]["references"]) == (bytes(10), MANY)
    assert scene.server.dispatcher.replies.left == limits.REPLY_BUDGET_BYTES


async def test_what_the_end_of_a_stream_told_is_not_remembered(scene: Scene, peer: Peer) -> None:
    """As long as a client leaves a piece unacknowledged the stream is."""
    await put(scene.store, "a", bytes(10), WriteOptions(references=MANY))
    stream = await peer.open_read("a")
    assert (await peer.notification(stream))["method"] == "stream.data"
    end = await peer.notification(stream)
    await trio.testing.wait_all_tasks_blocked(0.01)
    known = {id(MANY), id(end["params"]["result"]["references"]), id(end["params"]["result"]["metadata"]["references"])}
    assert [each for each in gc.get_objects() if isinstance(each, list) and each == MANY and id(each) not in known] == []
    await peer.result("stream.ack", stream=stream, seq=0)


@pytest.mark.parametrize("params", [{"references": MANY}, {"keep_references": True}])
async def test_a_write_in_pieces_has_room_for_its_reply_from_the_beginning(scene: Scene, peer: Peer, params: Object) -> None:
    await put(scene.store, "a", b"", WriteOptions(references=MANY))
    budget = scene.server.dispatcher.replies
    async with no_room(scene):
        asked = await peer.send("object.write_stream", key="a", **params)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await peer.result("rpc.ping")
        assert peer.told == []
    stream = (await peer.reply(asked))["result"]["stream"]
    await peer.write(stream, b"value")
    assert budget.left < limits.REPLY_BUDGET_BYTES
    assert (await peer.result("stream.close", stream=stream))["metadata"]["references"] == MANY
    assert budget.left == limits.REPLY_BUDGET_BYTES
    aborted = await peer.open_write("a", **params)
    await peer.result("stream.abort", stream=aborted)
    assert budget.left == limits.REPLY_BUDGET_BYTES


@pytest.mark.parametrize("references", [MANY, []])
async def test_who_stalls_with_room_that_others_want_is_ended(
    scene: Scene, peer: Peer, mock_clock: trio.testing.MockClock, references: list[str]
) -> None:
    await put(scene.store, "a", bytes(2 * CHUNK), WriteOptions(references=references))
    reading, writing = os.pipe()
    await peer.client.send_with(request("object.read_stream", {"key": "a", "fd": 0}, id=-1).encode() + b"\n", [writing])
    os.close(writing)
    async with crowd(scene.server.dispatcher.replies, mock_clock):
        await peer.result("rpc.ping")
        ended = [error_type(told) for told in peer.told]
    assert ended == (["busy"] if references else [])
    os.close(reading)


async def test_what_a_walk_tells_is_found_when_it_can_be_sent(scene: Scene, peer: Peer) -> None:
    walk_methods.register(scene.world.registry, scene.store)
    await put_list(scene.store, *"abcdefgh")
    budget = scene.server.dispatcher.replies
    async with no_room(scene):
        stream = (await peer.result("object.walk", start_key="a", stream=True))["stream"]
        for seq in range(2):
            await peer.notification(stream)
            await peer.result("stream.ack", stream=stream, seq=seq)
        await trio.testing.wait_all_tasks_blocked(0.01)
        for key in "gh":  # beyond the window
            await put(scene.store, key, b"", WriteOptions(references=MANY))
        for seq in range(2, 6):
            await peer.notification(stream)
            await peer.result("stream.ack", stream=stream, seq=seq)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await put(scene.store, "g", b"", WriteOptions(references=["meanwhile"]))
    found = [(await peer.notification(stream))["params"]["item"]["references"] for _ in range(2)]
    assert found == [["meanwhile"], MANY]
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert budget.left == limits.REPLY_BUDGET_BYTES


CHANGES: list[tuple[str, Object]] = [
    ("object.write", {"key": "a", "value": "", "references": MANY}),
    ("object.write", {"key": "a", "value": "", "keep_references": True}),
    ("object.write_file", {"key": "a", "path": __file__, "references": MANY}),
    ("object.write_file", {"key": "a", "path": __file__, "keep_references": True}),
    ("object.rename", {"key": "a", "new_key": "b"}),
    ("object.copy", {"key": "a", "new_key": "b"}),
    ("reference.append", {"key": "a", "references": ["one more"]}),
    ("reference.remove", {"key": "a", "references": MANY[:1]}),
]


def rows(store: Store) -> list[tuple[str, int]]:
    """The keys of "a" and "b" with the numbers of their newest changes."""
    found = store.metastore.scan(store.namespaces.get("default").id, "", None, None)
    return [(row.name, row.envelope.sequence) for row in found if row.name != "another"]


@pytest.mark.parametrize(("method", "params"), CHANGES)
async def test_a_change_that_tells_much_is_made_when_there_is_room_to_tell_it(
    scene: Scene, peer: Peer, method: str, params: Object
) -> None:
    """What has changed already has to be kept until it is told, and clients that take nothing would fill the memory with it."""
    await put(scene.store, "a", b"", WriteOptions(references=MANY))
    renaming.register(scene.world.registry, scene.store)
    references.register(scene.world.registry, scene.store)
    budget = scene.server.dispatcher.replies
    held, left = Room(budget, budget.left), budget.left
    held.hold(left)
    before = rows(scene.store)
    asked = await peer.send(method, **params)
    await peer.result("rpc.ping")
    await trio.testing.wait_all_tasks_blocked(0.01)
    await put(scene.store, "another", b"")  # it is committed behind whatever has come to the committer
    assert rows(scene.store) == before
    held.give(left)
    assert "result" in await peer.reply(asked)
    assert rows(scene.store) != before
    assert budget.left == limits.REPLY_BUDGET_BYTES


# --- Failures of the write, its commit, and cancels ---


class Held:
    """A write that takes its bytes, fails and commits when the test says so."""

    def __init__(self, world: World) -> None:
        self.take, self.commit, self.committing = trio.Event(), trio.Event(), trio.Event()
        self.failure: Exception | None = None
        self.before_commit: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.taken = b""
        self.running = 0
        streams = Streams(CountingRandomness())

        @world.registry.method("held")
        async def held(call: Call, /) -> Opened:
            """Open such a write."""
            return await streams.write(call, self.store)

    async def store(self, source: StreamSource, caller: Caller) -> object:
        self.running += 1
        buffer = bytearray(10)
        try:
            count = await source.read_into(memoryview(buffer))
            self.taken += buffer[:count]
            await self.take.wait()
            if self.failure is not None:
                raise self.failure
            while count := await source.read_into(memoryview(buffer)):
                self.taken += buffer[:count]
            await self.before_commit()
            caller.begin_commit()
            with trio.CancelScope(shield=True):
                self.committing.set()
                await self.commit.wait()
            return {"metadata": "the true result"}
        finally:
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()  # as long as it takes to put everything away
            self.running -= 1


@pytest.fixture
def held(scene: Scene) -> Held:
    return Held(scene.world)


async def opened(peer: Peer) -> str:
    """A held write that has taken a byte and takes no more yet."""
    stream = str((await peer.result("held"))["stream"])
    await peer.write(stream, b"0")
    return stream


async def test_a_piece_is_answered_when_its_last_byte_has_been_taken(held: Held, peer: Peer) -> None:
    stream = await opened(peer)
    writing = await peer.give(stream, 1, b"0123456789abc")
    await peer.result("rpc.ping")
    assert peer.told == []
    held.take.set()
    assert (await peer.reply(writing))["result"] == {"stream": stream, "seq": 1}
    assert held.taken == b"00123456789abc"


async def test_only_so_many_pieces_wait(held: Held, peer: Peer) -> None:
    stream = await opened(peer)
    waiting = [await peer.give(stream, seq, b"piece") for seq in range(1, 1 + WINDOW)]
    error = await peer.refusal("stream.write", stream=stream, seq=1 + WINDOW, value_b64="")
    assert (error_type(error), error["data"]["limit"]) == ("busy", WINDOW)
    held.take.set()
    for identity in waiting:
        assert "result" in await peer.reply(identity)
    await peer.write(stream, b"again", first=1 + WINDOW)
    assert held.taken == b"0" + WINDOW * b"piece" + b"again"


async def test_an_abort_gets_through_when_all_streams_are_full(held: Held, peer: Peer) -> None:
    streams = [await opened(peer) for _ in range(limits.STREAMS_PER_CONNECTION)]
    for stream in streams:
        for seq in range(1, 1 + WINDOW):
            await peer.give(stream, seq, b"piece")
        await peer.send("stream.close", stream=stream)
    assert held.running == len(streams)
    for stream in streams:
        assert await peer.result("stream.abort", stream=stream) == {"stream": stream}
    assert held.running == 0


async def test_the_failure_of_a_write_is_told_to_all_that_follow(held: Held, peer: Peer) -> None:
    stream = await opened(peer)
    waiting = await peer.give(stream, 1, b"piece")
    held.failure = NoSpace("the disk is full")
    held.take.set()
    assert error_type(await peer.reply(waiting)) == "no_space"
    assert error_type(await peer.refusal("stream.write", stream=stream, seq=2, value_b64="")) == "no_space"
    assert error_type(await peer.refusal("stream.close", stream=stream)) == "no_space"
    await peer.result("stream.abort", stream=stream)  # there is nothing left to abort, and now nothing to tell
    assert error_type(await peer.refusal("stream.close", stream=stream)) == "not_found"


async def test_a_fault_of_ours_in_a_write_is_an_incident_and_ends_nothing_else(held: Held, peer: Peer) -> None:
    stream = await opened(peer)
    held.failure = RuntimeError("secret text")
    held.take.set()
    error = await peer.refusal("stream.close", stream=stream)
    assert error_type(error) == "internal"
    assert "secret" not in json.dumps(error)
    assert await peer.result("rpc.ping") == "pong"


async def test_a_cancelled_piece_aborts_the_stream(held: Held, peer: Peer) -> None:
    stream = await opened(peer)
    waiting, behind = await peer.give(stream, 1, b"lost"), await peer.give(stream, 2, b"behind")
    await peer.result("$/cancelRequest", id=waiting)
    assert error_type(await peer.reply(waiting)) == "cancelled"
    assert error_type(await peer.reply(behind)) == "cancelled"
    assert error_type(await peer.refusal("stream.close", stream=stream)) == "cancelled"
    assert held.running == 0


@pytest.mark.parametrize("way", ["cancel", "deadline", "abort"])
async def test_a_close_that_is_stopped_before_the_commit_aborts_the_stream(
    held: Held, peer: Peer, way: str, mock_clock: trio.testing.MockClock
) -> None:
    stream = await opened(peer)
    await peer.give(stream, 1, b"piece")
    closing = await peer.send("stream.close", stream=stream, _meta={"timeoutSeconds": 5})
    assert error_type(await peer.refusal("stream.write", stream=stream, seq=2, value_b64="")) == "conflict"
    assert error_type(await peer.refusal("stream.close", stream=stream)) == "conflict"
    if way == "cancel":
        await peer.result("$/cancelRequest", id=closing)
    elif way == "deadline":
        mock_clock.jump(6)
    else:
        await peer.result("stream.abort", stream=stream)
    assert error_type(await peer.reply(closing)) == ("timed_out" if way == "deadline" else "cancelled")
    assert held.running == 0
    assert not held.committing.is_set()


async def test_an_abort_just_before_the_commit_aborts(held: Held, peer: Peer) -> None:
    go = trio.Event()

    async def wait() -> None:
        with trio.CancelScope(shield=True):
            await go.wait()

    held.before_commit = wait
    held.take.set()
    stream = await opened(peer)
    closing = await peer.send("stream.close", stream=stream)
    aborting = await peer.send("stream.abort", stream=stream)
    await peer.result("rpc.ping")
    go.set()
    assert error_type(await peer.reply(closing)) == "cancelled"
    assert "result" in await peer.reply(aborting)
    assert not held.committing.is_set()


async def test_a_close_is_enough_of_a_last_word(held: Held, peer: Peer) -> None:
    """The end of the input aborts only what has not been closed."""
    held.commit.set()
    stream = await opened(peer)
    closing = await peer.send("stream.close", stream=stream)
    await peer.client.half_close()
    await trio.testing.wait_all_tasks_blocked(0.01)
    held.take.set()
    assert (await peer.reply(closing))["result"] == {"metadata": "the true result"}


@pytest.mark.parametrize("way", ["cancel", "deadline", "abort", "half-close"])
async def test_once_the_commit_has_begun_the_true_result_is_answered(
    held: Held, peer: Peer, way: str, mock_clock: trio.testing.MockClock
) -> None:
    stream = await opened(peer)
    held.take.set()
    closing = await peer.send("stream.close", stream=stream, _meta={"timeoutSeconds": 5})
    await held.committing.wait()
    if way == "cancel":
        await peer.result("$/cancelRequest", id=closing)
    elif way == "deadline":
        mock_clock.jump(6)
    elif way == "abort":
        assert error_type(await peer.refusal("stream.abort", stream=stream)) == "conflict"
    else:
        await peer.client.half_close()
    await trio.testing.wait_all_tasks_blocked()
    held.commit.set()
    assert (await peer.reply(closing))["result"] == {"metadata": "the true result"}


async def test_a_deadline_that_passes_as_the_commit_begins_is_one_or_the_other(
    held: Held, peer: Peer, mock_clock: trio.testing.MockClock
) -> None:
    """Never a deadline's error for a write that was committed. Both tasks wake together, in any order."""
    held.commit.set()
    held.take.set()

    async def wait() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)

    held.before_commit = wait
    for _ in range(20):
        held.committing = trio.Event()
        stream = await opened(peer)
        closing = await peer.send("stream.close", stream=stream, _meta={"timeoutSeconds": 5})
        await peer.result("rpc.ping")
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(5)
        assert ("result" in await peer.reply(closing)) == held.committing.is_set()


async def test_a_commit_goes_on_when_its_client_has_gone(held: Held, scene: Scene) -> None:
    async with scene.peer() as peer:
        stream = await opened(peer)
        held.take.set()
        await peer.send("stream.close", stream=stream)
        await held.committing.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert held.running == 1
    held.commit.set()
    while scene.server.connections:
        await trio.testing.wait_all_tasks_blocked(0.001)
    assert held.running == 0


async def test_a_client_that_went_before_the_commit_has_written_nothing(held: Held, scene: Scene) -> None:
    async with scene.peer() as peer:
        stream = await opened(peer)
        await peer.send("stream.close", stream=stream)
        await trio.testing.wait_all_tasks_blocked(0.01)
    held.take.set()
    while scene.server.connections:
        await trio.testing.wait_all_tasks_blocked(0.001)
    assert not held.committing.is_set()


async def test_an_opening_that_is_cancelled_leaves_no_stream(scene: Scene, peer: Peer) -> None:
    running = trio.Event()
    streams = Streams(CountingRandomness())

    async def store(source: StreamSource, caller: Caller) -> object:
        running.set()
        await trio.sleep_forever()

    @scene.world.registry.method("slow")
    async def slow(call: Call, /) -> Opened:
        """A write that never wants its first byte."""
        return await streams.write(call, store)

    for _ in range(limits.STREAMS_PER_CONNECTION + 1):
        opening = await peer.send("slow")
        await running.wait()
        await peer.result("$/cancelRequest", id=opening)
        assert error_type(await peer.reply(opening)) == "cancelled"
