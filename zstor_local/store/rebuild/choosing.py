"""Which record counts of each key's.

Of those that no void covers the one with the highest sequence: a tombstone buries, an object comes back. A version of which fewer than
k shares can be found hides no older one that is readable: then both are reported. Of two records with one sequence the one that opens
counts, whoever holds the other; if both do, the one on more shards, and that is reported.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from typing import Final

from zstor_local.coding.keys import KeyHasher
from zstor_local.errors import CorruptRecord
from zstor_local.metastore.base import Debt, Owed, Reference, Usage
from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import Envelope, Kind, ObjectRecord, Tombstone
from zstor_local.model.storewide import VoidRecord
from zstor_local.store.rebuild.gathering import PROGRESS_EVERY
from zstor_local.store.rebuild.holding import Holding
from zstor_local.store.rebuild.report import Report
from zstor_local.store.rebuild.scratch import FoundRow, Scratch, version_of
from zstor_local.store.sealing import RecordSealer

_AT_ONCE: Final = 500  # choices that are put into the scratch tables together


class Voids:
    """Sequences that were never committed."""

    def __init__(self, voids: Iterable[VoidRecord]) -> None:
        self._firsts: list[bytes] = []
        self._lasts: list[bytes] = []
        for first, last in sorted({(each.first.to_bytes(8, "big"), each.last.to_bytes(8, "big")) for each in voids}):
            if self._lasts and first <= self._lasts[-1]:
                self._lasts[-1] = max(self._lasts[-1], last)
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    def cover(self, sequence: bytes) -> bool:
        place = bisect_right(self._firsts, sequence) - 1
        return place >= 0 and sequence <= self._lasts[place]


def by_key(found: Iterable[FoundRow], voids: Voids) -> Iterator[Iterator[list[bytes]]]:
    """For each key its records that are not void, the newest first; those with one sequence together, the one on most shards first."""
    return (_by_sequence(rows, voids) for _, rows in groupby(found, itemgetter(0)))


def _by_sequence(rows: Iterable[FoundRow], voids: Voids) -> Iterator[list[bytes]]:
    for sequence, same in groupby(rows, itemgetter(1)):
        if voids.cover(sequence):
            continue
        (_, _, holders, record), *others = same
        yield _by_holders([(holders, record), *((each[2], each[3]) for each in others)]) if others else [record]


def _by_holders(found: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Of as many the one on the first shard; of those the one that was found last, as it lies behind the other."""
    copies: dict[bytes, int] = {}
    for holders, record in found:
        copies[record] = copies.get(record, 0) | int.from_bytes(holders, "little")
    return sorted(copies, key=lambda record: (-copies[record].bit_count(), copies[record] & -copies[record]))


@dataclass(slots=True)
class _Opened:
    """A record that opens."""

    record: bytes
    envelope: Envelope
    plain: bytes
    ambiguous: bool  # another record of the key with the same sequence opens too, and says something else


class Opener:
    """Opens records, and counts those that do not open."""

    def __init__(self, sealer: RecordSealer, on_damage: Callable[[Envelope], None]) -> None:
        self._sealer = sealer
        self._on_damage = on_damage

    def first(self, same: list[bytes]) -> _Opened | None:
        """Of records with one sequence the first that opens. Where none does each of them is told."""
        found: _Opened | None = None
        damaged = []
        for record in same:
            envelope = Envelope.parse(record)
            try:
                plain = self._sealer.open(envelope)
            except CorruptRecord:
                damaged.append(envelope)
                continue
            if found is None:
                found = _Opened(record, envelope, plain, ambiguous=False)
            elif plain != found.plain or envelope.kind is not found.envelope.kind:
                found.ambiguous = True
        if found is None:
            for envelope in damaged:
                self._on_damage(envelope)
        return found


