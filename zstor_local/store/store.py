"""A store, open: its parts wired up, and what the wire and the command ask of the whole."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from zstor_local.config import Config
from zstor_local.errors import CorruptRecord, IoError, ZstorError
from zstor_local.metastore.base import (
    CommitRefused,
    CommitUnknown,
    Garbage,
    MetastoreDamaged,
)
from zstor_local.model.ids import ShareId
from zstor_local.model.record import STORE_WIDE
from zstor_local.shards.base import ShardError, ShardState
from zstor_local.shards.log_index import LogIndex
from zstor_local.store.change import Decision
from zstor_local.store.coding import ScratchPool
from zstor_local.store.collect import Collect
from zstor_local.store.compaction import Compaction
from zstor_local.store.core import Core
from zstor_local.store.counting import recount
from zstor_local.store.damaged_rows import DamagedRows
from zstor_local.store.departures import Departures
from zstor_local.store.draining import Drain
from zstor_local.store.faults import StoreFault
from zstor_local.store.free_space import FreeSpace
from zstor_local.store.freeing import Freeing
from zstor_local.store.health import Health
from zstor_local.store.jobs import Jobs
from zstor_local.store.membership import Membership
from zstor_local.store.mending import Mending
from zstor_local.store.namespaces import Namespaces
from zstor_local.store.places import Places
from zstor_local.store.placing import Placing
from zstor_local.store.presence import Presence
from zstor_local.store.reads import Objects, OnBadShares
from zstor_local.store.removal import NamespaceRemoval
from zstor_local.store.repairall import RepairAll
from zstor_local.store.retiring import Retiring
from zstor_local.store.rewriting import Rewriting
from zstor_local.store.rotation import Rotation
from zstor_local.store.scrub import Scrub
from zstor_local.store.shard_list import ShardList
from zstor_local.store.storewide import StoreWide
from zstor_local.store.strays import Strays
from zstor_local.store.stream_budget import StreamBudget
from zstor_local.store.warnings import shard_warnings
from zstor_local.store.writes import ObjectWriter

StoreHealth = Literal["ok", "degraded", "readonly", "failed"]

log = logging.getLogger("zstor.store")


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """A shard as `daemon.status` shows it. Bytes and milliseconds; None where it cannot be told."""

    id: str
    url: str
    group: str
    state: ShardState
    used: int | None = None
    free: int | None = None
    latency_ms: float | None = None
    last_error: str | None = None
    draining: bool = False


class Store:
    """The parts of an open store, wired up."""

    def __init__(self, core: Core, config: Config, places: Places, index: LogIndex, read_only: str | None) -> None:
        self.core = core
        self.runtime = core.runtime
        self.metastore = core.metastore
        self.reading = core.reading
        self.pool = core.pool
        self.committer = core.committer
        self.sealer = core.sealer
        self.config = config
        self.places = places
        self.index = index
        self.read_only = self.committer.failure = read_only
        if read_only is not None:
            log.error("the store is read-only: %s", read_only)
        self.jobs = Jobs(self.runtime)
        self.rows = StoreWide(core)
        self.namespaces = Namespaces(core, self.rows, config.policy, places.on_servers)
        self.free_space = FreeSpace(self.runtime, config.store, self.pool, on_full=lambda: self.compaction.wake())
        self.freeing = Freeing(core, lambda row: self.shares_health.is_needless(row))
        self.compaction = Compaction(core, self.freeing)
        self.shares_health = Health(core, self.namespaces, self.freeing, self.free_space)
        placing = Placing(self.pool, self.namespaces, self.free_space, config.write_quorum)
        scratches, self.streams = ScratchPool(), StreamBudget()
        self.writer = ObjectWriter(core, self.namespaces, self.freeing, scratches, self.streams, placing)
        self.objects = Objects(
            core, self.namespaces, self.freeing, scratches, self.streams, lambda stored, states: self.on_bad_shares(stored, states)
        )
        self.damaged_rows = DamagedRows(core, self.namespaces, on_mended=lambda: self._rows_mended())
        self.mending = Mending(core, self.namespaces, self.shares_health, self.free_space, self.objects, self.damaged_rows)
        self.on_bad_shares: OnBadShares = self.mending.suspect
        self.removal = NamespaceRemoval(core, self.namespaces, self.freeing)
        self.retiring = Retiring(core, self.rows)
        self.rewriting = Rewriting(core, self.namespaces, self.rows, self.objects, self.writer, self.freeing, self.jobs)
        self.presence = Presence(core, open_shard=places.open, on_return=self._shards_returned, on_older=self._scrub_soon)
        self.rotation = Rotation(core, config.master_key_file, self.jobs, self.namespaces, self.damaged_rows)
        self.repair_all = RepairAll(core, self.namespaces, self.shares_health, self.mending, self.damaged_rows)
        self.collect = Collect(core, self._strays, self.freeing)
        self.scrub = Scrub(
            core,
            self.namespaces,
            self.rows,
            config.scrub,
            health=self.shares_health,
            mending=self.mending,
            collect=self.collect,
            damaged_rows=self.damaged_rows,
        )
        drain = Drain(core, self.namespaces, self.rows, self.shares_health, self.freeing)
        shard_list = ShardList(core, places)
        self.departures = Departures(core, places, shard_list, drain, self.jobs)
        self.membership = Membership(
            core, places, self.namespaces, self.presence, shard_list, self.departures, on_change=self._shards_returned
        )

    def _strays(self) -> Strays:
        ours = {*self.namespaces.ids()}  # now: threads that ask for one would bring the gate of a namespace into being twice
        return Strays(self.metastore, self.pool, self.sealer, ours.__contains__)

    async def recover(self) -> None:
        """Begin this life of the store: nothing of an earlier one stays half done. Where that cannot be committed, it is read-only.

        StoreFault if the metastore cannot be read.
        """
        try:
            unsettled = await self.runtime.threads.run_commit(self.presence.unsettled)
            await self.runtime.threads.run_commit(recount, self.metastore, self.sealer, self.namespaces.ids())
            await self.committer.begin(self.namespaces.smallest_k(), lambda: self.presence.settle(unsettled))
        except (CommitRefused, CommitUnknown) as error:
            log.error("the store is read-only: %s", error)
            self.read_only = self.committer.failure = str(error)
        except (MetastoreDamaged, IoError) as error:
            raise StoreFault(f"{self.config.store}: {error.message}", error.hint or "") from None

    def _shards_returned(self) -> None:
        if self.committer.failure is not None:
            return  # as at a start: nothing that goes on could be committed
        self.mending.wake()
        self.freeing.wake()
        self.removal.wake()
        self.departures.resume()
        self.rotation.go_on()
        self.rewriting.go_on()

    def _rows_mended(self) -> None:
        """What could not be seen as long as rows did not open goes on; that of a namespace may say that it is being deleted."""
        self.namespaces.ids()
        self.removal.wake()
        self.rotation.go_on()
        self.rewriting.go_on()

    async def _scrub_soon(self) -> None:
        """What a shard lacks is found now, not when it is read: until then others are all that is left of it."""
        try:
            await self.scrub.start_anew()
        except ZstorError as error:
            log.warning("no scrub was started: %s", error)

    async def recover_intents(self) -> None:
        """Large writes that a crash broke off: their shares are garbage."""
        intents = self.metastore.intents()
        if not intents:
            return
        garbage = [
            Garbage(number, ShareId(intent.version, index), small=False)
            for intent in intents
            for index, number in enumerate(intent.shards)
        ]
        try:
            await self.committer.commit(
                STORE_WIDE, "", lambda _: Decision(intents_done=[intent.version for intent in intents], garbage=garbage)
            )
        except ZstorError as error:
            log.error("what broken-off writes left is freed at a later start: %s", error)

    async def recover_from_removals(self) -> None:
        """A crash may have come between the end of a shard and that of what was owed to it."""
        try:
            await self.departures.tidy()
        except ZstorError as error:
            log.error("what was owed to shards that were removed is struck out at a later start: %s", error)

    @property
    def health(self) -> StoreHealth:
        """The store in one word."""
        if self.read_only is not None:
            return "readonly"
        if self.committer.failure is not None or not self.metastore.writable:
            return "failed"
        away = any(state != "ok" for state in self.pool.states().values())
        return "degraded" if away or self.free_space.is_short() else "ok"

    def warnings(self) -> list[str]:
        """What a person should look at, with what to do."""
        found = []
        if self.health in ("readonly", "failed"):
            found.append(f"writes are refused: {self.committer.failure or 'the metastore failed; restart the daemon'}")
        found += self.free_space.warnings()
        found += self._rotation_warnings()
        if self.read_only is None and self.scrub.overdue():
            found.append("the scrub is overdue: nothing has been proved for twice as long as a pass may take; `zstor scrub` starts one")
        if self.scrub.status().found.damage:
            found.append("the last scrub found what it cannot mend: `zstor scrub --status` tells")
        return [*found, *shard_warnings(self.pool, self.departures, self.config.policy)]

    def _rotation_warnings(self) -> list[str]:
        try:
            pending = self.rotation.pending
        except CorruptRecord as error:
            return [f"the record of the older master keys cannot be read: {error.message}; {error.hint}"]
        except IoError as error:
            return [f"whether all records are sealed under the newest master key is not known: {error.message}"]
        if not pending:
            return []
        if (trouble := self.rotation.trouble()) is not None:
            return [
                f"not all records are sealed under the new master key: {trouble.message}; {trouble.hint or 'try `zstor key rotate`'}"
            ]
        return ["records are being sealed anew under the new master key; until then the old one is needed, and kept"]

    def shard_statuses(self) -> list[ShardStatus]:
        """In the order in which they are listed: a replacement in the place of what it replaces."""
        order = {entry.number: position for position, entry in enumerate(self.places.record.shards)}
        return [self._shard_status(number) for number in sorted(self.pool.numbers, key=lambda number: order.get(number, len(order)))]

    def _shard_status(self, number: int) -> ShardStatus:
        entry, shard = self.pool.entry(number), self.pool.get(number)
        if entry is None:
            raise AssertionError("a shard of the pool is listed")
        state, draining = self.pool.state(number), number in self.pool.draining
        if shard is None:
            place, reason = self.places.place(entry), self.pool.reason(number)
            return ShardStatus(entry.id, place, entry.group, state, last_error=reason, draining=draining)
        used = free = latency = None
        if state == "ok":
            latency = self.presence.latency_ms(number)
            state = "full" if number in self.free_space.full_shards() else state
        with suppress(ShardError):
            seen = None if latency is None else self.pool.capacity(number)
            capacity = shard.capacity() if shard.on_disk is not None else seen  # asking another machine takes a while
            if capacity is not None:
                used, free = capacity.total - capacity.free, capacity.free
        return ShardStatus(shard.id, shard.url, shard.group, state, used, free, latency, shard.last_error(), draining)
