"""A server on a real Unix socket, and a client that speaks bytes."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from zstor_local import limits
from zstor_local.rpc.budget import Budget, Room
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods import rpc
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.server import Server
from zstor_local.rpc.strict_json import Json, JsonObject
from zstor_local.store.jobs import Jobs


class CountingRandomness:
    """Ids that a test can foresee."""

    def __init__(self) -> None:
        self._next = 0

    def bytes(self, count: int) -> bytes:
        self._next += 1
        return self._next.to_bytes(count, "big")


class Client:
    """One connection: sends exactly the bytes it is told to, reads lines."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = b""

    @property
    def socket(self) -> trio.socket.SocketType:
        return self.stream.socket

    async def send(self, data: bytes | str) -> None:
        await self.stream.send_all(data.encode() if isinstance(data, str) else data)

    async def send_with(self, data: bytes, fds: list[int]) -> None:
        """One send with descriptors."""
        await self.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(fd.to_bytes(4, "little") for fd in fds))])

    async def line(self) -> bytes:
        """The next line without its newline; EOFError where the server has closed."""
        while b"\n" not in self.received:
            more = await self.stream.receive_some()
            if not more:
                raise EOFError
            self.received += more
        line, _, self.received = self.received.partition(b"\n")
        return line

    async def reply(self) -> JsonObject:
        value: JsonObject = json.loads(await self.line())
        return value

    async def call(self, method: str, params: Json = None, *, id: Json = 1) -> JsonObject:  # noqa: A002
        await self.request(method, params, id=id)
        return await self.reply()

    async def request(self, method: str, params: Json = None, *, id: Json = 1) -> None:  # noqa: A002
        await self.send(request(method, params, id=id) + "\n")

    async def result(self, method: str, params: Json = None) -> Json:
        reply = await self.call(method, params)
        assert "error" not in reply, reply
        return reply["result"]

    async def error(self, method: str, params: Json = None) -> JsonObject:
        error = (await self.call(method, params))["error"]
        assert isinstance(error, dict)
        return error

    async def rest(self) -> bytes:
        """All until the server closes."""
        while more := await self.stream.receive_some():
            self.received += more
        data, self.received = self.received, b""
        return data

    async def half_close(self) -> None:
        await self.stream.send_eof()


def request(method: str, params: Json = None, *, id: Json = 1) -> str:  # noqa: A002
    members: JsonObject = {"jsonrpc": "2.0", "id": id, "method": method}
    if params is not None:
        members["params"] = params
    return json.dumps(members)


def error_type(error: Json) -> Json:
    """`data.type` of an error object or of a reply that holds one."""
    assert isinstance(error, dict)
    inner = error.get("error", error)
    assert isinstance(inner, dict)
    data = inner["data"]
    assert isinstance(data, dict)
    return data["type"]


@asynccontextmanager
async def crowd(budget: Budget, clock: trio.testing.MockClock) -> AsyncIterator[None]:
    """Somebody waits in vain for room, and has done so for long."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Room(budget).until, lambda: False)
        for _ in range(4):
            await trio.testing.wait_all_tasks_blocked(0.01)
            clock.jump(limits.CROWDED_SECONDS)
        await trio.testing.wait_all_tasks_blocked(0.01)
        yield
        nursery.cancel_scope.cancel()


class World:
    """The server under test, its methods, and its clients."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "s")
        self.registry = Registry()
        self.jobs: Jobs | None = None
        self.uid: int | None = None
        self.mounts_of: Callable[[int], str | None] = lambda _: None
        self.make_way: Callable[[], object] = lambda: None
        self.ended = trio.Event()
        self.own_uid = os.geteuid()
        rpc.register(self.registry, version="1.2.3")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Server]:
        listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await listener.bind(self.path)
        listener.listen(256)
        server = Server(
            self.registry, CountingRandomness(), jobs=self.jobs, uid=self.uid, mounts_of=self.mounts_of, make_way=self.make_way
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(self._serve, server, trio.SocketListener(listener))
            yield server
            nursery.cancel_scope.cancel()
        os.unlink(self.path)

    async def _serve(self, server: Server, listener: trio.SocketListener, *, task_status: trio.TaskStatus[None]) -> None:
        await server.serve([listener], task_status=task_status)
        self.ended.set()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        stream = await trio.open_unix_socket(self.path)
        async with stream:
            yield Client(stream)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def spec_methods(world: World) -> World:
    """The methods of the specification's examples."""
    registry = world.registry

    @registry.method("subtract")
    async def subtract(call: Call, /, minuend: int, subtrahend: int) -> int:
        """The difference."""
        return minuend - subtrahend

    @registry.method("sum")
    async def sum_(call: Call, /, *numbers: int) -> int:
        """The sum."""
        return sum(numbers)

    @registry.method("get_data")
    async def get_data(call: Call, /) -> list[object]:
        """Something."""
        return ["hello", 5]

    for name in ("update", "notify_hello", "notify_sum"):

        @registry.method(name)
        async def nothing(call: Call, /, *numbers: int) -> None:
            """Nothing."""

    return world


@pytest.fixture
def open_fds() -> Callable[[], int]:
    """How many descriptors this process has."""
    return lambda: len(os.listdir("/proc/self/fd"))
