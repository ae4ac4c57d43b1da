"""How many streams may run at once, by the memory that their chunks take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from zstor_local import limits
from zstor_local.errors import Busy
from zstor_local.model.policy import Policy
from zstor_local.store.coding import STREAM_BUFFERS

STREAM_BUDGET_BYTES: Final = 64 * limits.MIB  # plain bytes that all streams together may hold


class StreamBudget:
    """One for a store. Files need none of it: the workers read them into buffers of their own."""

    def __init__(self) -> None:
        self._taken = 0

    @contextmanager
    def take(self, policy: Policy) -> Iterator[None]:
        """Room for one stream's chunks while the block runs, or Busy at once."""
        wanted = STREAM_BUFFERS * policy.chunk_size
        if self._taken + wanted > STREAM_BUDGET_BYTES:
            raise Busy("too many streams are running", hint="try again when one of them has ended", limit=STREAM_BUDGET_BYTES)
        self._taken += wanted
        try:
            yield
        finally:
            self._taken -= wanted
