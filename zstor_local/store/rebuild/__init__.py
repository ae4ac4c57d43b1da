"""A new metastore from the shards and the master key alone.

The logs hold a copy of every record. Of each key's records that no void covers, the one with the highest sequence counts: a tombstone
buries, an object comes back. A version of which fewer than k shares can be found hides no older one that is readable: then both are
reported. Nothing is decided in silence: shards that were not seen, records that do not open and objects that lack shares are counted,
and where something may be missing the caller has to accept it.

opening     the shards, and what opens their records
gathering   all logs side by side → each record once, and who holds it
behind      who has yet to hear of that
choosing    which record counts of each key's; what it lacks (holding)
here        the records of the store itself; the order of it all; the new metastore
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, closing
from itertools import chain
from typing import Final

from zstor_local.coding.keys import KeyHasher
from zstor_local.config import Config
from zstor_local.errors import CorruptRecord, errno_text
from zstor_local.metastore.base import CommitRefused, CommitUnknown, StoreState, Transaction, Usage
from zstor_local.model.ids import NamespaceId
from zstor_local.model.masterkey import MasterKey
from zstor_local.model.record import STORE_WIDE, Envelope, Kind
from zstor_local.model.storewide import ShardsRecord, StoreRecord
from zstor_local.runtime import Runtime
from zstor_local.shards.base import ShardError
from zstor_local.shards.log_index import LogIndex
from zstor_local.shards.opening import ShardOpener
from zstor_local.store.create import FIRST_SEQUENCES, must_be_known
from zstor_local.store.engines import Engines
from zstor_local.store.faults import StoreFault
from zstor_local.store.keyfile import make_directories
from zstor_local.store.lock import store_lock
from zstor_local.store.publishing import RESERVE
from zstor_local.store.rebuild.behind import Behind
from zstor_local.store.rebuild.choosing import Choosing, Opened, Opener, by_key
from zstor_local.store.rebuild.gathering import gather
from zstor_local.store.rebuild.holding import Holding
from zstor_local.store.rebuild.opening import Opening, keys_in_logs, open_shards, record_sealer
from zstor_local.store.rebuild.report import Report
from zstor_local.store.rebuild.scratch import FoundRow, Scratch
from zstor_local.store.rownames import row_name_of
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.stored import open_void
from zstor_local.store.unlocking import key_files
from zstor_local.store.voids import Voids

BATCH: Final = 5_000  # rows in a transaction
WRITING: Final = "objects written"  # what the progress tells once something is changed

__all__ = ["WRITING", "Report", "rebuild"]


def rebuild(runtime: Runtime, engines: Engines, config: Config, *, accept_loss: bool, progress: Callable[[str, int], None]) -> Report:
    """Make the metastore anew. The store must not be in use; an old metastore is put aside, never removed.

    StoreFault if there is no shard to read, or if something may be missing and that was not accepted: then nothing was changed. The
    same holds for what `progress` raises, unless it was told of WRITING.
    """
    must_be_known(config)
    masters = key_files(runtime.files, config.master_key_file)
    make_directories(runtime.files, config.store)
    with store_lock(runtime, config.store):
        return _rebuild(runtime, engines, config, masters, accept_loss=accept_loss, progress=progress)


def _rebuild(
    runtime: Runtime, engines: Engines, config: Config, masters: list[MasterKey], *, accept_loss: bool,
    progress: Callable[[str, int], None],
) -> Report:  # fmt: skip
    master = masters[-1]
    with ExitStack() as opened:
        index = engines.open_index(config.store)
        opened.callback(index.close)

        def opening_with(sealer: RecordSealer) -> ShardOpener:
            return ShardOpener(engines.shard_engines(runtime, master.store_id, sealer.keys(STORE_WIDE), index))

        alone = opening_with(record_sealer(runtime, masters, ()))
        opener = opening_with(record_sealer(runtime, masters, keys_in_logs(config, masters, alone)))
        opening = Opening(opener, open_shards(config, opener, master.store_id, opened), opened)
        try:
            scratch = opened.enter_context(closing(Scratch()))
            return _Rebuild(runtime, engines, config, masters, index, opening, scratch, progress).run(accept_loss=accept_loss)
        except sqlite3.Error as error:
            raise StoreFault(f"the tables on the side cannot be kept: {error}", "make room in /var/tmp") from error


class _Rebuild:
    def __init__(
        self, runtime: Runtime, engines: Engines, config: Config, masters: list[MasterKey], index: LogIndex, opening: Opening,
        scratch: Scratch, progress: Callable[[str, int], None],
    ) -> None:  # fmt: skip
        self._runtime = runtime
        self._engines = engines
        self._config = config
        self._masters = masters
        self._index = index
        self._opening = opening
        self._shards = opening.shards
        self._scratch = scratch
        self._progress = progress
        self._report = Report()
        self._highest = self._writer = 0
        self._voids = Voids()

    def run(self, *, accept_loss: bool) -> Report:
        while True:
            if unread := self._gather():
                self._opening.leave_out(unread)
                continue
            hasher, listed = self._own_records()
            if not self._opening.follow(listed):
                break
        report = self._report
        for entry in listed.shards:
            (report.seen if entry.number in self._shards else report.unseen).append(entry.id)
        report.unread = [entry.id for entry in listed.shards if self._cannot_be_read_whole(entry.number)]
        numbers = frozenset(entry.number for entry in listed.shards)
        holding = Holding(self._shards, self._index)
        behind = Behind([*self._shards], numbers, self._voids.cover)
        self._choose_store_rows(behind)
        usage = Choosing(self._scratch, self._sealer, hasher, self._voids, holding, behind, numbers, report, self._progress).run()
        if report.loss and not accept_loss:
            raise StoreFault(
                "something may be missing:\n  " + "\n  ".join(report.loss),
                "bring the missing shards, or take what there is with --accept-loss",
            )
        self._progress("objects found", report.objects)
        self._write(usage)
        return report

    # --- Gather ---

    def _gather(self) -> Mapping[int, ShardError]:
        """Every record of every log into the scratch tables, and what is void. Returns the shards that cannot be read to their end."""
        self._scratch.clear()
        self._report = Report()
        gathered = gather([*self._shards.values()], self._scratch, self._progress)
        if gathered.failed:
            return gathered.failed
        self._report.records, self._writer = gathered.records, gathered.writer
        self._sealer = record_sealer(self._runtime, self._masters, gathered.keys)
        self._voids = Voids()
        for envelope in gathered.voids:
            self._void(envelope)
        # What was given a sequence and reached no log is known from how far the entries after it say that all is committed.
        committed = (shard.newest_committed() for shard in self._shards.values() if shard.on_disk is not None)
        self._highest = max([gathered.highest, *committed, *self._proved(gathered.voids, gathered.highest)])
        return {}

    def _cannot_be_read_whole(self, number: int) -> bool:
        """Of a server nobody knows."""
        segments = None if (shard := self._shards.get(number)) is None else shard.segments()
        return segments is not None and segments.unread() > 0

    def _void(self, envelope: Envelope) -> None:
        if envelope.namespace != STORE_WIDE:
            return  # told for those who can open nothing of the store's own; some of them could seal one too
        void = open_void(self._sealer, envelope)
        if void is None:
            self._report.damaged += 1
        else:
            self._voids.add(void.first, void.last)

    def _proved(self, voids: list[Envelope], highest: int) -> Iterator[int]:
        """Sequences above those of the directories that servers can show: of their newest record that opens, and of their voids."""
        yield from (envelope.sequence for envelope in voids if envelope.sequence > highest and self._opens(envelope))
        for envelope in self._scratch.above(highest):
            if self._opens(envelope):
                yield envelope.sequence
                return

    def _opens(self, envelope: Envelope) -> bool:
        try:
            self._sealer.open(envelope)
        except CorruptRecord:
            return False
        return True

    # --- Choose ---

    def _own_records(self) -> tuple[KeyHasher, ShardsRecord]:
        """The store's own record and the list of shards, the newest of each."""
        hash_key = listed = None
        for opened in self._store_rows(lambda _: None, iter, {Kind.STORE, Kind.SHARDS}):
            if opened.envelope.kind is Kind.STORE:
                hash_key = StoreRecord.decode(opened.plain).hash_key
            elif opened.envelope.kind is Kind.SHARDS:
                listed = ShardsRecord.decode(opened.plain)
        if hash_key is None or listed is None:
            raise StoreFault("the shards hold no copy of the store's own records", "give the right master key, or more of the shards")
        return KeyHasher(hash_key), listed

    def _choose_store_rows(self, behind: Behind) -> None:
        """The newest records of the store itself: its own, the list of shards, the namespaces, the rows. And who lacks them."""
        for opened in self._store_rows(self._damaged_store_row, behind.watch, {*Kind}):
            name = row_name_of(opened.envelope.kind, opened.plain)
            if opened.ambiguous and opened.envelope.sequence > FIRST_SEQUENCES:
                self._report.ambiguous.append(name)
            self._scratch.choose([(name, opened.record)])
            self._scratch.owe(behind.debts(opened.record, name))

    def _store_rows(
        self, on_damage: Callable[[Envelope], None], watch: Callable[[Iterable[FoundRow]], Iterable[FoundRow]], kinds: Set[int]
    ) -> Iterator[Opened]:
        """Of each row of the store's own the newest record that opens, as far as it is one of these kinds."""
        opener = Opener(self._sealer, on_damage)
        for records in by_key(watch(chain.from_iterable(self._scratch.found(store_wide=True))), self._voids):
            wanted = (same for same in records if any(record[0] in kinds for record in same))
            newest = next((opened for same in wanted if (opened := opener.first(same)) is not None), None)
            deque(records, maxlen=0)
            if newest is not None:
                yield newest

    def _damaged_store_row(self, envelope: Envelope) -> None:
        if envelope.kind is Kind.KEYS:
            self._report.rotated = True  # nothing is lost with it as long as the key at hand opens all the others
        else:
            self._report.damaged += 1

    # --- Write ---

    def _write(self, usage: dict[NamespaceId, Usage]) -> None:
        self._progress(WRITING, 0)
        state = StoreState(self._highest, self._highest + RESERVE, self._writer, self._report.objects, self._report.bytes)
        try:
            self._engines.create_metastore(self._config.store, self._sealer.store_id, self._transactions(state, usage))
        except (OSError, CommitRefused, CommitUnknown) as error:
            reason = errno_text(error) if isinstance(error, OSError) else error
            raise StoreFault(
                f"the new metastore in {self._config.store} cannot be made: {reason}",
                "make room for it, and see that it can be written to; then rebuild again",
            ) from error

    def _transactions(self, state: StoreState, usage: dict[NamespaceId, Usage]) -> Iterator[Transaction]:
        yield Transaction(state, usage=usage)
        written = 0
        for rows in self._scratch.rows(BATCH):
            yield Transaction(state, rows=rows)
            written += len(rows)
            self._progress(WRITING, written)
        for references in self._scratch.references(BATCH):
            yield Transaction(state, references=references)
        for debts in self._scratch.debts(BATCH):
            yield Transaction(state, debts=debts)
