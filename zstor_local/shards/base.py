"""What a shard is: it keeps shares and copies of records. The laws every kind of shard obeys.

One conformance suite (tests/shards/conformance.py) runs against every implementation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from zstor_local.model.ids import NamespaceId, ShareId, Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import Envelope
from zstor_local.model.storewide import ShardEntry
from zstor_local.runtime import Buffer, Randomness
from zstor_local.value import value

if TYPE_CHECKING:
    from zstor_local.shards.segment import Freed, Located

ShardState = Literal["ok", "missing", "readonly", "full", "failed"]


class ShardError(Exception):
    """A shard could not do it. `state` is what the shard is now; the text is fit for people and names no path of a key.

    `untouched`: it was seen before anything was tried, so nothing of it can lie there. `code`: what a shard server calls it.
    """

    def __init__(self, state: ShardState, message: str, *, untouched: bool = False, code: str | None = None) -> None:
        super().__init__(message)
        self.state: ShardState = state
        self.untouched = untouched
        self.code = code


class NoPlace(ShardError):
    """What was given for a place names none: nobody was asked, and asking again would not help."""

    def __init__(self, message: str) -> None:
        super().__init__("missing", message, untouched=True)


class ShareMissing(Exception):
    """The shard is there, the share is not."""


class ShareLate(Exception):
    """The share takes longer than is usual: another one may be faster."""


@value()
class Entry:
    """What a group appends to a shard's log: a record's copy, with the small share of that version that lies here, if one does."""

    envelope: Envelope
    share_index: int | None = None
    share: bytes = b""


@value()
class ScannedEntry:
    """An entry as the log holds it, and the committed sequence its writer knew."""

    entry: Entry
    committed: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes on a shard's file system or server."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class NamespaceNotice:
    """What the tokens of an issuer (None: the store's own) call a namespace."""

    id: NamespaceId
    name: str
    issuer: str | None


@dataclass(frozen=True, slots=True)
class Notices:
    """What a shard server must know to let users in. `trust` is a trust document (access/trust.py), signed with each key of which the
    server may know one alone, the newest first; empty if there is none. `updated` is its number.
    """

    trust: Sequence[str]
    updated: int
    namespaces: tuple[NamespaceNotice, ...]

    def same(self, other: Notices) -> bool:
        """Whether they say the same; a document is signed anew each time."""
        return (self.updated, self.namespaces) == (other.updated, other.namespaces)


class ShareReader(Protocol):
    """One share, opened. `read` gives the bytes of its block area (coding.share); short reads happen only at its end.

    Of a shard on another machine opening asks for nothing: ShareMissing and ShardError may come from the first read.
    """

    def prefetch(self, offset: int, length: int) -> None:
        """Begin to fetch what a `read` of the same stretch will ask for. Never waits, never raises; nothing where no network is."""
        ...

    def read(self, offset: int, length: int, *, patient: bool = True) -> Buffer:
        """The bytes. Without patience ShareLate once it takes longer than is usual; a later, patient read waits for the same ones."""
        ...

    def read_table(self, length: int) -> Buffer:
        """The sealed chunk table behind the blocks, for an object whose table is too long for its record. ShareMissing if it is not
        that long: nothing of it is read then.
        """
        ...

    def claimed_version(self) -> Version | None:
        """Whose share it says it is, if it says so: for telling a stale share from a damaged one."""
        ...

    def claimed_namespace(self) -> NamespaceId | None:
        """The namespace that it says it is of, if it says so: for telling whether a share that no record names is this store's."""
        ...

    def close(self) -> None: ...


class ShareWriter(Protocol):
    """One large share on its way in. Nothing is visible before `finish` returns; after `abort` nothing is left."""

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Blocks at an offset of the block area; any order, each byte once."""
        ...

    def finish(self, index: Buffer, blocks_length: int, table: Buffer) -> None:
        """Append the sealed chunk table and the index; the share is durable and visible when this returns."""
        ...

    def abort(self) -> None:
        """Give it up: what is not finished goes; a share that was there before stays."""
        ...


class Flushable(Protocol):
    """A log on a file system of this machine, where one syncfs flushes several of them."""

    @property
    def number(self) -> int: ...
    @property
    def file_system_key(self) -> tuple[int, str]:
        """The file system it lies on: device number and type."""
        ...

    def flush_file_system(self) -> None:
        """One syncfs for every log on this shard's file system; the caller tells the other shards."""
        ...

    def flushed_by_file_system(self) -> None: ...
    def close_for_good(self, reason: str) -> None:
        """A flush that covered this shard's log failed elsewhere."""
        ...


class Segments(Protocol):
    """A shard's log, piece by piece, for compaction. ShardError where the shard cannot serve.

    `copy`, `flush` and `remove` are the work of the thread that appends.
    """

    def sealed(self) -> list[int]:
        """The segments that nothing is appended to any more, oldest first."""
        ...

    def read(self, number: int) -> Sequence[Located] | None:
        """Every entry of a segment, in order; None if there is something else in it, which must stay."""
        ...

    def all_but(self, number: int) -> Iterator[tuple[ScannedEntry | Freed, int]]:
        """The entries of all other segments, those being written too, each with its size in bytes."""
        ...

    def lies_at(self, number: int, located: Located) -> bool:
        """Whether the small share of an entry is read from just there."""
        ...

    def holds(self, share: ShareId) -> bool:
        """Whether a small share is here at all."""
        ...

    def copy(self, items: Sequence[ScannedEntry | Freed]) -> None:
        """Append entries again, sealed bytes and all, in order. Durable after `flush`."""
        ...

    def unread(self) -> int:
        """How many pages of the log its disk could not read so far, counted again each time: what lies there may be anything."""
        ...

    def flush(self) -> None: ...
    def remove(self, number: int, dropped: Sequence[ShareId] = ()) -> None:
        """Take a sealed segment away, durably. All of it that counts was copied and flushed.

        Of `dropped` no entry says that they were freed: those that are read from there are known as gone from now on.
        """
        ...


class ReadableShard(Protocol):
    """As much of a shard as reading takes, and all that another user's store lets one have. The laws are those of Shard."""

    @property
    def number(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def url(self) -> str:
        """Where it was opened."""
        ...

    @property
    def on_disk(self) -> Flushable | None:
        """Its log as one on a file system of this machine; None where it is none."""
        ...

    def check(self) -> ShardState:
        """Look whether the shard is there and writable, cheaply; never raises."""
        ...

    def last_error(self) -> str | None: ...

    def open_share(self, share: ShareId, *, small: bool) -> ShareReader:
        """`small` tells where it lies: in the log or in a file of its own. ShareMissing if it is not there."""
        ...

    def peek(self, share: ShareId, offset: int, length: int) -> Buffer | None:
        """Bytes of a small share that are had without waiting for a disk or a network. None for any other: opening it tells why."""
        ...

    def has(self, share: ShareId, *, small: bool) -> bool:
        """Whether the share lies here, whatever its bytes are."""
        ...


class Shard(ReadableShard, Protocol):
    """Laws. Methods may be called from any worker thread; any of them raises ShardError when the shard cannot serve.

    `number` to `on_disk`, `check`, `recent_state` and `last_error` never wait for a network, so the event loop may call them too.

    - What `finish` or `flush` answered without an error survives a power loss; before that nothing is promised.
    - After a failed flush the shard never accepts entries again in this process: the state is `failed`.
    - A share that was written is read back bit by bit, or ShareMissing, or ShardError; other bytes are found by the reader's seals.
    - `append`, `flush`, and freeing small shares are the work of one thread at a time. `free` of what is not there is fine.
    - A shard without its marker is `missing`: it is never written, never initialised. Once it was seen so it stays so until it is
      opened anew, as somebody else may have written to it meanwhile.
    - What was opened is closed in the thread that appends. Readers and writers of shares that are open then end by themselves.
    """

    @property
    def entry(self) -> ShardEntry:
        """As it was listed when it was opened."""
        ...

    @property
    def group(self) -> str:
        """What it shares its fate with: as recorded, or its file system or host."""
        ...

    def segments(self) -> Segments | None:
        """Its log for compaction; None where somebody else sees to that."""
        ...

    def start(self, writer: int, randomness: Randomness) -> None:
        """Make it writable for this daemon, whose writer number is higher than all before. If it cannot be, `check` tells why."""
        ...

    def newest_writer(self) -> int:
        """The highest writer number that it has seen."""
        ...

    def newest_committed(self) -> int:
        """The highest committed sequence that an entry of its log tells of."""
        ...

    def recent_state(self) -> ShardState:
        """What the last look said while that was good: every append looks anyway, so a write need not look before it."""
        ...

    def unsettled(self) -> Sequence[Envelope]:
        """What its newest writer appended without saying later that it was committed: it may have been, or not."""
        ...

    def may_return(self) -> bool:
        """Whether a shard that is not well might be, if it were opened anew: nothing of this life's trouble can lie there unseen."""
        ...

    def capacity(self) -> Capacity: ...

    def append(self, entries: Sequence[Entry], committed: int) -> None:
        """Put entries behind the log's end, in order. Durable only after `flush`; before that the shares need not be found."""
        ...

    def start_flush(self) -> None:
        """Begin what `flush` will wait for, without waiting: so that several machines are waited for at once. Never raises."""
        ...

    def flush(self) -> None: ...

    def scan(self) -> Iterator[ScannedEntry]:
        """Every whole entry of the log in the order written, damaged stretches skipped."""
        ...

    def records(self) -> Iterator[bytes]:
        """The records of those entries, as Envelope.pack gives them: cheaper where nothing else is wanted."""
        ...

    def begin(self, share: ShareId, namespace: NamespaceId, policy: Policy) -> ShareWriter: ...
    def tell(self, notices: Notices) -> bool:
        """Tell a shard server whom to let in; a directory lets in nobody. Returns whether the owner's newest key is what it goes by."""
        ...

    def retire(self, namespace: NamespaceId) -> None:
        """Have a shard server remove all that it has of a namespace that is no more. The log of a directory forgets it by itself."""
        ...

    def supersede(self, namespace: NamespaceId, sequences: Sequence[int]) -> None:
        """Tell a shard server which records of a namespace nobody needs any more, as its log holds a newer one of their key that was
        committed. It leaves them out when it compacts; what it forgets of that is told again some day. A directory is told nothing.
        """
        ...

    def held(self, *, small: bool) -> Iterator[ShareId]:
        """Every share of that kind that lies here, whoever wrote it, in an order that stays; little memory is taken."""
        ...

    def free(self, shares: Sequence[ShareId], *, small: bool) -> None:
        """Forget shares. Their freeing is durable after the next `settle`. Small ones are freed by the thread that appends."""
        ...

    def settle(self, *, small: bool) -> None:
        """Make what was freed durable."""
        ...

    def close(self) -> None: ...
