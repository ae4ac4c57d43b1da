"""Content that a log pins for nothing: an append stores it before the log names it, and a crash may come between; an import may be
broken off. It is let go before contents are collected.
"""

from __future__ import annotations

import logging
from typing import Final

from zstor_local import limits
from zstor_local.content.cas import Cas, Content
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.policy import head_name
from zstor_local.errors import ZstorError
from zstor_local.formats.cid import Cid
from zstor_local.runtime import SECOND_US, Clock

KEPT: Final = 24 * 3_600 * SECOND_US  # appends and imports that are under way have pinned what they have yet to name

log = logging.getLogger("zstor.content")


class Leftovers:
    """The use case."""

    def __init__(self, logs: Logs, cas: Cas, clock: Clock) -> None:
        self._logs = logs
        self._cas = cas
        self._clock = clock

    async def let_go(self) -> int:
        """Unpin what was pinned over a day ago and no log needs; as anything unpinned it is kept for a week. Returns how much it was.

        A log that cannot be looked at is left for another time.
        """
        found = 0
        after: str | None = None
        while names := [*self._logs.list(after, limits.LIST_ITEMS)]:
            for name in names:
                try:
                    found += await self._let_go(name)
                except ZstorError as error:
                    log.warning("what log %r pins was not looked at: %s", name, error)
            after = names[-1]
        return found

    async def _let_go(self, name: str) -> int:
        opened = await self._logs.open(name)
        owner, old = head_name(name), self._clock.now() - KEPT
        after: str | None = None
        found = 0
        while contents := [content async for content in self._cas.contents.list(owner, after, limits.LIST_ITEMS)]:
            after = str(contents[-1].id)
            needless: list[Cid] = [each.id for each in contents if _since(each, owner) < old and not opened.needs(each.id)]
            if needless:
                async with opened.lock:
                    gone, kept = await opened.let_go(needless, forget=False)
                    found += len(gone) + len(kept)
        return found


def _since(content: Content, owner: str) -> int:
    return max(pin.since for pin in content.pins if pin.owner == owner)
