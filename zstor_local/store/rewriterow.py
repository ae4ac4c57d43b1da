"""What a rewrite of a namespace remembers over restarts: how far it is, and whether it goes over everything once more.

A store-wide row, CBOR, by the namespace's id.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from zstor_local.model.fields import decode, encode

TABLE: Final = "rewrite"


@dataclass(frozen=True, slots=True)
class RewriteRow:
    """The last key of which was noted that it is done, None at the beginning; how many objects were; whether it was asked for again."""

    after: str | None = None
    done: int = 0
    again: bool = False

    def encode(self) -> bytes:
        plain: dict[int, object] = {0: 1, 1: self.after, 2: self.done}
        return encode({**plain, 3: True} if self.again else plain)

    @classmethod
    def decode(cls, value: bytes) -> RewriteRow:
        """The reverse of `encode`; what is no position is the beginning."""
        plain = decode(value)
        after, done = plain.get(1), plain.get(2)
        return cls(after if isinstance(after, str) else None, done if isinstance(done, int) else 0, plain.get(3) is True)

    def asked_again(self) -> RewriteRow:
        return replace(self, again=True)
