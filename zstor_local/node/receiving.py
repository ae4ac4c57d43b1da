"""The receiving node: the name first, then content.

It fetches the log's name, whose value is the newest page, follows the pages down to the last entry that it has, and takes content from
the page or from the content store, oldest first. It needs nothing but names and content, checks every page and content against its
id, and every number against the one before: no gap, no repeat, and a log that is not the one of before is said to have forked.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from zstor_local.errors import Conflict, CorruptRecord, NotFound, TooLarge
from zstor_local.formats import unixfs
from zstor_local.formats.cid import Cid
from zstor_local.formats.protobuf import Malformed
from zstor_local.formats.remotelog import Entry, Page, entries, parse_page
from zstor_local.node.client import Node

_HINT: Final = "`zstor log verify` tells more"


@dataclass(frozen=True, slots=True)
class Received:
    """An entry. `content` None: it was scrubbed, or is too large to come in a message (then `cid` says where it is)."""

    seq: int
    local_hash: bytes
    cid: Cid | None
    content: bytes | None


@dataclass(slots=True)
class Position:
    """How far a receiver is: the number and local hash of its last entry (0: none)."""

    seq: int = 0
    local_hash: bytes = b""


async def receive(node: Node, log: str, position: Position, *, wait: float | None) -> AsyncGenerator[Received, None]:
    """Entries behind the position, which goes along. Ends with what is there now; with `wait` it goes on, so many seconds a question.

    Conflict if the log does not have the position's entry, CorruptRecord if a page or a content is not what it should be.
    """
    name_seq = 0
    while True:
        name = await node.fetch(f"log/{log}", after=name_seq, wait=wait or 0)
        if name.value is not None:
            try:
                async for received in _news(node, _page(name.value, "the newest page"), position):
                    yield received
            except _Away as away:
                # An entry may have been scrubbed meanwhile, and its page written anew: then the name has changed too.
                if (await node.fetch(f"log/{log}", after=name.seq)).value is None:
                    raise NotFound(f"the log names {away.cid}, which is not there", hint=_HINT) from None
                name_seq = name.seq
                continue
        elif wait is None and position.seq:
            raise _forked(position)
        name_seq = name.seq
        if wait is None:
            return


class _Away(Exception):
    """A page or a content that was named is not there."""

    def __init__(self, cid: Cid) -> None:
        super().__init__(str(cid))
        self.cid = cid


async def _news(node: Node, newest: Page, position: Position) -> AsyncGenerator[Received, None]:
    """What a state of the log has behind the position."""
    if newest.last < position.seq:
        raise _forked(position)
    below: list[Cid] = []  # the pages down to the one with the position's own entry
    page = newest
    while page.tail is not None and page.first > max(1, position.seq):
        below.append(page.tail)
        page = await _below(node, page, page.tail)
    async for received in _entries(node, page, position):
        yield received
    for cid in reversed(below[:-1]):
        async for received in _entries(node, await _fetched(node, cid), position):
            yield received
    if below:
        async for received in _entries(node, newest, position):
            yield received


async def _entries(node: Node, page: Page, position: Position) -> AsyncGenerator[Received, None]:
    """The entries of a page that come next, the oldest first."""
    for entry in reversed(page.entries):
        if entry.seq == position.seq and position.local_hash not in (b"", entry.local_hash):
            raise _forked(position)
        if entry.seq > position.seq + 1:
            raise CorruptRecord(f"the log lacks {entries(position.seq + 1, entry.seq - 1)}", hint=_HINT)
        if entry.seq == position.seq + 1:
            received = Received(entry.seq, entry.local_hash, entry.cid, await _content(node, entry))
            position.seq, position.local_hash = entry.seq, entry.local_hash
            yield received


async def _content(node: Node, entry: Entry) -> bytes | None:
    if entry.cid is None:
        return entry.data or None
    if entry.data:
        if unixfs.content_id(entry.data) != entry.cid:
            raise CorruptRecord(f"what the page has of entry {entry.seq} is not its content", hint=_HINT)
        return entry.data
    try:
        return await node.content(entry.cid)
    except TooLarge:
        return None
    except NotFound:
        raise _Away(entry.cid) from None


async def _below(node: Node, page: Page, tail: Cid) -> Page:
    """The page before, which must join."""
    found = await _fetched(node, tail)
    if found.last + 1 != page.first:
        raise CorruptRecord(f"page {tail} ends with entry {found.last}, the one above begins with {page.first}", hint=_HINT)
    return found


async def _fetched(node: Node, cid: Cid) -> Page:
    try:
        return _page(await node.content(cid), f"page {cid}")
    except NotFound:
        raise _Away(cid) from None


def _page(data: bytes, which: str) -> Page:
    try:
        page = parse_page(data)
        page.check()
    except Malformed as error:
        raise CorruptRecord(f"{which} of the log is not one: {error}", hint=_HINT) from None
    return page


def _forked(position: Position) -> Conflict:
    return Conflict(
        f"the log does not have your entry {position.seq} ({position.local_hash.hex()}): it is another log than before",
        hint="compare with `zstor log verify`, or receive into a new place",
        current=position.seq,
    )
