"""A decided group on its way: seal, append to the logs, flush, commit one transaction; or void what reached the logs in vain.

Only the committer's thread uses it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final

from zstor_local import limits
from zstor_local.errors import Conflict, IoError, NoSpace, OutcomeUnknown, Unavailable, ZstorError
from zstor_local.metastore.base import (
    CommitRefused,
    CommitUnknown,
    Debt,
    Metastore,
    MetastoreClosed,
    Owed,
    Reference,
    Row,
    RowName,
    Transaction,
    Usage,
)
from zstor_local.model.ids import NamespaceId, ShareId, Version
from zstor_local.model.record import NO_KEY, NO_VERSION, STORE_WIDE, Envelope, Kind
from zstor_local.model.storewide import VoidRecord
from zstor_local.shards.base import Entry, Shard, ShardError
from zstor_local.shards.pool import ShardPool
from zstor_local.store.change import Committed, Decision, NewRecord, Sealed
from zstor_local.store.quorum import not_enough_shards
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.voided import Range, Voided, both, told_on, voided

RESERVE: Final = 1 << 16  # sequence numbers reserved at once
RESERVE_LOW: Final = 4 * limits.GROUP_CHANGES  # reserve more while at least this many are left: a group and its voids always fit

log = logging.getLogger("zstor.store")


@dataclass(slots=True, eq=False)
class Item:
    """A decided change on its way through its group, with what it writes by row."""

    space: NamespaceId
    name: str
    decision: Decision
    sealed: Sealed
    seen: Set[RowName]  # rows as changes before it in the group left them
    error: ZstorError | None = None

    @property
    def envelope(self) -> Envelope | None:
        """The row's own new envelope, if it has one."""
        own = self.sealed.get((self.space, self.name))
        return None if own is None else own[1]


