"""A node's connection: what a call that is given up leaves to the others."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from zstor_local.node.client import Disconnected, Node


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


async def _cancel_when_stuck(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
