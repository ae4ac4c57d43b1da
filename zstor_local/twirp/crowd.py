"""Room that clients share, and who has to make way in it: whoever holds some and is slow, once others have waited for it for long.

It is the rule of the daemon's own socket (`rpc/server.py`) for exchanges that are small: the largest body and the largest answer take
some `CROWDED_SECONDS` at the `CROWDED_BYTES_PER_SECOND` of there, so whatever takes longer is slow, and no bytes are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import trio

from zstor_local import limits
from zstor_local.rpc.budget import Budget


class Crowd:
    """Those who share a budget."""

    def __init__(self, size: int) -> None:
        self.budget = Budget(size, patience=limits.PASSED_BY_SECONDS)
        self._waited_for: dict[trio.CancelScope, float] = {}  # since when

    @contextmanager
    def waited_for(self, seconds: float = inf) -> Iterator[trio.CancelScope]:
        """While a client is waited for that holds some of it: for so long at most, and less where it has to make way."""
        with trio.move_on_after(seconds) as waiting:
            self._waited_for[waiting] = trio.current_time()
            try:
                yield waiting
            finally:
                del self._waited_for[waiting]

    def look(self) -> None:
        """Have the slow ones make way if others have waited for long. To be called each CROWDED_SECONDS."""
        if self.budget.crowded:
            long_ago = trio.current_time() - limits.CROWDED_SECONDS
            for waiting, since in self._waited_for.items():
                if since <= long_ago:
                    waiting.cancel()
