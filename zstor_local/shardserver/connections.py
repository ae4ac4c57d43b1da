"""The shard server's connections: hypercorn speaks HTTP on them, and who does not take what it asked for is let go.

hypercorn waits for ever, whatever is cancelled, for a client to take an answer: one that reads nothing would keep memory, and the
server from ever stopping. So its way to send is replaced here, and with it the few lines that accept connections.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Event, RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState

SLOW_SECONDS: Final = 30.0  # for a client to take a piece of an answer (answer.SEND_BYTES)


class Connection(TCPServer):
    """One client's connection."""

    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            with trio.move_on_after(SLOW_SECONDS) as patience:
                try:
                    await self.stream.send_all(event.data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    patience.cancel()
                    await trio.lowlevel.checkpoint()
        if patience.cancelled_caught:  # it is gone, or as good as gone: whoever waits for its next request hears of it
            await trio.aclose_forcefully(self.stream)


async def serve_http(app: ASGIFramework, config: Config, *, until: Callable[[], Awaitable[None]]) -> None:
    """Serve on the one socket of the configuration until `until` returns. What runs then has the configuration's grace to end."""
    sockets = config.create_sockets()
    [bound] = [*sockets.secure_sockets, *sockets.insecure_sockets]
    bound.listen(config.backlog)
    plain = trio.SocketListener(trio.socket.from_stdlib_socket(bound))
    context = config.create_ssl_context()
    listener = plain if context is None else trio.SSLListener(plain, context, https_compatible=True)
    life = WorkerContext(None)
    connection = partial(Connection, ASGIWrapper(app), config, life, ConnectionState({}))
    async with trio.open_nursery() as clients:
        async with trio.open_nursery() as accepting:
            # It waits and tries again where the process is out of descriptors.
            accepting.start_soon(partial(trio.serve_listeners, connection, [listener], handler_nursery=clients))
            await until()
            accepting.cancel_scope.cancel()
        await life.terminated.set()
        clients.cancel_scope.deadline = trio.current_time() + config.graceful_timeout
