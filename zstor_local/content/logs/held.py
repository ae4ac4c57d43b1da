"""What a log does with the content store: its pages and the content of its entries are pinned by it, and let go by it alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from zstor_local import limits
from zstor_local.content.cas import Cas, Content, Owner
from zstor_local.content.logs.policy import head_name
from zstor_local.errors import NotFound
from zstor_local.formats.cid import Cid
from zstor_local.store.sources import BytesSource

PAGE: Final = "page"  # why a log pins something
ENTRY: Final = "entry"


class Held:
    """The content of one log. What `put` and `hold` returned for stays readable until `let_go`; both may be repeated."""

    def __init__(self, cas: Cas, log: str) -> None:
        self._cas = cas
        self._owner = head_name(log)

    async def put(self, data: bytes, reason: str) -> Cid:
        """Store some bytes and pin them; durable when this returns."""
        return (await self._cas.upload(BytesSource(data), Owner(self._owner, reason))).id

    async def hold(self, cid: Cid, reason: str) -> None:
        """Pin what is there already, or NotFound."""
        await self._cas.keeping.pin(cid, Owner(self._owner, reason))

    def find(self, cid: Cid) -> Content:
        """What is known of it, or NotFound."""
        return self._cas.contents.find(cid)

    async def get(self, cid: Cid) -> bytes:
        """The bytes, which the caller knows to be few; NotFound or Unreadable."""
        return await self._cas.read(self._cas.contents.find(cid))

    async def let_go(self, cid: Cid, *, forget: bool = True) -> bool:
        """Unpin it. True if it is gone: nobody else keeps it. Without `forget` it is kept for a week, as what users unpin."""
        try:
            return await self._cas.keeping.unpin(cid, self._owner, forget=forget) is None
        except NotFound:
            return True

    async def all(self) -> AsyncIterator[Cid]:
        """Everything that the log pins."""
        after: str | None = None
        while True:
            found = [content.id async for content in self._cas.contents.list(self._owner, after, limits.LIST_ITEMS)]
            for cid in found:
                yield cid
            if len(found) < limits.LIST_ITEMS:
                return
            after = str(found[-1])
