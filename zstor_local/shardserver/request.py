"""What the shard server is asked: a request with its query and headers, and its body, bounded before it is taken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import trio

from zstor_local import limits
from zstor_local.model.ids import NamespaceId
from zstor_local.shards.http import wire
from zstor_local.shards.http.wire import Fence, parse_id
from zstor_local.shardserver.refusal import Refusal

Scope = MutableMapping[str, Any]  # as ASGI types it
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

BODY_SECONDS: Final = 60.0  # from the first to the last byte of a body
BODIES_BYTES: Final = 256 * limits.MIB  # of all requests that are being done


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body not yet read."""

    method: str
    path: Sequence[str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    receive: Receive

    @classmethod
    def of(cls, scope: Scope, receive: Receive) -> Request:
        return cls(
            scope["method"],
            [unquote(part) for part in scope["path"].split("/")[1:]],
            dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
            {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]},
            receive,
        )

    def namespace(self) -> NamespaceId | None:
        text = self.query.get("namespace")
        return None if text is None else NamespaceId(parse_id(text))

    def must_namespace(self) -> NamespaceId:
        found = self.namespace()
        if found is None:
            raise Refusal("bad_request", "the query lacks namespace")
        return found

    def number(self, name: str, default: int | None = None, *, most: int = limits.SAFE_INTEGER) -> int:
        text = self.query.get(name)
        if text is None and default is not None:
            return default
        if text is None or not text.isascii() or not text.isdecimal() or len(text) > 16 or int(text) > most:
            raise Refusal("bad_request", f"{name} in the query is a number up to {most}")
        return int(text)

    def fence(self) -> Fence:
        return Fence.parse(self.headers.get(wire.FENCE, ""))


class Bodies:
    """Takes the bodies of all requests that are being done, BODIES_BYTES of them together at most."""

    def __init__(self) -> None:
        self._bytes = 0

    # --- Bodies ---

    async def take(self, request: Request, most: int) -> bytes:
        """The whole body, bounded before it is taken, and the one that its digest names."""
        length = request.headers.get("content-length", "")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal("bad_request", "bodies come as they are, not encoded")
        if not length.isascii() or not length.isdecimal():
            raise Refusal("bad_request", "a body comes with its content-length")
        if len(length) > 12 or int(length) > most:
            raise Refusal("too_large", f"the body has {length[:20]} bytes, at most {most} are taken")
        size = int(length)
        if self._bytes + size > BODIES_BYTES:
            raise Refusal("busy", "too many bodies are on their way in; ask again")
        self._bytes += size
        try:
            with trio.move_on_after(BODY_SECONDS):
                body = await _receive(request.receive, size)
                if wire.digest(body) != request.headers.get(wire.DIGEST):
                    raise Refusal("bad_digest", f"the body is not what its {wire.DIGEST} names (sha-256)")
                return body
        finally:
            self._bytes -= size
        raise Refusal("bad_request", f"the body did not come within {BODY_SECONDS:.0f} seconds")


def parse_range(text: str, size: int) -> tuple[int, int]:
    """Offset and length of a Range header, one range at most (RFC 9110); as much as there is of it, at most a part's bytes."""
    unit, _, span = text.partition("=")
    first, dash, last = span.partition("-")
    if unit.strip() != "bytes" or not dash or not all(part == "" or (part.isascii() and part.isdecimal()) for part in (first, last)):
        raise Refusal("bad_request", "the range is bytes=FIRST-LAST or bytes=-COUNT")
    if len(first) > 16 or len(last) > 16 or (not first and not last):
        raise Refusal("bad_request", "the range is bytes=FIRST-LAST or bytes=-COUNT")
    if not first:
        count = min(int(last), size)
        return size - count, count
    end = min(size, int(last) + 1 if last else size)
    return int(first), max(0, min(end - int(first), wire.PART_BYTES_MAX))


async def _receive(receive: Receive, size: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refusal("bad_request", "the client went away")
        body += message.get("body", b"")
        if len(body) > size:
            raise Refusal("too_large", "the body is longer than it says")
        if not message.get("more_body", False):
            break
    if len(body) != size:
        raise Refusal("bad_request", "the body is shorter than it says")
    return bytes(body)
