"""Removing entries from a log for good: their content, and every page that named it.

Pages from the first of them on are written anew, as each names the one before it. A scrubbed entry keeps its number and local hash, so
that nobody takes it for lost. Then the name changes: that is the moment of the scrub. Only afterwards are old pages and content let go.
The log is marked meanwhile; what a crash leaves over is let go when the log is opened again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from zstor_local.content.logs.held import PAGE
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.opened import OpenLog
from zstor_local.content.logs.page_index import IndexedPage
from zstor_local.content.logs.paging import close, without
from zstor_local.counted import counted
from zstor_local.errors import NotFound
from zstor_local.formats.cid import Cid
from zstor_local.formats.remotelog import Page, entries
from zstor_local.store.caller import Caller


@dataclass(frozen=True, slots=True)
class Kept:
    """Content of a scrubbed entry that stays: other owners pin it, or another entry of the log has it too."""

    cid: Cid
    owners: tuple[str, ...]


@dataclass(slots=True)
class Scrubbed:
    """What a scrub came to: entries scrubbed by it, pages written anew, content that is gone, content that stays."""

    entries: int = 0
    pages: int = 0
    gone: list[Cid] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)


class Scrubbing:
    """The use case."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs

    async def scrub(self, name: str, first: int, last: int, caller: Caller) -> Scrubbed:
        """Remove the content of the entries from `first` to `last`; NotFound if the log does not have them all.

        Appends wait meanwhile. Entries that are scrubbed already are fine.
        """
        log = await self._logs.open(name)
        async with log.lock:
            await log.load()
            if log.record.unsettled:  # one before failed half way: what it left must be gone before anybody hears that nothing is left
                await log.settle()
            if not 1 <= first <= last <= log.head.last:
                has = f"it has {counted(log.head.last, 'entry', 'entries')}"
                raise NotFound(f"log {name!r} has no {entries(first, last)}", hint=has)
            below = log.closed_pages(first)  # once: another log may meet a failure of the index, which knows nothing then
            contents = await _contents(log, below, first, last)
            if not contents:
                return Scrubbed()
            caller.begin_commit()
            scrubbed = Scrubbed(entries=len(contents))
            with trio.CancelScope(shield=True):
                await _scrub(log, first, last, below, contents, scrubbed, caller)
            return scrubbed


async def _contents(log: OpenLog, below: list[IndexedPage], first: int, last: int) -> list[Cid | None]:
    """The content of each entry in question that was not scrubbed yet (None: it is only embedded)."""
    found: list[Cid | None] = []
    for closed in below:
        if closed.first > last:
            break
        await trio.lowlevel.checkpoint()
        found += _of_page(await log.page(closed.cid), first, last)
    return found + _of_page(log.head.page, first, last)


def _of_page(page: Page, first: int, last: int) -> list[Cid | None]:
    return [entry.cid for entry in page.entries if first <= entry.seq <= last and not entry.scrubbed]


async def _scrub(
    log: OpenLog, first: int, last: int, below: list[IndexedPage], contents: list[Cid | None], found: Scrubbed, caller: Caller
) -> None:
    await log.mark(unsettled=True)
    tail, pages = await _rewritten(log, first, last, below, caller)
    await log.rewrite(first, last, pages, without(log.head.page, first, last, tail))
    cids = list(dict.fromkeys(cid for cid in contents if cid is not None))
    let_go, _ = await log.let_go([*(closed.cid for closed in below), *cids])
    await log.mark(unsettled=False)
    gone = set(let_go)
    found.pages = len(pages) + 1
    found.gone = [cid for cid in cids if cid in gone]
    found.kept = [_kept(log, cid) for cid in cids if cid not in gone]


async def _rewritten(
    log: OpenLog, first: int, last: int, below: list[IndexedPage], caller: Caller
) -> tuple[Cid | None, list[tuple[int, Cid]]]:
    """Put closed pages into the content store without the entries. Returns the id of the newest, and each one's last number and id."""
    if not below:
        return log.head.page.tail, []
    pages: list[tuple[int, Cid]] = []
    tail: Cid | None = None
    for number, closed in enumerate(below):
        page = await log.page(closed.cid)
        if not pages:
            tail = page.tail
        tail = await log.held.put(close(without(page, first, last, tail), log.record.policy.encoding).data, PAGE)
        pages.append((closed.last, tail))
        caller.progress(number + 1, len(below))
    return tail, pages


def _kept(log: OpenLog, cid: Cid) -> Kept:
    try:
        return Kept(cid, tuple(pin.owner for pin in log.held.find(cid).pins))
    except NotFound:
        return Kept(cid, ())
