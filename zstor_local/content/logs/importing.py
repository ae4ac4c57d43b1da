"""A log out of a CAR file that `exporting` wrote, or that another tool made of the same blocks in any order.

The file is read twice. First every block is checked against its id, and where it lies is noted. Then the pages are followed from the
newest one on, and content and pages are stored, oldest first. Last the name is set: until then the log is as it was. What is stored
already is not stored again, so an import that was broken off goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import trio

from zstor_local.content.cas import Cas, Expected, Owner
from zstor_local.content.logs.exporting import DESCRIPTION
from zstor_local.content.logs.held import ENTRY, PAGE
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.opened import OpenLog
from zstor_local.content.logs.policy import MESSAGES, LogPolicy, check_log, head_name
from zstor_local.content.logs.scratch import Scratch, scratch
from zstor_local.errors import AlreadyExists, Conflict, Incomplete, InvalidParams, NotFound
from zstor_local.formats import car
from zstor_local.formats.cid import RAW, Cid, parse
from zstor_local.formats.directory import parse_directory
from zstor_local.formats.protobuf import Malformed
from zstor_local.formats.remotelog import ENCODINGS, Page, parse_page
from zstor_local.formats.unixfs import LEAF_BYTES, parse_node
from zstor_local.runtime import Runtime
from zstor_local.store.caller import Caller
from zstor_local.store.sources import BytesSource, FileSource

_WINDOW: Final = LEAF_BYTES
_DEPTH: Final = 8  # of a content's tree: 1,024⁷ MiB

State: TypeAlias = Literal["created", "advanced", "unchanged"]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import came to. `stored` counts contents that were not there before; `state`: what became of the log."""

    log: str
    entries: int
    pages: int
    stored: int
    state: State


class Importing:
    """The use case."""

    def __init__(self, runtime: Runtime, logs: Logs, cas: Cas) -> None:
        self._runtime = runtime
        self._logs = logs
        self._cas = cas

    async def import_(self, source: BytesSource | FileSource, name: str | None, caller: Caller) -> Imported:
        """Make the log (under its own name, or another one) what the file says.

        A log that is there may only grow by it, else Conflict: nothing is lost or brought back that was scrubbed. Incomplete for a file
        that is damaged, cut off, or not of a log; then nothing has changed but for content that waits for the next try.
        """
        with scratch() as notes:
            blocks = _Blocks(self._runtime, source, notes)
            root = await blocks.scan(caller)
            about = await _description(blocks, root)
            return await _Import(self._logs, self._cas, blocks, name or about.log, about, notes, caller).run()


