"""The content store: bytes by their id, stored once, kept as long as somebody pins them.

A content is an object in a namespace of its own, which users cannot name; its key is the id. So it is erasure-coded, sealed, checked,
repaired and rebuilt like any other. Uploads, pins and collections are changes of records, decided one after another in the committer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from zstor_local import limits
from zstor_local.content.contents import Content, Contents
from zstor_local.content.hashing import HashSink
from zstor_local.content.keeping import Keeping
from zstor_local.content.pins import Owner
from zstor_local.content.uploads import Expected, Uploaded, Uploads
from zstor_local.errors import CorruptRecord
from zstor_local.formats.cid import Cid
from zstor_local.formats.unixfs import LEAF_BYTES, Node
from zstor_local.store.caller import Caller, Nobody
from zstor_local.store.reading import stretch, whole
from zstor_local.store.store import Store
from zstor_local.store.writes import Source

__all__ = ["Cas", "Content", "Expected", "Owner", "Uploaded"]

_LEAVES_AT_ONCE = limits.INLINE_VALUE_BYTES // LEAF_BYTES  # read together


class Cas:
    """Bytes in and out; `contents` finds them, `keeping` pins and collects them. One for a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.contents = Contents(store)
        self.keeping = Keeping(self.contents)
        self._uploads = Uploads(self.contents)

    async def upload(
        self, source: Source, owner: Owner | None = None, caller: Caller | None = None, *, expected: Expected | None = None
    ) -> Uploaded:
        """Store the bytes and pin them for the owner; see content/uploads.py."""
        return await self._uploads.upload(source, owner, expected or Expected(), caller or Nobody())

    async def is_there(self, cid: Cid) -> bool:
        """Whether a copy is stored that an upload would count on: its bytes need not be given again."""
        return await self._uploads.is_there(cid)

    async def read(self, content: Content, offset: int | None = None, length: int | None = None) -> bytes:
        """The bytes in memory; the caller has checked that they are few."""
        return await self._store.objects.read(content.stored, stretch(content.stored.record, offset, length))

    async def verify(self, content: Content, caller: Caller | None = None) -> None:
        """Read all of it and compare it with its id; CorruptRecord if it is not what the id says."""
        await self._verified(content, caller or Nobody(), {})

    async def _verified(self, content: Content, caller: Caller, nodes: dict[Cid, Node]) -> None:
        """The same; the inner blocks are put into `nodes`."""
        sink = HashSink(self._store.runtime)
        await self._store.objects.read_to_stream(content.stored, sink, whole(content.stored.record), caller)
        found = sink.link(lambda node: nodes.update({node.link.cid: node})).cid
        if found != content.id:
            raise CorruptRecord(f"the bytes under {content.id} are those of {found}", hint="upload the content again")

    async def blocks(self, content: Content, caller: Caller | None = None) -> AsyncIterator[tuple[Cid, bytes]]:
        """All blocks with their ids, each checked: the root first, then depth first, as a CAR file has them.

        A content of more than one block is read twice, first to compute its tree.
        """
        if content.size <= LEAF_BYTES:
            yield await self._leaf(content.id, await self.read(content))
            return
        nodes: dict[Cid, Node] = {}
        await self._verified(content, caller or Nobody(), nodes)
        async for block in self._below(content, content.id, nodes, 0):
            yield block

    async def _below(self, content: Content, root: Cid, nodes: Mapping[Cid, Node], offset: int) -> AsyncIterator[tuple[Cid, bytes]]:
        """A node whose file begins at the offset, and what is below it."""
        node = nodes[root]
        yield root, node.block
        leaves = b""
        begin = offset
        for link in node.links:
            if link.cid in nodes:
                async for block in self._below(content, link.cid, nodes, offset):
                    yield block
            else:
                if offset - begin >= len(leaves):
                    begin, leaves = offset, await self.read(content, offset, _LEAVES_AT_ONCE * LEAF_BYTES)
                yield await self._leaf(link.cid, leaves[offset - begin : offset - begin + link.file_size])
            offset += link.file_size

    async def _leaf(self, cid: Cid, data: bytes) -> tuple[Cid, bytes]:
        if not await self._store.runtime.threads.run(cid.names, data):
            raise CorruptRecord(f"the bytes under {cid} are others", hint="upload the content again")
        return cid, data
