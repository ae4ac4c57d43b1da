"""Shards on their way out: the job that drains one, and takes it off the list once nothing has a share there any more."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Final

import trio

from zstor_local.errors import Busy, Cancelled, Conflict, ShuttingDown, ZstorError
from zstor_local.model.record import STORE_WIDE
from zstor_local.model.storewide import ShardEntry, ShardsRecord
from zstor_local.store.caller import Follower
from zstor_local.store.change import Decision
from zstor_local.store.core import Core
from zstor_local.store.draining import Drain, Drained
from zstor_local.store.jobs import Job, Jobs
from zstor_local.store.places import Places
from zstor_local.store.shard_list import ShardList

DRAIN_JOB: Final = "shard.drain"
STRUCK_OUT: Final = 1_000  # debts, and shares to free, in one change

log = logging.getLogger("zstor.store")


@dataclass(frozen=True, slots=True)
class Removed:
    """What the removal of a shard came to: shares that were moved, and objects that have a share less for lack of another shard."""

    shard: str
    moved: int
    lacking: int


class Departures:
    """One job at a time for each shard that is being drained."""

    def __init__(self, core: Core, places: Places, shards: ShardList, drain: Drain, jobs: Jobs) -> None:
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._committer = core.committer
        self._places = places
        self._shards = shards
        self._drain = drain
        self._jobs = jobs
        self._forcing = trio.Lock()  # what one looks at before it forgets a shard no other one may forget meanwhile
        self._jobs_of: dict[int, Job] = {}

    def resume(self) -> None:
        """Go on draining where an earlier life of the store stopped, or where shards were away that are there now."""
        for entry in self._shards.record.shards:
            if entry.draining:
                with suppress(Busy, ShuttingDown):
                    self.start(entry)

    def job_of(self, number: int) -> Job | None:
        """The job that drains a shard; None if none runs."""
        job = self._jobs_of.get(number)
        return job if job is not None and job.running else None

    def last_job_of(self, number: int) -> Job:
        """The one that drains or has drained a shard in this life of the store."""
        return self._jobs_of[number]

    def place_kept(self, number: int) -> AbstractContextManager[None]:
        """For what has a shard drained before the job begins: its place, Busy if there is none."""
        return self._jobs.place_kept(self._jobs_of.get(number))

    async def stop(self, number: int) -> None:
        """Cancel the job that drains a shard, if one runs, and wait for its end."""
        job = self.job_of(number)
        if job is None:
            return
        job.cancel()
        while job.running:
            await job.news().wait()

    async def follow(self, job: Job, entry: ShardEntry, caller: Follower) -> Removed:
        """Wait for a drain's end, with its progress."""
        while True:
            news = job.news()
            if not job.running:
                break
            caller.progress(int(job.done), None if job.total is None else int(job.total))
            with caller.long_poll():
                await news.wait()
        if job.error is not None and job.state == "failed":
            raise job.error
        if not isinstance(job.result, dict):
            raise Conflict(f"draining shard {entry.id} was cancelled", hint=f"`zstor shard rm {entry.id}` goes on with it")
        return Removed(**job.result)

    def start(self, entry: ShardEntry, *, force: bool = False, drained_before: bool = True) -> Job:
        """Drain a shard, or go on with it: the job that does. With `force` it is forgotten as it is, unless objects would be lost: then
        it stays, and is drained only if it was `drained_before`.
        """
        running = self.job_of(entry.number)
        if running is not None:
            return running

        async def work(job: Job) -> object:
            place = self._places.place(entry)
            drained = await (self._let_go(entry, job, drained_before) if force else self._empty(entry, job))
            lacking = await self._drain.make_whole(entry.number, job)
            await self._runtime.threads.run(self._places.opener.retire, entry, place)
            return {"shard": entry.id, "moved": drained.moved, "lacking": lacking}

        job = self._jobs.start(DRAIN_JOB, work)
        self._jobs_of[entry.number] = job
        return job

    async def _empty(self, entry: ShardEntry, job: Job) -> Drained:
        """Forget a shard when nothing has a share there any more."""
        while True:
            with suppress(Conflict):
                drained = await self._drain.move_all(entry.number, job)
                await self._forget(entry, drained, force=False)
                return drained

    async def _let_go(self, entry: ShardEntry, job: Job, drained_before: bool) -> Drained:
        """Forget a shard as it is, unless objects would be lost: then everything is as before."""
        try:
            async with self._forcing:
                looked = await self._drain.check_force(entry.number, job)
                await self._forget(entry, looked, force=True)
                return looked
        except (ZstorError, trio.Cancelled) as error:
            if not drained_before:
                await self._keep(entry)
            elif isinstance(error, ZstorError) and (now := self._shards.known(entry.uid)) is not None and now.draining:
                del self._jobs_of[entry.number]
                with suppress(Busy, ShuttingDown):
                    self.start(now)
            raise

    async def _keep(self, entry: ShardEntry) -> None:
        """A shard is drained no more."""

        def change(before: ShardsRecord) -> ShardsRecord:
            shards = (replace(shard, draining=False) if shard.number == entry.number else shard for shard in before.shards)
            return replace(before, shards=tuple(shards))

        try:
            await self._shards.change(change)
        except ZstorError as error:
            log.warning("shard %s is drained from now on, though it was refused to forget it: %s", entry.id, error)

    async def _forget(self, entry: ShardEntry, drained: Drained, *, force: bool) -> None:
        """The list is without the shard from now on, and nothing is owed to it or to be freed on it any more."""

        def change(before: ShardsRecord) -> ShardsRecord:
            if not any(shard.number == entry.number and shard.draining for shard in before.shards):
                raise Cancelled(f"shard {entry.id} was taken back")
            shards = tuple(shard for shard in before.shards if shard.number != entry.number)
            return replace(before, shards=shards, numbers_used=before.next_number)

        def extra() -> Decision:
            self._drain.must_be_needless(entry.number, drained.until, force=force)
            return Decision(records=self._drain.forgotten(entry.number))

        await self._shards.change(change, extra)
        await self.tidy()
        log.debug("shard %s is no shard of this store any more", entry.id)

    async def tidy(self) -> None:
        """Strike out what is owed to, and to be freed on, shards that the store has no more."""
        record = self._shards.record
        for number in sorted({*range(record.next_number)} - {entry.number for entry in record.shards}):
            while await self._strike_out(number):
                pass

    async def _strike_out(self, number: int) -> bool:
        """Some of it; whether there was any. A shard that was away for long may be owed more than one commit should hold."""
        debts, garbage = self._metastore.debts(number, STRUCK_OUT), self._metastore.garbage(number, STRUCK_OUT)
        if not debts and not garbage:
            return False
        await self._committer.commit(STORE_WIDE, "", lambda _: Decision(debts_paid=debts, garbage_freed=garbage))
        return True
