"""The committer: the one task that makes all waiting changes durable together (group commit).

A group goes: decide each change against what is committed → seal the records → append shares and record copies to the logs → flush →
one metastore transaction → wake the writers. A reply means durable. What reached a log but not the metastore is voided there by an
entry that is flushed before the error is answered; where that is impossible the answer is `outcome_unknown`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import Conflict, IoError, NoSpace, OutcomeUnknown, ShuttingDown, Unavailable, ZstorError
from zstor_local.metastore.base import (
    CommitRefused,
    CommitUnknown,
    Debt,
    Metastore,
    MetastoreClosed,
    Owed,
    Reference,
    Row,
    StoreState,
    Transaction,
    Usage,
)
from zstor_local.model.ids import NamespaceId, ShareId, Version
from zstor_local.model.record import NO_KEY, NO_VERSION, STORE_WIDE, Envelope, Kind, VoidRecord
from zstor_local.runtime import Runtime
from zstor_local.shards.base import Entry, Shard, ShardError
from zstor_local.shards.index import FLUSH_AT, LogIndex
from zstor_local.shards.pool import ShardPool
from zstor_local.store.change import Committed, Decide, Decision, NewRecord, RowName
from zstor_local.store.later import Later
from zstor_local.store.quorum import not_enough_shards
from zstor_local.store.sealing import RecordSealer

RESERVE: Final = 1 << 16  # sequence numbers reserved at once
RESERVE_LOW: Final = 4 * limits.GROUP_CHANGES  # reserve more while at least this many are left: a group and its voids always fit
QUIET_TURNS: Final = 3  # a request is read in one turn of the event loop and decided on in the next
CHECKPOINT_EVERY: Final = 1_000  # commits between two checkpoints of the metastore: some 16 MiB of WAL

log = logging.getLogger("zstor.store")


@dataclass(slots=True, eq=False)
class _Change:
    space: NamespaceId
    name: str
    decide: Decide
    later: Later[Committed] = field(default_factory=Later)


@dataclass(slots=True, eq=False)
class _Item:
    """A decided change on its way through its group, with what it writes by row."""

    change: _Change
    decision: Decision
    sealed: Mapping[RowName, tuple[NewRecord, Envelope]]
    seen: Set[RowName]  # rows as changes before it in the group left them
    error: ZstorError | None = None

    @property
    def envelope(self) -> Envelope | None:
        """The row's own new envelope, if it has one."""
        own = self.sealed.get((self.change.space, self.change.name))
        return None if own is None else own[1]


