"""Reading logs: from a number or a known hash on, by page, and what somebody lacks.

Where a page lies is looked up, so a read touches the pages of its own entries and no others, however long the log is. The head is taken
once; if a scrub rewrites pages meanwhile, the read begins again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import trio

from zstor_local import limits
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.opened import Head, OpenLog, checked_page
from zstor_local.counted import counted
from zstor_local.errors import CorruptRecord, NotFound
from zstor_local.formats.cid import Cid
from zstor_local.formats.remotelog import Entry, Page

T = TypeVar("T")

_LOOKS: Final = 200  # between two turns of other tasks
_TRIES: Final = 3  # a log that is scrubbed again and again while it is read


@dataclass(frozen=True, slots=True)
class FoundPage:
    """A page of a log and its bytes; `head` tells whether it is the newest, whose bytes are the name's value."""

    cid: Cid
    page: Page
    data: bytes
    head: bool


@dataclass(frozen=True, slots=True)
class Missing:
    """What somebody lacks, oldest first, up to `reached`; and those of their hashes that the log does not have."""

    need: list[Entry]
    unknown: list[bytes]
    reached: int


class LogReading:
    """The use cases that only look."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs

    async def since(self, name: str, seq: int, limit: int, *, embedded: bool) -> tuple[Head, list[Entry]]:
        """The entries behind this number, the oldest first, at most `limit`; and the log's head as it was then.

        With what is `embedded` in the pages they are no more than a list may hold, one page aside; else they come without.
        """

        async def read(log: OpenLog) -> tuple[Head, list[Entry]]:
            head = log.head
            found: list[Entry] = []
            at, held = seq + 1, 0
            while at <= head.last and len(found) < limit and held <= limits.LIST_BYTES:
                page = await _page_with(log, head, at)
                entries = [entry for entry in reversed(page.entries) if entry.seq >= at]
                found += entries if embedded else [replace(entry, data=b"") if entry.data else entry for entry in entries]
                held += sum(len(entry.data) for entry in entries) if embedded else 0
                at = page.last + 1
            return head, found[:limit]

        return await self._steadily(name, read)

    async def number_of(self, name: str, local_hash: bytes) -> int:
        """The number of the entry with this local hash, or NotFound."""
        found = (await self._logs.open(name)).look(local_hash)
        if found is None:
            raise NotFound(
                f"log {name!r} has no entry {local_hash.hex()}", hint="`zstor log missing` tells which entries of yours it has"
            )
        return found.seq

    async def page(self, name: str, *, cid: Cid | None = None, seq: int | None = None) -> FoundPage:
        """A page of the log: of this id, or with the entry of this number; without either, the newest. NotFound."""

        async def read(log: OpenLog) -> FoundPage:
            head = log.head
            in_head = seq is not None and head.page.first <= seq <= head.last
            if (cid is None and seq is None) or cid == head.cid or in_head:
                return FoundPage(head.cid, head.page, head.page.encode(log.record.policy.encoding), head=True)
            closed = log.closed_page(seq=seq, cid=cid)
            if closed is None:
                what = f"page {cid}" if cid is not None else f"entry {seq}"
                raise NotFound(f"log {name!r} has no {what}", hint=f"it has {counted(head.last, 'entry', 'entries')}")
            data = await log.held.get(closed.cid)
            return FoundPage(closed.cid, checked_page(data, str(closed.cid)), data, head=False)

        return await self._steadily(name, read)

    async def missing(self, name: str, have: Collection[bytes], since: int, limit: int) -> Missing:
        """Of the entries behind `since` those that are not among `have` (local hashes), at most `limit`. Nobody needs scrubbed ones."""

        async def read(log: OpenLog) -> Missing:
            head = log.head
            known: dict[bytes, Entry | None] = {}
            for position, local_hash in enumerate(have):
                known[local_hash] = log.look(local_hash)
                if position % _LOOKS == _LOOKS - 1:
                    await trio.lowlevel.checkpoint()
            numbers = {entry.seq for entry in known.values() if entry is not None}
            need: list[Entry] = []
            at = since + 1
            while at <= head.last and len(need) < limit:
                if at in numbers:  # pages of which everything is there are not read
                    at += 1
                    continue
                page = await _page_with(log, head, at)
                for entry in reversed(page.entries):
                    if entry.seq >= at and len(need) < limit:
                        at = entry.seq + 1
                        if entry.seq not in numbers and not entry.scrubbed:
                            need.append(entry)
            return Missing(need, [local_hash for local_hash, entry in known.items() if entry is None], at - 1)

        return await self._steadily(name, read)

    async def _steadily(self, name: str, read: Callable[[OpenLog], Coroutine[object, object, T]]) -> T:
        """Read; again if a scrub took a page away meanwhile."""
        for _ in range(_TRIES):
            log = await self._logs.open(name)
            tail = log.head.page.tail
            try:
                return await read(log)
            except (NotFound, CorruptRecord):
                if log.loaded and log.head.page.tail == tail:
                    raise
        return await read(await self._logs.open(name))


async def _page_with(log: OpenLog, head: Head, seq: int) -> Page:
    """The page with the entry of this number, which the log has."""
    if seq >= head.page.first:
        return head.page
    await trio.lowlevel.checkpoint()
    closed = log.closed_page(seq=seq)
    page = None if closed is None else await log.page(closed.cid)
    if page is None or not page.first <= seq <= page.last:
        raise CorruptRecord(f"no page of log {log.name!r} has entry {seq}", hint="`zstor log verify` tells more")
    return page
