"""What the requests that are being done take of the server's memory, all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from zstor_local import limits
from zstor_local.shardserver.refusal import Refusal

BYTES: Final = 256 * limits.MIB


class Memory:
    """Bodies and answers, `most` bytes of them. Nobody takes more than is left for others: whoever takes a lot meets nobody's end but
    their own.
    """

    def __init__(self, most: int = BYTES) -> None:
        self._left = most
        self._taken: Counter[str] = Counter()

    @contextmanager
    def holding(self, bearer: str, size: int) -> Iterator[None]:
        """While so many bytes are there for a bearer. Refusal `busy`."""
        if self._taken[bearer] + size > self._left:
            raise Refusal("busy", "too many bodies and answers are on their way; ask again")
        self._left -= size
        self._taken[bearer] += size
        try:
            yield
        finally:
            self._left += size
            self._taken[bearer] -= size
            if not self._taken[bearer]:
                del self._taken[bearer]
