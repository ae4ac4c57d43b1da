"""Which shards the store has: adding, replacing and removing them while it is used.

The list of shards is a record of the store, copied to all of them; committing it is the moment at which a shard counts, or counts no
more. Numbers are never given twice, so that a disk that was replaced or removed is never taken for what came after it.

    add      marker written → the list names it, all store-wide records are owed to it → it is opened for writing
    remove   the list says that it is being drained → its shares are moved, one version after the other → the list is without it
             → its place is retired
    replace  the list names the new shard and drains the old one → as remove
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import trio

from zstor_local.coding.keys import KeyHasher
from zstor_local.errors import (
    AlreadyExists,
    Busy,
    Conflict,
    InvalidParams,
    IoError,
    NotEnoughShards,
    NotFound,
    ShuttingDown,
    Unavailable,
)
from zstor_local.metastore.base import Debt, Metastore, Owed
from zstor_local.model.ids import ID_BYTES, ShardUid
from zstor_local.model.record import NO_VERSION, STORE_WIDE, Envelope, Kind
from zstor_local.model.storewide import ShardEntry, ShardsRecord
from zstor_local.runtime import Runtime
from zstor_local.shards.base import ShardError
from zstor_local.shards.marker import BadMarker, Marker
from zstor_local.shards.opening import Identified
from zstor_local.shards.pool import Absent, ShardPool
from zstor_local.store.caller import Caller
from zstor_local.store.change import Decision, NewRecord
from zstor_local.store.committer import Committer
from zstor_local.store.create import SHARDS_ROW
from zstor_local.store.draining import Drain, Drained
from zstor_local.store.jobs import Job, Jobs
from zstor_local.store.namespaces import Namespaces
from zstor_local.store.places import Places
from zstor_local.store.presence import NEW, Presence
from zstor_local.store.sealing import RecordSealer

DRAIN_JOB: Final = "shard.drain"

log = logging.getLogger("zstor.store")

Extra = Callable[[], Decision]  # what is committed together with a new list; called in the committer's thread


@dataclass(frozen=True, slots=True)
class Removed:
    """What the removal of a shard came to: shares that were moved, and objects that have a share less for lack of another shard."""

    shard: str
    moved: int
    lacking: int


class Membership:
    """The use cases; one at a time."""

    def __init__(
        self,
        runtime: Runtime,
        home: str,
        metastore: Metastore,
        pool: ShardPool,
        places: Places,
        committer: Committer,
        namespaces: Namespaces,
        sealer: RecordSealer,
        hasher: KeyHasher,
        presence: Presence,
        drain: Drain,
        jobs: Jobs,
        *,
        on_change: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._home = home
        self._metastore = metastore
        self._pool = pool
        self._places = places
        self._committer = committer
        self._namespaces = namespaces
        self._sealer = sealer
        self._hasher = hasher
        self._presence = presence
        self._drain = drain
        self._jobs = jobs
        self._on_change = on_change
        self._turn = trio.Lock()
        self._forcing = trio.Lock()  # what one looks at before it forgets a shard no other one may forget meanwhile
        self._draining: dict[int, Job] = {}

    def resume(self) -> None:
        """Go on draining where an earlier life of the store stopped, or where shards were away that are there now."""
        for entry in self._places.record.shards:
            if entry.draining:
                with suppress(Busy, ShuttingDown):
                    self._start_drain(entry)

    def job_of(self, number: int) -> Job | None:
        """The job that drains a shard; None if none runs."""
        job = self._draining.get(number)
        return job if job is not None and job.running else None

    def find(self, shard: str) -> ShardEntry:
        """The shard with this id, or NotFound."""
        for entry in self._places.record.shards:
            if entry.id == shard:
                return entry
        known = ", ".join(entry.id for entry in self._places.record.shards)
        raise NotFound(f"there is no shard {shard!r}", hint=f"there are {known}")

    # --- Add ---

    async def add(self, url: str, group: str | None) -> ShardEntry:
        """Take a new, empty place into the store; durable when this returns. A place of a shard that the store has, which is away or
        being drained, is taken back instead: it lies there from now on, and stays.
        """
        url = _checked(url)
        async with self._turn:
            found = await self._look_at(url)
            if found is not None and (known := self._known(found.marker.uid)) is not None:
                return await self._take_back(known, url, group)
            return await self._add(url, group)

    async def _add(self, url: str, group: str | None, *, instead_of: ShardEntry | None = None) -> ShardEntry:
        record = self._places.record
        number = record.next_number
        uid = ShardUid(self._runtime.randomness.bytes(ID_BYTES))
        name = self._free_id(record) if instead_of is None else instead_of.id
        entry = ShardEntry(number, uid, name, url, group or "", added=True)
        marker = Marker(self._sealer.store_id, uid, number, self._runtime.clock.now())
        self._committer.must_take_changes()  # a place whose listing is in doubt keeps the marker that it was listed with
        await self._runtime.threads.run(self._create, url, marker)

        def change(before: ShardsRecord) -> ShardsRecord:
            shards = list(before.shards)
            at = [each for each, shard in enumerate(shards) if instead_of is not None and shard.number == instead_of.number]
            if instead_of is not None and at:
                taken = {shard.id for shard in shards}
                old_id = next(each for n in range(len(shards) + 2) if (each := _replaced(instead_of.id, n)) not in taken)
                old = replace(instead_of, id=old_id, url=self._places.place(instead_of), draining=True, added=True)
                shards[at[0] : at[0] + 1] = [entry, old]
            else:  # a shard more, or in place of one whose drain has come to its end meanwhile
                shards.append(entry)
            return replace(before, shards=tuple(shards), numbers_used=number + 1, home=self._home)

        def extra() -> Decision:
            rows = self._metastore.scan(STORE_WIDE, "", None, None)
            return Decision(debts=[Debt(number, Owed.RECORD, STORE_WIDE, row.name, row.envelope.version) for row in rows])

        await self._change(change, extra)
        log.debug("added shard %s at %s", entry.id, url)
        await self._presence.look()
        self._on_change()
        return entry

    def _create(self, url: str, marker: Marker) -> None:
        try:
            self._places.opener.create(url, marker)
        except BadMarker as error:
            raise Conflict(f"{url}: {error}", hint="give an empty directory") from None
        except ShardError as error:
            raise IoError(str(error), hint="give an empty directory on a disk that is mounted") from None

    async def _take_back(self, entry: ShardEntry, url: str, group: str | None) -> ShardEntry:
        """A place that bears the marker of a shard that the store has: the shard is there from now on, and is not drained."""
        if self._pool.state(entry.number) == "ok" and url != self._places.place(entry):
            raise AlreadyExists(f"{url} is shard {entry.id}, which is at {self._places.place(entry)}", hint="one of them is a copy")
        if self._pool.state(entry.number) == "ok" and not entry.draining:
            raise AlreadyExists(f"{url} is shard {entry.id} of this store already", hint="`zstor shard ls` lists them")
        if (job := self.job_of(entry.number)) is not None:
            await _ended(job)
        taken = replace(entry, url=url, group=entry.group if group is None else group, added=True, draining=False)

        def change(before: ShardsRecord) -> ShardsRecord:
            shards = (taken if shard.number == taken.number else shard for shard in before.shards)
            return replace(before, shards=tuple(shards), home=self._home)

        await self._change(change)
        await self._presence.look()
        self._on_change()
        return taken

    async def _look_at(self, url: str) -> Identified | None:
        try:
            return await self._runtime.threads.run(self._places.opener.identify, url)
        except BadMarker as error:
            raise Conflict(f"{url}: {error}", hint="give an empty directory") from None
        except ShardError as error:
            raise Unavailable(str(error), hint="see whether it is there, and mounted") from None

    def _known(self, uid: bytes) -> ShardEntry | None:
        return next((entry for entry in self._places.record.shards if entry.uid == uid), None)

    def _free_id(self, record: ShardsRecord) -> str:
        taken = {entry.id for entry in record.shards}
        numbers = range(record.next_number, record.next_number + len(taken) + 1)
        return next(str(number) for number in numbers if str(number) not in taken)

    # --- Replace and remove ---

    async def replace(self, shard: str, url: str | None, caller: Caller) -> Removed:
        """Give a shard's id to a new, empty place, and make there or elsewhere all that the old one holds. Without a url the new place
        is where the old one was. What was begun goes on without its caller, and after a restart.
        """
        async with self._turn:
            entry = self.find(shard)
            place = _checked(url or self._places.place(entry))
            found = await self._look_at(place)
            if found is not None and (known := self._known(found.marker.uid)) is not None:
                raise Conflict(
                    f"shard {known.id} lies at {place}", hint="give the url of an empty place, or `zstor shard rm` to drain the shard"
                )
            await self._add(place, entry.group or None, instead_of=entry)
            old = self._known(entry.uid)
            # The look at the new shard has begun to drain the old one, and that may have come to its end.
            job = self._draining[entry.number] if old is None else self._start_drain(old)
        return replace(await self._follow(job, old or entry, caller), shard=shard)

    async def remove(self, shard: str, caller: Caller, *, force: bool = False) -> Removed:
        """Move all that a shard holds to others, then forget it. What was begun goes on without its caller, and after a restart.

        With `force` it is forgotten at once, and what it held is made anew as far as there is room: NotEnoughShards, naming them, if
        objects would fall below k shares.
        """
        async with self._turn:
            entry = self.find(shard)
            others = len([each for each in self._places.record.shards if each != entry and not each.draining])
            needed = max((namespace.policy.m for namespace in self._namespaces.all()), default=0)
            if others < needed and not force:
                raise NotEnoughShards(
                    f"without shard {shard} there are {others}, and objects are spread over {needed}",
                    hint="add one first (`zstor shard add`), or `zstor shard replace`; --force leaves objects with fewer shares",
                    retryable=False,
                )
            if not entry.draining:
                await self._change(lambda before: _with(before, replace(entry, draining=True)))
                entry = replace(entry, draining=True)
            if force and (running := self.job_of(entry.number)) is not None:
                await _ended(running)
            job = self._start_drain(entry, force=force)
        return await self._follow(job, entry, caller)

    async def _follow(self, job: Job, entry: ShardEntry, caller: Caller) -> Removed:
        """Wait for a drain's end, with its progress."""
        while True:
            news = job.news()
            if not job.running:
                break
            caller.progress(int(job.done), None if job.total is None else int(job.total))
            await news.wait()
        if job.error is not None:
            raise job.error
        if not isinstance(job.result, dict):
            raise Conflict(f"draining shard {entry.id} was cancelled", hint=f"`zstor shard rm {entry.id}` goes on with it")
        return Removed(**job.result)

    def _start_drain(self, entry: ShardEntry, *, force: bool = False) -> Job:
        running = self.job_of(entry.number)
        if running is not None:
            return running

        async def work(job: Job) -> object:
            place = self._places.place(entry)
            drained = await (self._let_go(entry, job) if force else self._empty(entry, job))
            lacking = await self._drain.make_whole(entry.number, job)
            await self._runtime.threads.run(self._places.opener.retire, entry, place)
            return {"shard": entry.id, "moved": drained.moved, "lacking": lacking}

        job = self._jobs.start(DRAIN_JOB, work)
        self._draining[entry.number] = job
        return job

    async def _empty(self, entry: ShardEntry, job: Job) -> Drained:
        """Forget a shard when nothing has a share there any more."""
        while True:
            with suppress(Conflict):
                drained = await self._drain.move_all(entry.number, job)
                await self._forget(entry, drained, force=False)
                return drained

    async def _let_go(self, entry: ShardEntry, job: Job) -> Drained:
        """Forget a shard as it is, unless objects would be lost."""
        async with self._forcing:
            looked = await self._drain.check_force(entry.number, job)
            await self._forget(entry, looked, force=True)
            return looked

    async def _forget(self, entry: ShardEntry, drained: Drained, *, force: bool) -> None:
        """The list is without the shard from now on, and nothing is owed to it or to be freed on it any more."""

        def change(before: ShardsRecord) -> ShardsRecord:
            shards = tuple(shard for shard in before.shards if shard.number != entry.number)
            return replace(before, shards=shards, numbers_used=before.next_number)

        def extra() -> Decision:
            self._drain.must_be_needless(entry.number, drained.until, force=force)
            return Decision(records=self._drain.forgotten(entry.number))

        await self._change(change, extra)
        await self.tidy()
        log.debug("shard %s is no shard of this store any more", entry.id)

    async def tidy(self) -> None:
        """Strike out what is owed to, and to be freed on, shards that the store has no more."""
        record = self._places.record
        gone = sorted({*range(record.next_number)} - {entry.number for entry in record.shards})
        debts = [debt for number in gone for debt in self._metastore.debts(number)]
        garbage = [row for number in gone for row in self._metastore.garbage(number)]
        if debts or garbage:
            await self._committer.commit(STORE_WIDE, "", lambda _: Decision(debts_paid=debts, garbage_freed=garbage))

    # --- The list ---

    async def _change(self, change: Callable[[ShardsRecord], ShardsRecord], extra: Extra = Decision) -> None:
        """Commit a new list; what it comes to is done before anything else is decided."""

        def decide(current: Envelope | None) -> Decision:
            if current is None:
                raise AssertionError("a store has its list of shards")
            record = change(ShardsRecord.decode(self._sealer.open(current)))
            shards = [entry.number for entry in record.shards if self._pool.entry(entry.number) is not None]
            # A majority, but for a store that has lost it: replacing its dead shards is what brings it back.
            quorum = max(1, min(len(shards) // 2 + 1, len(self._pool.usable())))
            hashed = self._hasher.key_hash(STORE_WIDE, SHARDS_ROW)
            new = NewRecord(Kind.SHARDS, hashed, NO_VERSION, record.encode(), shards, quorum=quorum, k=quorum)
            more = extra()
            return replace(more, records={**more.records, (STORE_WIDE, SHARDS_ROW): new})

        with trio.CancelScope(shield=True):
            await self._committer.commit(STORE_WIDE, SHARDS_ROW, decide, then=self._apply)

    def _apply(self) -> None:
        """Make the pool what the committed list says."""
        envelope = self._metastore.get(STORE_WIDE, SHARDS_ROW)
        if envelope is None:
            raise AssertionError("a store has its list of shards")
        record = ShardsRecord.decode(self._sealer.open(envelope))
        self._places.record = record
        listed = {entry.number: entry for entry in record.shards}
        for number in self._pool.numbers:
            if number not in listed:
                self._pool.drop(number)
        for number, entry in listed.items():
            if self._pool.get(number) is None or self._pool.entry(number) != entry:
                self._relist(entry)
        self._pool.drain(entry.number for entry in record.shards if entry.draining)

    def _relist(self, entry: ShardEntry) -> None:
        """The shard as it is listed now: opened anew at the next look where something other than its state has changed."""
        shard = self._pool.get(entry.number)
        if shard is not None and replace(shard.entry, draining=entry.draining) == entry:
            return
        self._pool.put(Absent(entry, "missing", NEW))


def _checked(url: str) -> str:
    """The url in one spelling; InvalidParams if it is none."""
    if "://" in url and not url.startswith("file://"):
        return url.rstrip("/")
    path = url.removeprefix("file://")
    if not path.startswith("/") or "\0" in path or posixpath.normpath(path) == "/":
        raise InvalidParams(f"{url!r} is no place for a shard", hint="give a directory's absolute path, or a URL", parameter="url")
    return posixpath.normpath(path)


async def _ended(job: Job) -> None:
    job.cancel()
    while job.running:
        await job.news().wait()


def _replaced(name: str, number: int) -> str:
    """What a shard is called once another has its id."""
    return f"{name[:48]}-replaced" if number == 0 else f"{name[:48]}-replaced-{number + 1}"


def _with(record: ShardsRecord, entry: ShardEntry) -> ShardsRecord:
    return replace(record, shards=tuple(entry if shard.number == entry.number else shard for shard in record.shards))
