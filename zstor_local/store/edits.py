"""What one change makes of the objects of a namespace: the rows before and after, and everything that follows from the difference.

Every use case that changes records goes through here, so that the rules hold for all: copies of a row's new record go to each shard
that held its old one; a version's shares become garbage when the last row that names it leaves it, and not before; references are
found as long as their object has them; counts agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from zstor_local.metastore.base import Debt, Garbage, Owed, Reference, RowName
from zstor_local.model.ids import NamespaceId, ShareId, Version
from zstor_local.model.record import Envelope, Kind, ObjectRecord, Tombstone
from zstor_local.store.change import Decision, NewRecord
from zstor_local.store.core import Core
from zstor_local.store.namespaces import Namespace
from zstor_local.store.stored import open_object, under_present_key
from zstor_local.value import value

Look = Callable[[NamespaceId, str], Envelope | None]
Changed = tuple[str, "Object | None", "Object | None"]  # a row's name, and what it was and is


@value()
class Object:
    """A row's version and its record."""

    version: Version
    record: ObjectRecord


@value()
class NewShares:
    """Of a key's new version: the small shares by shard number, and how many of them (or of the record's copies) must be durable."""

    key: str
    shares: Mapping[int, tuple[int, bytes]]
    quorum: int


class Edits:
    """One change, made in the committer's thread: `find`, `put` and `remove` rows, then take the `decision`.

    With another `look` than the committer's it may be tried elsewhere, and never decided.
    """

    def __init__(self, core: Core, namespace: Namespace, look: Look | None = None) -> None:
        self._look = look or core.committer.view.look
        self._committer = core.committer
        self._metastore = core.metastore
        self._sealer = core.sealer
        self._namespace = namespace
        self._before: Final[dict[str, Object | None]] = {}
        self._after: Final[dict[str, Object | None]] = {}

    def find(self, key: str) -> Object | None:
        """The object as this change has left it so far."""
        if key not in self._after:
            envelope = self._look(self._namespace.id, key)
            found = None if envelope is None else Object(envelope.version, open_object(self._sealer, envelope))
            self._before[key] = self._after[key] = found
        return self._after[key]

    def put(self, key: str, version: Version, record: ObjectRecord) -> None:
        """The key has this version and record from now on."""
        self.find(key)
        self._after[key] = Object(version, record)

    def remove(self, key: str) -> None:
        self.find(key)
        self._after[key] = None

    def decision(
        self,
        now: int,
        *,
        new: NewShares | None = None,
        insist: bool = True,
        closing: bool = False,
        intents_done: Sequence[Version] = (),
        debts: Sequence[Debt] = (),
    ) -> Decision:
        """All that changes. Records must reach their policy's write quorum if the change may fail for want of shards (`insist`).

        NoSpace over the namespace's quota; Conflict once its deletion has begun, unless this is a part of it (`closing`).
        """
        changed = [(key, self._before[key], after) for key, after in self._after.items() if self._before[key] != after]
        # Whoever has only the beginning of a rename in a log, and no metastore, finds it under two keys rather than under none.
        changed.sort(key=lambda change: change[2] is None)
        left = {before.version for _, before, after in changed if before is not None and after is None}
        growth = sum(_size(after) - _size(before) for _, before, after in changed)
        namespace = self._namespace
        namespace.gate.check(namespace.name, closing=closing)
        namespace.gate.check_room(namespace.name, lambda: self._committer.view.usage(namespace.id), growth)
        records: dict[RowName, NewRecord] = {}
        for key, before, after in changed:
            # Of a key that is gone no record stays that could tell a rebuild which logs hold older ones: so all of them hear of it, and
            # of the key that has its version from now on.
            everywhere = after is None or after.version in left
            copies = self._committer.shards if everywhere else self._holders(key, before, after)
            if after is not None:
                fresh = new if new is not None and new.key == key else None
                records[namespace.id, key] = self._record(key, after, copies, fresh, insist=insist)
            elif before is not None:
                records[namespace.id, key] = tombstone(namespace, key, before.version, copies, now, k=before.record.policy.k)
        garbage, paid = self._left_behind(changed)
        return Decision(
            records=records,
            intents_done=intents_done,
            garbage=garbage,
            debts=debts,
            debts_paid=paid,
            references=list(self._references(self._after, self._before)),
            references_gone=list(self._references(self._before, self._after)),
            objects=sum((after is not None) - (before is not None) for _, before, after in changed),
            bytes=growth,
        )

    def _holders(self, key: str, before: Object | None, after: Object | None) -> list[int]:
        """The shards whose logs a row's new record goes to."""
        return sorted({*_placement(before), *_placement(after), *self._owed(key, before)})

    def _record(self, key: str, row: Object, copies: Sequence[int], fresh: NewShares | None, *, insist: bool) -> NewRecord:
        # Of the record's copies any count, also where there are more logs than the version has shares: as many as of a write.
        quorum = fresh.quorum if fresh else row.record.policy.write_quorum if insist else 0
        shares = fresh.shares if fresh else {}
        hashed, plain = self._namespace.key_hash(key), under_present_key(row.record, self._namespace.keys).encode()
        return NewRecord(Kind.OBJECT, hashed, row.version, plain, copies, shares, quorum, row.record.policy.k)

    def _left_behind(self, changed: Sequence[Changed]) -> tuple[list[Garbage], list[Debt]]:
        """The shares of versions that nothing names any more, and the debts that end: of those shares, and of changed rows' records."""
        kept = {row.version for row in self._after.values() if row is not None}
        garbage: list[Garbage] = []
        paid: list[Debt] = []
        left: set[Version] = set()
        space, named = self._namespace.id, self._committer.view.is_named
        for key, before, _ in changed:
            if before is None:
                continue
            debts = self._metastore.debts_of(before.version)
            paid += [debt for debt in debts if debt.is_record_of(space, key)]
            if before.version in kept | left or named(space, before.version, beside=self._after.keys()):
                continue
            left.add(before.version)
            record = before.record
            garbage += [Garbage(n, ShareId(before.version, index), record.small) for index, n in enumerate(record.placement)]
            paid += [debt for debt in debts if debt.kind is Owed.SHARE]
        return garbage, paid

    def _owed(self, key: str, before: Object | None) -> set[int]:
        """Shards that have not heard of the old record: they may hold an older one, which only the new one buries there."""
        debts = [] if before is None else self._metastore.debts_of(before.version)
        return {debt.shard for debt in debts if debt.is_record_of(self._namespace.id, key)}

    def _references(self, there: Mapping[str, Object | None], elsewhere: Mapping[str, Object | None]) -> Iterator[Reference]:
        """References that rows of the one side have and those of the other do not."""
        for key, row in there.items():
            if row is None or not row.record.references:
                continue
            other = elsewhere[key]
            missing = set(row.record.references).difference(other.record.references if other is not None else ())
            for reference in missing:
                yield Reference(self._namespace.id, self._namespace.reference_hash(reference), key)


def tombstone(namespace: Namespace, key: str, version: Version, copies: Sequence[int], now: int, *, k: int) -> NewRecord:
    """What buries a key that had this version."""
    return NewRecord(Kind.TOMBSTONE, namespace.key_hash(key), version, Tombstone(key, now).encode(), copies, k=k)


def _placement(row: Object | None) -> tuple[int, ...]:
    return () if row is None else row.record.placement


def _size(row: Object | None) -> int:
    return 0 if row is None else row.record.size
