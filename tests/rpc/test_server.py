"""Who may connect, how many, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import AsyncExitStack, suppress

import pytest
import trio
import trio.testing

from tests.rpc.conftest import World, error_type
from tests.rpc.test_connection import Gate
from zstor_local import limits
from zstor_local.rpc.call import Call, Peer
from zstor_local.rpc.server import peer_of
from zstor_local.runtime import CLIENT
from zstor_local.system import RealClientFiles


async def test_another_user_is_refused(world: World) -> None:
    world.uid = os.geteuid() + 1
    async with world.serving(), world.client() as client:
        assert error_type(json.loads(await client.rest())) == "permission_denied"


async def test_a_user_from_outside_our_user_namespace_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unmapped users all show as 65534, so that id proves nothing, not even to a daemon that has it."""
    monkeypatch.setattr("zstor_local.rpc.server.peer_of", lambda _: peer_of_nobody())
    world.uid = 65534
    async with world.serving(), world.client() as client:
        assert error_type(json.loads(await client.rest())) == "permission_denied"


def peer_of_nobody() -> object:
    return Peer(0, 65534)


def test_the_peers_credentials_are_the_kernels() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        peer = peer_of(trio.socket.from_stdlib_socket(ours))
        assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
        ours.close()


async def test_what_the_peer_sees_is_asked_once_as_it_connects(world: World) -> None:
    """A process can end when it has connected, and its id be another one's by the time of a call."""
    asked: list[int] = []

    def mounts_of(pid: int) -> str:
        asked.append(pid)
        return "mnt:[1]"

    async def mounts(call: Call, /) -> str | None:
        """What is known of the client."""
        return call.peer.mounts

    world.mounts_of = mounts_of
    world.registry.method("test.mounts")(mounts)
    async with world.serving(), world.client() as client:
        assert [await client.result("test.mounts") for _ in range(2)] == ["mnt:[1]"] * 2
    assert asked == [os.getpid()]


