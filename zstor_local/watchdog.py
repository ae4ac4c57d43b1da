"""The proof of life that a service manager wants: a request that goes all the way through a connection and comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from zstor_local.errors import errno_text
from zstor_local.rpc.server import Server
from zstor_local.runtime import Threads
from zstor_local.sd_notify import Notifier

_STATUS_SECONDS: Final = 10.0
_PING: Final = b'{"jsonrpc":"2.0","id":1,"method":"rpc.ping"}\n'

log = logging.getLogger("zstor.daemon")


async def keep_telling(notifier: Notifier, server: Server, threads: Threads, state: Callable[[], str]) -> None:
    """Tell the manager how things are, and that we live: only after a worker thread and a connection have answered.

    So a loop that turns while nobody is served is no life. Nor is one without a descriptor to ask with, but it may have one again.
    """
    interval = min(notifier.watchdog_seconds / 2, _STATUS_SECONDS) if notifier.watchdog_seconds else _STATUS_SECONDS
    while True:
        try:
            await threads.run(lambda: None)
            await _ask(server)
        except OSError as error:
            log.warning("no proof of life: %s", errno_text(error))
        else:
            notifier.alive()
            notifier.status(state())
        await trio.sleep(interval)


async def _ask(server: Server) -> None:
    """One call over a connection of our own; whatever it answers will do, and that it hangs up, as a server does that stops."""
    ours, theirs = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_client, trio.SocketStream(theirs))
        async with trio.SocketStream(ours) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(_PING)
                await stream.receive_some(1)
