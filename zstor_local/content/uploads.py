"""Uploads: bytes become a content, or are found to be one already.

Whether they are is decided in the committer, at the upload's own turn among uploads, pins and collections: so an upload never counts
on a copy that a collection takes away, and of two uploads of the same bytes at once one is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from zstor_local.content import pins
from zstor_local.content.contents import Contents
from zstor_local.content.hashing import Leaves, hash_file
from zstor_local.content.pins import Owner
from zstor_local.counted import counted
from zstor_local.errors import Incomplete, PathRefused
from zstor_local.formats import unixfs
from zstor_local.formats.cid import Cid
from zstor_local.formats.unixfs import Link
from zstor_local.model.ids import Version
from zstor_local.model.record import Envelope, ObjectRecord, is_small
from zstor_local.store.caller import Caller, Nobody
from zstor_local.store.change import Decision
from zstor_local.store.coding import INLINE_CODING_BYTES, Coded
from zstor_local.store.edits import Object
from zstor_local.store.namespaces import Namespace
from zstor_local.store.sources import BytesSource, FileSource
from zstor_local.store.writes import DIGEST_PREFIX, Source


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What an upload came to; `new` where its bytes were not there before."""

    id: Cid
    size: int
    new: bool


@dataclass(frozen=True, slots=True)
class Expected:
    """What the caller of an upload knows of its bytes: `digest` as in an object's metadata."""

    size: int | None = None
    digest: str | None = None
    id: Cid | None = None

    def check(self, size: int, digest: bytes, cid: Cid) -> None:
        """Incomplete if anything is not as announced."""
        if self.size not in (None, size):
            raise Incomplete(
                f"{counted(size, 'byte')} arrived, {self.size:,} were announced; nothing was stored", hint="send it again", size=size
            )
        if self.digest not in (None, DIGEST_PREFIX + digest.hex()) or self.id not in (None, cid):
            raise Incomplete("other bytes arrived than were announced; nothing was stored", hint="send it again", id=str(cid))


class Uploads:
    """The use case."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._store = contents.store
        self._runtime = contents.store.runtime

    async def upload(self, source: Source, owner: Owner | None, expected: Expected, caller: Caller) -> Uploaded:
        """Store the bytes, or find that they are stored; durable when this returns. Without an owner they are kept for a week at least.

        A file is hashed before anything is written, so uploading it again costs a read. Stored bytes that have become unreadable are
        replaced. PathRefused for a file that changes meanwhile.
        """
        namespace = await self._contents.namespace()
        if isinstance(source, FileSource) and is_small(source.size, namespace.policy):
            source = BytesSource(bytes(await self._runtime.threads.run(source.read_whole)))
        known = await self._identify(source, caller)
        if known is not None and (kept := await self._keep(namespace, known.cid, owner, expected, caller)):
            return Uploaded(known.cid, kept.record.size, new=False)
        leaves = Leaves()

        async def publish(coded: Coded) -> Uploaded:
            cid = (await self._in_thread(coded.size, lambda: leaves.link(coded.size))).cid
            if known is not None and cid != known.cid:
                raise PathRefused("the file changed while it was read; nothing was stored", hint="store it when nothing writes to it")
            expected.check(coded.size, coded.digest, cid)
            return await self._publish(namespace, cid, coded, owner, caller)

        watching = _SecondHalf(caller) if isinstance(source, FileSource) else caller
        return await self._store.writer.store(
            namespace, source, publish, watching, expected_size=expected.size, watch=leaves.watch(namespace.policy.chunk_size)
        )

    async def _identify(self, source: Source, caller: Caller) -> Link | None:
        """The tree of bytes that can be read twice; None for a stream."""
        if isinstance(source, BytesSource):
            return await self._in_thread(len(source.data), lambda: unixfs.link_of(source.data))
        if isinstance(source, FileSource):
            return await hash_file(self._runtime, source, lambda done: caller.progress(done // 2, source.size))
        return None

    async def _in_thread(self, size: int, work: Callable[[], Link]) -> Link:
        """Hashing so many bytes, where it delays nobody."""
        return work() if size <= INLINE_CODING_BYTES else await self._runtime.threads.run(work)

    async def _keep(self, namespace: Namespace, cid: Cid, owner: Owner | None, expected: Expected, caller: Caller) -> Object | None:
        """Count on the stored copy, if there is one; None if the bytes have to be written."""
        if not await self.is_there(cid):
            return None
        kept: Object | None = None

        def decide(_: Envelope | None) -> Decision:
            nonlocal kept
            edits, now = self._contents.edits(namespace), self._runtime.clock.now()
            kept = edits.find(str(cid))
            if kept is None:  # collected meanwhile
                return Decision()
            expected.check(kept.record.size, kept.record.digest, cid)
            edits.put(str(cid), kept.version, _owned(kept.record, owner, now))
            return edits.decision(now)

        caller.begin_commit()
        await self._store.committer.commit(namespace.id, str(cid), decide)
        return kept

    async def _publish(self, namespace: Namespace, cid: Cid, coded: Coded, owner: Owner | None, caller: Caller) -> Uploaded:
        """Commit coded bytes as a content, unless they are one by now."""
        bad = await self._bad_version(cid)
        new = True

        def decide(_: Envelope | None) -> Decision:
            nonlocal new
            edits, now = self._contents.edits(namespace), self._runtime.clock.now()
            found = edits.find(str(cid))
            if found is not None and found.version != bad:
                new = False
                edits.put(str(cid), found.version, _owned(found.record, owner, now))
                return self._store.writer.discard(edits, coded, now)
            record = coded.record(str(cid), namespace.policy, now, now)
            if found is not None:
                record = replace(record, created=found.record.created, references=found.record.references, user=found.record.user)
            return self._store.writer.put(namespace, edits, coded, _owned(record, owner, now), now)

        caller.begin_commit()
        await self._store.committer.commit(namespace.id, str(cid), decide)
        self._store.freeing.wake()
        return Uploaded(cid, coded.size, new)

    async def is_there(self, cid: Cid) -> bool:
        """Whether a copy is stored that counts: with shares enough, as far as can be told without reading them."""
        return self._contents.look(cid) is not None and await self._bad_version(cid) is None

    async def _bad_version(self, cid: Cid) -> Version | None:
        """The stored copy, if too few of its shares are there, as far as can be told without reading them. Others are repaired."""
        found = self._contents.look(cid)
        if found is None:
            return None
        checked = await self._store.shares_health.check(found.stored, Nobody(), fast=True)
        if checked.status == "valid":
            states = {index: state for index, state in enumerate(checked.states) if state != "ok"}
            self._store.on_bad_shares(found.stored, states)
        return found.stored.version if checked.status == "invalid" else None


def _owned(record: ObjectRecord, owner: Owner | None, now: int) -> ObjectRecord:
    """The record after an upload in the owner's name, or in nobody's."""
    return pins.promised(record, now) if owner is None else pins.pinned(record, owner, now)


class _SecondHalf:
    """The caller of an upload that has read its file once before it stores it."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    @property
    def has_reply_room(self) -> bool:
        return self._caller.has_reply_room

    def progress(self, done: int, total: int | None) -> None:
        self._caller.progress(done if total is None else (total + done) // 2, total)

    def begin_commit(self) -> None:
        self._caller.begin_commit()
