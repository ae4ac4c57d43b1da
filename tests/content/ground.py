"""A store with contents, on a clock that can be set."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from tests.store.home import Home
from zstor_local.content.cas import Cas
from zstor_local.runtime import Runtime
from zstor_local.store.store import Store

HOUR = 3_600
DAY = 24 * HOUR


class Clock:
    """Calendar time that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000

    def now(self) -> int:
        return self.seconds * 1_000_000

    def skip(self, seconds: int) -> None:
        self.seconds += seconds


@dataclass
class ContentHome(Home):
    """A home whose stores share one clock."""

    clock: Clock = field(default_factory=Clock)

    def runtime(self) -> Runtime:
        return replace(super().runtime(), clock=self.clock)

    @asynccontextmanager
    async def cas(self) -> AsyncIterator[tuple[Store, Cas]]:
        async with self.open() as store:
            yield store, Cas(store)


class Chunks:
    """Bytes that come in pieces, as from a pipe."""

    def __init__(self, data: bytes, piece: int = 100_000) -> None:
        self._rest = memoryview(data)
        self._piece = piece

    async def read_into(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._rest), self._piece)
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
