"""A shard server that lies: honest underneath, with answers replaced on their way out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import trio

from zstor_local.access.trust import parse_trust
from zstor_local.access.verify import TokenVerifier
from zstor_local.runtime import Runtime
from zstor_local.shardserver.answer import JSON, Answer
from zstor_local.shardserver.app import App
from zstor_local.shardserver.connections import Connections, Give
from zstor_local.shardserver.guard import Guard
from zstor_local.shardserver.metrics import Metrics
from zstor_local.shardserver.request import Request
from zstor_local.shardserver.serve import _bind
from zstor_local.shardserver.trusting import TrustKeeper
from zstor_local.shardserver.volume import TRUST, Volume

SECOND: Final = 1_000_000
PAGE: Final = b"<html><body>Internal Server Error</body></html>"


class Liar:
    """The application, over a volume; set `lie` to one of LIES, or None for the truth. `told` counts lies."""

    def __init__(self, app: App, volume: Volume) -> None:
        self._app = app
        self.volume = volume
        self.lie: str | None = None
        self.told = 0

    async def serve(self, request: Request, give: Give) -> None:
        lie = self.lie
        share = "shares" in request.path[:-1]
        if lie is None or not (share or (lie in STORING and request.method in ("PUT", "POST"))) or (lie in STORING and share):
            await self._app.serve(request, give)
            return
        self.told += 1
        await LIES[lie](self._app, request, give)


async def _honest(app: App, request: Request) -> Answer:
    """What the server would have answered, its body whole."""
    answers: list[Answer] = []

    async def keep(answer: Answer) -> None:
        body = answer.body
        while answer.pieces is not None and len(body) < answer.length and request.method != "HEAD":
            body += await answer.pieces(len(body))
        answers.append(replace(answer, body=body))

    await app.serve(request, keep)
    return answers[0]


async def _nothing(at: int) -> bytes:
    return b""


async def wrong_share(app: App, request: Request, give: Give) -> None:
    """As many bytes as were asked for, other ones."""
    honest = await _honest(app, request)
    await give(replace(honest, body=bytes(byte ^ 0x55 for byte in honest.body)))


async def short_body(app: App, request: Request, give: Give) -> None:
    """Fewer bytes than the headers say."""
    honest = await _honest(app, request)
    await give(replace(honest, body=honest.body[: len(honest.body) // 2], pieces=_nothing, length=honest.size))


async def shorter_range(app: App, request: Request, give: Give) -> None:
    """A stretch that is consistent and shorter than what was asked for."""
    honest = await _honest(app, request)
    half = honest.body[: max(1, len(honest.body) // 2)]
    await give(Answer(half, honest.status, [("content-range", "bytes 0-0/1")]))


async def endless_body(app: App, request: Request, give: Give) -> None:
    async def more(at: int) -> bytes:
        return b"x" * 65_536

    await give(Answer(status=206, headers=[("content-range", "bytes 0-99/100")], pieces=more, length=1 << 60))


async def redirect(app: App, request: Request, give: Give) -> None:
    await give(Answer(status=307, headers=[("location", "http://127.0.0.1:9/")]))


async def redirect_to_no_address(app: App, request: Request, give: Give) -> None:
    await give(Answer(status=307, headers=[("location", "http://xn--a.b/")]))


async def compressed(app: App, request: Request, give: Give) -> None:
    honest = await _honest(app, request)
    await give(replace(honest, headers=[*honest.headers, ("content-encoding", "gzip")]))


async def error_page(app: App, request: Request, give: Give) -> None:
    """A proxy's page, with a status that says all is well."""
    await give(Answer(PAGE, kind="text/html"))


async def error_page_in_place(app: App, request: Request, give: Give) -> None:
    """The same, with the status of a range."""
    await give(Answer(PAGE, 206, kind="text/html"))


async def missing(app: App, request: Request, give: Give) -> None:
    await give(Answer(json.dumps({"type": "not_found", "message": "never seen"}).encode(), 404, kind=JSON))


async def nonsense(app: App, request: Request, give: Give) -> None:
    await give(Answer(b'{"type": ' + b"[" * 3_000, 500))


async def not_stored(app: App, request: Request, give: Give) -> None:
    """Says that everything was done, and does nothing of it."""
    upload = "uploads" in request.path
    if not upload and request.path[-1] != "log":
        await app.serve(request, give)
        return
    while await request.receive():
        pass
    await give(Answer(status=201 if request.method == "POST" and upload else 204))


LIES: Final[dict[str, Callable[[App, Request, Give], Any]]] = {
    each.__name__: each
    for each in (
        wrong_share,
        short_body,
        shorter_range,
        endless_body,
        redirect,
        redirect_to_no_address,
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
    liar = Liar(app, volume)
    listener = _bind(f"unix:{data}.sock")
    stopping = trio.Event()
    try:
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await Connections(liar).serve(listener, None, until=stopping.wait, grace=0.1)

            nursery.start_soon(serve)
            yield f"http+unix://{data}.sock", liar
            app.stop()
            stopping.set()
    finally:
        volume.close()
