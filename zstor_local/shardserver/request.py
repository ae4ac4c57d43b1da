"""What the shard server is asked: a request with its query and headers, and its body, bounded before it is taken."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Final

import trio

from zstor_local import limits
from zstor_local.model.ids import NamespaceId
from zstor_local.shards.http import wire
from zstor_local.shards.http.wire import Fence, parse_id
from zstor_local.shardserver.memory import Bearer, Memory
from zstor_local.shardserver.refusal import Refusal

BODY_SECONDS: Final = 60.0  # from the first to the last byte of a body


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body not yet read: `receive` gives the next bytes of it, b"" at its end.

    `waiting` is entered while its client wants to hear of news, `held` once it is answered: what the request holds until then.
    """

    method: str
    path: Sequence[str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    receive: Callable[[], Awaitable[bytes]]
    waiting: Callable[[], AbstractContextManager[None]]
    held: ExitStack = field(default_factory=ExitStack)

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

    async def body(self, most: int, memory: Memory, bearer: Bearer) -> bytes:
        """The whole body, bounded before it is taken, and the one that its digest names. It counts until the request is answered."""
        length = self.headers.get("content-length", "")
        if self.headers.get("content-encoding", "identity") != "identity":
            raise Refusal("bad_request", "bodies come as they are, not encoded")
        if not length.isascii() or not length.isdecimal():
            raise Refusal("bad_request", "a body comes with its content-length")
        if len(length) > 12 or int(length) > most:
            raise Refusal("too_large", f"the body has {length[:20]} bytes, at most {most} are taken")
        self.held.enter_context(memory.holding(bearer, int(length)))
        with trio.move_on_after(BODY_SECONDS):
            return await self._received()
        raise Refusal("bad_request", f"the body did not come within {BODY_SECONDS:.0f} seconds")

    async def _received(self) -> bytes:
        """All of it, hashed as it comes: at the end that would hold up everybody else."""
        pieces, hashed = [], hashlib.sha256()
        while piece := await self.receive():
            pieces.append(piece)
            hashed.update(piece)
        if wire.digest_value(hashed.digest()) != self.headers.get(wire.DIGEST):
            raise Refusal("bad_digest", f"the body is not what its {wire.DIGEST} names (sha-256)")
        return b"".join(pieces)


def parse_range(text: str, size: int) -> tuple[int, int]:
    """Offset and length of a Range header, one range at most (RFC 9110); as much as there is of it."""
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
    return int(first), max(0, end - int(first))
