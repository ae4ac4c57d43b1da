"""A whole log as one CAR file: a directory that any IPFS tool can read, with every page and all content.

    log.json                                      name, policy, number of entries, id of the newest page
    000000/000000000001-000000000064/page         a page, byte for byte
    000000/000000000001-000000000064/000000000001 the content of entry 1
    …                                             up to 1,000 pages a directory, the newest page last

The root comes first in the file, so the directories are made before anything is written: what is kept meanwhile is an id and a size for
each page.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from zstor_local.content.cas import Cas
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.opened import Head, OpenLog, checked_page
from zstor_local.formats import car, unixfs
from zstor_local.formats.cid import DIGEST_BYTES, Cid, raw
from zstor_local.formats.directory import Directory, Tree, directory
from zstor_local.formats.remotelog import Page
from zstor_local.formats.unixfs import LEAF_BYTES
from zstor_local.runtime import Buffer
from zstor_local.store.caller import Caller
from zstor_local.store.sinks import OrderedSink

DESCRIPTION: Final = "log.json"
PAGE: Final = "page"
GROUP: Final = 1_000  # pages in one directory


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    root: Cid
    entries: int
    pages: int
    bytes: int


class Exporting:
    """The use case."""

    def __init__(self, logs: Logs, cas: Cas) -> None:
        self._logs = logs
        self._cas = cas

    async def export(self, name: str, sink: OrderedSink, caller: Caller) -> Exported:
        """Write the log as it is now. NotFound if something is missing, or if entries are scrubbed meanwhile."""
        log = await self._logs.open(name)
        return await _Export(log, self._cas, _Car(sink), caller).run()


class _Car:
    """Blocks on their way into a file, some of them at a time."""

    def __init__(self, sink: OrderedSink) -> None:
        self._sink = sink
        self._parts: list[Buffer] = []
        self._waiting = 0
        self.written = 0

    async def add(self, *parts: Buffer) -> None:
        self._parts += parts
        self._waiting += sum(map(len, parts))
        if self._waiting >= LEAF_BYTES:
            await self.flush()

    async def block(self, cid: Cid, data: bytes) -> None:
        await self.add(car.section(cid, len(data)), data)

    async def flush(self) -> None:
        await self._sink.write(self._parts)
        self.written += self._waiting
        self._parts, self._waiting = [], 0


class _Export:
    def __init__(self, log: OpenLog, cas: Cas, out: _Car, caller: Caller) -> None:
        self._log = log
        self._cas = cas
        self._out = out
        self._caller = caller
        self._head: Head = log.head
        self._cids = [page.cid for page in log.closed_pages()]  # of the closed pages, the oldest first
        self._done = 0

    async def run(self) -> Exported:
        trees: list[tuple[str, Tree]] = []
        async for page, data in self._pages():
            trees.append((_range(page), self._directory(page, data).tree))
        groups = [directory(dict(trees[start : start + GROUP])) for start in range(0, len(trees), GROUP)]
        about = self._description()
        root = directory(
            {DESCRIPTION: Tree(raw(about), len(about))} | {f"{number:06}": group.tree for number, group in enumerate(groups)}
        )
        await self._out.add(car.header([root.tree.cid]))
        await self._out.block(root.tree.cid, root.block)
        number = 0
        async for page, data in self._pages():
            if number % GROUP == 0:
                group = groups[number // GROUP]
                await self._out.block(group.tree.cid, group.block)
            await self._page(page, data)
            number += 1
        await self._out.block(raw(about), about)
        await self._out.flush()
        return Exported(root.tree.cid, self._head.last, number, self._out.written)

    async def _pages(self) -> AsyncIterator[tuple[Page, bytes]]:
        """Every page with its bytes, the oldest first."""
        for cid in self._cids:
            await trio.lowlevel.checkpoint()
            data = await self._log.held.get(cid)
            yield checked_page(data, str(cid)), data
        if self._head.page.entries:
            yield self._head.page, self._head.page.encode(self._log.record.policy.encoding)

    async def _page(self, page: Page, data: bytes) -> None:
        """A page's directory and what is in it, in the order of the names: content first."""
        made = self._directory(page, data)
        await self._out.block(made.tree.cid, made.block)
        for entry in reversed(page.entries):
            if entry.cid is not None:
                async for cid, block in self._cas.blocks(self._log.held.find(entry.cid), self._caller):
                    await self._out.block(cid, block)
            self._done += 1
            self._caller.progress(self._done, self._head.last)
        await self._out.block(raw(data), data)

    def _directory(self, page: Page, data: bytes) -> Directory:
        return directory({PAGE: Tree(raw(data), len(data))} | dict(self._contents(page)))

    def _contents(self, page: Page) -> Iterator[tuple[str, Tree]]:
        for entry in page.entries:
            if entry.cid is not None:
                yield f"{entry.seq:012}", Tree(entry.cid, _tree_size(self._log.held.find(entry.cid).size))

    def _description(self) -> bytes:
        policy = self._log.record.policy
        about = {
            "log": self._log.name,
            "page_size": policy.page_size,
            "embed_last": policy.embed_last,
            "encoding": policy.encoding,
            "messages": policy.messages,
            "entries": self._head.last,
            "head": str(self._head.cid) if self._head.page.entries else None,
        }
        return json.dumps(about, indent=1).encode() + b"\n"


def _range(page: Page) -> str:
    return f"{page.first:012}-{page.last:012}"


def _tree_size(size: int) -> int:
    """The bytes of all blocks of a content of this size, which follow from it alone."""
    if size <= LEAF_BYTES:
        return size
    return unixfs.from_digests(bytes(-(-size // LEAF_BYTES) * DIGEST_BYTES), size).tree_size