class Committer:
    """One for a store. `run` is its task; `commit` is called by everybody else."""

    def __init__(self, runtime: Runtime, metastore: Metastore, pool: ShardPool, index: LogIndex, sealer: RecordSealer) -> None:
        self._runtime = runtime
        self._metastore = metastore
        self._pool = pool
        self._index = index
        self._sealer = sealer
        self._state = metastore.state()
        self._next = self._state.reserved + 1
        self._waiting: list[_Change] = []
        self._wake = trio.Event()
        self._stopping = False
        self._alone = False  # the last group began with one change
        self._since_checkpoint = 0
        self._newest: dict[RowName, Envelope] = {}  # what the group that is being decided has changed so far
        self._naming: dict[Version, set[RowName]] = {}  # its rows by the versions that they name, or named on the way
        self._seen: set[RowName] = set()  # those that the change being decided has looked at
        self._growth: dict[NamespaceId, Usage] = {}  # what it adds to namespaces, without what it takes away
        self._news = trio.Event()
        self.failure: str | None = None
        self.ended = trio.Event()
        self.ended.set()

    @property
    def state(self) -> StoreState:
        """The counters of the last committed group."""
        return self._state

    async def begin(self, k: int) -> None:
        """Start a life of the daemon: a higher writer number, fresh sequences, and what an earlier life never committed is void.

        CommitRefused (as on a full disk) or CommitUnknown if the metastore does not take that: such a life only reads.
        """
        self._state = self._metastore.state()  # whose counts may have been corrected
        first, last = self._state.sequence + 1, self._state.reserved
        state = replace(self._state, writer=self._state.writer + 1, reserved=self._state.reserved + RESERVE)
        await self._runtime.threads.run_commit(self._metastore.commit, Transaction(state))
        self._state = state
        await self._runtime.threads.run_commit(self._start_shards, state.writer)
        if first <= last:
            await self._runtime.threads.run_commit(self._void_and_commit, first, last, k)

    async def run(self) -> None:
        """Commit until `stop`; ends when nothing waits any more, and sets `ended`."""
        self.ended = trio.Event()
        try:
            with trio.CancelScope(shield=True):
                while await self._wait_for_work():
                    await self._let_others_join()
                    group, self._waiting = self._waiting[: limits.GROUP_CHANGES], self._waiting[limits.GROUP_CHANGES :]
                    await self._commit_group(group)
        finally:
            self._stopping = True
            _give_up(self._waiting)
            self.ended.set()

    async def _wait_for_work(self) -> bool:
        while not self._waiting and not self._stopping:
            self._wake = trio.Event()
            await self._wake.wait()
        return bool(self._waiting)

    async def _let_others_join(self) -> None:
        """Let requests that lie in the sockets already come into this group: a flush costs as much for one change as for sixteen.

        It ends after QUIET_TURNS turns of the event loop that brought nothing new. A lone writer, whose last group held one change
        too, does not wait for others.
        """
        alone, self._alone = self._alone, len(self._waiting) == 1
        if alone and self._alone:
            return
        quiet, known = 0, 0
        while quiet < QUIET_TURNS and len(self._waiting) < limits.GROUP_CHANGES:
            quiet = quiet + 1 if len(self._waiting) == known else 0
            known = len(self._waiting)
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _commit_group(self, group: list[_Change]) -> None:
        try:
            outcomes = await self._runtime.threads.run_commit(self._commit, group)
        except Exception as error:
            # A fault of ours, in the middle of a group: nobody knows how far it came, so nothing more is committed in this life.
            log.exception("a group commit failed")
            self.failure = f"a commit broke off ({type(error).__name__}); see the log"
            outcomes = [self._unknown(None) for _ in group]
        except BaseException:
            _give_up(group)
            raise
        for change, outcome in zip(group, outcomes, strict=True):
            change.later.settle(outcome)
        self._news.set()
        self._news = trio.Event()
        await self._keep_house()

    async def commit(self, space: NamespaceId, name: str, decide: Decide) -> Committed:
        """`submit` a change and wait for its outcome."""
        return await self.submit(space, name, decide)

    def submit(self, space: NamespaceId, name: str, decide: Decide) -> Later[Committed]:
        """Have a change committed. `decide` runs in the committer's thread, with the row as the changes before it left it.

        It may raise a ZstorError to refuse. From here on the change takes its course: cancelling has no effect, the true result
        comes.
        """
        if self.failure is not None or not self._metastore.writable:
            raise self._unavailable()
        if self._stopping:
            raise ShuttingDown("the daemon is stopping", hint="try again when it is back")
        change = _Change(space, name, decide)
        self._waiting.append(change)
        self._wake.set()
        return change.later

    def news(self) -> trio.Event:
        """Set when the next group is committed. Take it before looking, then nothing is missed."""
        return self._news

    def stop(self) -> None:
        """Take no more changes; `run` ends after those that wait."""
        self._stopping = True
        self._wake.set()

    # --- In the committer's thread ---

    def _start_shards(self, writer: int) -> None:
        for shard in self._pool.opened():
            shard.start(writer, self._runtime.randomness)

    def _commit(self, group: Sequence[_Change]) -> list[Committed | ZstorError]:
        if self.failure is not None:
            return [self._unavailable() for _ in group]
        items, refused = self._decide(group)
        if not items:
            return [refused[change] for change in group]
        failed = self._publish(items)
        outcomes: dict[_Change, Committed | ZstorError] = dict(refused)
        for item in items:
            outcomes[item.change] = item.error or self._committed(item, failed)
        return [outcomes[change] for change in group]

    def _decide(self, group: Sequence[_Change]) -> tuple[list[_Item], dict[_Change, ZstorError]]:
        items: list[_Item] = []
        refused: dict[_Change, ZstorError] = {}
        self._newest, self._naming, self._growth = {}, {}, {}
        for change in group:
            self._seen = set()
            try:
                decision = change.decide(self.look(change.space, change.name))
            except ZstorError as error:
                refused[change] = error
                continue
            sealed = {row: (record, self._seal(row[0], record)) for row, record in decision.records.items()}
            for row, (_, envelope) in sealed.items():
                self._newest[row] = envelope
                self._naming.setdefault(envelope.version, set()).add(row)
            if decision.objects > 0 or decision.bytes > 0:
                more = Usage(max(0, decision.objects), max(0, decision.bytes))
                self._growth[change.space] = self._growth.get(change.space, Usage()) + more
            items.append(_Item(change, decision, sealed, self._seen))
        return items, refused

    def look(self, space: NamespaceId, name: str) -> Envelope | None:
        """A row as the changes before left it; None if it is not there. For `decide`, and only while it runs."""
        row = (space, name)
        if row not in self._newest:
            return self._metastore.get(*row)
        self._seen.add(row)
        current = self._newest[row]
        return None if current.kind is Kind.TOMBSTONE else current

    def newest(self, space: NamespaceId, name: str) -> Envelope | None:
        """As `look`, but a tombstone is shown too."""
        row = (space, name)
        if row not in self._newest:
            return self._metastore.get(*row) or self._metastore.tombstone(*row)
        self._seen.add(row)
        return self._newest[row]

    @property
    def last_given(self) -> int:
        """The last sequence that anything was sealed with. For `decide`, like `look`."""
        return self._next - 1

    def usage(self, space: NamespaceId) -> Usage:
        """What the namespace holds, at most: what the group takes away counts only from the next one on. For `decide`, like `look`."""
        return self._metastore.usage(space) + self._growth.get(space, Usage())

    def named(self, space: NamespaceId, version: Version) -> set[str]:
        """The keys of a namespace whose records name this version, as the changes before left them. For `decide`, like `look`."""
        rows = {(row.space, row.name) for row in self._metastore.named(version)} | self._naming.get(version, set())
        found = set()
        for row in rows:
            envelope = self.look(*row) if row in self._newest else None
            if row[0] == space and (row not in self._newest or (envelope is not None and envelope.version == version)):
                found.add(row[1])
        return found

    def naming(self, version: Version) -> list[Envelope]:
        """The records, of any namespace, that name this version, as the changes before left them. For `decide`, like `look`."""
        rows = {(row.space, row.name) for row in self._metastore.named(version)} | self._naming.get(version, set())
        found = (self.look(*row) for row in sorted(rows))
        return [envelope for envelope in found if envelope is not None and envelope.version == version]

    def _seal(self, space: NamespaceId, record: NewRecord) -> Envelope:
        sequence = self._next
        self._next += 1
        return self._sealer.seal(record.kind, space, record.key_hash, record.version, sequence, record.plain)

    def _publish(self, items: list[_Item]) -> dict[int, ShardError]:
        """Make a group durable and visible. Sets the error of each item that did not come through; returns the shards that failed."""
        failed = self._to_logs(items)
        self._apply_quorum(items, failed)
        good = [item for item in items if item.error is None]
        lost = [item for item in items if item.error is not None]
        if lost:
            self._void(lost, failed)
        if self.failure is not None:
            for item in good:
                item.error = self._unknown(item.envelope.version if item.envelope else None)
        elif good:
            self._to_metastore(good, failed)
        return failed

    def _to_logs(self, items: Sequence[_Item]) -> dict[int, ShardError]:
        """Append what the group has for each log and flush. Returns the shards that failed."""
        entries: dict[int, list[Entry]] = {}
        for item in items:
            for record, envelope in item.sealed.values():
                for number in {*record.copies, *record.shares}:
                    index, share = record.shares.get(number, (None, b""))
                    entries.setdefault(number, []).append(Entry(envelope, index, share))
            for number, missed in item.decision.resend.items():
                entries.setdefault(number, []).extend(missed)
        failed = self._pool.append(entries, self._state.sequence)
        reached = [number for number in entries if number not in failed]
        failed.update(self._pool.flush(reached))
        return failed

    def _apply_quorum(self, items: Sequence[_Item], failed: Mapping[int, ShardError]) -> None:
        """Items whose shares are not durable on enough shards fail, and whatever was decided on top of them."""
        broken: set[RowName] = set()
        for item in items:
            if not broken.isdisjoint(item.sealed) or not broken.isdisjoint(item.seen):
                item.error = Conflict("a change before this one that it builds on failed", hint="try again", retryable=True)
            away = [self._pool.name(number) for number in item.decision.resend if number in failed]
            if away and item.error is None:
                item.error = Unavailable(f"shard {away[0]} went away again", hint="it is told when it is back")
            for record, _ in item.sealed.values():
                durable = sum(number not in failed for number in record.shares or record.copies)
                if durable < record.quorum and item.error is None:
                    item.error = self._too_few(durable, record.quorum, failed)
            if item.error is not None:
                broken.update(item.sealed)

    def _too_few(self, durable: int, quorum: int, failed: Mapping[int, ShardError]) -> ZstorError:
        return not_enough_shards(durable, quorum, {self._pool.name(number): error for number, error in failed.items()})

    def _void(self, items: Sequence[_Item], failed: Mapping[int, ShardError]) -> None:
        """Void what reached logs in vain. An item stays in doubt if its entries may lie on k shards where the void did not arrive."""
        sequences = [envelope.sequence for item in items for _, envelope in item.sealed.values()]
        if not sequences:
            return
        clean = {number for number, error in failed.items() if error.untouched}
        unreached = (set(failed) | self._append_void(min(sequences), max(sequences), sequences)) - clean
        for item in items:
            for record, _ in item.sealed.values():
                in_doubt = sum(number in unreached for number in {*record.copies, *record.shares} if self._pool.get(number) is not None)
                if in_doubt >= record.k:
                    item.error = self._unknown(record.version)
                    # A later commit would take the sequences in doubt for settled, and the next start would not void them any more.
                    self.failure = "too many logs failed to say in them what was not committed"

    def _append_void(self, first: int, last: int, sequences: Sequence[int]) -> set[int]:
        """Flush a void to every usable shard. Returns the opened shards that it did not reach."""
        ranges = [(first, last)] if len(sequences) == last - first + 1 else [(each, each) for each in sequences]
        entries = [Entry(self._sealed_void(*each)) for each in ranges]
        opened = [shard.number for shard in self._pool.opened()]
        failed = self._pool.append(dict.fromkeys(opened, entries), self._state.sequence)
        failed.update(self._pool.flush([number for number in opened if number not in failed]))
        return set(failed)

    def _sealed_void(self, first: int, last: int) -> Envelope:
        sequence = self._next
        self._next += 1
        return self._sealer.seal(Kind.VOID, STORE_WIDE, NO_KEY, NO_VERSION, sequence, VoidRecord(first, last).encode())

    def void_on(self, shard: Shard, sequences: Sequence[int]) -> None:
        """Say in a shard's log that these never happened, durably; ShardError if it does not take that. In the committer's thread."""
        shard.append([Entry(self._sealed_void(each, each)) for each in sequences], self._state.sequence)
        shard.flush()

    def _void_and_commit(self, first: int, last: int, k: int) -> None:
        """At a start: void the sequences of an earlier life, and remember that this was done.

        CommitRefused if k shards that are there did not take the void: together they could bring back what was never committed.
        """
        unreached = self._append_void(first, last, range(first, last + 1))
        if len(unreached) >= k:
            raise CommitRefused("too many logs failed to say in them what was not committed", no_space=False)
        state = replace(self._state, sequence=self._next - 1)
        self._metastore.commit(Transaction(state))
        self._state = state

    def _to_metastore(self, items: Sequence[_Item], failed: Mapping[int, ShardError]) -> None:
        transaction = self._transaction(items, failed)
        try:
            self._metastore.commit(transaction)
        except CommitRefused as error:
            self._void(items, failed)
            for item in items:
                if not isinstance(item.error, OutcomeUnknown):
                    item.error = _refused(error)
        except (CommitUnknown, MetastoreClosed) as error:
            log.error("the metastore failed: %s", error)
            self.failure = str(error)
            for item in items:
                item.error = self._unknown(item.envelope.version if item.envelope else None)
        else:
            self._state = transaction.state
            self._since_checkpoint += 1

    def _transaction(self, items: Sequence[_Item], failed: Mapping[int, ShardError]) -> Transaction:
        decisions = [item.decision for item in items]
        reserved = self._state.reserved
        if reserved - self._next < RESERVE_LOW:
            reserved += RESERVE
        state = replace(
            self._state,
            sequence=self._next - 1,
            reserved=reserved,
            objects=self._state.objects + sum(decision.objects for decision in decisions),
            bytes=self._state.bytes + sum(decision.bytes for decision in decisions),
        )
        transaction = Transaction(state)
        newest = {row: envelope for item in items for row, (_, envelope) in item.sealed.items()}
        freed = {(garbage.shard, garbage.share) for decision in decisions for garbage in decision.garbage}
        references: dict[Reference, bool] = {}  # whether it is there in the end
        for item in items:
            decision = item.decision
            if decision.objects or decision.bytes:
                space = item.change.space
                transaction.usage[space] = transaction.usage.get(space, Usage()) + Usage(decision.objects, decision.bytes)
            transaction.rows.extend(Row(*row, envelope) for row, (_, envelope) in item.sealed.items())
            transaction.intents.extend(decision.intents)
            transaction.intents_done.extend(decision.intents_done)
            transaction.garbage.extend(garbage for garbage in decision.garbage if self._pool.entry(garbage.shard) is not None)
            transaction.garbage_freed.extend(decision.garbage_freed)
            transaction.debts_paid.extend(decision.debts_paid)
            # Nobody is owed what the same group replaces: a record of another version, a share that is freed.
            for debt in [*decision.debts, *self._debts(item, failed)]:
                row = newest.get((debt.space, debt.name))
                if debt.kind is Owed.SHARE:
                    wanted = (debt.shard, ShareId(debt.version, debt.index)) not in freed
                else:
                    wanted = row is None or row.version == debt.version
                if wanted:
                    transaction.debts.append(debt)
            references.update(dict.fromkeys(decision.references_gone, False))
            references.update(dict.fromkeys(decision.references, True))
        transaction.references.extend(reference for reference, there in references.items() if there)
        transaction.references_gone.extend(reference for reference, there in references.items() if not there)
        return transaction

    def _committed(self, item: _Item, failed: Mapping[int, ShardError]) -> Committed:
        debts = [*item.decision.debts, *self._debts(item, failed)]
        if not debts:
            return Committed(item.envelope)
        owed = tuple(sorted({debt.shard for debt in debts}))
        return Committed(item.envelope, owed, tuple(sorted({debt.shard for debt in debts if debt.kind is Owed.SHARE})))

    def _debts(self, item: _Item, failed: Mapping[int, ShardError]) -> list[Debt]:
        """What the failed shards will have to be given of this item; nothing where there is no such shard any more."""
        debts: list[Debt] = []
        if not failed:
            return debts
        away = [number for number in failed if self._pool.entry(number) is not None]
        for row, (record, _) in item.sealed.items() if away else ():
            debts += [Debt(n, Owed.RECORD, *row, record.version) for n in sorted({*record.copies, *record.shares}) if n in away]
            debts += [Debt(n, Owed.SHARE, *row, record.version, index) for n, (index, _) in sorted(record.shares.items()) if n in away]
        return debts

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            f"the metastore does not take writes: {self.failure or 'it failed'}",
            hint="restart the daemon; reads go on",
            retryable=False,
        )

    def _unknown(self, version: Version | None) -> OutcomeUnknown:
        return OutcomeUnknown(
            "the daemon cannot tell whether the change was committed",
            hint="restart the daemon, then compare the key's version with data.version",
            version=None if version is None else version.hex(),
        )

    async def _keep_house(self) -> None:
        """Now and then: the metastore's checkpoint, the index of the logs."""
        if self._since_checkpoint >= CHECKPOINT_EVERY:
            self._since_checkpoint = 0
            try:
                await self._runtime.threads.run_commit(self._metastore.checkpoint)
            except CommitUnknown as error:
                log.error("the metastore failed: %s", error)
                self.failure = str(error)
        if self._index.waiting >= FLUSH_AT:
            await self._runtime.threads.run_commit(self._index.flush)


def _give_up(changes: Sequence[_Change]) -> None:
    """Wake whoever waits for changes that nobody will answer any more: their outcome stays unknown."""
    for change in changes:
        change.later.settle(OutcomeUnknown("the commit was not answered", hint="read the key to see"))


def _refused(error: CommitRefused) -> ZstorError:
    if error.no_space:
        return NoSpace("the disk of the metastore is full; nothing changed", hint="free some room on the disk of the store")
    return IoError(f"{error}; nothing changed", hint="try again", retryable=True)
