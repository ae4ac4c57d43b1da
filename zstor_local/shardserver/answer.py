"""What the shard server answers: whole, or piece by piece as it is read."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from zstor_local import limits
from zstor_local.shardserver.refusal import Refusal

SEND_BYTES: Final = limits.MIB  # a piece: a block of the usual chunks at least, so that one reading does
JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: the body whole, or `length` bytes of it: those in `body`, then piece by piece."""

    body: bytes = b""
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    kind: str = BYTES
    pieces: Callable[[int], Awaitable[bytes]] | None = None  # some of the body's bytes from an offset on; none of them: it ends early
    length: int = 0

    @property
    def size(self) -> int:
        """The bytes of the body."""
        return len(self.body) if self.pieces is None else self.length


def refused(refusal: Refusal) -> Answer:
    return as_json({"type": refusal.type, "message": refusal.message}, refusal.status)


def as_json(value: object, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status, kind=JSON)
