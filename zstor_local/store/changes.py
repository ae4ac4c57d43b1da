"""What has changed since: the newest record or tombstone of each key, in the order of the changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import trio

from zstor_local.errors import CorruptRecord
from zstor_local.metastore.base import Row
from zstor_local.model.record import Kind
from zstor_local.store.core import Core
from zstor_local.store.namespaces import Namespaces
from zstor_local.store.pace import RECORDS_A_TURN
from zstor_local.store.stored import Stored, open_object, with_debts


@dataclass(frozen=True, slots=True)
class Changed:
    """A key that was written, linked, tagged, renamed or (without `stored`) deleted; higher sequences came later. Those of another
    user's namespace are the follower's own.
    """

    key: str
    sequence: int
    stored: Stored | None


class Changes:
    """The use case. Groups are committed in the order of their sequences, and what is followed has an order of its own, so nothing is
    ever added below one that was shown.
    """

    def __init__(self, core: Core, namespaces: Namespaces) -> None:
        self._metastore = core.reading
        self._sealer = core.sealer
        self._suspects = core.suspects
        self._namespaces = namespaces

    def are_there(self, namespace_name: str, sequence: int) -> bool:
        """Whether any key's last change is above this sequence."""
        namespace = self._namespaces.find(namespace_name)
        return namespace is not None and bool(self._metastore.arrived(namespace.id, sequence, 1))

    async def since(self, namespace_name: str, sequence: int, limit: int) -> AsyncGenerator[Changed, None]:
        """Keys whose last change is above this sequence, lowest first, at most `limit`. A record that does not open ends it with its
        error, whose data has the sequence to go on behind as `cursor`.
        """
        namespace = self._namespaces.find(namespace_name)
        if namespace is None:
            return
        while limit > 0 and (arrived := self._metastore.arrived(namespace.id, sequence, min(limit, RECORDS_A_TURN))):
            for place, row in arrived:
                yield Changed(row.name, place, self._stored(namespace_name, place, row))
            limit, sequence = limit - len(arrived), arrived[-1][0]
            await trio.lowlevel.checkpoint()

    def _stored(self, namespace_name: str, place: int, row: Row) -> Stored | None:
        """The version that a change left; None for a deletion."""
        if row.envelope.kind is not Kind.OBJECT:
            return None
        try:
            record = open_object(self._sealer, row.envelope)
        except CorruptRecord as error:
            error.data.update(key=row.name, cursor=place)
            self._suspects.add(row.space, row.name)
            raise
        return with_debts(self._metastore, Stored(namespace_name, record, row.envelope))
