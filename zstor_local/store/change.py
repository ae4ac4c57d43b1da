"""What a use case asks of the committer: a change, decided in its thread, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field

from zstor_local.metastore.base import Debt, Garbage, Intent, Reference, RowName
from zstor_local.model.ids import KeyHash, Version
from zstor_local.model.record import Envelope, Kind
from zstor_local.shards.base import Entry
from zstor_local.value import value


@value()
class NewRecord:
    """A record to seal and publish: to the metastore and, as a copy, to the logs of `copies`."""

    kind: Kind
    key_hash: KeyHash
    version: Version
    plain: bytes
    copies: Sequence[int]  # shard numbers
    shares: Mapping[int, tuple[int, bytes]] = field(default_factory=dict)  # shard number → (share index, small share)
    quorum: int = 0  # of `shares` (or, without them, of `copies`) that must be durable
    k: int = 1  # so many logs are enough for a rebuild to bring it back: decides whether a void reached far enough


Sealed = Mapping[RowName, tuple[NewRecord, Envelope]]  # records by row, with what they became


@value()
class Decision:
    """What a change comes to, given the row's committed envelope.

    `records` are the rows that change, of whatever space, all or none. If a shard of `resend` does not take its copies, the change
    is refused.
    """

    records: Mapping[RowName, NewRecord] = field(default_factory=dict)
    intents: Sequence[Intent] = ()
    intents_done: Sequence[Version] = ()
    garbage: Sequence[Garbage] = ()
    garbage_freed: Sequence[Garbage] = ()
    debts: Sequence[Debt] = ()
    debts_paid: Sequence[Debt] = ()
    references: Sequence[Reference] = ()
    references_gone: Sequence[Reference] = ()
    resend: Mapping[int, Sequence[Entry]] = field(default_factory=dict)  # shard number → committed things that it has missed
    objects: int = 0  # what it adds to the store's count of objects
    bytes: int = 0  # and to their plain bytes


@value()
class Committed:
    """The outcome of a change: the row's envelope now (None for bookkeeping) and the shards that still have to be told or filled."""

    envelope: Envelope | None
    owed: tuple[int, ...] = ()
    shares_owed: tuple[int, ...] = ()


Decide = Callable[[Envelope | None], Decision]
