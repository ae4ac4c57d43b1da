"""Walks along linked objects, forward or backward, by the time of creation.

`created` grows along a list, so a walk ends: at the list's end, behind the range, or at a link that does not hold. It goes from record
to record, by what each says when the walk comes to it; what is changed meanwhile by others is no broken link.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import Conflict, CorruptRecord
from zstor_local.model.ids import ObjectName
from zstor_local.model.record import ObjectRecord
from zstor_local.store.core import Core
from zstor_local.store.namespaces import Namespace, Namespaces
from zstor_local.store.pace import RECORDS_A_TURN
from zstor_local.store.stored import Stored, no_key, stored_at

LOOKS: Final = 10  # at a link that changes each time


@dataclass(frozen=True, slots=True)
class Route:
    """Which way, and the range of `created`, both ends in it; None is open."""

    forward: bool = True
    start: int | None = None
    end: int | None = None

    def ends(self, created: int) -> bool:
        """Whether all that follows is outside the range."""
        limit = self.end if self.forward else self.start
        return limit is not None and (created >= limit if self.forward else created <= limit)

    def holds(self, created: int) -> bool:
        return (self.start is None or created >= self.start) and (self.end is None or created <= self.end)

    def ahead(self, record: ObjectRecord) -> str | None:
        return record.next_key if self.forward else record.previous_key

    def behind(self, record: ObjectRecord) -> str | None:
        return record.previous_key if self.forward else record.next_key

    def goes_on(self, created: int, there: int) -> bool:
        return there > created if self.forward else there < created


@dataclass(frozen=True, slots=True)
class Position:
    """Where a walk has come to: an object, and the key that followed when it was there."""

    key: str
    created: int
    ahead: str

    @classmethod
    def at(cls, stored: Stored, route: Route) -> Position | None:
        """None at the end of the list, or of the range."""
        ahead = route.ahead(stored.record)
        return None if ahead is None or route.ends(stored.record.created) else cls(stored.record.key, stored.record.created, ahead)


class Walk:
    """The use case."""

    def __init__(self, core: Core, namespaces: Namespaces) -> None:
        self._core = core
        self._namespaces = namespaces

    async def along(self, name: ObjectName, route: Route, position: Position | None = None) -> AsyncGenerator[Stored, None]:
        """The objects of the range from this key on (NotFound if it is not there), or from behind a position.

        CorruptRecord names the key at which a link is broken; Conflict says that others have changed the list too much meanwhile.
        """
        namespace = self._namespaces.find(name.namespace)
        if namespace is None:
            raise no_key(name)
        found = self._find(namespace, name.key) if position is None else self._step(namespace, route, position)
        if found is None and position is None:
            raise no_key(name)
        looked = 0
        while found is not None:
            if route.holds(found.record.created):
                yield found
            looked += 1 + len(found.envelope.sealed) // limits.KIB
            if looked >= RECORDS_A_TURN:
                await trio.lowlevel.checkpoint()
                looked = 0
            here = Position.at(found, route)
            found = None if here is None else self._step(namespace, route, here)

    def _step(self, namespace: Namespace, route: Route, position: Position) -> Stored | None:
        """The object behind a position; None at the end."""
        for _ in range(LOOKS):
            here = self._find(namespace, position.key)
            still_there = here is not None and here.record.created == position.created
            ahead = route.ahead(here.record) if here is not None and still_there else position.ahead
            if ahead is None:
                return None
            there = self._find(namespace, ahead)
            fits = there is not None and route.goes_on(position.created, there.record.created)
            if there is not None and fits and (not still_there or route.behind(there.record) == position.key):
                return there
            if not still_there:
                break  # deleted or renamed, and what came next too
            again = self._find(namespace, position.key)
            if again is not None and here is not None and again.envelope.sequence == here.envelope.sequence:
                what = "is not there" if there is None else "does not belong to it"
                hint = f"walk from {ahead!r}, or from the other end of the list"
                raise CorruptRecord(f"the list is broken at {position.key!r}: {ahead!r} {what}", hint=hint, key=position.key)
        hint = "walk again from a key that is there"
        raise Conflict(f"the list was changed at {position.key!r} while it was walked", hint=hint, key=position.key)

    def _find(self, namespace: Namespace, key: str) -> Stored | None:
        return stored_at(self._core, namespace, key)
