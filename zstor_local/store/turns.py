"""Repairs take turns where two would be in each other's way."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import trio

from zstor_local.model.ids import Version


class Turns:
    """Repairs of one version go one at a time, as two would write the same files. So do those of all large objects: each keeps a worker
    thread and its buffers for long.
    """

    def __init__(self) -> None:
        self._large = trio.Lock()
        self._of: dict[Version, trio.Lock] = {}
        self._users: Counter[Version] = Counter()

    @asynccontextmanager
    async def of(self, version: Version, *, small: bool) -> AsyncIterator[None]:
        """This version's turn."""
        self._users[version] += 1
        try:
            async with self._of.setdefault(version, trio.Lock()), nullcontext() if small else self._large:
                yield
        finally:
            self._users[version] -= 1
            if not self._users[version]:
                del self._users[version], self._of[version]

    async def wait(self) -> None:
        """Until the repairs that have begun by now have ended."""
        for version in list(self._of):
            async with self.of(version, small=True):
                pass
