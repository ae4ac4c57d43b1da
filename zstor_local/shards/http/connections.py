"""The connections to one shard server, and one exchange over them.

Nothing that it sends is believed: bodies are read up to what was asked for and no further, as they are on the wire; redirects,
encodings and other statuses than the one that a request expects are errors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import trio

from zstor_local.runtime import Network
from zstor_local.shards.base import ShardError, ShardState, ShareMissing
from zstor_local.shards.http.ask import Ask, Deadlines, Reply

if TYPE_CHECKING:
    import httpx

CONNECTIONS: Final = 32  # of one daemon to one server
IDLE_SECONDS: Final = 30.0  # that a connection is kept; the server keeps it longer
ERROR_BYTES: Final = 4_096  # of an error that are read

_STATES: Final[Mapping[str, ShardState]] = {
    "no_space_here": "missing",
    "unauthenticated": "failed",
    "forbidden": "failed",
    "bad_request": "failed",
    "gone": "failed",
    "fenced": "readonly",
    "readonly": "readonly",
    "full": "full",
    "quota": "full",
    "busy": "failed",
}


class TokenRefused(ShardError):
    """Another token may be taken."""


class Broke(Exception):
    """A request without an answer. `unsent`: nothing of it went out; `late`: a deadline passed."""

    def __init__(self, message: str, *, unsent: bool = False, late: bool = False) -> None:
        super().__init__(message)
        self.unsent = unsent
        self.late = late


class Connections:
    """Those to the server at `url`: http://HOST:PORT, https://HOST:PORT or http+unix:///PATH. Used in the event loop."""

    def __init__(self, url: str, network: Network, deadlines: Deadlines, broken: Callable[[], str | None]) -> None:
        """`broken` says why nothing is to be asked now."""
        self.url = url
        self.deadlines = deadlines
        self.usual = 0.0  # seconds that an answer took of late
        self._network = network
        self._broken = broken
        self._transport: httpx.AsyncHTTPTransport | None = None
        self._limiter = trio.CapacityLimiter(CONNECTIONS)

    async def exchange(self, ask: Ask, token: str) -> Reply:
        """Send it once. Broke where no answer came; ShardError, TokenRefused or ShareMissing where it says so."""
        import httpx

        seconds = self.deadlines.of(ask)
        headers = {"authorization": f"Bearer {token}", "accept-encoding": "identity", **(ask.headers or {})}
        try:
            # Nothing waits in the pool itself: a request that is cancelled there would take its place along for ever.
            async with self._limiter:
                if (why := self._broken()) is not None:  # since it waited here: each would wait for its own deadline now
                    raise Broke(why, unsent=True)
                began = trio.current_time()
                with trio.fail_after(seconds):
                    async with aclosing(await self._answer(ask.method, ask.path, ask.body or None, headers)) as response:
                        reply = await self._read(ask, response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = _untrusted(error) or f"cannot be reached ({type(error).__name__})"
            raise Broke(f"{self.url} {reason}", unsent=True) from None
        except (trio.TooSlowError, httpx.TimeoutException):
            raise Broke(f"{self.url} did not answer within {seconds:g} seconds", late=True) from None
        except (httpx.InvalidURL, UnicodeError):  # of a host name that none can have
            raise Broke(f"{self.url} is no address of a server", unsent=True) from None
        except httpx.HTTPError as error:
            raise Broke(f"the connection to {self.url} broke ({type(error).__name__})") from None
        took = trio.current_time() - began
        self.usual += (took - self.usual) / 8
        return reply

    async def well(self) -> bool:
        """Whether the server says that it is."""
        import httpx

        try:
            async with self._limiter:
                with trio.fail_after(self.deadlines.probe):
                    async with aclosing(await self._answer("GET", "/health")) as response:
                        return response.status_code == 200
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, trio.TooSlowError):
            return False

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
        refusal = TokenRefused if status == 401 else ShardError
        return refusal(state, f"{self.url}: {words}", code=kind if isinstance(kind, str) and kind in _STATES else None)

    async def _answer(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """By the transport alone: httpx's client looks where a redirect leads, followed or not, and falls over what is no address."""
        import httpx

        base = "http://shard" if self.url.startswith("http+unix://") else self.url
        timeout = {"timeout": {"connect": self.deadlines.connect}}
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

    async def close(self) -> None:
        if self._transport is not None:
            transport, self._transport = self._transport, None
            with trio.CancelScope(shield=True):
                await transport.aclose()


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
