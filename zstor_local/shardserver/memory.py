"""What the requests that are being done take of the server's memory, all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from zstor_local import limits
from zstor_local.shardserver.refusal import Refusal

BYTES: Final = 256 * limits.MIB


Bearer = tuple[str, str]  # who issued a token, and whose it is


class Memory:
    """Bodies and answers, `most` bytes of them. No issuer takes more than is left for others, and nobody more than is left for those
    who have tokens of the same one: whoever takes a lot meets nobody's end but their own.
    """

    def __init__(self, most: int = BYTES) -> None:
        self._left = most
        self._taken: Counter[str | Bearer] = Counter()  # by issuers, and by bearers

    @contextmanager
    def holding(self, bearer: Bearer, size: int) -> Iterator[None]:
        """While so many bytes are there for a bearer. Refusal `busy`."""
        issuer, _ = bearer
        if self._taken[issuer] + self._taken[bearer] + size > self._left:
            raise Refusal("busy", "too many bodies and answers are on their way; ask again")
        self._take(bearer, size)
        try:
            yield
        finally:
            self._take(bearer, -size)

    def _take(self, bearer: Bearer, size: int) -> None:
        self._left -= size
        for taker in (bearer, bearer[0]):
            self._taken[taker] += size
            if not self._taken[taker]:
                del self._taken[taker]
