"""One shard server as the daemon sees it: its connections, deadlines, what it may answer, and a breaker while it does not.

Nothing it sends is believed: bodies are read up to what was asked for and no further, as they are on the wire; redirects, encodings and
other statuses than the one that a request expects are errors. What fails once is not asked again by requests: a probe in the
background asks whether it is well, and closes the breaker.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

import trio

from zstor_local import limits
from zstor_local.model.ids import ShardUid
from zstor_local.runtime import Network, Randomness
from zstor_local.shards.base import ShardError, ShardState, ShareMissing

if TYPE_CHECKING:
    import httpx

CONNECTIONS: Final = 32  # of one daemon to one server
IDLE_SECONDS: Final = 30.0  # that a connection is kept; the server keeps it longer
ERROR_BYTES: Final = 4_096  # of an error that are read
PROBE_SECONDS: Final = (0.5, 10.0)  # between two probes: at first, and at most
REST_SECONDS: Final = (5.0, 600.0)  # without a probe for one that was late again, at first and at most: commits wait for it, each time
CALM_SECONDS: Final = 600.0  # of being well, after which one that is late is one that was never late before
LEAST_SENT: Final = limits.MIB  # bytes a second of a body that a server must come by at least
LEAST_SETTLED: Final = 8 * limits.MIB  # and that its disk must take: a share of gigabytes is flushed at its end
RETRY_SECONDS: Final = 0.1  # about so long is waited before a safe request is sent once more
USUAL_SECONDS: Final = (0.1, 1.0)  # what takes longer than usual is no less and no more than this
USUAL_FACTOR: Final = 4.0

_STATES: Final[Mapping[str, ShardState]] = {
    "no_space_here": "missing",
    "unauthenticated": "failed",
    "forbidden": "failed",
    "bad_request": "failed",
    "fenced": "readonly",
    "readonly": "readonly",
    "full": "full",
    "quota": "full",
    "busy": "failed",
}

log = logging.getLogger("zstor.shards")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds after which a server is given up: a connection, a request to its last byte, one that is flushed first, a probe."""

    connect: float = 3.0
    request: float = 10.0
    durable: float = 10.0
    probe: float = 2.0

    def of(self, ask: Ask) -> float:
        """Those of a request: what is long takes longer."""
        seconds = self.durable if ask.durable else self.request
        return seconds + len(ask.body) / LEAST_SENT + ask.settles / LEAST_SETTLED


class TokenSource(Protocol):
    """Where tokens for a server come from."""

    @property
    def behind(self) -> bool:
        """Whether the last one was of an older key of its owner's than the newest."""
        ...

    async def token(self, refused: int = 0) -> str | None:
        """One that is good for half a minute at least. `refused`: how many were refused just now, for one request; None where no other
        one is left to try.
        """
        ...


class OwnTokens(TokenSource, Protocol):
    """A store's own: without a shard they only ask which one lies somewhere."""

    def of(self, shard: ShardUid) -> TokenSource:
        """Those for one of its shards, of use to no other server than its own."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `most` is how many bytes the answer may have; `safe` whether sending it twice does no more than once.

    `durable`: the server flushes before it answers; `settles`: so many bytes that came before.
    """

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] | None = None
    expect: tuple[int, ...] = (204,)
    most: int = 0
    durable: bool = False
    settles: int = 0
    safe: bool = True


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with an expected status, its body whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Bearer(Protocol):
    """A server that is asked with the tokens of somebody."""

    @property
    def url(self) -> str: ...
    @property
    def broken(self) -> str | None: ...
    @property
    def patience(self) -> float: ...
    @property
    def host(self) -> str: ...
    @property
    def behind(self) -> bool: ...
    async def ask(self, ask: Ask) -> Reply: ...