class _Blocks:
    """The blocks of a file, by their id."""

    def __init__(self, runtime: Runtime, source: BytesSource | FileSource, notes: Scratch) -> None:
        self._runtime = runtime
        self._source = source
        self._notes = notes

    async def scan(self, caller: Caller) -> Cid:
        """Check every block. Returns the root."""
        reader = car.Reader()

        def scan(at: int) -> int:
            window = memoryview(bytearray(min(_WINDOW, self._source.size - at)))
            self._source.read_at(window, at)
            self._notes.put_places((block.cid.digest, block.offset, len(block.data)) for block in reader.blocks(window))
            return at + len(window)

        at = 0
        try:
            while at < self._source.size:
                at = await self._runtime.threads.run(scan, at)
                caller.progress(at // 2, self._source.size)
            reader.finish()
        except car.BadCar as error:
            raise Incomplete(f"the CAR file is damaged: {error}", hint="export it again") from None
        if not reader.roots:
            raise Incomplete("the CAR file names no root", hint="give a file that `zstor log export` wrote")
        return reader.roots[0]

    async def get(self, cid: Cid) -> bytes:
        """A block; Incomplete if the file does not have it."""
        place = self._notes.place(cid.digest)
        if place is None:
            raise Incomplete(f"the CAR file lacks the block {cid}", hint="it was cut off, or is not whole: export it again")
        data = await self._read(*place)
        if not cid.names(data):
            raise Incomplete("the CAR file changed while it was read", hint="import it when nothing writes to it")
        return data

    async def _read(self, at: int, length: int) -> bytes:
        buffer = bytearray(length)
        await self._runtime.threads.run(self._source.read_at, memoryview(buffer), at)
        return bytes(buffer)

    async def leaves(self, cid: Cid, depth: int = 0) -> AsyncIterator[bytes]:
        """The bytes of a content, in order."""
        block = await self.get(cid)
        if cid.codec == RAW:
            yield block
            return
        if depth == _DEPTH:
            raise Incomplete("the tree of a content is too deep", hint="export it again")
        try:
            links = parse_node(block)
        except Malformed as error:
            raise Incomplete(f"the block {cid} is not of a content: {error}", hint="export it again") from None
        for link in links:
            async for leaf in self.leaves(link.cid, depth + 1):
                yield leaf


class _Leaves:
    """A content's leaves as a stream to upload."""

    def __init__(self, leaves: AsyncIterator[bytes]) -> None:
        self._leaves = leaves
        self._rest = memoryview(b"")

    async def read_into(self, buffer: memoryview) -> int:
        while not self._rest:
            leaf = await anext(self._leaves, None)
            if leaf is None:
                return 0
            self._rest = memoryview(leaf)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


@dataclass(frozen=True, slots=True)
class _About:
    log: str
    policy: LogPolicy
    head: Cid | None


async def _description(blocks: _Blocks, root: Cid) -> _About:
    """What the file says of the log."""
    try:
        members = parse_directory(await blocks.get(root))
        plain = json.loads(await blocks.get(members[DESCRIPTION]))
        return _About(check_log(plain["log"]), _policy(plain), None if plain["head"] is None else parse(plain["head"]))
    except (Malformed, KeyError, TypeError, AttributeError, ValueError, RecursionError, InvalidParams):
        raise Incomplete("the CAR file holds no log", hint="give a file that `zstor log export` wrote") from None


def _policy(plain: Mapping[str, Any]) -> LogPolicy:
    """ValueError for what no row of a log can say: whoever made the file may be up to anything."""
    page_size, embed_last, encoding, messages = (plain[name] for name in ("page_size", "embed_last", "encoding", "messages"))
    if type(page_size) is not int or type(embed_last) is not int or encoding not in ENCODINGS or messages not in MESSAGES:
        raise ValueError
    return LogPolicy(page_size, embed_last, encoding, messages)


class _Import:
    def __init__(self, logs: Logs, cas: Cas, blocks: _Blocks, name: str, about: _About, notes: Scratch, caller: Caller) -> None:
        self._logs = logs
        self._cas = cas
        self._blocks = blocks
        self._name = name
        self._about = about
        self._notes = notes
        self._caller = caller
        self._stored = 0
        self._done = 0

    async def run(self) -> Imported:
        self._done = 0
        self._notes.forget_log()
        head, pages = await self._chain()
        log = await self._existing()
        if log is not None and log.head.last and await self._stands(log, head):
            return Imported(self._name, 0, 0, 0, "unchanged")
        pinned_at = 0 if log is None else log.let_go_times
        owner = Owner(head_name(self._name), ENTRY)
        for cid in self._notes.pages():
            page = await self._page(cid)
            await self._contents(page, owner, head.last)
            await self._keep(cid, Owner(owner.name, PAGE))
        await self._contents(head, owner, head.last)
        return await self._publish(log, head, pages, pinned_at)

    async def _chain(self) -> tuple[Page, int]:
        """The newest page and how many others there are, which are noted; every page is checked, and that they join."""
        head = Page() if self._about.head is None else await self._page(self._about.head)
        page, pages = head, 0
        while True:
            for entry in page.entries:
                if self._notes.first(entry.local_hash, entry.seq) != entry.seq:
                    twice = entry.local_hash.hex()
                    raise Incomplete(f"two entries have the local hash {twice}", hint="`zstor log verify` there tells more")
            if page.tail is None:
                return head, pages
            below = await self._page(page.tail)
            if below.last + 1 != page.first:
                raise Incomplete(
                    f"pages do not join: one ends with entry {below.last}, the next begins with {page.first}",
                    hint="export it again",
                )
            self._notes.put_page(page.tail)
            page, pages = below, pages + 1

    async def _page(self, cid: Cid) -> Page:
        try:
            page = parse_page(await self._blocks.get(cid))
            page.check()
        except Malformed as error:
            raise Incomplete(f"the block {cid} is no page of a log: {error}", hint="export it again") from None
        if not page.entries or any(entry.cid is None and entry.data for entry in page.entries):
            raise Incomplete(f"the page {cid} has entries without an address", hint="it is not one of our logs")
        return page

    async def _existing(self) -> OpenLog | None:
        try:
            return await self._logs.open(self._name)
        except NotFound:
            return None

    async def _stands(self, log: OpenLog, head: Page) -> bool:
        """Whether the log has all that the file has. Conflict if the file is not the log, grown."""
        if head.last <= log.head.last:
            # An older state of the log: then what was its newest entry is an entry of the log still, be it scrubbed.
            found = log.look(head.entries[0].local_hash) if head.entries else None
            if head.entries and (found is None or found.seq != head.last):
                raise self._fork(head.last)
            return True
        page = head
        while page.first > log.head.page.first and page.tail is not None:
            page = await self._page(page.tail)
        theirs = {entry.seq: (entry.local_hash, entry.cid) for entry in page.entries}
        for entry in log.head.page.entries:
            if theirs.get(entry.seq) != (entry.local_hash, entry.cid):
                raise self._fork(entry.seq)
        if page.tail != log.head.page.tail:
            raise self._fork(page.first - 1)
        return False

    def _fork(self, seq: int) -> Conflict:
        return Conflict(
            f"log {self._name!r} is not what the file grew from: they differ at entry {seq} or below",
            hint="import it as another log",
            current=seq,
        )

    async def _contents(self, page: Page, owner: Owner, total: int) -> None:
        for entry in reversed(page.entries):
            if entry.cid is not None:
                await self._keep(entry.cid, owner)
            self._done += 1
            self._caller.progress(self._done, total)

    async def _keep(self, cid: Cid, owner: Owner) -> None:
        """Have a content stored and pinned. A stored copy that too many lost disks have made unreadable is none."""
        if await self._cas.is_there(cid):
            with suppress(NotFound):  # it was let go of just now
                await self._cas.keeping.pin(cid, owner)
                return
        if cid.codec == RAW:
            source: BytesSource | _Leaves = BytesSource(await self._blocks.get(cid))
        else:
            source = _Leaves(self._blocks.leaves(cid))
        await self._cas.upload(source, owner, expected=Expected(id=cid))
        self._stored += 1

    async def _publish(self, log: OpenLog | None, head: Page, pages: int, pinned_at: int) -> Imported:
        """Set the log's head, unless the log has changed meanwhile."""
        state: State = "advanced"
        if log is None or not log.record.created:
            state = "created"
            try:
                log = await self._logs.create(self._name, self._about.policy)
            except AlreadyExists:
                if log is None:  # whoever made it may have let go of what is pinned here, and may be forgotten again
                    return await self.run()
                log = await self._logs.open(self._name)
        async with log.lock:
            await log.load()
            if log.head.last and await self._stands(log, head):
                return Imported(self._name, 0, 0, self._stored, "unchanged")
            if log.let_go_times != pinned_at:
                raise Conflict("entries of the log were scrubbed meanwhile", hint="import it again", retryable=True)
            before = log.head.last
            self._caller.begin_commit()
            with trio.CancelScope(shield=True):
                await log.adopt(head)
        return Imported(self._name, head.last - before, pages + 1, self._stored, state)
