"""The metastore: the truth of which record each key has, in transactions. The laws every kind obeys.

One conformance suite (tests/metastore/conformance.py) runs against every implementation. It knows nothing of keys and seals: rows are
(space, name) → envelope, where the space is a namespace's id (or STORE_WIDE) and the name a key in clear, so that it can be listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

from zstor_local.errors import CorruptRecord
from zstor_local.model.ids import NamespaceId, ReferenceHash, ShareId, StoreId, Version
from zstor_local.model.record import Envelope, Kind
from zstor_local.value import value


@value()
class StoreState:
    """The counters that commit with every group. `sequence` is the last committed, `reserved` the last that may be used."""

    sequence: int = 0
    reserved: int = 0
    writer: int = 0
    objects: int = 0
    bytes: int = 0


@value()
class Usage:
    """What a namespace holds: objects, and their plain bytes."""

    objects: int = 0
    bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.objects + other.objects, self.bytes + other.bytes)


RowName = tuple[NamespaceId, str]  # the space and name of a row


@value()
class Row:
    """A name's newest record."""

    space: NamespaceId
    name: str
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Intent:
    """A large write on its way: shares of `version` may lie on these shards, and nothing else names them yet."""

    version: Version
    shards: tuple[int, ...]


class Owed(IntEnum):
    """What a shard that was away has to be given. The numbers are on disk."""

    SHARE = 1  # share `index` of the version
    RECORD = 2  # the row's newest record, tombstone or void


@dataclass(frozen=True, slots=True)
class Debt:
    """Something that a shard still has to be given. For RECORD `index` is −1.

    A RECORD is the row's. A SHARE is the version's, whichever rows name it by now (`named` tells); `name` is one that named it.
    """

    shard: int
    kind: Owed
    space: NamespaceId
    name: str
    version: Version
    index: int = -1

    def is_record_of(self, space: NamespaceId, name: str) -> bool:
        """Whether it is this row's newest record."""
        return self.kind is Owed.RECORD and (self.space, self.name) == (space, name)


@value()
class Garbage:
    """A share that no record names any more, not yet freed on its shard. `small` tells where it lies."""

    shard: int
    share: ShareId
    small: bool


@dataclass(frozen=True, slots=True)
class Reference:
    """That a row's record has a reference, of which the metastore sees the keyed hash."""

    space: NamespaceId
    hash: ReferenceHash
    name: str


@dataclass(slots=True)
class Transaction:
    """Everything one group changes: rows first; then what is done, paid or freed is struck out before anything is added."""

    state: StoreState
    rows: list[Row] = field(default_factory=list)
    intents: list[Intent] = field(default_factory=list)
    intents_done: list[Version] = field(default_factory=list)
    garbage: list[Garbage] = field(default_factory=list)
    garbage_freed: list[Garbage] = field(default_factory=list)
    debts: list[Debt] = field(default_factory=list)
    debts_paid: list[Debt] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    references_gone: list[Reference] = field(default_factory=list)
    usage: dict[NamespaceId, Usage] = field(default_factory=dict)  # what each namespace has more (or less) than before


REPLACING: Final = (Kind.OBJECT, Kind.NAMESPACE, Kind.ROW, Kind.TOMBSTONE)  # kinds of which a record and a tombstone replace each other


class MetastoreClosed(Exception):
    """The metastore failed before and serves no writes for the rest of the process."""


REBUILD_HINT: Final = "copy the store aside, then `zstor rebuild` makes a new metastore from the shards"


class CommitRefused(Exception):
    """The transaction certainly did not happen, and a later one may; `no_space` tells whether the disk is full."""

    def __init__(self, message: str, *, no_space: bool) -> None:
        super().__init__(message)
        self.no_space = no_space


class CommitUnknown(Exception):
    """The transaction may or may not have happened. The metastore is closed for writes from now on."""


class MetastoreInUse(Exception):
    """Another process holds the metastore, so it could not be opened."""


class MetastoreNotOpened(Exception):
    """The system does not let it be opened, or what has to be made beside it. Nothing tells that it is damaged."""

    def __init__(self, message: str, *, no_space: bool) -> None:
        super().__init__(message)
        self.no_space = no_space  # it may be for want of room
        self.hint = "see that its disk has room, and that the directory and all in it is yours and can be written to"


