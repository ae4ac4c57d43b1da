"""What the shard server answers, and how it goes out: whole, or piece by piece as it is read."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zstor_local import limits
from zstor_local.shardserver.refusal import Refusal

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]  # as ASGI types it

SEND_BYTES: Final = 256 * limits.KIB
JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: the body whole, or `length` bytes of it piece by piece."""

    body: bytes = b""
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    kind: str = BYTES
    pieces: Callable[[int], Awaitable[bytes]] | None = None  # some of the body's bytes from an offset on; none of them: it ends early
    length: int = 0


def refused(refusal: Refusal) -> Answer:
    return as_json({"type": refusal.type, "message": refusal.message}, refusal.status)


def as_json(value: object, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status, kind=JSON)


async def give(answer: Answer, send: Send, *, head: bool) -> None:
    """Send it; `head`: without its body."""
    length = answer.length if answer.pieces is not None else len(answer.body)
    headers = [("content-type", answer.kind), ("content-length", str(length)), *answer.headers]
    if answer.status == 204:
        headers = list(answer.headers)
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded})
    if answer.pieces is not None and not head:
        at = 0
        while at < length and (piece := await answer.pieces(at)):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            at += len(piece)
    body = b"" if head else answer.body
    for at in range(0, len(body), SEND_BYTES):
        await send({"type": "http.response.body", "body": body[at : at + SEND_BYTES], "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