@dataclass(slots=True)
class Choice:
    """What counts of one key: the record and its row's name; of an object what it is, and the indices of the shares that it lacks."""

    record: bytes
    envelope: Envelope
    name: str
    object: ObjectRecord | None = None
    lacking: list[int] = field(default_factory=list)


class Choosing:
    """Chooses for all namespaces, once. What counts is in the scratch tables and the report is whole when `run` returns."""

    def __init__(
        self, scratch: Scratch, sealer: RecordSealer, hasher: KeyHasher, voids: Voids, holding: Holding, listed: frozenset[int],
        report: Report, progress: Callable[[str, int], None],
    ) -> None:  # fmt: skip
        self._scratch = scratch
        self._opener = Opener(sealer, self._damaged)
        self._hasher = hasher
        self._voids = voids
        self._holding = holding
        self._listed = listed
        self._report = report
        self._progress = progress
        self.usage: dict[NamespaceId, Usage] = {}

    def run(self) -> Mapping[NamespaceId, Usage]:
        """What each namespace holds then."""
        choices = (choice for records in by_key(self._found(), self._voids) if (choice := self._choose(records)) is not None)
        while some := list(islice(choices, _AT_ONCE)):
            self._take(some)
        return self.usage

    def _found(self) -> Iterator[FoundRow]:
        for rows in self._scratch.found(store_wide=False):
            self._holding.expect([version_of(record) for *_, record in rows])
            yield from rows

    def _damaged(self, envelope: Envelope) -> None:
        self._report.damaged += 1

    def _choose(self, records: Iterator[list[bytes]]) -> Choice | None:
        unreadable: Choice | None = None  # the newest object, if it is that
        for same in records:
            opened = self._opener.first(same)
            if opened is None:
                continue
            try:
                choice = self._understood(opened)
            except CorruptRecord:
                self._damaged(opened.envelope)
                continue
            if choice.object is None:
                if unreadable is not None:
                    break
            elif choice.object.policy.m - len(choice.lacking) < choice.object.policy.k:
                unreadable = unreadable or choice
                continue
            elif unreadable is not None:
                self._report.older.append(choice.name)
            return choice
        if unreadable is not None:
            self._report.unreadable.append(unreadable.name)
            unreadable.lacking = []  # nothing can be made of what is left
        return unreadable

    def _understood(self, opened: _Opened) -> Choice:
        envelope = opened.envelope
        if envelope.kind is Kind.TOMBSTONE:
            choice = Choice(opened.record, envelope, Tombstone.decode(opened.plain).key)
        else:
            record = ObjectRecord.decode(opened.plain)
            choice = Choice(opened.record, envelope, record.key, record, self._holding.lacking(envelope.version, record))
        if opened.ambiguous:
            self._report.ambiguous.append(choice.name)
        return choice

    def _take(self, choices: list[Choice]) -> None:
        report = self._report
        self._scratch.choose((choice.name, choice.record) for choice in choices)
        debts: list[Debt] = []
        references: list[Reference] = []
        for choice in choices:
            record = choice.object
            if record is None:
                report.deleted += 1
                continue
            space = choice.envelope.namespace
            report.objects += 1
            report.bytes += record.size
            self.usage[space] = self.usage.get(space, Usage()) + Usage(1, record.size)
            if choice.lacking:
                debts += self._debts(choice, record)
            if record.references:
                hashes = (self._hasher.reference_hash(space, reference) for reference in record.references)
                references += [Reference(space, each, choice.name) for each in hashes]
            if report.objects % PROGRESS_EVERY == 0:
                self._progress("objects found", report.objects)
        self._scratch.owe(debts)
        self._scratch.refer(references)

    def _debts(self, choice: Choice, record: ObjectRecord) -> list[Debt]:
        """The shares that it lacks, as far as their shards still are the store's."""
        space, version = choice.envelope.namespace, choice.envelope.version
        missing = ((index, record.placement[index]) for index in choice.lacking)
        return [Debt(n, Owed.SHARE, space, choice.name, version, index) for index, n in missing if n in self._listed]
