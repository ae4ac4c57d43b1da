"""Keeping contents: pins, letting go, and the collection of what nobody keeps."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from zstor_local.content import pins
from zstor_local.content.contents import NAMESPACE, Content, Contents, no_content
from zstor_local.content.pins import Owner
from zstor_local.errors import CorruptRecord, ZstorError
from zstor_local.formats.cid import Cid
from zstor_local.metastore.base import Row
from zstor_local.model.record import Envelope, ObjectRecord
from zstor_local.store.caller import Caller, Nobody
from zstor_local.store.change import Decision
from zstor_local.store.namespaces import Namespace
from zstor_local.store.stored import Stored, open_object, with_debts

DAY_SECONDS: Final = 24 * 3_600
FIRST_SECONDS: Final = 3_600  # from a start to the first collection: many machines do not run for a day on end
BATCH: Final = 200  # contents looked at, and collected in one commit: some milliseconds of the committer's time


log = logging.getLogger("zstor.content")


@dataclass(slots=True)
class Collected:
    """What a collection found; a dry run only counts. Sizes are plain bytes."""

    looked_at: int = 0
    contents: int = 0
    bytes: int = 0


class Keeping:
    """The use cases."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._store = contents.store
        self._clock = contents.store.runtime.clock

    async def pin(self, cid: Cid, owner: Owner, caller: Caller | None = None) -> Content:
        """The owner keeps the content from now on; NotFound if it is not there. Again with another reason changes the reason."""
        content = await self._change(cid, lambda record, now: pins.pinned(record, owner, now), caller, insist=True)
        if content is None:
            raise AssertionError("a pin deletes nothing")
        return content

    async def unpin(self, cid: Cid, owner: str, caller: Caller | None = None, *, forget: bool = False) -> Content | None:
        """The owner lets go of the content; one that did not pin it is fine. NotFound if it is not there.

        A content without any pin is kept for a week, for whoever thinks again. With `forget` it is deleted at once, and None returned,
        if nobody else pins it or has uploaded it within that week without a pin.
        """

        def change(record: ObjectRecord, now: int) -> ObjectRecord | None:
            left = pins.unpinned(record, owner, now)
            return None if forget and not left.references and pins.promised_until(left) <= now else left

        content = await self._change(cid, change, caller, insist=False)
        if content is None:
            self._store.freeing.wake()
        return content

    async def _change(
        self, cid: Cid, change: Callable[[ObjectRecord, int], ObjectRecord | None], caller: Caller | None, *, insist: bool
    ) -> Content | None:
        """Set the content's record to what `change` makes of it, None to delete it. Returns the content then."""
        namespace = self._contents.known_namespace()
        if namespace is None:
            raise no_content(cid)
        before: Envelope | None = None
        deleted = False

        def decide(current: Envelope | None) -> Decision:
            nonlocal before, deleted
            edits, now = self._contents.edits(namespace), self._clock.now()
            found = edits.find(str(cid))
            if found is None:
                raise no_content(cid)
            before, changed = current, change(found.record, now)
            deleted = changed is None
            if changed is None:
                edits.remove(str(cid))
            else:
                edits.put(str(cid), found.version, changed)
            return edits.decision(now, insist=insist)

        (caller or Nobody()).begin_commit()
        committed = await self._store.committer.commit(namespace.id, str(cid), decide)
        envelope = committed.envelope or before
        if deleted or envelope is None:
            return None
        stored = Stored(NAMESPACE, open_object(self._store.sealer, envelope), envelope)
        return Content(cid, with_debts(self._store.metastore, stored))

    async def collect(self, caller: Caller | None = None, *, dry_run: bool = False) -> Collected:
        """Delete every content that nobody keeps. Writers go on meanwhile: each batch is one short turn in the committer.

        A content that is pinned or uploaded again before its turn stays; one that is being read is freed afterwards. A cancel ends it
        between two batches.
        """
        caller = caller or Nobody()
        result = Collected()
        namespace = self._contents.known_namespace()
        after: str | None = None
        while namespace is not None and (rows := self._store.metastore.scan(namespace.id, "", after, BATCH)):
            after = rows[-1].name
            result.looked_at += len(rows)
            unkept = await self._store.runtime.threads.run(self._unkept, rows)
            if unkept and not dry_run:
                unkept = await self._delete(namespace, [record.key for record in unkept])
                self._store.freeing.wake()
            result.contents += len(unkept)
            result.bytes += sum(record.size for record in unkept)
            caller.progress(result.looked_at, None)
            await trio.lowlevel.checkpoint()
        return result

    async def collect_daily(self, before: Callable[[], Awaitable[object]] | None = None) -> None:
        """Collect an hour after a start, then once a day, for ever, and call `before` each time; what goes wrong is logged, and tried
        again a day later.
        """
        await trio.sleep(FIRST_SECONDS)
        while True:
            try:
                if before is not None:
                    await before()
                found = await self.collect()
            except ZstorError as error:
                log.warning("contents were not collected: %s", error)
            else:
                log.info("collected %d of %d contents: %d bytes", found.contents, found.looked_at, found.bytes)
            await trio.sleep(DAY_SECONDS)

    def _unkept(self, rows: Sequence[Row]) -> list[ObjectRecord]:
        """Those of the rows that nobody keeps now. Of one that does not open nobody can tell: it stays."""
        now = self._clock.now()
        found: list[ObjectRecord] = []
        for row in rows:
            with suppress(CorruptRecord):
                record = open_object(self._store.sealer, row.envelope)
                if not _is_kept(record, now):
                    found.append(record)
        return found

    async def _delete(self, namespace: Namespace, keys: Sequence[str]) -> list[ObjectRecord]:
        """Delete those that are still not kept when it is their turn, and return them."""
        gone: list[ObjectRecord] = []

        def decide(_: Envelope | None) -> Decision:
            edits, now = self._contents.edits(namespace), self._clock.now()
            for key in keys:
                found = edits.find(key)
                if found is not None and not _is_kept(found.record, now):
                    edits.remove(key)
                    gone.append(found.record)
            return edits.decision(now, insist=False)

        await self._store.committer.commit(namespace.id, keys[0], decide)
        return gone


def _is_kept(record: ObjectRecord, now: int) -> bool:
    return bool(record.references) or pins.kept_until(record) > now
