"""What a change sees while it is decided: every row as the changes before it in the group left it.

Only the committer's thread uses it, and only while a group is decided.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Set
from typing import Final

from zstor_local.metastore.base import Metastore, RowName, Usage
from zstor_local.model.ids import NamespaceId, Version
from zstor_local.model.record import Envelope, Kind
from zstor_local.store.change import Decision, Sealed

_REFERENCE_BYTES: Final = 400  # of one that is added or goes, until the metastore has it


class View:
    """The metastore, and over it what the group has changed so far."""

    def __init__(self, metastore: Metastore) -> None:
        self._metastore = metastore.committed
        self.begin_group()

    def begin_group(self) -> None:
        """Nothing is changed yet."""
        self.weight = 0  # about how many bytes of records and references the group has in memory
        self._newest: dict[RowName, Envelope] = {}
        self._committed: dict[RowName, Envelope | None] = {}  # rows as they were before it: nobody else commits meanwhile
        self._naming: dict[Version, set[RowName]] = {}  # its rows by the versions that they name, or named on the way
        self._growth: dict[NamespaceId, Usage] = {}  # what it adds to namespaces, without what it takes away
        self._growing: dict[NamespaceId, set[RowName]] = {}  # by the changes of which rows
        self._usage: dict[NamespaceId, Usage] = {}  # what namespaces held before it
        self._seen: set[RowName] = set()
        self._weighed: set[RowName] = set()

    def begin_change(self) -> Set[RowName]:
        """The next change. Rows that it looks at, of those that changes before it have changed, gather in what is returned."""
        self._seen, self._weighed = set(), set()
        return self._seen

    @property
    def weighed(self) -> Set[RowName]:
        """Rows of the changes before whose growth this change was shown: without them it may not have been refused."""
        return self._weighed

    def take(self, space: NamespaceId, decision: Decision, sealed: Sealed) -> None:
        """What the change came to is seen by those behind it."""
        self.weight += _REFERENCE_BYTES * (len(decision.references) + len(decision.references_gone))
        for row, (record, envelope) in sealed.items():
            self.weight += len(record.plain) + len(envelope.sealed)
            self._newest[row] = envelope
            self._naming.setdefault(envelope.version, set()).add(row)
        if decision.objects > 0 or decision.bytes > 0:
            more = Usage(max(0, decision.objects), max(0, decision.bytes))
            self._growth[space] = self._growth.get(space, Usage()) + more
            self._growing.setdefault(space, set()).update(sealed)

    def look(self, space: NamespaceId, name: str) -> Envelope | None:
        """A row as the changes before left it; None if it is not there."""
        row = (space, name)
        if row not in self._newest:
            if row not in self._committed:
                self._committed[row] = found = self._metastore.get(*row)
                self.weight += 0 if found is None else len(found.sealed)
            return self._committed[row]
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

    def usage(self, space: NamespaceId) -> Usage:
        """What the namespace holds, at most: what the group takes away counts only from the next one on."""
        before = self._usage.get(space)
        if before is None:
            before = self._usage[space] = self._metastore.usage(space)
        growth = self._growth.get(space)
        if growth is None:
            return before
        self._weighed = self._growing[space]
        return before + growth

    def named(self, space: NamespaceId, version: Version) -> set[str]:
        """The keys of a namespace whose records name this version, as the changes before left them."""
        return {row[1] for row in self._rows(version, None) if row[0] == space and self._names(row, version)}

    def is_named(self, space: NamespaceId, version: Version, *, beside: Collection[str] = ()) -> bool:
        """Whether a key of a namespace other than these names this version, as the changes before left it. Cheap also where many do."""
        enough = len(beside) + len(self._newest) + 1  # of so many one at least counts
        rows = self._rows(version, enough)
        return any(row[0] == space and row[1] not in beside and self._names(row, version) for row in rows)

    def naming(self, version: Version) -> Iterator[Envelope]:
        """The records, of any namespace, that name this version, as the changes before left them."""
        found = (self.look(*row) for row in sorted(self._rows(version, None)))
        return (envelope for envelope in found if envelope is not None and envelope.version == version)

    def _rows(self, version: Version, limit: int | None) -> Collection[RowName]:
        """Rows that name a version, or have named it, in the metastore (so many of them) and on the way."""
        return dict.fromkeys([*self._metastore.named(version, limit), *sorted(self._naming.get(version, ()))])

    def _names(self, row: RowName, version: Version) -> bool:
        """Whether one of those still names it."""
        if row not in self._newest:
            return True
        envelope = self.look(*row)
        return envelope is not None and envelope.version == version