async def test_a_peer_of_another_pid_namespace_is_one_of_which_nobody_can_tell(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel names no process for it, and what it sees is other than what we see."""

    async def mounts(call: Call, /) -> str | None:
        """What is known of the client."""
        return call.peer.mounts

    monkeypatch.setattr("zstor_local.rpc.server.peer_of", lambda _: Peer(0, os.geteuid()))
    world.mounts_of = RealClientFiles().mount_namespace
    world.registry.method("test.mounts")(mounts)
    async with world.serving(), world.client() as client:
        assert await client.result("test.mounts") == ""


async def test_work_is_known_as_that_of_the_clients_process(world: World) -> None:
    @world.registry.method("whose")
    async def whose(call: Call, /) -> list[bool]:
        """Whether it is the client's."""
        async with trio.open_nursery() as nursery:
            also = await nursery.start(_whose)
        return [whose == os.getpid() for whose in (CLIENT.get(), also)]

    async with world.serving(), world.client() as client:
        assert await client.result("whose") == [True, True]
    assert CLIENT.get() is None


async def _whose(*, task_status: trio.TaskStatus[object]) -> None:
    task_status.started(CLIENT.get())


async def test_a_connection_too_many_is_busy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS", 2)
    async with world.serving() as server, world.client() as first:
        async with world.client() as second, world.client() as third:
            assert await first.result("rpc.ping") == "pong"
            assert await second.result("rpc.ping") == "pong"
            assert error_type(json.loads(await third.rest())) == "busy"
        while server.connections > 1:
            await trio.testing.wait_all_tasks_blocked()
        async with world.client() as fourth:
            assert await fourth.result("rpc.ping") == "pong"


async def test_silent_connections_make_way_for_another_those_of_who_has_many_first(
    world: World, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    """A program that forgets to close its own kept all others out for an hour."""
    monkeypatch.setattr(limits, "CONNECTIONS", 4)
    pids = iter((70, 80, 80, 80, 91, 92, 93, 94, os.getpid()))
    monkeypatch.setattr("zstor_local.rpc.server.peer_of", lambda _: Peer(next(pids), os.geteuid()))
    gate = Gate(world)

    async def settle(seconds: float = 0) -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(seconds)

    async with world.serving() as server, AsyncExitStack() as clients:
        first, second, third, busy = [await clients.enter_async_context(world.client()) for _ in range(4)]
        await busy.request("hold", ["x"])
        await gate.until_started(1)
        await settle(limits.SILENT_SECONDS - 1)
        assert await third.result("rpc.ping") == "pong"
        async with world.client() as early:
            assert error_type(json.loads(await early.rest())) == "busy"
        await settle(1)
        for _ in range(2):  # the one that was silent for longest, and then there is room
            async with world.client() as another:
                assert await another.result("rpc.ping") == "pong"
            await settle()
        assert await second.rest() == b""
        another = await clients.enter_async_context(world.client())
        await settle(limits.SILENT_SECONDS)
        async with world.client() as watchdog:  # which is no client, and comes again and again
            assert error_type(json.loads(await watchdog.rest())) == "busy"
        for client in (first, third, another):
            assert await client.result("rpc.ping") == "pong"
        gate.open("x")
        assert (await busy.reply())["result"] == "x"
        assert server.connections == 4


async def test_one_connection_makes_way_for_one(
    world: World, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    """That which leaves is there for some turns yet: all who came meanwhile took its place."""
    monkeypatch.setattr(limits, "CONNECTIONS", 2)
    pids = iter(range(70, 80))
    monkeypatch.setattr("zstor_local.rpc.server.peer_of", lambda _: Peer(next(pids), os.geteuid()))
    async with world.serving() as server, AsyncExitStack() as clients:
        _, second = [await clients.enter_async_context(world.client()) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(limits.SILENT_SECONDS)
        assert await second.result("rpc.ping") == "pong"
        told: list[bytes] = []

        async def come() -> None:
            async with world.client() as client:
                with suppress(trio.BrokenResourceError):  # it may have been refused by now
                    await client.request("rpc.ping")
                told.append(await client.line())
                await trio.testing.wait_all_tasks_blocked(0.01)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(come)
        assert sorted("error" in json.loads(each) for each in told) == [False, True, True]
        assert server.connections <= 2


async def test_what_is_left_of_a_client_that_is_gone_keeps_nobody_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call on a disk that hangs."""
    monkeypatch.setattr(limits, "CONNECTIONS", 1)
    begun, over = trio.Event(), trio.Event()

    @world.registry.method("hang")
    async def hang(call: Call, /) -> None:
        """Nothing ends it."""
        begun.set()
        with trio.CancelScope(shield=True):
            await over.wait()

    async with world.serving() as server:
        async with world.client() as client:
            await client.request("hang")
            await begun.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        try:
            async with world.client() as client:
                assert await client.result("rpc.ping") == "pong"
                assert server.connections == 2
        finally:
            over.set()


async def test_clients_that_go_at_once_end_one_after_the_other(world: World) -> None:
    """Thousands of calls took seconds to end, in which nobody was answered."""
    turns = Counting()
    ended: dict[str, set[int]] = {}

    @world.registry.method("wait")
    async def wait(call: Call, /, client: str) -> None:
        """For ever."""
        ended.setdefault(client, set())
        try:
            await trio.sleep_forever()
        finally:
            ended[client].add(turns.count)

    async with world.serving() as server:
        async with AsyncExitStack() as opened:
            clients = {name: await opened.enter_async_context(world.client()) for name in "abc"}
            for name, client in clients.items():
                for number in range(limits.CALLS_PER_CONNECTION):
                    await client.request("wait", [name], id=number)
            await trio.testing.wait_all_tasks_blocked(0.01)
            trio.lowlevel.add_instrument(turns)
            for client in clients.values():
                client.socket.close()
        while server.connections:
            await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(turns)
    assert len(ended) == len(set.union(*ended.values())) == 3


class Counting(trio.abc.Instrument):
    """Counts the turns of the event loop."""

    count = 0

    def after_io_wait(self, _timeout: float, /) -> None:
        self.count += 1


async def test_a_client_that_is_refused_and_gone_ends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS", 0)
    async with world.serving():
        with socket.socket(socket.AF_UNIX) as hasty:
            hasty.connect(world.path)
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with world.client() as patient:
            assert error_type(json.loads(await patient.rest())) == "busy"


async def test_it_survives_running_out_of_descriptors(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    accept = trio.SocketListener.accept
    failures = [errno.EMFILE, errno.ENFILE]

    async def failing(self: trio.SocketListener) -> trio.SocketStream:
        if failures:
            raise OSError(failures.pop(), "too many")
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, "accept", failing)
    async with world.serving(), world.client() as client:
        assert await client.result("rpc.ping") == "pong"
    assert failures == []


async def test_a_fault_of_one_connection_does_not_end_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.serving(), world.client() as client:
        assert await client.result("rpc.ping") == "pong"
        with monkeypatch.context() as patch:
            patch.setattr("zstor_local.rpc.connection.parse_request", lambda _: 1 / 0)
            async with world.client() as unlucky:
                await unlucky.request("rpc.ping")
                assert await unlucky.rest() == b""
        assert await client.result("rpc.ping") == "pong"
    assert "ZeroDivisionError" in caplog.text


async def test_a_stop_lets_running_calls_end_and_takes_no_more(world: World) -> None:
    gate = Gate(world)
    async with world.serving() as server, world.client() as busy, world.client() as idle:
        await idle.result("rpc.ping")
        await busy.request("hold", ["x"])
        await gate.until_started(1)
        server.stop()
        assert await idle.rest() == b""
        assert error_type(await busy.error("rpc.ping")) == "shutting_down"
        with pytest.raises(OSError, match="refused"):
            await trio.open_unix_socket(world.path)
        gate.open("x")
        assert json.loads(await busy.rest())["result"] == "x"
        await world.ended.wait()


async def test_what_was_read_is_answered_though_the_daemon_stops_meanwhile(world: World) -> None:
    """Its client had to guess what had been done."""

    @world.registry.method("much")
    def much(call: Call, /) -> str:
        """More than the kernel buffers, and than may wait before other replies."""
        return "x" * 3 * limits.SEND_QUEUE_BYTES

    async with world.serving() as server, world.client() as client:
        await client.request("much")
        await client.send('[1, {"jsonrpc": "2.0", "id": 2, "method": "rpc.ping"}]\n')
        await trio.testing.wait_all_tasks_blocked(0.01)  # what is read waits for room for what it is answered
        server.stop()
        _, batch, nothing = (await client.rest()).split(b"\n")
    assert [error_type(reply) for reply in json.loads(batch)] == ["invalid_request", "shutting_down"]
    assert nothing == b""


async def test_after_the_grace_running_calls_answer_shutting_down(
    world: World, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(world)
    async with world.serving() as server, world.client() as client:
        await client.request("hold", ["x"])
        await client.request("commit", ["y"], id="committed")
        await gate.until_started(2)
        server.stop()
        await trio.testing.wait_all_tasks_blocked()
        assert not caplog.messages
        mock_clock.jump(limits.STOP_SECONDS)
        assert error_type(await client.reply()) == "shutting_down"
        assert caplog.messages == ["calls that had not ended after 20 s are stopped"]
        assert not world.ended.is_set()
        gate.open("y")
        assert await client.reply() == {"jsonrpc": "2.0", "result": "y", "id": "committed"}
        await world.ended.wait()


async def test_a_client_that_does_not_read_cannot_delay_the_stop(world: World, mock_clock: trio.testing.MockClock) -> None:
    @world.registry.method("big")
    async def big(call: object, /) -> str:
        """Many bytes."""
        return "x" * 1_000_000

    async with world.serving() as server, world.client() as client:
        await client.request("big")
        await trio.testing.wait_all_tasks_blocked(0.01)
        server.stop()
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(limits.STOP_SECONDS)
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(1)
        await world.ended.wait()
