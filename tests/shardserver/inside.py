"""A shard server and a network in a thread of the test itself: its files can be told to fail, and synchronous tests can ask it."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from tests.shardserver.server import LIMIT, Issuer
from zstor_local.access.trust import parse_trust
from zstor_local.access.verify import TokenVerifier
from zstor_local.network import RealNetwork, open_network
from zstor_local.runtime import Runtime
from zstor_local.shardserver.app import App
from zstor_local.shardserver.connections import CONNECTIONS, Connections
from zstor_local.shardserver.guard import Guard
from zstor_local.shardserver.metrics import Metrics
from zstor_local.shardserver.serve import _bind
from zstor_local.shardserver.trusting import TrustKeeper
from zstor_local.shardserver.volume import TRUST, Volume

T = TypeVar("T")
SECOND: Final = 1_000_000


class Inside:
    """One server at `url`, and the network to ask it, until `close`. `restart` is what a kill and a new start would be."""

    def __init__(self, runtime: Runtime, data: Path, issuer: Issuer, *, connections: int = CONNECTIONS) -> None:
        self.data = data
        self._connections = connections
        self._runtime = runtime
        self._issuer = issuer
        self._socket = f"{data}.sock"
        self.url = f"http+unix://{self._socket}"
        self.network: RealNetwork
        self.volume: Volume
        self.verifier: TokenVerifier
        self._ready: queue.Queue[BaseException | None] = queue.Queue()
        self._over = trio.Event()
        self._token: trio.lowlevel.TrioToken
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        if (error := self._ready.get(timeout=LIMIT)) is not None:
            raise error

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._ready.put(error)
            raise

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._over = trio.Event()
        async with open_network() as network:
            self.network = network
            while not self._over.is_set():
                self._stopping = trio.Event()
                await self._serve()

    async def _serve(self) -> None:
        self.volume = Volume(self._runtime, str(self.data))
        self.verifier = TokenVerifier([parse_trust(json.dumps(self._issuer.document()))])
        guard = Guard(self.verifier, lambda: self._runtime.clock.now() // SECOND)
        app = App(self.volume, guard, TrustKeeper(self._runtime, f"{self.data}/{TRUST}"), Metrics())
        listener = _bind(f"unix:{self._socket}")
        self._ready.put(None)
        try:
            await Connections(app, self._connections).serve(listener, None, until=self._stopping.wait, grace=1.0)
        finally:
            self.volume.close()

    def ask(self, work: Callable[..., Awaitable[T]], *args: Any) -> T:
        return trio.from_thread.run(work, *args, trio_token=self._token)

    def do(self, work: Callable[[], T]) -> T:
        """In the server's thread."""
        return trio.from_thread.run_sync(work, trio_token=self._token)

    def restart(self) -> None:
        self.do(lambda: self._stopping.set())
        if (error := self._ready.get(timeout=LIMIT)) is not None:
            raise error

    def close(self) -> None:
        def stop() -> None:
            self._over.set()
            self._stopping.set()

        self.do(stop)
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