class Publisher:
    """Gives the sequences, and makes groups durable and visible. `failure` says why nothing more is committed in this life."""

    def __init__(self, metastore: Metastore, pool: ShardPool, sealer: RecordSealer) -> None:
        self._metastore = metastore
        self._pool = pool
        self._sealer = sealer
        self.state = metastore.state()
        self._next = self.state.reserved + 1
        self.commits = 0
        self.failure: str | None = None
        self._untold: dict[int, Voided] = {}  # by shard: what may lie in its log, never came to be, and it has not heard so

    @property
    def last_given(self) -> int:
        """The last sequence that anything was sealed with."""
        return self._next - 1

    @property
    def all_told(self) -> bool:
        """No shard of the store has yet to hear of something that never came to be."""
        return not any(self._pool.entry(number) is not None for number in [*self._untold])  # also asked by other threads

    def begin_life(self) -> range:
        """A higher writer number and fresh sequences. Returns those that an earlier life may have used and never committed.

        CommitRefused (as on a full disk) or CommitUnknown if the metastore does not take that.
        """
        before = self._metastore.state()  # whose counts may have been corrected
        state = replace(before, writer=before.writer + 1, reserved=before.reserved + RESERVE)
        self._metastore.commit(Transaction(state))
        self.state = state
        return range(before.sequence + 1, before.reserved + 1)

    def seal(self, records: Mapping[RowName, NewRecord]) -> Sealed:
        """Each record under the next sequence."""
        return {row: (record, self._sealed(row[0], record)) for row, record in records.items()}

    def _sealed(self, space: NamespaceId, record: NewRecord) -> Envelope:
        sequence = self._next
        self._next += 1
        return self._sealer.seal(record.kind, space, record.key_hash, record.version, sequence, record.plain)

    def publish(self, items: list[Item]) -> dict[int, ShardError]:
        """Make a group durable and visible. Sets the error of each item that did not come through; returns the shards that failed."""
        if not self._reserved_for(items):
            return {}
        failed = self._to_logs(items)
        self._apply_quorum(items, failed)
        good = [item for item in items if item.error is None]
        lost = [item for item in items if item.error is not None]
        if lost:
            self._void(lost, failed)
        if good:
            self._to_metastore(good, failed)
        return failed

    def _reserved_for(self, items: Sequence[Item]) -> bool:
        """Reserve more sequences if those of the group, and of voids for all of it, are not: groups that fail reserve none. False if
        that cannot be: the items have their errors, and nothing of them was written.
        """
        try:
            self._reserve(3 * sum(map(len, [*(item.sealed for item in items), *self._untold_ranges()])))
        except CommitRefused as error:
            for item in items:
                item.error = _refused(error)
        except (CommitUnknown, MetastoreClosed) as error:
            self._metastore_failed(items, error)
        else:
            return True
        return False

    def _untold_ranges(self) -> Iterator[list[Range]]:
        return (ranges for lost in self._untold.values() for ranges in lost.values())

    def _reserve(self, count: int) -> None:
        """Make so many sequences more than those that were given usable, durably."""
        if self.state.reserved - self.last_given < count:
            state = replace(self.state, reserved=self.last_given + count + RESERVE)
            self._metastore.commit(Transaction(state))
            self.state = state

    def _to_logs(self, items: Sequence[Item]) -> dict[int, ShardError]:
        """Append what the group has for each log and flush. Returns the shards that failed."""
        entries: dict[int, list[Entry]] = {}
        for item in items:
            for record, envelope in item.sealed.values():
                for number in {*record.copies, *record.shares}:
                    index, share = record.shares.get(number, (None, b""))
                    entries.setdefault(number, []).append(Entry(envelope, index, share))
            for number, missed in item.decision.resend.items():
                entries.setdefault(number, []).extend(missed)
        return self._append(entries)

    def _append(self, entries: Mapping[int, Sequence[Entry]]) -> dict[int, ShardError]:
        """Append to logs and flush. What a log has yet to hear of comes first. Returns the shards that failed."""
        failed = self._tell(entries) if self._untold else {}
        if failed:
            entries = {number: each for number, each in entries.items() if number not in failed}
        failed.update(self._pool.append(entries, self.state.sequence))
        failed.update(self._pool.flush([number for number in entries if number not in failed]))
        return failed

    def _tell(self, numbers: Iterable[int]) -> dict[int, ShardError]:
        """Have those of the shards hear what they have yet to hear of. Returns those that failed."""
        failed: dict[int, ShardError] = {}
        for number in numbers:
            shard = self._pool.get(number) if number in self._untold else None
            try:
                if shard is not None:
                    self.void_on(shard, {})
            except ShardError as error:
                failed[number] = ShardError(error.state, str(error), untouched=True, code=error.code)
        return failed

    def _apply_quorum(self, items: Sequence[Item], failed: Mapping[int, ShardError]) -> None:
        """Items whose shares are not durable on enough shards fail, and whatever was decided on top of them."""
        broken: set[RowName] = set()
        for item in items:
            if broken and not (broken.isdisjoint(item.sealed) and broken.isdisjoint(item.seen)):
                item.error = built_on_failed()
            away = [self._pool.name(number) for number in item.decision.resend if number in failed] if failed else ()
            if away and item.error is None:
                item.error = Unavailable(f"shard {away[0]} went away again", hint="it is told when it is back")
            for record, _ in item.sealed.values():
                holders = record.shares or record.copies
                durable = sum(number not in failed for number in holders) if failed else len(holders)
                if durable < record.quorum and item.error is None:
                    item.error = self._too_few(durable, record.quorum, failed)
            if item.error is not None:
                broken.update(item.sealed)

    def _too_few(self, durable: int, quorum: int, failed: Mapping[int, ShardError]) -> ZstorError:
        return not_enough_shards(durable, quorum, {self._pool.name(number): error for number, error in failed.items()})

    def _void(self, items: Sequence[Item], failed: Mapping[int, ShardError]) -> None:
        """Void what reached logs in vain. An item stays in doubt if its entries may lie on k shards where the void did not arrive.

        Where it arrived nowhere one is enough of those that hold no share: a rebuild would take the record from there.

        Those shards hear of it before anything else is appended to their logs: when they are opened again, or have room again.
        """
        lost = voided({envelope.sequence: envelope.namespace for item in items for _, envelope in item.sealed.values()})
        if not lost:
            return
        clean = {number for number, error in failed.items() if error.untouched}
        missed = self._append_void(lost)
        untold = missed - clean
        unreached = untold | (set(failed) - clean)
        heard = any(shard.number not in missed for shard in self._pool.opened())
        for item in items:
            for record, _ in item.sealed.values():
                in_doubt = sum(number in unreached for number in {*record.copies, *record.shares} if self._pool.get(number) is not None)
                if in_doubt >= (record.k if record.shares or heard else 1):
                    item.error = in_doubt_on_shards(record.version)
        holders = {number for item in items for record, _ in item.sealed.values() for number in (*record.copies, *record.shares)}
        for number in untold & holders:
            self._untold[number] = both(self._untold.get(number, {}), lost)

    def _append_void(self, lost: Voided) -> set[int]:
        """Flush a void to every usable shard. Returns the opened shards that it did not reach."""
        opened = self._pool.opened()
        spaces = {space: ranges for space, ranges in lost.items() if any(space in told_on(shard, lost) for shard in opened)}
        sealed = {space: self._voids({space: ranges}) for space, ranges in spaces.items()}
        return set(self._append({shard.number: [each for space in told_on(shard, lost) for each in sealed[space]] for shard in opened}))

    def _voids(self, lost: Voided) -> list[Entry]:
        return [Entry(self._sealed_void(space, *each)) for space, ranges in lost.items() for each in ranges]

    def _sealed_void(self, space: NamespaceId, first: int, last: int) -> Envelope:
        sequence = self._next
        self._next += 1
        return self._sealer.seal(Kind.VOID, space, NO_KEY, NO_VERSION, sequence, VoidRecord(first, last).encode())

    def void_on(self, shard: Shard, sequences: Mapping[int, NamespaceId], newest: Sequence[Envelope] = ()) -> None:
        """Say in a shard's log that these, given with the spaces of their records, and what it has yet to hear of never happened, and
        what is newer; durable, or ShardError.

        Any entry says how far all is committed, and so which of those before it need no look at the next start. These say no more than
        was said before: of several a power loss may keep only some.
        """
        lost = told_on(shard, both(self._untold.get(shard.number, {}), voided(sequences)))
        if not lost and not newest:
            return
        try:
            self._reserve(sum(map(len, lost.values())))
        except (CommitRefused, CommitUnknown, MetastoreClosed) as error:
            raise ShardError(
                "failed", f"the metastore does not take what has to be known before {shard.id} is told: {error}"
            ) from error
        shard.append([*self._voids(lost), *map(Entry, newest)], min(shard.newest_committed(), self.state.sequence))
        shard.flush()
        self._untold.pop(shard.number, None)

    def void_earlier_life(self, sequences: range, k: int) -> None:
        """At a start: void the sequences that an earlier life never committed, and remember that this was done.

        CommitRefused if k shards that are there did not take the void: together they could bring back what was never committed.
        """
        unreached = self._append_void({STORE_WIDE: [(sequences[0], sequences[-1])]})
        if len(unreached) >= k:
            raise CommitRefused("too many logs failed to say in them what was not committed", no_space=False)
        state = replace(self.state, sequence=self._next - 1)
        self._metastore.commit(Transaction(state))
        self.state = state

    def _to_metastore(self, items: Sequence[Item], failed: Mapping[int, ShardError]) -> None:
        transaction = self._transaction(items, failed)
        try:
            self._metastore.commit(transaction)
        except CommitRefused as error:
            self._void(items, failed)
            for item in items:
                if not isinstance(item.error, OutcomeUnknown):
                    item.error = _refused(error)
        except (CommitUnknown, MetastoreClosed) as error:
            self._metastore_failed(items, error)
        else:
            self.state = transaction.state
            self.commits += 1

    def _metastore_failed(self, items: Sequence[Item], error: Exception) -> None:
        log.error("the metastore failed: %s", error)
        self.failure = str(error)
        for item in items:
            item.error = unknown(item.envelope.version if item.envelope else None)

    def _transaction(self, items: Sequence[Item], failed: Mapping[int, ShardError]) -> Transaction:
        decisions = [item.decision for item in items]
        reserved = self.state.reserved
        if reserved - self._next < RESERVE_LOW:
            reserved += RESERVE
        state = replace(
            self.state,
            sequence=self._next - 1,
            reserved=reserved,
            objects=self.state.objects + sum(decision.objects for decision in decisions),
            bytes=self.state.bytes + sum(decision.bytes for decision in decisions),
        )
        transaction = Transaction(state)
        newest = {row: envelope for item in items for row, (_, envelope) in item.sealed.items()}
        freed = {(garbage.shard, garbage.share) for decision in decisions for garbage in decision.garbage}
        references: dict[Reference, bool] = {}  # whether it is there in the end
        for item in items:
            decision = item.decision
            if decision.objects or decision.bytes:
                space = item.space
                transaction.usage[space] = transaction.usage.get(space, Usage()) + Usage(decision.objects, decision.bytes)
            transaction.rows.extend(Row(*row, envelope) for row, (_, envelope) in item.sealed.items())
            transaction.intents.extend(decision.intents)
            transaction.intents_done.extend(decision.intents_done)
            transaction.garbage.extend(garbage for garbage in decision.garbage if self._pool.entry(garbage.shard) is not None)
            transaction.garbage_freed.extend(decision.garbage_freed)
            transaction.debts_paid.extend(decision.debts_paid)
            for debt in [*decision.debts, *self._debts(item, failed)]:
                # Of what the same group replaces nobody is owed a share that is freed; who missed a record is owed the row's newest.
                if debt.kind is Owed.SHARE and (debt.shard, ShareId(debt.version, debt.index)) in freed:
                    continue
                row = newest.get((debt.space, debt.name)) if debt.kind is Owed.RECORD else None
                transaction.debts.append(debt if row is None else replace(debt, version=row.version))
            references.update(dict.fromkeys(decision.references_gone, False))
            references.update(dict.fromkeys(decision.references, True))
        transaction.references.extend(reference for reference, there in references.items() if there)
        transaction.references_gone.extend(reference for reference, there in references.items() if not there)
        return transaction

    def committed(self, item: Item, failed: Mapping[int, ShardError]) -> Committed:
        """What a change that came through came to."""
        debts = [*item.decision.debts, *self._debts(item, failed)]
        if not debts:
            return Committed(item.envelope)
        owed = tuple(sorted({debt.shard for debt in debts}))
        return Committed(item.envelope, owed, tuple(sorted({debt.shard for debt in debts if debt.kind is Owed.SHARE})))

    def _debts(self, item: Item, failed: Mapping[int, ShardError]) -> list[Debt]:
        """What the failed shards will have to be given of this item; nothing where there is no such shard any more."""
        debts: list[Debt] = []
        if not failed:
            return debts
        away = [number for number in failed if self._pool.entry(number) is not None]
        for row, (record, _) in item.sealed.items() if away else ():
            debts += [Debt(n, Owed.RECORD, *row, record.version) for n in sorted({*record.copies, *record.shares}) if n in away]
            debts += [Debt(n, Owed.SHARE, *row, record.version, index) for n, (index, _) in sorted(record.shares.items()) if n in away]
        return debts


def built_on_failed() -> Conflict:
    return Conflict("a change before this one that it builds on failed", hint="try again", retryable=True)


def unknown(version: Version | None) -> OutcomeUnknown:
    """For a change of which nobody can tell any more whether it was committed."""
    return OutcomeUnknown(
        "the daemon cannot tell whether the change was committed",
        hint="restart the daemon, then compare the key's version with data.version",
        version=None if version is None else version.hex(),
    )


def in_doubt_on_shards(version: Version | None) -> OutcomeUnknown:
    """For a change that was not committed, and of which as many shards as could bring it back have not heard so."""
    return OutcomeUnknown(
        "shards went away in the middle of the commit",
        hint="`zstor status` names them; what the key shows now counts: compare its version with data.version",
        version=None if version is None else version.hex(),
    )


def _refused(error: CommitRefused) -> ZstorError:
    if error.no_space:
        hint = "delete something (`zstor rm`), or free room on the disk of the store"
        return NoSpace("the disk of the metastore is full; nothing changed", hint=hint)
    return IoError(f"{error}; nothing changed", hint="try again", retryable=True)
