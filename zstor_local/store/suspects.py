"""Rows of the metastore that were found not to open: whoever meets one tells of it here, and mending brings back what can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zstor_local.metastore.base import RowName
from zstor_local.model.ids import NamespaceId

REMEMBERED: Final = 10_000  # rows that wait at most; a scrub finds the others


class Suspects:
    """The rows that wait. `on_found` is called when there is another one. In the event loop only, but for the opening of a store."""

    def __init__(self) -> None:
        self.on_found: Callable[[], None] = lambda: None
        self._waiting: dict[RowName, None] = {}
        self._taken: set[RowName] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, space: NamespaceId, name: str) -> None:
        """A row that does not open. Nothing happens if it waits, or was taken: to look for it means to read the logs of all shards."""
        row = (space, name)
        if row in self._waiting or row in self._taken or len(self._waiting) >= REMEMBERED:
            return
        self._waiting[row] = None
        self.on_found()

    def take(self) -> list[RowName]:
        """Those that wait; none of them does any longer."""
        rows, self._waiting = [*self._waiting], {}
        self._taken.update(rows)
        return rows

    def forget_taken(self) -> None:
        """What was looked for in vain may be found by now."""
        self._taken.clear()
