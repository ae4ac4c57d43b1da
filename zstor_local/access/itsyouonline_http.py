"""Calls to ItsYou.Online: login, the cached access token, deadlines, and a second try only where it can do no harm.

The service takes its secrets in the query, so no URL of a login may ever be logged or told. httpx's transport logs none; its client
does, and looks where redirects lead.
"""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Final

import httpx
import trio

from zstor_local.errors import Unauthenticated, Unavailable
from zstor_local.limits import MIB
from zstor_local.runtime import SECOND_US, Runtime

CALL_SECONDS: Final = 20.0  # a call with all its tries
TRY_SECONDS: Final = 8.0
TRIES: Final = 3
BACKOFF_SECONDS: Final = 0.2  # before the second try, twice that before the third, each with as much again by chance
CONNECTIONS: Final = 8
ANSWER_BYTES: Final = 4 * MIB
RENEW_SECONDS: Final = 30  # before the access token expires

_LOGIN: Final = "/v1/oauth/access_token"
_TOKEN: Final = re.compile(r"[\x21-\x7e]+\Z")  # goes into a header as it is


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A user's API key; repr shows none of it."""

    client_id: str
    client_secret: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said."""

    status: int
    body: bytes = field(repr=False)

    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def object(self) -> Mapping[str, object]:
        """The body as a JSON object; Unavailable for anything else."""
        try:
            value = jsonlib.loads(self.body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise _nonsense()
        return value


@dataclass(frozen=True, slots=True, repr=False)
class _Login:
    token: str
    user: str
    renew: int  # when it is used no more, in seconds since 1970


def http_transport() -> httpx.AsyncHTTPTransport:
    """Made by the edge, closed by it. No redirects, which would carry secrets elsewhere; nothing from the environment."""
    return httpx.AsyncHTTPTransport(trust_env=False, limits=httpx.Limits(max_connections=CONNECTIONS))


class Service:
    """One service, seen with one API key. `url` without `/api`, as `https://itsyou.online`."""

    def __init__(self, runtime: Runtime, transport: httpx.AsyncBaseTransport, url: str, credentials: Credentials) -> None:
        self._runtime = runtime
        self._transport = transport
        self._url = url.rstrip("/")
        self._credentials = credentials
        self._login: _Login | None = None
        self._logging_in = trio.Lock()
        self._room = trio.CapacityLimiter(CONNECTIONS)  # outside the pool: whoever is cancelled while waiting in it would keep a slot

    async def call(self, method: str, path: str, *, json: Mapping[str, str] | None = None, repeatable: bool = False) -> Answer:
        """Call the API under `/api`. GETs, and what is `repeatable`, are tried again where nothing or a 5xx came back.

        Unauthenticated if the service refuses the API key; Unavailable if it cannot be reached or answers 5xx.
        """
        with _deadline():
            token = (await self._logged_in()).token
            answer = await self._try(method, f"/api{path}", token, json, repeatable or method == "GET")
            if answer.status == 401:  # the token ended early; nothing was done
                self._forget(token)
                answer = await self._try(method, f"/api{path}", (await self._logged_in()).token, json, repeatable or method == "GET")
        if answer.status == 401:
            raise Unauthenticated("ItsYou.Online refuses the API key for this", hint="it must be a user's, with the scope user:admin")
        if answer.status >= 500:
            raise Unavailable(f"ItsYou.Online answered {answer.status}", hint="try again later")
        return answer

    async def sign(self, scopes: tuple[str, ...], seconds: int) -> Answer:
        """Ask for a signed token; the body of a 200 is the token."""
        asked = {"response_type": "id_token", "validity": str(seconds), "scope": ",".join(scopes)}
        with _deadline():
            answer = await self._post_login(asked)
        if answer.status == 400:
            raise _refused_key()
        if answer.status >= 500:
            raise Unavailable(f"ItsYou.Online answered {answer.status}", hint="try again later")
        return answer

    async def user(self) -> str:
        """Whose API key it is."""
        with _deadline():
            return (await self._logged_in()).user

    def nonsense(self) -> Unavailable:
        return _nonsense()

    async def _logged_in(self) -> _Login:
        async with self._logging_in:  # one login for all who need one
            now = self._runtime.clock.now() // SECOND_US
            if self._login is not None and now < self._login.renew:
                return self._login
            answer = await self._post_login({})
            if answer.status in (400, 401):
                raise _refused_key()
            if answer.status != 200:
                raise Unavailable(f"the login at ItsYou.Online failed with {answer.status}", hint="try again later")
            told = answer.object()
            token, seconds, info = told.get("access_token"), told.get("expires_in"), told.get("info")
            user = info.get("username") if isinstance(info, dict) else ""
            if not isinstance(token, str) or not _TOKEN.match(token) or type(seconds) is not int or not isinstance(user, str):
                raise _nonsense()
            self._login = _Login(token, user, now + max(0, seconds - RENEW_SECONDS))
            return self._login

    def _forget(self, token: str) -> None:
        if self._login is not None and self._login.token == token:
            self._login = None

    async def _post_login(self, asked: Mapping[str, str]) -> Answer:
        key = self._credentials
        query = {"grant_type": "client_credentials", "client_id": key.client_id, "client_secret": key.client_secret, **asked}
        return await self._try("POST", _LOGIN, None, None, True, query)

    async def _try(
        self,
        method: str,
        path: str,
        token: str | None,
        json: Mapping[str, str] | None,
        again: bool,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        pause = BACKOFF_SECONDS
        for turn in range(1, TRIES + 1):
            try:
                answer = await self._send(method, path, token, json, query)
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # the last of a host name that none can have
                if not again or turn == TRIES:
                    # The text of httpx's error may hold the URL, and with it the secret: only its name is told.
                    raise Unavailable(f"ItsYou.Online cannot be reached ({type(error).__name__})", hint="try again later") from None
            else:
                if answer.status < 500 or not again or turn == TRIES:
                    return answer
            await trio.sleep(pause * (1 + int.from_bytes(self._runtime.randomness.bytes(1), "big") / 255))
            pause *= 2
        raise AssertionError("the last try returns or raises")

    async def _send(
        self, method: str, path: str, token: str | None, json: Mapping[str, str] | None, query: Mapping[str, str] | None
    ) -> Answer:
        headers = {"Accept-Encoding": "identity"} | ({} if token is None else {"Authorization": f"token {token}"})
        timeout = {"timeout": httpx.Timeout(TRY_SECONDS).as_dict()}
        request = httpx.Request(method, self._url + path, headers=headers, json=json, params=query, extensions=timeout)
        async with self._room, aclosing(await self._transport.handle_async_request(request)) as response:
            if int(response.headers.get("content-length", "0")) > ANSWER_BYTES or "content-encoding" in response.headers:
                raise _nonsense()
            body = bytearray()
            async for part in response.aiter_raw():
                body += part
                if len(body) > ANSWER_BYTES:
                    raise _nonsense()
            return Answer(response.status_code, bytes(body))


@contextmanager
def _deadline() -> Iterator[None]:
    """Unavailable where a call with all its tries takes too long."""
    try:
        with trio.fail_after(CALL_SECONDS):
            yield
    except trio.TooSlowError:
        raise Unavailable(f"ItsYou.Online did not answer within {CALL_SECONDS:.0f} s", hint="try again later") from None


def _refused_key() -> Unauthenticated:
    return Unauthenticated("ItsYou.Online refuses the API key", hint="see the credentials file that [authority] names")


def _nonsense() -> Unavailable:
    return Unavailable("ItsYou.Online answered something that its API does not know", hint="is that its address?", retryable=False)
