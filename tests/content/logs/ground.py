"""A store with logs, and the short words that its tests use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256

from tests.store.home import Home
from zstor_local.content.cas import Cas
from zstor_local.content.logs.appending import Appended, Appending, NewEntry
from zstor_local.content.logs.leftovers import Leftovers
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.page_index import PageIndex
from zstor_local.content.logs.policy import LogPolicy
from zstor_local.content.logs.reading import LogReading
from zstor_local.content.logs.scrubbing import Scrubbed, Scrubbing
from zstor_local.content.logs.verifying import Verified, Verifying
from zstor_local.content.names import Names
from zstor_local.formats.cid import Cid
from zstor_local.formats.remotelog import Entry
from zstor_local.store.caller import Nobody
from zstor_local.store.store import Store


@dataclass
class Ground:
    """The use cases of an open store's logs."""

    store: Store
    cas: Cas
    names: Names
    index: PageIndex

    def __post_init__(self) -> None:
        self.logs = Logs(self.store.runtime, self.store.rows, self.names, self.cas, self.index)
        self.appending = Appending(self.logs)
        self.reading = LogReading(self.logs)
        self.leftovers = Leftovers(self.logs, self.cas, self.store.runtime.clock)

    async def create(self, log: str = "default", page_size: int = 4, **policy: object) -> None:
        await self.logs.create(log, LogPolicy(page_size, **policy))  # type: ignore[arg-type]

    async def append(
        self, content: bytes | Cid, log: str = "default", *, local_hash: bytes | None = None, embed: bool = True
    ) -> Appended:
        return await self.appending.append(log, NewEntry(content, local_hash, embed), Nobody())

    async def append_all(self, contents: Iterable[bytes], log: str = "default") -> None:
        for content in contents:
            await self.append(content, log)

    async def entries(self, log: str = "default", since: int = 0, limit: int = 1_000) -> list[Entry]:
        return (await self.reading.since(log, since, limit, embedded=True))[1]

    async def contents(self, log: str = "default", since: int = 0) -> list[bytes | None]:
        """What is in the log, the oldest first; None for what was scrubbed."""
        return [
            None if entry.cid is None else await self.cas.read(self.cas.contents.find(entry.cid))
            for entry in await self.entries(log, since)
        ]

    async def scrub(self, first: int, last: int | None = None, log: str = "default") -> Scrubbed:
        return await Scrubbing(self.logs).scrub(log, first, last or first, Nobody())

    async def verify(self, log: str = "default", *, contents: bool = True, known: tuple[int, bytes] | None = None) -> Verified:
        return await Verifying(self.logs, self.cas).verify(log, Nobody(), contents=contents, known=known)

    async def whole(self, log: str = "default") -> None:
        """Nothing is wrong with the log, and it pins just what it needs."""
        found = await self.verify(log)
        assert found.problems == []
        assert await self.pinned(log) == await self.needed(log)

    async def pinned(self, log: str = "default") -> set[Cid]:
        return {content.id async for content in self.cas.contents.list(f"log/{log}", None, 100_000)}

    async def needed(self, log: str = "default") -> set[Cid]:
        pages = {page.cid for page in (await self.logs.open(log)).closed_pages()}
        return pages | {entry.cid for entry in await self.entries(log) if entry.cid is not None}


@asynccontextmanager
async def opened(home: Home, *, index: str = ":memory:") -> AsyncIterator[Ground]:
    async with home.open() as store:
        ground = Ground(store, Cas(store), Names(store.rows), PageIndex(index))
        try:
            yield ground
        finally:
            ground.index.close()


def text(number: int) -> bytes:
    return b"content %d" % number


def texts(last: int, first: int = 1) -> list[bytes]:
    return [text(number) for number in range(first, last + 1)]


def hash_of(number: int) -> bytes:
    """The local hash of `text` where none is given."""
    return sha256(text(number)).digest()
