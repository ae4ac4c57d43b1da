"""Scrub: everything the store holds is read and proved, again and again, in the background.

A pass opens first every record of the metastore, and brings back from the logs those that do not open (`damaged_rows`). Then it walks
the objects (the metastore's indexes must lead to each, and every block of every share is opened), then each shard: its log must hold
the records that it should (`copies`), and no share may lie there that no record names (`strays`). What is bad goes on the repair list,
what is lacking is given, what was left behind is freed; the rest is counted and told. The position is kept in a store-wide row, so a
pass goes on where it was after a restart. A pass is spread over the configured days and never reads faster than the configured rate;
one that a person has started reads at that rate.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, Literal

import trio

from zstor_local import limits
from zstor_local.config import ScrubConfig
from zstor_local.errors import CorruptRecord, NotFound, Unavailable, ZstorError
from zstor_local.metastore.base import Row
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE, Envelope, Kind
from zstor_local.model.storewide import StoreRecord
from zstor_local.shards.base import Shard, ShardError
from zstor_local.store.caller import Nobody
from zstor_local.store.checking import Checked
from zstor_local.store.collect import Collect, Collected
from zstor_local.store.copies import CopyCheck
from zstor_local.store.core import Core
from zstor_local.store.create import STORE_ROW
from zstor_local.store.damaged_rows import DamagedRows
from zstor_local.store.health import Health
from zstor_local.store.mending import Mending
from zstor_local.store.namespaces import Namespace, Namespaces
from zstor_local.store.pace import Pace
from zstor_local.store.scrubrow import Found, ScrubRow
from zstor_local.store.shares import ShareState
from zstor_local.store.stored import Stored, open_object
from zstor_local.store.storewide import StoreWide

TABLE: Final = "scrub"
ROW: Final = "position"
PAGE: Final = 100  # rows of the metastore read at once
OBJECT_BYTES: Final = 4 * limits.KIB  # what looking at a share costs beside its bytes
REST_SECONDS: Final = 600.0  # after a start, and after an error: others first
SAVE_SECONDS: Final = 600.0  # at most so much is looked at again after a crash
LOOK_SECONDS: Final = 3_600.0  # how often an idle scrub looks at the calendar
SPREAD: Final = 0.8  # of the configured days a pass aims at: room for pauses and restarts
DAY: Final = 86_400_000_000  # microseconds
OBJECTS_PART: Final = 0.9  # of a pass, for its progress; the logs are the rest

ScrubState = Literal["idle", "running", "paused"]

log = logging.getLogger("zstor.store")


@dataclass(frozen=True, slots=True)
class ScrubStatus:
    """How far it is. Epochs in microseconds; `found` is the present pass's, or the last one's."""

    state: ScrubState
    percent: float
    started: int | None
    last_ended: int | None
    eta_seconds: int | None
    overdue: bool
    found: Found


class Scrub:
    """One task for a store."""

    def __init__(
        self,
        core: Core,
        namespaces: Namespaces,
        rows: StoreWide,
        config: ScrubConfig,
        *,
        health: Health,
        mending: Mending,
        collect: Collect,
        damaged_rows: DamagedRows,
    ) -> None:
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._sealer = core.sealer
        self._namespaces = namespaces
        self._rows = rows
        self._config = config
        self._health = health
        self._mending = mending
        self._collect = collect
        self._copies = CopyCheck(core, namespaces.ids)
        self._damaged_rows = damaged_rows
        self._row = self._load()
        self._created = self._store_created()
        self._pace = Pace(config.rate)
        self._policies: set[Policy] | None = None  # in this pass: to go over many namespaces takes long, and it is asked often
        self._asked = trio.Event()
        self._pass = trio.CancelScope()  # in which the one that is under way goes on
        self._news = trio.Event()
        self._saved = 0.0
        self._saved_row = self._row.encode()
        if self._row.paused:
            self._pace.pause()

    def _load(self) -> ScrubRow:
        try:
            stored = self._rows.get(TABLE, ROW)
            return ScrubRow() if stored is None else ScrubRow.decode(stored.value)
        except ZstorError as error:
            log.warning("the position of the scrub cannot be read (%s): it begins anew", error)
            return ScrubRow()

    def _store_created(self) -> int:
        envelope = self._metastore.get(STORE_WIDE, STORE_ROW)
        return 0 if envelope is None else StoreRecord.decode(self._sealer.open(envelope)).created

    # --- For people ---

    async def start(self) -> None:
        """Begin a pass now, or hurry the one that is under way: as fast as the configured rate."""
        before = self._row
        if before.under_way:
            before.by_hand = True
            self._pace.rate = self._config.rate
        else:
            self._begin(by_hand=True)
        try:
            await self.resume()
        except ZstorError:
            self._row = before  # a store that takes no changes is not scrubbed
            raise

    async def start_anew(self) -> None:
        """Begin a pass from the beginning, in place of one that is under way: what that has proved may be there no more. Where it is
        paused this one begins when it is resumed.
        """
        before = self._row
        self._begin(by_hand=True)
        self._pass.cancel()
        try:
            await self._save()
        except ZstorError:
            self._row = before
            raise
        self._asked.set()

    async def pause(self) -> None:
        """Read nothing until it is resumed, over restarts too."""
        self._row.paused = True
        self._pace.pause()
        await self._save()

    async def resume(self) -> None:
        self._row.paused = False
        await self._save()
        self._pace.resume()
        self._asked.set()

    def news(self) -> trio.Event:
        """Set when it has come further. Take it before looking, then nothing is missed."""
        return self._news

    def status(self) -> ScrubStatus:
        row = self._row
        state: ScrubState = "paused" if row.paused else "running" if row.under_way else "idle"
        part = self._part()
        return ScrubStatus(
            state=state,
            percent=round(100 * part, 1),
            started=row.started,
            last_ended=row.last_ended,
            eta_seconds=self._eta(part) if state == "running" else None,
            overdue=self.overdue(),
            found=row.found,
        )

    def overdue(self) -> bool:
        """No pass has come to its end for twice as long as one may take."""
        since = self._row.last_ended or self._created
        return self._runtime.clock.now() - since > 2 * self._config.days * DAY

    def _part(self) -> float:
        row = self._row
        if not row.under_way:
            return 0.0 if row.started is None else 1.0
        shards = self._pool.numbers
        objects = 1.0 if row.objects_done else min(1.0, row.found.objects / max(1, self._metastore.state().objects))
        return OBJECTS_PART * objects + (1 - OBJECTS_PART) * len(row.shards.intersection(shards)) / max(1, len(shards))

    def _eta(self, part: float) -> int:
        return int((1 - part) * self._total() / self._pace.rate)

    def _total(self) -> int:
        """Bytes of all shares, about, with what looking at them costs."""
        state = self._metastore.state()
        if self._policies is None:
            self._policies = {namespace.policy for namespace in self._namespaces.all()}
        blown = max((policy.m / policy.k for policy in self._policies), default=1.0)
        shares = max((policy.m for policy in self._policies), default=1)
        return int(state.bytes * blown) + state.objects * shares * OBJECT_BYTES

    # --- The task ---

    async def run(self) -> None:
        """Until it is cancelled. The first look comes some time after the start, unless somebody asks for it."""
        with trio.move_on_after(REST_SECONDS):
            await self._asked.wait()
        while True:
            try:
                await self._wait_until_due()
                with trio.CancelScope() as self._pass:
                    await self._go_through()
            except (ZstorError, ShardError) as error:
                log.warning("the scrub rests: %s", error)
                await self._rest_a_while()
            except Exception:
                log.exception("the scrub rests")  # a fault of ours, but what merely looks must not end the daemon
                await self._rest_a_while()

    async def _rest_a_while(self) -> None:
        self._asked = trio.Event()
        with trio.move_on_after(REST_SECONDS):
            await self._asked.wait()

    async def _wait_until_due(self) -> None:
        while not self._row.under_way:
            if not self._row.paused and self._due_in() <= 0:
                self._begin(by_hand=False)
                return
            self._asked = trio.Event()
            with trio.move_on_after(LOOK_SECONDS):
                await self._asked.wait()

    def _due_in(self) -> int:
        """Microseconds until the next pass is due by itself."""
        now = self._runtime.clock.now()
        if self._row.started is None or self._row.started > now:  # by a clock that was wrong then: nobody knows how long ago that was
            return 0
        return self._row.started + self._config.days * DAY - now

    def _begin(self, *, by_hand: bool) -> None:
        self._policies = None
        self._row = ScrubRow(
            started=self._runtime.clock.now(), last_ended=self._row.last_ended, paused=self._row.paused, by_hand=by_hand
        )

    async def _go_through(self) -> None:
        """The pass that is under way, from its position to its end."""
        row = self._row
        self._pace.rate = self._config.rate if row.by_hand else self._spread()
        if not row.objects_done:
            if row.key is None:
                await self._records(row.found)
            await self._objects(row)
            row.objects_done = True
            await self._save()
        self._pace.rate = self._config.rate  # a log is read in one go: while it is, segments that compaction empties must not pile up
        for number in self._pool.numbers:
            shard = self._pool.get(number)
            if number in row.shards or shard is None or shard.check() != "ok":
                continue
            try:
                await self._shard(shard, row.found)
            except (ShardError, Unavailable) as error:  # as one that is away: the others, and the next pass, do not wait for it
                self._committer.must_take_changes()
                log.warning("the scrub leaves out shard %s: %s", shard.id, error)
                continue
            row.shards.add(number)
            await self._save()
        row.ended = row.last_ended = self._runtime.clock.now()
        await self._save()
        log.info("a scrub came to its end: %s", row.found.told())

    def _spread(self) -> float:
        """Bytes a second that take a pass through everything in its time."""
        seconds = self._config.days * DAY / 1e6 * SPREAD
        return min(self._config.rate, max(self._total() / seconds, OBJECT_BYTES))

    async def _records(self, found: Found) -> None:
        damage = await self._damaged_rows.mend_all(self._pace.spend)
        found.records_mended, found.records_damaged = damage.mended, damage.stay
        if damage.stay:
            log.error("%d records do not open, and no shard that is there has a good copy of them", damage.stay)

    async def _objects(self, row: ScrubRow) -> None:
        for namespace in self._namespaces.all():
            if namespace.name < row.namespace:
                continue
            if namespace.name != row.namespace:
                row.namespace, row.key = namespace.name, None
            while page := self._metastore.scan(namespace.id, "", row.key, PAGE):
                for at in page:
                    size = await self._object(namespace, at, row.found)
                    row.key = at.name
                    await self._save_now_and_then()
                    await self._pace.spend(size)

    async def _object(self, namespace: Namespace, at: Row, found: Found) -> int:
        """Look at one object; if something of it is bad, have it repaired. Returns what it cost, in bytes."""
        if at.envelope.kind is not Kind.OBJECT:
            return 0
        try:
            stored = Stored(namespace.name, open_object(self._sealer, at.envelope), at.envelope)
            await self._lead_to(at, found)
            checked = await self._health.check(stored, Nobody())
            if _bad(checked) and (newest := self._changed(namespace, at)) is not at.envelope:
                if newest is None or newest.version != at.envelope.version:
                    return OBJECT_BYTES  # it was deleted or written again while it was looked at
                stored = Stored(namespace.name, open_object(self._sealer, newest), newest)  # moved meanwhile, by a repair
                checked = await self._health.check(stored, Nobody())
        except CorruptRecord as error:
            log.error("an object in namespace %s has a record that does not open: %s", namespace.name, error)
            found.objects += 1
            found.unreadable += 1
            return OBJECT_BYTES
        except NotFound:
            return OBJECT_BYTES  # its namespace is being deleted
        policy, size = stored.record.policy, stored.record.share_bytes * stored.record.policy.m
        if bad := _bad(checked):
            await self._mending.room()
            self._mending.suspect(stored, bad)
        found.objects += 1
        found.bytes += size
        found.bad_shares += len(bad)
        found.unreadable += policy.m - len(bad) < policy.k and not await self._health.is_readable(stored)
        return size + OBJECT_BYTES * policy.m

    async def _lead_to(self, at: Row, found: Found) -> None:
        """Have the metastore's indexes made anew where they do not lead to a row: nothing else notices before it is changed."""
        if self._metastore.leads_to(at) or self._metastore.get(at.space, at.name) != at.envelope:
            return
        try:
            await self._committer.mend_indexes()
        except Unavailable as error:
            log.error("%s", error.message)
            found.records_damaged += 1
            return
        if self._metastore.get(at.space, at.name) == at.envelope:
            found.records_mended += 1

    def _changed(self, namespace: Namespace, at: Row) -> Envelope | None:
        """The row as it is now: the same envelope if nothing has changed."""
        now = self._metastore.get(namespace.id, at.name)
        return at.envelope if now == at.envelope else now

    async def _shard(self, shard: Shard, found: Found) -> None:
        compared = await self._copies.compare(shard, self._pace.spend)
        await self._mending.tell(shard.number, compared.lacking)
        found.lacking_records += len(compared.lacking)
        found.unknown_keys += compared.unknown
        for space, sequences in compared.superseded.items():
            await self._runtime.threads.run(shard.supersede, space, sequences)
        report = Collected()
        await self._collect.shard(shard, Nobody(), report, dry_run=False, accept_loss=False, spend=self._pace.spend)
        found.strays_freed += report.left_behind
        found.strays_kept += report.kept

    # --- The position ---

    async def rest(self) -> None:
        """Remember the position, for the end of the daemon."""
        try:
            await self._save()
        except ZstorError as error:
            log.info("the position of the scrub was not kept: %s", error)

    async def _save_now_and_then(self) -> None:
        self._news.set()
        self._news = trio.Event()
        if trio.current_time() - self._saved > SAVE_SECONDS:
            await self._save()

    async def _save(self) -> None:
        self._news.set()
        self._news = trio.Event()
        self._saved = trio.current_time()
        value = self._row.encode()
        if value != self._saved_row:
            await self._rows.put(TABLE, ROW, value)
            self._saved_row = value


def _bad(checked: Checked) -> dict[int, ShareState]:
    """The shares that are bad by themselves, and not only because their shard is away."""
    return {index: state for index, state in enumerate(checked.states) if state not in ("ok", "unreachable")}
