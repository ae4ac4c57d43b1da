"""File descriptors: each is taken by the call it was sent for, or closed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.rpc.conftest import Client, World, error_type, request
from zstor_local import limits
from zstor_local.rpc.call import Call
from zstor_local.rpc.descriptors import CLOSERS, KERNEL_MAX, close_all
from zstor_local.rpc.strict_json import Json

OpenFds = Callable[[], int]


@contextmanager
def pipes(count: int) -> Iterator[list[int]]:
    """The reading ends of pipes that hold their number."""
    ends = []
    for number in range(count):
        reader, writer = os.pipe()
        os.write(writer, str(number).encode())
        os.close(writer)
        ends.append(reader)
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


@pytest.fixture
def taking(world: World) -> World:
    @world.registry.method("take")
    async def take(call: Call, /, fds: list[int]) -> list[object]:
        """What the descriptors hold."""
        told: list[object] = []
        for index in fds:
            fd = call.take_fd(index)
            told.append(os.read(fd, 100).decode())
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            os.close(fd)
        return told

    @world.registry.method("hold")
    async def hold(call: Call, /) -> None:
        """Run until the end of the connection."""
        await trio.sleep_forever()

    return world


def line(method: str, params: Json = None, *, id: Json = 1) -> bytes:  # noqa: A002
    return request(method, params, id=id).encode() + b"\n"


async def settled(client: Client, open_fds: OpenFds) -> int:
    """The number of descriptors once the connection is accepted."""
    await client.result("rpc.ping")
    return open_fds()


async def test_a_call_takes_what_was_sent_with_it_close_on_exec(taking: World, open_fds: OpenFds) -> None:
    async with taking.serving(), taking.client() as client:
        before = await settled(client, open_fds)
        with pipes(2) as ends:
            await client.send_with(line("take", [[1, 0]]), ends)
            assert (await client.reply())["result"] == ["1", "0"]
            await client.send_with(line("take", [[0]]), ends[:1])
            assert (await client.reply())["result"] == [""]
            await client.send_with(line("take", [[0, 0]]), ends[:1])
            assert error_type(await client.reply()) == "invalid_params"
        assert open_fds() == before


@pytest.mark.parametrize(
    "message",
    [
        line("rpc.ping"),
        line("nobody"),
        line("take", {"fds": "x"}),
        line("take", [[7]]),
        line("take", [[0, 0]]),
        b"not json\n",
        b"[]\n",
        b"[1]\n",
        b'{"jsonrpc":"2.0","method":"rpc.ping"}\n',
        b'{"jsonrpc":"1.0"}\n',
        b"\n",
        b"7\n",
        line("$/cancelRequest", {"id": 5}),
    ],
)
async def test_what_nobody_takes_is_closed(taking: World, open_fds: OpenFds, message: bytes) -> None:
    async with taking.serving(), taking.client() as client:
        before = await settled(client, open_fds)
        with pipes(2) as ends:
            await client.send_with(message, ends)
            await trio.testing.wait_all_tasks_blocked()
        assert open_fds() == before


async def test_more_than_two_for_a_call_are_refused_and_closed(taking: World, open_fds: OpenFds) -> None:
    async with taking.serving(), taking.client() as client:
        before = await settled(client, open_fds)
        for count in (3, KERNEL_MAX):
            with pipes(count) as ends:
                await client.send_with(line("take", [[0]], id="x"), ends)
                reply = await client.reply()
                assert (error_type(reply), reply["id"]) == ("invalid_params", "x")
        assert open_fds() == before


async def test_descriptors_belong_to_the_message_that_holds_the_last_byte_of_their_read(taking: World, open_fds: OpenFds) -> None:
    first, second = line("take", [[]], id=1), line("take", [[0]], id=2)
    async with taking.serving(), taking.client() as client:
        before = await settled(client, open_fds)
        with pipes(2) as ends:
            # Two messages in one send.
            await client.send_with(first + second, ends[:1])
            replies = [await client.reply(), await client.reply()]
            assert {"jsonrpc": "2.0", "result": ["0"], "id": 2} in replies
            # The rest of the second message comes later, behind a descriptor of the third.
            await client.send(first + b" ")
            await client.send_with(second[:10], ends[1:])
            await trio.testing.wait_all_tasks_blocked()
            await client.send(second[10:] + first)
            replies = [await client.reply() for _ in range(3)]
            assert {"jsonrpc": "2.0", "result": ["1"], "id": 2} in replies
        assert open_fds() == before


async def test_members_of_a_batch_share_the_descriptors_of_their_message(taking: World, open_fds: OpenFds) -> None:
    async with taking.serving(), taking.client() as client:
        before = await settled(client, open_fds)
        batch = b"[" + b",".join(line("take", [[index]], id=index).strip() for index in range(3)) + b"]\n"
        with pipes(4) as ends:
            await client.send_with(batch, ends)
            replies = json.loads(await client.line())
        assert sorted((reply["id"], reply["result"]) for reply in replies) == [(0, ["0"]), (1, ["1"]), (2, ["2"])]
        assert open_fds() == before


async def test_descriptors_of_unfinished_messages_and_calls_are_closed_with_the_connection(taking: World, open_fds: OpenFds) -> None:
    async with taking.serving() as server:
        before = open_fds()
        for message in (b'{"unfinished":', line("hold"), b"[" + line("hold") + b"," + line("nobody") + b"]\n"):
            with pipes(2) as ends:
                async with taking.client() as client:
                    await client.send_with(message, ends)
                    await trio.testing.wait_all_tasks_blocked()
            while server.connections:
                await trio.testing.wait_all_tasks_blocked()
        assert open_fds() == before


async def test_descriptors_of_an_unfinished_message_are_closed_when_the_daemon_stops(taking: World, open_fds: OpenFds) -> None:
    async with taking.serving() as server, taking.client() as client:
        before = await settled(client, open_fds)
        with pipes(2) as ends:
            await client.send_with(b'{"unfinished":', ends)
            await trio.testing.wait_all_tasks_blocked()
        server.stop()
        await taking.ended.wait()
        assert open_fds() == before - 2  # the connection's own and the listener's


async def test_descriptors_cannot_be_piled_up_behind_an_unfinished_message(taking: World, open_fds: OpenFds) -> None:
    async with taking.serving() as server, taking.client() as client:
        before = await settled(client, open_fds)
        with pipes(200) as ends:
            await client.send_with(b"[", ends)
            await trio.testing.wait_all_tasks_blocked()
            await client.send_with(b" ", ends)
            assert error_type(json.loads(await client.rest())) == "invalid_params"
        while server.connections:
            await trio.testing.wait_all_tasks_blocked()
        assert open_fds() == before - 1  # the connection's own


async def test_descriptors_of_a_closed_connection_do_not_leak_while_it_cannot_answer(taking: World, open_fds: OpenFds) -> None:
    """The reader is stopped while it waits for room to answer; what it holds for later messages goes too."""

    @taking.registry.method("big")
    async def big(call: Call, /) -> str:
        """Many bytes."""
        return "x" * 400_000

    async with taking.serving() as server:
        before = open_fds()
        async with taking.client() as client:
            for _ in range(limits.SEND_QUEUE_MESSAGES + 2):
                await client.send(line("big"))
            await trio.testing.wait_all_tasks_blocked()
            with pipes(2) as ends:
                await client.send_with(b"nope\n" + line("hold"), ends)
                await trio.testing.wait_all_tasks_blocked()
        while server.connections:
            await trio.testing.wait_all_tasks_blocked()
        assert open_fds() == before


async def test_where_descriptors_are_lost_the_rest_is_closed_and_the_connection_dropped(taking: World, open_fds: OpenFds) -> None:
    async with taking.serving(), taking.client() as client:
        before = await settled(client, open_fds)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with pipes(20) as ends:
            lowest = os.dup(ends[0])
            os.close(lowest)
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 5, hard))
                await client.send_with(line("rpc.ping"), ends)
                answer = await client.rest()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert error_type(json.loads(answer)) == "io_error"
        assert open_fds() == before - 1


def test_a_plain_receive_would_lose_them(open_fds: OpenFds) -> None:
    """Why every read is a recvmsg: the kernel closes what the reader has no room for."""
    ours, theirs = socket.socketpair()
    before = open_fds()
    with pipes(1) as ends:
        socket.send_fds(theirs, [b"x"], ends)
    assert ours.recv(10) == b"x"
    assert open_fds() == before
    ours.close()
    theirs.close()


def test_one_that_has_something_to_say_does_not_keep_the_others_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """As close(2) of a file on a network file system, or below FUSE: the descriptor is gone all the same."""
    close = os.close

    def tell(fd: int) -> None:
        close(fd)
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    fds = [*os.pipe(), *os.pipe()]
    monkeypatch.setattr(os, "close", tell)
    close_all([*fds])
    assert [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")] == []


async def test_files_are_closed_where_nobody_waits_for_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """close(2) waits for what a network file system has yet to be given of the file. Each that hangs has a thread: so many, no more."""
    close, asked = os.close, threading.Event()
    fds = [os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT) for _ in range(2 * CLOSERS)]
    hanging: list[int] = []
    enough = threading.Event()

    def hang(fd: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        hanging.append(fd)
        if len(hanging) >= CLOSERS:
            enough.set()
        asked.wait()
        close(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", hang)
        for fd in fds:
            close_all([fd])
        try:
            await trio.to_thread.run_sync(enough.wait, 20)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(hanging) == CLOSERS
        finally:
            asked.set()
        while any(os.path.exists(f"/proc/self/fd/{fd}") for fd in fds):
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_files_are_closed_once_there_are_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Closed by the event loop one that hangs would stop it."""
    refused: list[str] = []

    def no_thread(self: threading.Thread) -> None:
        refused.append(self.name)
        raise RuntimeError("can't start new thread")

    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    with monkeypatch.context() as patched:
        patched.setattr(trio._core._thread_cache, "THREAD_CACHE", trio._core._thread_cache.ThreadCache())  # without idle ones
        patched.setattr(threading.Thread, "start", no_thread)
        close_all([fd])
        await trio.sleep(1)
        assert refused
        assert os.path.exists(f"/proc/self/fd/{fd}")
    while os.path.exists(f"/proc/self/fd/{fd}"):
        await trio.sleep(1)
