"""Connections from listening sockets: who may connect, how many at once, and how it ends."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import Busy, PermissionDenied, ZstorError
from zstor_local.rpc.call import Peer
from zstor_local.rpc.connection import ClientConnection
from zstor_local.rpc.dispatch import Dispatcher, error_reply
from zstor_local.rpc.outbox import Cork
from zstor_local.rpc.registry import Registry
from zstor_local.runtime import Randomness
from zstor_local.store.jobs import Jobs
from zstor_local.unix_socket import Connected, is_user, other_end

log = logging.getLogger("zstor.rpc")

_LAST_REPLIES_SECONDS: Final = 1.0  # to send `shutting_down`; clients must not be able to delay the stop


class Server:
    """All connections of the daemon. Listeners come bound and listening; making the socket file is the daemon's work."""

    def __init__(
        self,
        registry: Registry,
        randomness: Randomness,
        *,
        jobs: Jobs | None = None,
        uid: int | None = None,
        mounts_of: Callable[[int], str | None] = lambda _: None,
        make_way: Callable[[], object] = lambda: None,
    ) -> None:
        """`mounts_of` tells the mount namespace of a process, as runtime.ClientFiles does. `make_way` is called when others have waited
        long for room for their replies: what holds some and waits for a client has to end.
        """
        self._mounts_of = mounts_of
        self._make_way = make_way
        self.dispatcher: Final = Dispatcher(registry, randomness, jobs)
        self._uid = os.geteuid() if uid is None else uid
        self._cork = Cork()
        self._connections: set[ClientConnection] = set()
        self._accepting = trio.CancelScope()
        self._stopped = trio.Event()
        self._closed = trio.Event()

    @property
    def connections(self) -> int:
        """How many clients there are."""
        return len(self._connections)

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until `stop` is called and the last connection has ended. Cancelling it ends all at once (commits are finished)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._make_room)
            with self._accepting:
                task_status.started()
                # It waits and tries again where the process is out of descriptors.
                await trio.serve_listeners(self.serve_client, [*listeners], handler_nursery=nursery)
            await self._stopped.wait()
            await self._wind_down()
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Accept no more connections, take no more requests, let running calls end within the limit."""
        self._stopped.set()
        self._accepting.cancel()

    async def _make_room(self) -> None:
        """Have who holds much and is slow give way to those who have waited for long."""
        while True:
            await trio.sleep(limits.CROWDED_SECONDS)
            inputs, replies = self.dispatcher.inputs.crowded, self.dispatcher.replies.crowded
            if replies:
                self._make_way()
            for connection in [*self._connections]:
                connection.look_at_pace(inputs_crowded=inputs, replies_crowded=replies)

    async def _wind_down(self) -> None:
        for connection in [*self._connections]:
            connection.stop()
        with trio.move_on_after(limits.STOP_SECONDS) as grace:
            await self._all_closed()
        if grace.cancelled_caught:
            log.warning("calls that had not ended after %.0f s are stopped", limits.STOP_SECONDS)
        for connection in [*self._connections]:
            connection.abort()
        with trio.move_on_after(_LAST_REPLIES_SECONDS):
            await self._all_closed()

    async def _all_closed(self) -> None:
        while self._connections:
            self._closed = trio.Event()
            await self._closed.wait()

    def _has_room(self, pid: int) -> bool:
        """Whether there may be one client more, of a process. What is left of one that has gone, such as a call on a disk that hangs,
        is none; but for a connection of our own, those that are silent make way.
        """
        if len(self._connections) < limits.CONNECTIONS:
            return True
        staying = [connection for connection in self._connections if not connection.stopping]
        return len(staying) < limits.CONNECTIONS or (pid != os.getpid() and self._let_one_go(staying))

    def _let_one_go(self, clients: Collection[ClientConnection]) -> bool:
        """End the connection that has been silent for the longest, of the process that has the most; False where none was."""
        held = Counter(connection.peer.pid for connection in clients)
        silent = {connection: seconds for connection in clients if (seconds := connection.silent) >= limits.SILENT_SECONDS}
        if not silent:
            return False
        longest = max(silent, key=lambda connection: (held[connection.peer.pid], silent[connection]))
        log.info("%s was silent for %.0f s and makes way for another client", longest.peer, silent[longest])
        longest.stop()
        return True

    async def serve_client(self, stream: trio.SocketStream) -> None:
        """One client until it is gone."""
        refusal: ZstorError | None = None
        peer = peer_of(stream.socket)
        if not is_user(peer.uid, self._uid):
            refusal = PermissionDenied("this socket is for its owner alone", hint="run your own daemon, or be the same user")
        elif not self._has_room(peer.pid):
            refusal = Busy(f"{limits.CONNECTIONS} clients are connected", hint="try again when one is gone", limit=limits.CONNECTIONS)
        if refusal is not None:
            log.warning("refused %s: %s", peer, refusal.message)
            with trio.move_on_after(_LAST_REPLIES_SECONDS), suppress(trio.BrokenResourceError):  # it may have gone already
                await stream.send_all(error_reply(None, refusal) + b"\n")
            return
        peer = replace(peer, mounts=self._mounts_of(peer.pid))  # of 0, in a pid namespace that we do not see, nobody can tell
        connection = ClientConnection(stream.socket, peer, self.dispatcher, self._cork)
        self._connections.add(connection)
        if self._stopped.is_set():
            connection.stop()
        try:
            await connection.serve()
        except Exception as error:
            # One client's fault, or ours in serving it, never ends the others.
            self.dispatcher.incident(error, f"connection of {peer}")
        finally:
            self._connections.discard(connection)
            self._closed.set()


def peer_of(client: Connected) -> Peer:
    """Who connected. Those are the credentials of connect(2): a descriptor handed on keeps its maker's."""
    pid, uid = other_end(client)
    return Peer(pid, uid)