class MetastoreDamaged(CorruptRecord):
    """What lies on the disk, or the part of it that was asked for, is not a metastore that this version can use."""

    def __init__(self, message: str, hint: str = REBUILD_HINT) -> None:
        super().__init__(message, hint=hint)


class IndexDamaged(MetastoreDamaged):
    """An index leads astray: Metastore.mend_indexes makes it anew."""

    def __init__(self) -> None:
        super().__init__("an index of the metastore is damaged", "`zstor scrub` makes the indexes anew")


class Lookups(Protocol):
    """What can be asked. An answer shows whole transactions only, and everything that was committed before the question.

    A question that meets damage raises MetastoreDamaged, one that the disk refuses IoError; others go on. Where `scan` and
    `changes` find a row that holds what was never written, its envelope is one that does not open.
    """

    def state(self) -> StoreState: ...
    def usage(self, space: NamespaceId) -> Usage:
        """What all transactions together have made of the namespace's count."""
        ...

    def usages(self) -> dict[NamespaceId, Usage]:
        """That of every namespace that was ever counted."""
        ...

    def get(self, space: NamespaceId, name: str) -> Envelope | None: ...
    def tombstone(self, space: NamespaceId, name: str) -> Envelope | None: ...
    def scan(self, space: NamespaceId, prefix: str, after: str | None, limit: int | None) -> list[Row]:
        """Rows whose name begins with the prefix and comes behind `after`, in the order of their UTF-8 bytes: as many as the limit, or
        fewer that are large (limits.ROWS_BYTES), and none only at the end.
        """
        ...

    def named(self, version: Version, limit: int | None = None) -> list[RowName]:
        """The rows of objects whose record names this version, in no order: more than one where it was copied."""
        ...

    def leads_to(self, row: Row) -> bool:
        """Whether an object's row that is there is found by its version and by its sequence too: a bit may have flipped in an index."""
        ...

    def changes(self, space: NamespaceId, since: int, limit: int) -> list[Row]:
        """Rows and tombstones with a sequence above `since`, lowest first; as many as of `scan`. IndexDamaged where they are not: who
        goes on behind the last of them would go in circles.
        """
        ...

    def newest(self, space: NamespaceId, sequences: Sequence[int]) -> set[int]:
        """Those of the sequences that are the newest of some row, a tombstone or not."""
        ...

    def referring(self, space: NamespaceId, reference: ReferenceHash, after: str | None, limit: int) -> list[str]:
        """Names behind `after` whose records have the reference, in the order of their UTF-8 bytes."""
        ...

    def intents(self) -> Sequence[Intent]: ...
    def garbage(self, shard: int, limit: int | None = None, first: ShareId | None = None) -> Sequence[Garbage]: ...
    def garbage_count(self) -> int: ...
    def debts(self, shard: int | None = None, limit: int | None = None, after: Debt | None = None) -> Sequence[Debt]:
        """All, or those of a shard: these in an order of their own, from behind one of them on."""
        ...

    def debts_count(self) -> int: ...
    def debts_of(self, version: Version) -> Sequence[Debt]: ...


class Metastore(Lookups, Protocol):
    """Laws.

    - `commit` is atomic and durable when it returns. It raises CommitRefused (certainly nothing happened) or CommitUnknown, after
      which every further commit raises MetastoreClosed.
    - `commit`, `checkpoint` and `mend_indexes` are called by one thread at a time; reads may come from any thread at any time.
    - A tombstone takes its object's place: `get` and `scan` no longer show the row, `tombstone` does; a new object removes it.
    """

    @property
    def store_id(self) -> StoreId: ...
    @property
    def kind(self) -> str: ...
    @property
    def writable(self) -> bool: ...

    @property
    def committed(self) -> Lookups:
        """The same questions, cheaper between commits: for the thread that commits, and for no other."""
        ...

    def commit(self, transaction: Transaction) -> None: ...
    def checkpoint(self) -> None:
        """Housekeeping outside of commits; may raise CommitUnknown."""
        ...

    def mend_indexes(self) -> None:
        """Make anew what finds rows by anything but their names, where it does not lead to one that is there: a bit may have flipped in
        it. A commit that comes upon such a place does so by itself. CommitRefused, as where rows cannot be read, or CommitUnknown.
        """
        ...

    def close(self) -> None: ...
