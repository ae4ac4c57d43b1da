"""Draining a shard: every version that has a share there gets it on another shard, by the rules of a repair; resumable.

How far it has come is a store-wide row, so that a restart goes on from there. Whoever placed a share there before the drain began may
commit it behind the place that the drain has come to: it goes over everything again until it finds nothing any more. What changes
after that is looked at where the list without the shard is decided.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from zstor_local.counted import counted
from zstor_local.errors import Conflict, CorruptRecord, NotEnoughShards, NotFound, ZstorError
from zstor_local.metastore.base import Row, RowName
from zstor_local.model.fields import decode, encode
from zstor_local.model.ids import NamespaceId, Version
from zstor_local.model.record import Kind, ObjectRecord
from zstor_local.store.caller import Nobody
from zstor_local.store.change import NewRecord
from zstor_local.store.core import Core
from zstor_local.store.freeing import BATCH, Freeing
from zstor_local.store.health import Health
from zstor_local.store.jobs import Job
from zstor_local.store.namespaces import Namespaces
from zstor_local.store.several import for_each
from zstor_local.store.stored import Stored, open_object, owed_shares
from zstor_local.store.storewide import StoreWide

TABLE: Final = "drain"
PAGE: Final = 200  # objects looked at between two notes of how far it has come
NAMED: Final = 100  # objects that an error names


@dataclass(frozen=True, slots=True)
class Drained:
    """How many shares were moved; all objects were looked at that were committed up to a sequence."""

    moved: int
    until: int


@dataclass(frozen=True, slots=True)
class _Cursor:
    """Everything up to this key was looked at in this round; `moved` counts since the drain began."""

    space: NamespaceId | None = None
    key: str = ""
    moved: int = 0
    seen: int = 0


class Drain:
    """The parts of a removal that go over all objects."""

    def __init__(self, core: Core, namespaces: Namespaces, rows: StoreWide, health: Health, freeing: Freeing) -> None:
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._sealer = core.sealer
        self._namespaces = namespaces
        self._rows = rows
        self._health = health
        self._freeing = freeing

    async def move_all(self, number: int, job: Job) -> Drained:
        """Until no object has a share on the shard. NotEnoughShards, naming some, if shares cannot be moved; what could be has been."""
        cursor = self._load(number)
        while True:
            until, moved_before, failed = self._committer.state.sequence, cursor.moved, {}
            whole = cursor.space is None  # a round that an earlier life began passed over what it could not move
            async with aclosing(self._pages(cursor)) as pages:
                async for page in pages:
                    cursor, bad = await self._move_page(number, page, cursor, job)
                    failed.update(bad)
            if failed and cursor.moved == moved_before:
                raise _not_moved(self._pool.name(number), failed)
            await self._free(number)
            if cursor.moved == moved_before and whole and not self._expected(number):
                break
            cursor = _Cursor(moved=cursor.moved)
            await self._save(number, cursor)
            if cursor.moved == moved_before:
                await self._writes_ended(number, job)
        return Drained(cursor.moved, await self._caught_up(number, until, force=False))

    async def _free(self, number: int) -> None:
        """Free what was moved; what is not good where it was moved to is named here again, for the next round."""
        while self._pool.get(number) is not None and (rows := self._metastore.garbage(number, BATCH)):
            await self._freeing.free_some()
            if {*rows} <= {*self._metastore.garbage(number, BATCH)}:
                return  # what is being read is freed with the whole shard

    async def _writes_ended(self, number: int, job: Job) -> None:
        """Wait for large writes that began before the drain; they may take as long as whoever sends their bytes."""
        while True:
            news = self._committer.news()
            if not self._expected(number):
                return
            job.progress(job.done, job.total, "waiting for large writes that began before")
            await news.wait()

    async def _move_page(self, number: int, page: list[Stored], cursor: _Cursor, job: Job) -> tuple[_Cursor, dict[str, ZstorError]]:
        failed: dict[str, ZstorError] = {}
        moved = cursor.moved

        async def move(stored: Stored) -> None:
            nonlocal moved
            try:
                await self._health.repair(stored, Nobody(), leaving=number)
                moved += 1
            except NotFound:
                pass
            except ZstorError as error:
                if self._still_there(stored, number):
                    failed[stored.record.key] = error

        await for_each([stored for stored in page if number in stored.record.placement], move)
        seen = cursor.seen + len(page)
        job.progress(seen, max(seen, self._committer.state.objects), f"{counted(moved, 'share')} moved")
        last = page[-1]
        after = _Cursor(last.envelope.namespace, last.record.key, moved, seen)
        if moved != cursor.moved:
            await self._save(number, after)
        return after, failed

    def _still_there(self, stored: Stored, number: int) -> bool:
        """Whether the key still has a share there: it may have been written anew meanwhile."""
        current = self._metastore.get(stored.envelope.namespace, stored.record.key)
        return current is not None and number in open_object(self._sealer, current).placement

    def _expected(self, number: int) -> bool:
        """Whether a large write is on its way to the shard."""
        return any(number in intent.shards for intent in self._metastore.intents())

    async def check_force(self, number: int, job: Job) -> Drained:
        """NotEnoughShards, naming them, if objects had fewer than k shares without the shard, which is being drained."""
        await self._health.turns.wait()  # a repair that is under way may be moving a share to it
        began, until = self._runtime.clock.now(), self._committer.state.sequence
        # A share that was moved elsewhere and is still to be freed here may be the last that is good.
        moved = await self._runtime.threads.run(self._metastore.garbage, number) if self._pool.state(number) == "ok" else ()
        here = {row.share.version for row in moved}
        lost: list[str] = []
        seen = 0
        async with aclosing(self._by_age()) as pages:
            async for page in pages:
                for stored in page:
                    written_since = stored.envelope.sequence > until and stored.record.modified >= began
                    concerned = number in stored.record.placement or stored.version in here
                    if concerned and not written_since and await self._needs(stored, number):
                        lost.append(f"{stored.namespace}/{stored.record.key}")
                seen += len(page)
                job.progress(seen, max(seen, self._committer.state.objects), "looking what would be lost")
        if lost:
            raise self._would_lose(number, lost)
        return Drained(0, await self._caught_up(number, until, force=True))

    def _would_lose(self, number: int, lost: Sequence[str]) -> NotEnoughShards:
        return NotEnoughShards(
            f"without shard {self._pool.name(number)} {counted(len(lost), 'object')} could not be read any more",
            hint="bring other shards back or repair first; data.objects names them",
            retryable=False,
            count=len(lost),
            objects=lost[:NAMED],
        )

    async def _needs(self, stored: Stored, number: int) -> bool:
        """Whether an object could not be read without the shard: its other shares are read to see whether they are good."""
        checked = await self._health.check(stored, Nobody())
        others = self._others(stored.version, stored.record, number)
        return sum(checked.states[index] == "ok" for index in others) < stored.record.policy.k

    async def _caught_up(self, number: int, since: int, *, force: bool) -> int:
        """`must_be_needless`, up to the sequence that is returned: what is changed behind it is little."""
        while (now := self._committer.state.sequence) - since > PAGE:
            await self._runtime.threads.run(partial(self.must_be_needless, number, since, force=force))
            since = now
        return since

    def must_be_needless(self, number: int, since: int, *, force: bool) -> None:
        """Conflict if an object that was changed since then has a share on the shard. By force it may, as what was good before is, and
        what was written since got its shares: NotEnoughShards if it has fewer than k others.
        """
        for namespace in self._metastore.usages():
            at = since
            while rows := self._metastore.changes(namespace, at, PAGE):
                at = rows[-1].envelope.sequence
                for row in rows:
                    record = self._opened(row)
                    if record is None or number not in record.placement:
                        continue
                    if not force:
                        raise Conflict(f"an object has come to shard {self._pool.name(number)}", hint="drain it again", retryable=True)
                    if len(self._others(row.envelope.version, record, number)) < record.policy.k:
                        raise self._would_lose(number, [record.key])

    def _others(self, version: Version, record: ObjectRecord, number: int) -> set[int]:
        """The shares of a version that other shards of the store have: not those that they are owed, whatever they show."""
        others = {index for index, at in enumerate(record.placement) if at != number and self._pool.entry(at) is not None}
        return others - owed_shares(self._metastore, version, record)

    def _opened(self, row: Row) -> ObjectRecord | None:
        """The row's object; None if it is none, or does not open, which is left to the scrub."""
        if row.envelope.kind is not Kind.OBJECT:
            return None
        with suppress(CorruptRecord):
            return open_object(self._sealer, row.envelope)
        return None

    async def make_whole(self, number: int, job: Job) -> int:
        """Once the shard is forgotten: make what it held anew elsewhere, where there is room. Returns how many objects lack a share."""
        lacking = seen = 0

        async def mend(stored: Stored) -> None:
            nonlocal lacking
            if not await self._made_whole(stored, number):
                lacking += 1

        async with aclosing(self._by_age()) as pages:
            async for page in pages:
                await for_each([stored for stored in page if number in stored.record.placement], mend)
                seen += len(page)
                job.progress(seen, max(seen, self._committer.state.objects), "looking whether all is moved")
        return lacking

    async def _made_whole(self, stored: Stored, number: int) -> bool:
        try:
            await self._health.repair(stored, Nobody(), leaving=number)
        except ZstorError:
            return not self._still_there(stored, number)
        return True

    async def _pages(self, cursor: _Cursor) -> AsyncGenerator[list[Stored], None]:
        """All objects behind the cursor, by namespace and key; those that do not open are left to the scrub."""
        for namespace in sorted(self._namespaces.all(), key=lambda namespace: namespace.id):
            if cursor.space is not None and namespace.id < cursor.space:
                continue
            after = cursor.key if namespace.id == cursor.space else None
            while rows := await self._runtime.threads.run(self._metastore.scan, namespace.id, "", after, PAGE):
                after = rows[-1].name
                page = [Stored(namespace.name, record, row.envelope) for row in rows if (record := self._opened(row)) is not None]
                if page:
                    yield page

    async def _by_age(self) -> AsyncGenerator[list[Stored], None]:
        """All objects of each namespace, what changed last at its end: none is passed over, whatever key it gets meanwhile."""
        for namespace in self._namespaces.all():
            since = 0
            while rows := await self._runtime.threads.run(self._metastore.changes, namespace.id, since, PAGE):
                since = rows[-1].envelope.sequence
                yield [Stored(namespace.name, record, row.envelope) for row in rows if (record := self._opened(row)) is not None]

    # --- How far it has come ---

    def _load(self, number: int) -> _Cursor:
        row = self._rows.get(TABLE, str(number))
        if row is None:
            return _Cursor()
        plain = decode(row.value)
        space, key, moved, seen = plain.get(1), plain.get(2), plain.get(3), plain.get(4)
        if not isinstance(key, str) or not isinstance(moved, int) or not isinstance(seen, int):
            return _Cursor()
        return _Cursor(NamespaceId(space) if isinstance(space, bytes) else None, key, moved, seen)

    async def _save(self, number: int, cursor: _Cursor) -> None:
        value = encode({0: 1, 1: cursor.space, 2: cursor.key, 3: cursor.moved, 4: cursor.seen})
        await self._rows.put(TABLE, str(number), value)

    def forgotten(self, number: int) -> Mapping[RowName, NewRecord]:
        """What a decision writes so that nothing is known of the drain any more. In the committer's thread."""
        return self._rows.removed(TABLE, str(number)) if self._rows.is_there(TABLE, str(number)) else {}


def _not_moved(shard: str, failed: Mapping[str, ZstorError]) -> NotEnoughShards:
    first = next(iter(failed.values()))
    return NotEnoughShards(
        f"{counted(len(failed), 'object still has', 'objects still have')} shares on shard {shard}: {first.message}",
        hint="`zstor status` tells what is away; `zstor shard rm` goes on from here",
        count=len(failed),
        objects=list(failed)[:NAMED],
    )