class Peer:
    """A server at `url`: http://HOST:PORT, https://HOST:PORT or http+unix:///PATH. `ask` runs in the event loop."""

    def __init__(self, url: str, tokens: TokenSource, network: Network, randomness: Randomness, deadlines: Deadlines) -> None:
        self.url = url
        self._tokens = tokens
        self._network = network
        self._randomness = randomness
        self._deadlines = deadlines
        self._transport: httpx.AsyncHTTPTransport | None = None
        self._limiter = trio.CapacityLimiter(CONNECTIONS)
        self._broken: str | None = None
        self._well_since = -math.inf
        self._rested = 0.0
        self._usual = 0.0

    @property
    def broken(self) -> str | None:
        """Why nothing is asked of it now; None if it is well, as far as is known."""
        return self._broken

    @property
    def patience(self) -> float:
        """Seconds after which an answer is late: some times what is usual."""
        least, most = USUAL_SECONDS
        return max(least, min(most, USUAL_FACTOR * self._usual))

    @property
    def host(self) -> str:
        """What fails together with it."""
        return urlsplit(self.url).netloc.rpartition("@")[2] or self.url

    @property
    def behind(self) -> bool:
        """Whether it takes no token of its owner's newest key, as far as is known."""
        return self._tokens.behind

    def bearing(self, tokens: TokenSource) -> Bearer:
        """The same server, over the same connections, asked with other tokens."""
        return _Bearing(self, tokens)

    async def ask(self, ask: Ask) -> Reply:
        """The answer, or ShardError (`untouched` where nothing was sent), or ShareMissing."""
        return await self.ask_with(self._tokens, ask)

    async def ask_with(self, tokens: TokenSource, ask: Ask) -> Reply:
        """The same with tokens from elsewhere."""
        if self._broken is not None:
            raise ShardError("missing", self._broken, untouched=True)
        refusal, refused = ShardError("failed", f"there is no token for {self.url}", untouched=True), 0
        while (token := await tokens.token(refused)) is not None:
            try:
                return await self._once_more(ask, token)
            except _TokenRefused as error:
                refusal, refused = error, refused + 1
        raise refusal

    async def _once_more(self, ask: Ask, token: str) -> Reply:
        """Send it; once more where the connection broke and that does no harm: a server may close one that was idle."""
        try:
            return await self._send(ask, token)
        except _Broke as broke:
            unsent = broke.unsent
            if not ask.safe or broke.late:
                self._trip(broke)
                raise ShardError("missing", str(broke), untouched=unsent) from None
        await trio.sleep(RETRY_SECONDS * (0.5 + self._randomness.bytes(1)[0] / 256))
        try:
            return await self._send(ask, token)
        except _Broke as broke:
            self._trip(broke)
            raise ShardError("missing", str(broke), untouched=unsent and broke.unsent) from None

    async def _send(self, ask: Ask, token: str) -> Reply:
        import httpx

        seconds = self._deadlines.of(ask)
        headers = {"authorization": f"Bearer {token}", "accept-encoding": "identity", **(ask.headers or {})}
        try:
            # Nothing waits in the pool itself: a request that is cancelled there would take its place along for ever.
            async with self._limiter:
                began = trio.current_time()
                with trio.fail_after(seconds):
                    async with aclosing(await self._answer(ask.method, ask.path, ask.body or None, headers)) as response:
                        reply = await self._read(ask, response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = _untrusted(error) or f"cannot be reached ({type(error).__name__})"
            raise _Broke(f"{self.url} {reason}", unsent=True) from None
        except (trio.TooSlowError, httpx.TimeoutException):
            raise _Broke(f"{self.url} did not answer within {seconds:g} seconds", late=True) from None
        except (httpx.InvalidURL, UnicodeError):  # of a host name that none can have
            raise _Broke(f"{self.url} is no address of a server", unsent=True) from None
        except httpx.HTTPError as error:
            raise _Broke(f"the connection to {self.url} broke ({type(error).__name__})") from None
        took = trio.current_time() - began
        self._usual += (took - self._usual) / 8
        return reply

    async def _read(self, ask: Ask, response: httpx.Response) -> Reply:
        headers = {name.lower(): value for name, value in response.headers.items()}
        expected = response.status_code in ask.expect
        most = ask.most if expected else ERROR_BYTES
        if headers.get("content-encoding", "identity") != "identity":
            raise ShardError("failed", f"{self.url} answers in an encoding that was not asked for")
        body = bytearray()
        with trio.CancelScope() as reading:  # ends the reading where it waits; leaving the loop would leave httpcore's generators open
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > most:
                    reading.cancel()
        if expected:
            if len(body) > most:
                raise ShardError("failed", f"{self.url} sends more than was asked for")
            if body and headers.get("content-type") != "application/octet-stream" and headers.get("content-type") != "application/json":
                raise ShardError("failed", f"{self.url} answers something that is no shard server's")
            return Reply(response.status_code, headers, bytes(body))
        raise self._refused(response.status_code, bytes(body[:ERROR_BYTES]))

    def _refused(self, status: int, body: bytes) -> Exception:
        try:
            members = json.loads(body)
            kind, words = members["type"], _printable(str(members["message"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            kind, words = None, f"status {status}"
        if status == 404 and kind == "not_found":
            return ShareMissing()
        state = _STATES.get(kind, "failed") if isinstance(kind, str) else "failed"
        refusal = _TokenRefused if status == 401 else ShardError
        return refusal(state, f"{self.url}: {words}", code=kind if isinstance(kind, str) and kind in _STATES else None)

    async def _answer(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """By the transport alone: httpx's client looks where a redirect leads, followed or not, and falls over what is no address."""
        import httpx

        base = "http://shard" if self.url.startswith("http+unix://") else self.url
        timeout = {"timeout": {"connect": self._deadlines.connect}}
        request = httpx.Request(method, f"{base}{path}", content=body, headers=headers, extensions=timeout)
        return await self._opened().handle_async_request(request)

    def _opened(self) -> httpx.AsyncHTTPTransport:
        """The connections; httpx takes a while to import and is not needed without shards on other machines."""
        if self._transport is None:
            import ssl

            import httpx

            connections = httpx.Limits(
                max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=IDLE_SECONDS
            )
            scheme, _, path = self.url.partition("://")
            verify = ssl.create_default_context() if scheme == "https" else False
            uds = path if scheme == "http+unix" else None
            self._transport = httpx.AsyncHTTPTransport(uds=uds, verify=verify, trust_env=False, limits=connections)
            self._network.at_end(self.close)
        return self._transport

    # --- The breaker ---

    def _trip(self, broke: _Broke) -> None:
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
        import httpx

        pause, longest = PROBE_SECONDS
        await trio.sleep(rest)
        while True:
            await trio.sleep(pause * (0.5 + self._randomness.bytes(1)[0] / 256))
            pause = min(longest, pause * 2)
            try:
                async with self._limiter:
                    with trio.fail_after(self._deadlines.probe):
                        async with aclosing(await self._answer("GET", "/health")) as response:
                            well = response.status_code == 200
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, trio.TooSlowError):
                continue
            if well:
                log.warning("%s answers again", self.url)
                self._broken, self._well_since = None, trio.current_time()
                return

    async def close(self) -> None:
        if self._transport is not None:
            transport, self._transport = self._transport, None
            with trio.CancelScope(shield=True):
                await transport.aclose()


class _Bearing:
    """What `Peer.bearing` gives."""

    def __init__(self, peer: Peer, tokens: TokenSource) -> None:
        self._peer = peer
        self._tokens = tokens

    @property
    def url(self) -> str:
        return self._peer.url

    @property
    def broken(self) -> str | None:
        return self._peer.broken

    @property
    def patience(self) -> float:
        return self._peer.patience

    @property
    def host(self) -> str:
        return self._peer.host

    @property
    def behind(self) -> bool:
        return self._tokens.behind

    async def ask(self, ask: Ask) -> Reply:
        return await self._peer.ask_with(self._tokens, ask)


def _untrusted(error: BaseException | None) -> str | None:
    """What is wrong with a certificate, in the TLS library's words; None where something else is."""
    import ssl

    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"cannot be used: its certificate is not trusted ({_printable(error.verify_message)})"
        error = error.__cause__ or error.__context__
    return None


def _printable(words: str) -> str:
    """A server's own words, as far as they can do no harm where they are shown."""
    return "".join(letter if letter.isprintable() else "?" for letter in words[:200])


class _TokenRefused(ShardError):
    """Another token may be taken."""


class _Broke(Exception):
    """A request without an answer. `unsent`: nothing of it went out; `late`: a deadline passed."""

    def __init__(self, message: str, *, unsent: bool = False, late: bool = False) -> None:
        super().__init__(message)
        self.unsent = unsent
        self.late = late
