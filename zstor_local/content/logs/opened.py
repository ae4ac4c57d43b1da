"""One log in memory: its newest page, what the index knows of the others, and how it changes as a whole."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import trio

from zstor_local.content.logs.held import PAGE, Held
from zstor_local.content.logs.page_index import IndexedPage, PageIndex
from zstor_local.content.logs.paging import Closed
from zstor_local.content.logs.policy import TABLE, LogRecord, head_name
from zstor_local.content.names import Names
from zstor_local.errors import CorruptRecord, IoError, NotFound, Unreadable, ZstorError
from zstor_local.formats.cid import Cid, raw
from zstor_local.formats.protobuf import Malformed
from zstor_local.formats.remotelog import Entry, Page, parse_page
from zstor_local.store.storewide import StoreWide

log = logging.getLogger("zstor.content")


@dataclass(frozen=True, slots=True)
class Head:
    """A log's newest page as it was at one moment. `seq` is the number of the name's last change (0: nothing was ever appended)."""

    page: Page
    cid: Cid  # the hash of the name's value: what the page will be called, should it be closed as it is
    seq: int

    @property
    def last(self) -> int:
        """The number of the newest entry."""
        return self.page.last


NO_HEAD: Final = Head(Page(), raw(b""), 0)


class OpenLog:
    """A log. Who changes it holds its `lock`; looking needs none."""

    def __init__(self, name: str, record: LogRecord, rows: StoreWide, names: Names, index: PageIndex, held: Held) -> None:
        self.name: Final = name
        self.held: Final = held
        self.lock: Final = trio.Lock()
        self.record = record
        self.head = NO_HEAD
        self.let_go_times = 0  # grows whenever the log lets go of content: what was pinned before may be gone
        self._loaded_in: int | None = None  # the life of the index in which it was complete
        self._rows = rows
        self._names = names
        self._index = index

    # --- Loading ---

    async def load(self) -> None:
        """Read what there is, if that was not done yet or a change failed since. The caller holds the lock."""
        while not self.loaded:
            life = self._index.life
            name = self._names.find(head_name(self.name))
            head = NO_HEAD if name is None else Head(checked_page(name.value, head_name(self.name)), raw(name.value), name.seq)
            await self._complete_index(head.page.tail)
            self.head, self._loaded_in = head, life
            if self.loaded and self.record.unsettled:
                await self.settle()

    @property
    def loaded(self) -> bool:
        """Whether head and index are those of the log."""
        return self._loaded_in == self._index.life

    async def _complete_index(self, newest: Cid | None) -> None:
        """Index the pages from this one down to one that the index knows; what it knows above that is of another history.

        Once another log has met a failure of the index, nothing is added to the new one: pages below would lack there for good.
        """
        life = self._index.life
        unknown: list[Cid] = []
        known: IndexedPage | None = None
        while newest is not None and (known := self._index.page(self.name, newest)) is None:
            unknown.append(newest)
            await trio.lowlevel.checkpoint()
            newest = (await self.page(newest)).tail
        self._index.cut(self.name, 0 if known is None else known.last)
        for cid in reversed(unknown):
            await trio.lowlevel.checkpoint()
            page = await self.page(cid)
            if self._index.life != life:
                return
            self._index.add(self.name, cid, page)

    async def settle(self) -> None:
        """Let go of whatever the log pins and does not need: what a scrub left that was broken off. The caller holds the lock."""
        await self.let_go([cid async for cid in self._needless()])
        await self.mark(unsettled=False)

    async def _needless(self) -> AsyncIterator[Cid]:
        async for cid in self.held.all():
            if not self.needs(cid):
                yield cid

    # --- Looking ---

    async def page(self, cid: Cid) -> Page:
        """A page from the content store."""
        return checked_page(await self.held.get(cid), str(cid))

    def look(self, local_hash: bytes) -> Entry | None:
        """The entry with this local hash, less its embedded content."""
        for entry in self.head.page.entries:
            if entry.local_hash == local_hash:
                return entry
        found = self._index.find(self.name, local_hash)
        return None if found is None else Entry(found[0], local_hash, found[1])

    def needs(self, cid: Cid) -> bool:
        """Whether this is a page of the log or the content of an entry."""
        in_head = any(entry.cid == cid for entry in self.head.page.entries)
        return in_head or self._index.uses(self.name, cid) or self._index.page(self.name, cid) is not None

    def closed_page(self, *, seq: int | None = None, cid: Cid | None = None) -> IndexedPage | None:
        """Which closed page has the entry of this number, or is of this id."""
        if cid is not None:
            return self._index.page(self.name, cid)
        return self._index.page_with(self.name, seq or 0)

    def closed_pages(self, first: int = 1) -> list[IndexedPage]:
        """The closed pages from the one with this entry on, the oldest first."""
        return self._index.pages_above(self.name, first)

    # --- Changing: the caller holds the lock ---

    async def publish(self, closed: Sequence[Closed], head: Page) -> None:
        """Add pages that were closed, and set the head: the moment a change of the log happens."""
        for each in closed:
            await self.held.put(each.data, PAGE)
        await self._set_head(head)
        if self.loaded:  # else the pages below lack in the index too
            with suppress(IoError):  # the change has happened; the index, in another life now, is completed before the next look
                for each in closed:
                    self._index.add(self.name, each.cid, each.page)

    async def rewrite(self, first: int, last: int, pages: Iterable[tuple[int, Cid]], head: Page) -> None:
        """Set a head whose pages below (newest number, new id) are stored already, without what the entries `first` to `last` had."""
        await self._set_head(head)
        with suppress(IoError):
            self._index.rewrite(self.name, first, last, pages)

    async def adopt(self, head: Page) -> None:
        """Set a head whose pages below are stored and pinned already, and read what they are."""
        await self._set_head(head)
        self._loaded_in = None  # whoever looks meanwhile waits until they are known
        await self.load()

    async def _set_head(self, page: Page) -> None:
        value = page.encode(self.record.policy.encoding)
        try:
            named = await self._names.publish(head_name(self.name), value, if_seq=self.head.seq)
        except ZstorError:
            self._loaded_in = None  # whatever the name is now, it is read again before the next change
            raise
        self.head = Head(page, raw(value), named.seq)

    async def mark(self, *, unsettled: bool) -> None:
        """Note durably whether the log may pin what it does not need."""
        record = replace(self.record, unsettled=unsettled)
        if record != self.record:
            await self._rows.put(TABLE, self.name, record.encode())
            self.record = record

    async def let_go(self, cids: Iterable[Cid], *, forget: bool = True) -> tuple[list[Cid], list[Cid]]:
        """Unpin what the log does not need any more. Returns what is gone, and what is kept: by others, or without `forget`."""
        gone: list[Cid] = []
        kept: list[Cid] = []
        self.let_go_times += 1
        await self.load()  # another log may have met a failure of the index, which knows nothing then
        needless = dict.fromkeys(cid for cid in cids if not self.needs(cid))
        if needless and await self._name_some(needless):
            log.error("the index of log %r does not lead to all that its pages name: it is made anew", self.name)
            self._index.cut(self.name, 0)
            self._loaded_in = None
        for cid in needless:
            await self.load()  # as above
            if not self.needs(cid):
                (gone if await self.held.let_go(cid, forget=forget) else kept).append(cid)
        return gone, kept

    async def _name_some(self, cids: Collection[Cid]) -> bool:
        """Whether pages of the log name one of these after all: nobody is told of a bit that flips in the index, and what it hides
        would be gone for good. Below a page that cannot be read there is nothing but the index to go by.
        """
        page = self.head.page
        with suppress(NotFound, Unreadable, CorruptRecord):
            while page.tail is not None and page.tail not in cids and not _names(page, cids):
                page = await self.page(page.tail)
        return page.tail in cids or _names(page, cids)


def _names(page: Page, cids: Collection[Cid]) -> bool:
    return any(entry.cid in cids for entry in page.entries)


def checked_page(data: bytes, where: str) -> Page:
    """The page in these bytes, by the rules; CorruptRecord names where it was."""
    try:
        page = parse_page(data)
        page.check()
    except Malformed as error:
        raise CorruptRecord(f"the page at {where} is not one of a log: {error}", hint="`zstor log verify` tells more") from None
    return page
