"""Collect: free the strays that an intent, a tombstone, a newer record or a void leaves behind; report and keep all others.

It never frees a share itself: it commits the row that says so (`Garbage`), decided where records are committed, so that a crash at any
moment leaves either the stray or the row, and a share that a record names meanwhile is not touched. Writers are never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from zstor_local.errors import Conflict, CorruptRecord
from zstor_local.metastore.base import Garbage
from zstor_local.model.record import STORE_WIDE
from zstor_local.shards.base import Shard, ShardError
from zstor_local.store.caller import Caller
from zstor_local.store.change import Decision
from zstor_local.store.core import Core
from zstor_local.store.freeing import Freeing
from zstor_local.store.pace import Spend
from zstor_local.store.strays import AT_ONCE, Judged, Stray, Strays, put_here

REPORTED: Final = 1_000  # kept strays that are told one by one; further ones are counted


@dataclass(slots=True)
class Collected:
    """What a collect came to, in shares.

    `left_behind` are the strays for which it had to make a row. `waiting` may be freed and are not yet: their shard is away, they are
    being read, or it was a dry run. `kept` were found and stay; the first of them are told in `found`. `unseen` names the shards of
    which not everything could be looked at.
    """

    looked_at: int = 0
    left_behind: int = 0
    freed: int = 0
    waiting: int = 0
    kept: int = 0
    found: list[Judged] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)


class Collect:
    """The use case."""

    def __init__(self, core: Core, strays: Callable[[], Strays], freeing: Freeing) -> None:
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._sealer = core.sealer
        self._strays = strays
        self._freeing = freeing

    async def everything(self, caller: Caller, *, dry_run: bool, accept_loss: bool, spend: Spend) -> Collected:
        """All shards that are there. With `accept_loss` what would be kept is freed, except shares of other stores."""
        report = Collected()
        before = self._metastore.garbage_count()
        for number in self._pool.numbers:
            shard = self._pool.get(number)
            try:
                if shard is None or shard.check() in ("missing", "failed"):
                    raise ShardError("missing", "it is not there")
                await self.shard(shard, caller, report, dry_run=dry_run, accept_loss=accept_loss, spend=spend)
            except ShardError:
                report.unseen.append(self._pool.name(number))
        if not dry_run:
            while await self._freeing.free_some():
                pass
            report.freed = max(0, before + report.left_behind - self._metastore.garbage_count())
        report.waiting += self._metastore.garbage_count()
        return report

    async def shard(self, shard: Shard, caller: Caller, report: Collected, *, dry_run: bool, accept_loss: bool, spend: Spend) -> None:
        """One shard's part, added to the report. ShardError if it goes away."""
        pages = self._strays().pages(shard)
        suspects: list[Stray] = []
        while (page := await self._runtime.threads.run(lambda: next(pages, None))) is not None:
            count, found = page
            suspects += found
            report.looked_at += count
            caller.progress(report.looked_at, None)
            await spend(0)
            if len(suspects) >= AT_ONCE:
                await self._settle(suspects, report, dry_run=dry_run, accept_loss=accept_loss, spend=spend)
                suspects = []
        if suspects:
            await self._settle(suspects, report, dry_run=dry_run, accept_loss=accept_loss, spend=spend)

    async def _settle(self, suspects: Iterable[Stray], report: Collected, *, dry_run: bool, accept_loss: bool, spend: Spend) -> None:
        """Judge suspects when everything that was being written has come to its end, and have freed what is left behind."""
        await self._committer.commit(STORE_WIDE, "", lambda _: Decision())
        left = await self._runtime.threads.run(self._without_row, suspects)
        if not left:
            return
        strays = self._strays()
        hearing = strays.hear(left)
        while (size := await self._runtime.threads.run(lambda: next(hearing, None))) is not None:
            await spend(size)
        judged = await self._runtime.threads.run(strays.judge, left)
        freeable = [
            each.stray for each in judged if each.reason == "left_behind" or (accept_loss and each.reason in ("unknown", "no_record"))
        ]
        report.left_behind += len(freeable)
        if dry_run:
            report.waiting += len(freeable)
        elif freeable:
            with suppress(Conflict):  # something that it looked at failed meanwhile: they are found again
                await self._committer.commit(STORE_WIDE, "", lambda _: Decision(garbage=self._still_stray(freeable)))
            self._freeing.wake()
        free = set(freeable)
        kept = [each for each in judged if each.stray not in free]
        report.kept += len(kept)
        report.found += kept[: REPORTED - len(report.found)]

    def _without_row(self, strays: Iterable[Stray]) -> list[Stray]:
        """Those that no row frees already, nor names as a large write under way."""
        intended = {intent.version for intent in self._metastore.intents()}
        rows = self._metastore.garbage
        return [
            stray
            for stray in strays
            if stray.share.version not in intended and all(row.share != stray.share for row in rows(stray.shard, 1, stray.share))
        ]

    def _still_stray(self, strays: Collection[Stray]) -> list[Garbage]:
        """In the committer's thread: rows for those that no record names even now."""
        intended = {intent.version for intent in self._metastore.intents()}
        return [
            Garbage(stray.shard, stray.share, stray.small)
            for stray in strays
            if stray.share.version not in intended and not self._named(stray)
        ]

    def _named(self, stray: Stray) -> bool:
        try:
            return put_here(self._committer.view.naming(stray.share.version), stray, self._sealer)
        except CorruptRecord:
            return True
