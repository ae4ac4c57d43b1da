"""How a log grows and is rewritten, as pure functions: pages in, pages out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zstor_local import limits
from zstor_local.content.logs.policy import LogPolicy
from zstor_local.formats.cid import Cid, raw
from zstor_local.formats.remotelog import Encoding, Entry, Page


@dataclass(frozen=True, slots=True)
class Closed:
    """A page that is complete: its bytes go into the content store, where they are one raw block."""

    page: Page
    data: bytes
    cid: Cid


def close(page: Page, encoding: Encoding) -> Closed:
    data = page.encode(encoding)
    return Closed(page, data, raw(data))


def grow(head: Page, new: Sequence[Entry], policy: LogPolicy) -> tuple[list[Closed], Page]:
    """Add entries (oldest first, numbered from the head's on) to a log. Returns the pages that were closed on the way, and the head.

    Entries come with the content that is to be embedded while they are among the newest `embed_last` of their page.
    """
    closed: list[Closed] = []
    # Oldest first while it grows: adding at the front of a tuple would cost the whole page for each entry.
    entries = list(reversed(head.entries))
    room = limits.LOG_PAGE_BYTES - sum(map(_weight, entries))
    tail, unknown = head.tail, head.unknown
    for entry in new:
        if entries and (len(entries) >= policy.page_size or _weight(entry) > room):
            closed.append(close(Page(tuple(reversed(entries)), tail, unknown), policy.encoding))
            entries, tail, unknown, room = [], closed[-1].cid, b"", limits.LOG_PAGE_BYTES
        entries.append(entry)
        room -= _weight(entry)
        leaves = len(entries) - 1 - policy.embed_last
        if leaves >= 0 and entries[leaves].data and entries[leaves].cid is not None:
            room += _weight(entries[leaves])
            entries[leaves] = replace(entries[leaves], data=b"")
            room -= _weight(entries[leaves])
    return closed, Page(tuple(reversed(entries)), tail, unknown)


def without(page: Page, first: int, last: int, tail: Cid | None) -> Page:
    """The page with the entries from `first` to `last` scrubbed, above another page before."""
    entries = tuple(replace(entry, cid=None, data=b"", unknown=b"") if first <= entry.seq <= last else entry for entry in page.entries)
    return replace(page, entries=entries, tail=tail)


def embedded(content: bytes, policy: LogPolicy) -> bytes:
    """What of a new entry's content its page may carry: all of it or nothing."""
    return content if policy.embed_last and len(content) <= limits.LOG_EMBED_BYTES else b""


def _weight(entry: Entry) -> int:
    """Bytes that an entry takes in a page of either form, at most."""
    return 2 * len(entry.local_hash) + len(entry.data) * 4 // 3 + len(entry.unknown) + (250 if entry.cid is not None else 50)
