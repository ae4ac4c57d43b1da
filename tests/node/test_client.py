"""A node's connection: what a call that is given up leaves to the others."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.cli.fake_daemon import FakeDaemon
from zstor_local.node.client import Disconnected, Node, connected


async def test_after_a_call_that_was_cut_off_halfway_out_no_other_one_waits_for_an_answer() -> None:
    """The rest of its line would be taken for its end: nobody would ever answer what comes behind it."""
    ours, theirs = socket.socketpair()
    with theirs:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream, trio.open_nursery() as nursery:
            node = Node(stream)
            nursery.start_soon(node.receive)
            with trio.CancelScope() as upload:
                nursery.start_soon(_cancel_when_stuck, upload)
                await node.upload(bytes(4_000_000))  # nobody reads it
            assert upload.cancelled_caught
            with pytest.raises(Disconnected):
                await node.call("rpc.ping")


async def test_a_call_that_is_given_up_before_it_went_out_ends_nobody_elses() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream, trio.open_nursery() as nursery:
            node = Node(stream)
            nursery.start_soon(node.receive)
            given_up = trio.CancelScope()

            async def upload() -> None:
                with given_up:
                    await node.upload(b"data")

            async with node._sending:
                nursery.start_soon(upload)
                await trio.testing.wait_all_tasks_blocked()
            given_up.cancel()  # its turn has come, and it has not run since
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(node.call, "rpc.ping")
            await trio.testing.wait_all_tasks_blocked()
            assert b"rpc.ping" in theirs.recv(4_096, socket.MSG_DONTWAIT)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("line", [b"220 mail.example ESMTP", b"[" * 100_000, b"[]", b'{"id": 1}', b"\xff"])
async def test_what_answers_nonsense_is_no_daemon_and_the_line_is_named(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream, trio.open_nursery() as nursery:
            node = Node(stream)
            nursery.start_soon(node.receive)
            theirs.sendall(b'{"jsonrpc": "2.0", "method": "notifications/progress"}\n\n' + line + b"\n")
            for _ in range(2):
                with pytest.raises(Disconnected, match="no zstor daemon: line 3 "):
                    await node.call("rpc.ping")


async def test_what_the_daemon_cannot_read_leaves_no_call_without_an_answer() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream, trio.open_nursery() as nursery:
            node = Node(stream)
            nursery.start_soon(node.receive)
            theirs.sendall(b'{"id": null, "error": {"code": 303, "message": "it came slowly", "data": {"type": "busy"}}}\n')
            for _ in range(2):
                with pytest.raises(Disconnected, match="could not read what was sent: it came slowly"):
                    await node.call("rpc.ping")


async def test_a_socket_path_too_long_for_the_kernel_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.chdir(deep)
    with FakeDaemon(Path("s"), lambda peer: peer.answer(peer.receive(), {"pong": True})):
        async with connected(str(deep / "s")) as node:
            assert await node.call("rpc.ping") == {"pong": True}


async def _cancel_when_stuck(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
