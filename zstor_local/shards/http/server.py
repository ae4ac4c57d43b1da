"""One shard server as the daemon sees it: what is asked once more, and a breaker while it does not answer.

What fails once is not asked again by requests: a probe in the background asks whether it is well, and closes the breaker.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import trio

from zstor_local.runtime import Network, Randomness
from zstor_local.shards.base import ShardError
from zstor_local.shards.http.ask import Ask, Deadlines, Reply
from zstor_local.shards.http.connections import Broke, Connections

PROBE_SECONDS: Final = (0.5, 10.0)  # between two probes: at first, and at most
FORGOTTEN_SECONDS: Final = 60.0  # for which nobody has looked at one that does not answer
REST_SECONDS: Final = (5.0, 600.0)  # without a probe for one that was late again, at first and at most: commits wait for it, each time
CALM_SECONDS: Final = 600.0  # of being well, after which one that is late is one that was never late before
RETRY_SECONDS: Final = 0.1  # about so long is waited before a safe request is sent once more
BUSY_SECONDS: Final = 1.0  # between two requests to one that is busy, at most
USUAL_SECONDS: Final = (0.1, 1.0)  # what takes longer than usual is no less and no more than this
USUAL_FACTOR: Final = 4.0

log = logging.getLogger("zstor.shards")


class Server:
    """The one at `url`, for whoever asks it in a daemon's life. `ask` runs in the event loop."""

    def __init__(self, url: str, network: Network, randomness: Randomness, deadlines: Deadlines) -> None:
        self.url = url
        self._network = network
        self._randomness = randomness
        self._deadlines = deadlines
        self._connections = Connections(url, network, deadlines, lambda: self._broken)
        self._broken: str | None = None
        self._wanted = True
        self._well_since = -math.inf
        self._rested = 0.0

    @property
    def broken(self) -> str | None:
        """Why nothing is asked of it now; None if it is well, as far as is known. It is probed as long as somebody looks."""
        self._wanted = True
        return self._broken

    @property
    def patience(self) -> float:
        """Seconds after which an answer is late: some times what is usual."""
        least, most = USUAL_SECONDS
        return max(least, min(most, USUAL_FACTOR * self._connections.usual))

    @property
    def host(self) -> str:
        """What fails together with it."""
        return urlsplit(self.url).netloc.rpartition("@")[2] or self.url

    async def ask(self, ask: Ask, token: str) -> Reply:
        """The answer; a server that is busy is asked again until the request's deadline. One that commits wait for is late then.

        ShardError (`untouched` where nothing was sent), TokenRefused or ShareMissing.
        """
        seconds, pause = self._deadlines.of(ask), RETRY_SECONDS
        until = trio.current_time() + seconds
        while True:
            try:
                return await self._once_more(ask, token)
            except ShardError as error:
                wait = self._about(pause)
                over = self._broken is not None or trio.current_time() + wait > until
                if over and error.code == "busy" and ask.durable:
                    self._trip(Broke(f"{self.url} was busy for {seconds:g} seconds", late=True))
                if over or error.code != "busy":
                    raise
            await trio.sleep(wait)
            pause = min(BUSY_SECONDS, 2 * pause)

    async def _once_more(self, ask: Ask, token: str) -> Reply:
        """Once more where the connection broke and that does no harm: a server may close one that was idle."""
        try:
            return await self._connections.exchange(ask, token)
        except Broke as broke:
            unsent = broke.unsent
            if not ask.safe or broke.late:
                self._trip(broke)
                raise ShardError("missing", str(broke), untouched=unsent) from None
        await trio.sleep(self._about(RETRY_SECONDS))
        try:
            return await self._connections.exchange(ask, token)
        except Broke as broke:
            self._trip(broke)
            raise ShardError("missing", str(broke), untouched=unsent and broke.unsent) from None

    def _about(self, seconds: float) -> float:
        """Not all daemons come at once."""
        return seconds * (0.5 + self._randomness.bytes(1)[0] / 256)

    # --- The breaker ---

    def _trip(self, broke: Broke) -> None:
        """Ask nothing more until a probe was answered."""
        if self._broken is None:
            log.warning("%s", broke)
            self._network.start(partial(self._probe, self._rest() if broke.late else 0.0))
        self._broken = str(broke)

    def _rest(self) -> float:
        """Seconds for which one that was late is left alone, whatever it answers to probes: more each time, but after a long calm."""
        if trio.current_time() - self._well_since > CALM_SECONDS:
            self._rested = 0.0
        else:
            least, most = REST_SECONDS
            self._rested = max(least, min(most, 2 * self._rested))
        return self._rested

    async def _probe(self, rest: float) -> None:
        """Until it is well, or nobody has looked for a while, as where no shard came to lie there: the next one who asks finds out."""
        pause, longest = PROBE_SECONDS
        await trio.sleep(rest)
        await trio.sleep(self._about(pause))
        wanted_at = trio.current_time()
        while not await self._connections.well():
            pause = min(longest, pause * 2)
            await trio.sleep(self._about(pause))
            if self._wanted:
                self._wanted, wanted_at = False, trio.current_time()
            elif trio.current_time() - wanted_at > FORGOTTEN_SECONDS:
                self._broken = None
                return
        log.warning("%s answers again", self.url)
        self._broken, self._well_since = None, trio.current_time()
