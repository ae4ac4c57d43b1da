"""Which record counts of each key's.

Of those that no void covers the one with the highest sequence: a tombstone buries, an object comes back. A version of which fewer than
k shares can be found hides no older one that is readable: then both are reported. Of two records with one sequence the one that opens
counts, whoever holds the other; if both do, the one on more shards, and that is reported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

from zstor_local.coding.keys import KeyHasher
from zstor_local.errors import CorruptRecord
from zstor_local.metastore.base import Debt, Owed, Reference, Usage
from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import Envelope, Kind, ObjectRecord, Tombstone
from zstor_local.store.rebuild.behind import Behind
from zstor_local.store.rebuild.gathering import PROGRESS_EVERY
from zstor_local.store.rebuild.holding import Holding
from zstor_local.store.rebuild.report import Report
from zstor_local.store.rebuild.scratch import FoundRow, Scratch, version_of
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.stored import must_be_told
from zstor_local.store.voids import Voids

_AT_ONCE: Final = 500  # rows that are put into the scratch table together


def by_key(found: Iterable[FoundRow], voids: Voids) -> Iterator[Iterator[list[bytes]]]:
    """For each key its records that are not void, the newest first; those with one sequence together, the one on most shards first."""
    return (_by_sequence(rows, voids) for _, rows in groupby(found, itemgetter(0)))


def _by_sequence(rows: Iterable[FoundRow], voids: Voids) -> Iterator[list[bytes]]:
    for sequence, same in groupby(rows, itemgetter(1)):
        if voids.cover(int.from_bytes(sequence, "big")):
            continue
        (_, _, holders, record), *others = same
        yield _by_holders([(holders, record), *((each[2], each[3]) for each in others)]) if others else [record]


def _by_holders(found: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Of as many the one on the first shard; of those the one that was found last, as it lies behind the other."""
    copies: dict[bytes, int] = {}
    for holders, record in found:
        copies[record] = copies.get(record, 0) | int.from_bytes(holders, "little")
    return sorted(copies, key=lambda record: (-copies[record].bit_count(), copies[record] & -copies[record]))


class Opener:
    """Opens records, and tells of those that do not open."""

    def __init__(self, sealer: RecordSealer, on_damage: Callable[[Envelope], None]) -> None:
        self._sealer = sealer
        self._on_damage = on_damage

    def first(self, same: list[bytes]) -> Opened | None:
        """Of records with one sequence the first that opens. Where none does each of them is told."""
        opened = [found for record in same if (found := self._open(record)) is not None]
        if not opened:
            for record in same:
                self._on_damage(Envelope.parse(record))
            return None
        first = opened[0]
        first.ambiguous = len(opened) > 1 and any(each.says != first.says for each in opened)
        return first

    def _open(self, record: bytes) -> Opened | None:
        envelope = Envelope.parse(record)
        try:
            return Opened(record, envelope, self._sealer.open(envelope))
        except CorruptRecord:
            return None


@dataclass(slots=True)
class Opened:
    """A record that opens. `ambiguous`: another one of its key and sequence does too, and says something else.

    Once it is understood: the name of its row; of an object what it is, and the indices of the shares that it lacks.
    """

    record: bytes
    envelope: Envelope
    plain: bytes
    ambiguous: bool = False
    name: str = ""
    object: ObjectRecord | None = None
    lacking: Sequence[int] = ()

    @property
    def says(self) -> tuple[Kind, bytes]:
        return self.envelope.kind, self.plain


class Choosing:
    """Chooses for all namespaces, once. What counts is in the scratch tables and the report is whole when `run` returns."""

    def __init__(
        self, scratch: Scratch, sealer: RecordSealer, hasher: KeyHasher, voids: Voids, holding: Holding, behind: Behind,
        listed: frozenset[int], report: Report, progress: Callable[[str, int], None],
    ) -> None:  # fmt: skip
        self._scratch = scratch
        self._opener = Opener(sealer, self._damaged)
        self._hasher = hasher
        self._voids = voids
        self._holding = holding
        self._behind = behind
        self._listed = listed
        self._report = report
        self._progress = progress
        self._rows: list[tuple[str, bytes]] = []
        self._usage: dict[NamespaceId, list[int]] = {}  # objects, bytes

    def run(self) -> dict[NamespaceId, Usage]:
        """What each namespace holds then."""
        for records in by_key(self._behind.watch(self._found()), self._voids):
            choice = self._choose(records)
            deque(records, maxlen=0)  # who is behind is known when all of the key's have passed
            if choice is not None:
                self._take(choice)
        self._put()
        return {space: Usage(*counts) for space, counts in self._usage.items()}

    def _found(self) -> Iterator[FoundRow]:
        for rows in self._scratch.found(store_wide=False):
            self._holding.expect([version_of(record) for *_, record in rows])
            yield from rows

    def _damaged(self, envelope: Envelope) -> None:
        self._report.damaged += 1

    def _choose(self, records: Iterator[list[bytes]]) -> Opened | None:
        unreadable: Opened | None = None  # the newest object, if it is that
        for same in records:
            choice = self._opener.first(same)
            if choice is None:
                continue
            try:
                record = self._understand(choice)
            except CorruptRecord:
                self._damaged(choice.envelope)
                continue
            if record is None:
                if unreadable is not None:
                    break
            elif record.policy.m - len(choice.lacking) < record.policy.k:
                unreadable = unreadable or choice
                continue
            elif unreadable is not None:
                self._report.older.append(choice.name)
            return choice
        if unreadable is not None:
            self._report.unreadable.append(unreadable.name)
            unreadable.lacking = ()  # nothing can be made of what is left
        return unreadable

    def _understand(self, choice: Opened) -> ObjectRecord | None:
        envelope = choice.envelope
        if envelope.kind is Kind.TOMBSTONE:
            choice.name = Tombstone.decode(choice.plain).key
        else:
            choice.object = record = ObjectRecord.decode(choice.plain)
            must_be_told(record)
            choice.name = record.key
            choice.lacking = self._holding.lacking(envelope.version, record)
        if choice.ambiguous:
            self._report.ambiguous.append(choice.name)
        return choice.object

    def _take(self, choice: Opened) -> None:
        self._rows.append((choice.name, choice.record))
        if len(self._rows) >= _AT_ONCE:
            self._put()
        record, report = choice.object, self._report
        holders = () if record is None else [n for index, n in enumerate(record.placement) if index not in choice.lacking]
        if untold := self._behind.debts(choice.record, choice.name, holders):  # who lacks the share is given the record with it
            self._scratch.owe(untold)
        if record is None:
            report.deleted += 1
            return
        space = choice.envelope.namespace
        report.objects += 1
        report.bytes += record.size
        counts = self._usage.setdefault(space, [0, 0])
        counts[0] += 1
        counts[1] += record.size
        if choice.lacking:
            self._scratch.owe(self._debts(choice, record))
        if record.references:
            hashes = (self._hasher.reference_hash(space, reference) for reference in record.references)
            self._scratch.refer(Reference(space, each, choice.name) for each in hashes)
        if report.objects % PROGRESS_EVERY == 0:
            self._progress("objects found", report.objects)

    def _put(self) -> None:
        self._scratch.choose(self._rows)
        self._rows.clear()

    def _debts(self, choice: Opened, record: ObjectRecord) -> list[Debt]:
        """The shares that it lacks, as far as their shards still are the store's."""
        space, version = choice.envelope.namespace, choice.envelope.version
        missing = ((index, record.placement[index]) for index in choice.lacking)
        return [Debt(n, Owed.SHARE, space, choice.name, version, index) for index, n in missing if n in self._listed]
