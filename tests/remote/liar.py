"""A shard server that lies: honest underneath, with answers replaced on their way out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from zstor_local.access.trust import parse_trust
from zstor_local.access.verify import TokenVerifier
from zstor_local.runtime import Runtime
from zstor_local.shardserver.answer import Send
from zstor_local.shardserver.app import App
from zstor_local.shardserver.connections import serve_http
from zstor_local.shardserver.guard import Guard
from zstor_local.shardserver.metrics import Metrics
from zstor_local.shardserver.request import Receive, Scope
from zstor_local.shardserver.serve import Settings, _bind, _config
from zstor_local.shardserver.trusting import TrustKeeper
from zstor_local.shardserver.volume import TRUST, Volume

SECOND: Final = 1_000_000
PAGE: Final = b"<html><body>Internal Server Error</body></html>"
Message = MutableMapping[str, Any]


class Liar:
    """The application; set `lie` to one of LIES, or None for the truth. `told` counts lies."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.lie: str | None = None
        self.told = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lie = self.lie
        share = "/shares/" in scope.get("path", "")
        if scope["type"] != "http" or lie is None or not (share or (lie in STORING and scope["method"] in ("PUT", "POST"))):
            await self._app(scope, receive, send)
            return
        if lie in STORING and share:
            await self._app(scope, receive, send)
            return
        self.told += 1
        await LIES[lie](self._app, scope, receive, send)


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _honest(app: App, scope: Scope, receive: Receive) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """What the server would have answered."""
    messages: list[Message] = []

    async def keep(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, keep)
    return messages[0]["status"], messages[0]["headers"], b"".join(each.get("body", b"") for each in messages[1:])


async def wrong_share(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """As many bytes as were asked for, other ones."""
    status, headers, body = await _honest(app, scope, receive)
    await _answer(send, status, bytes(byte ^ 0x55 for byte in body), *headers)


async def short_body(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Fewer bytes than the headers say."""
    status, headers, body = await _honest(app, scope, receive)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": False})


async def shorter_range(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """A stretch that is consistent and shorter than what was asked for."""
    status, headers, body = await _honest(app, scope, receive)
    half = body[: max(1, len(body) // 2)]
    kept = [(name, value) for name, value in headers if name not in (b"content-length", b"content-range")]
    await _answer(send, status, half, *kept, (b"content-length", str(len(half)).encode()), (b"content-range", b"bytes 0-0/1"))


async def endless_body(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"application/octet-stream"), (b"content-range", b"bytes 0-99/100")]
    await send({"type": "http.response.start", "status": 206, "headers": headers})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})


async def redirect(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    await _answer(send, 307, b"", (b"location", b"http://127.0.0.1:9/"), (b"content-length", b"0"))


async def compressed(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    status, headers, body = await _honest(app, scope, receive)
    await _answer(send, status, body, *headers, (b"content-encoding", b"gzip"))


async def error_page(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """A proxy's page, with a status that says all is well."""
    await _answer(send, 200, PAGE, (b"content-type", b"text/html"), (b"content-length", str(len(PAGE)).encode()))


async def error_page_in_place(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """The same, with the status of a range."""
    await _answer(send, 206, PAGE, (b"content-type", b"text/html"), (b"content-length", str(len(PAGE)).encode()))


async def missing(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    body = json.dumps({"type": "not_found", "message": "never seen"}).encode()
    await _answer(send, 404, body, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()))


async def nonsense(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    body = b'{"type": ' + b"[" * 3_000
    await _answer(send, 500, body, (b"content-length", str(len(body)).encode()))


async def not_stored(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Says that everything was done, and does nothing of it."""
    path = scope["path"]
    if not path.endswith("/log") and "/uploads/" not in path:
        await app(scope, receive, send)
        return
    while (await receive()).get("more_body", False):
        pass
    await _answer(send, 201 if scope["method"] == "POST" and "/uploads/" in path else 204, b"")


LIES: Final[dict[str, Callable[[App, Scope, Receive, Send], Any]]] = {
    each.__name__: each
    for each in (
        wrong_share,
        short_body,
        shorter_range,
        endless_body,
        redirect,
        compressed,
        error_page,
        error_page_in_place,
        missing,
        nonsense,
        not_stored,
    )
}
STORING: Final = frozenset({"not_stored"})


@asynccontextmanager
async def lying(runtime: Runtime, data: Path, trust: object) -> AsyncIterator[tuple[str, Liar]]:
    """The URL of a server in this process, and what makes it lie."""
    volume = Volume(runtime, str(data))
    verifier = TokenVerifier([parse_trust(json.dumps(trust))])
    app = App(volume, Guard(verifier, lambda: runtime.clock.now() // SECOND), TrustKeeper(runtime, f"{data}/{TRUST}"), Metrics())
    liar = Liar(app)
    listen = f"unix:{data}.sock"
    config = _config(Settings(listen, str(data), []), _bind(listen))
    config.graceful_timeout = 0.1
    stopping = trio.Event()
    try:
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await serve_http(liar, config, until=stopping.wait)  # type: ignore[arg-type]

            nursery.start_soon(serve)
            yield f"http+unix://{data}.sock", liar
            app.stop()
            stopping.set()
    finally:
        volume.close()
