"""A store's own metastore, with what is known of other users' namespaces beside it: reads go where the namespace lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from zstor_local.metastore.base import Lookups, Row, Usage
from zstor_local.model.ids import NamespaceId, ReferenceHash
from zstor_local.model.record import Envelope


class FollowedRows(Lookups, Protocol):
    """What is known of another user's namespace. Its rows come in an order of their own: one log may lag behind another."""

    def arrived(self, space: NamespaceId, since: int, limit: int) -> list[tuple[int, Row]]:
        """Rows and tombstones that changed here after `since`, the place of one in this order, each with its place, lowest first. All
        of them where `since` is a place that there was never, as from before a restart.
        """
        ...


class RoutedMetastore:
    """See the laws of metastore.base.Lookups. All that is not of a `joined` space is the own one's to answer."""

    def __init__(self, own: Lookups) -> None:
        self.joined: dict[NamespaceId, FollowedRows] = {}
        self._own = own
        self.state = own.state
        self.usages = own.usages
        self.named = own.named
        self.leads_to = own.leads_to
        self.intents = own.intents
        self.garbage = own.garbage
        self.garbage_count = own.garbage_count
        self.debts = own.debts
        self.debts_count = own.debts_count
        self.debts_of = own.debts_of

    def _of(self, space: NamespaceId) -> Lookups:
        return self.joined.get(space, self._own)

    def get(self, space: NamespaceId, name: str) -> Envelope | None:
        return self._of(space).get(space, name)

    def tombstone(self, space: NamespaceId, name: str) -> Envelope | None:
        return self._of(space).tombstone(space, name)

    def scan(self, space: NamespaceId, prefix: str, after: str | None, limit: int | None) -> list[Row]:
        return self._of(space).scan(space, prefix, after, limit)

    def changes(self, space: NamespaceId, since: int, limit: int) -> list[Row]:
        return self._of(space).changes(space, since, limit)

    def arrived(self, space: NamespaceId, since: int, limit: int) -> list[tuple[int, Row]]:
        """Rows and tombstones in the order in which they changed here: that of their sequences, or a follower's own."""
        if (followed := self.joined.get(space)) is not None:
            return followed.arrived(space, since, limit)
        return [(row.envelope.sequence, row) for row in self._own.changes(space, since, limit)]

    def newest(self, space: NamespaceId, sequences: Sequence[int]) -> set[int]:
        return self._of(space).newest(space, sequences)

    def referring(self, space: NamespaceId, reference: ReferenceHash, after: str | None, limit: int) -> list[str]:
        return self._of(space).referring(space, reference, after, limit)

    def usage(self, space: NamespaceId) -> Usage:
        return self._of(space).usage(space)
