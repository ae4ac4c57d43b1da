"""Repair everything: each object is checked block by block, and what is bad made anew, spare shards used for those that are away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from zstor_local.errors import Conflict, NotFound, OutcomeUnknown, ShuttingDown, Unavailable, ZstorError
from zstor_local.metastore.base import Row
from zstor_local.model.record import Kind
from zstor_local.store.caller import Caller, Nobody
from zstor_local.store.core import Core
from zstor_local.store.damaged_rows import DamagedRows
from zstor_local.store.health import Health
from zstor_local.store.mending import Mending
from zstor_local.store.namespaces import Namespace, Namespaces
from zstor_local.store.pace import unpaced
from zstor_local.store.several import for_each
from zstor_local.store.stored import Stored, open_object

PAGE: Final = 100  # rows read at once
REPORTED: Final = 1_000  # objects told one by one; further ones are counted


@dataclass(frozen=True, slots=True)
class NotRepaired:
    """An object that stays as it is, and why."""

    namespace: str
    key: str
    trouble: str  # the type of the error
    message: str


@dataclass(slots=True)
class RepairedAll:
    """What it came to. Of `repaired` objects shares were made anew, `lacking` still have bad ones that no shard could take; `owed` is
    what shards that are away have still to be given.
    """

    objects: int = 0
    repaired: int = 0
    failed: int = 0
    lacking: int = 0
    owed: int = 0
    found: list[NotRepaired] = field(default_factory=list)


class RepairAll:
    """The use case. It is idempotent: broken off at any moment, it is begun anew and finds less to do."""

    def __init__(self, core: Core, namespaces: Namespaces, health: Health, mending: Mending, damaged_rows: DamagedRows) -> None:
        self._metastore = core.metastore
        self._sealer = core.sealer
        self._namespaces = namespaces
        self._health = health
        self._mending = mending
        self._damaged_rows = damaged_rows

    async def run(self, caller: Caller) -> RepairedAll:
        """Bring back the records that do not open, pay what shards that are there are owed, then go through all objects."""
        report = RepairedAll()
        await self._damaged_rows.mend_all(unpaced)
        await self._mending.mend()
        for namespace in self._namespaces.all():
            after: str | None = None
            while page := self._metastore.scan(namespace.id, "", after, PAGE):
                after = page[-1].name
                await self._page(namespace, page, report, caller)
        report.owed = self._metastore.debts_count()
        return report

    async def _page(self, namespace: Namespace, page: Sequence[Row], report: RepairedAll, caller: Caller) -> None:
        async def repair(row: Row) -> None:
            await self._object(namespace, row, report)
            caller.progress(report.objects, max(report.objects, self._metastore.state().objects))

        await for_each([row for row in page if row.envelope.kind is Kind.OBJECT], repair)

    async def _object(self, namespace: Namespace, row: Row, report: RepairedAll) -> None:
        report.objects += 1
        try:
            stored = Stored(namespace.name, open_object(self._sealer, row.envelope), row.envelope)
            repaired = await self._health.repair(stored, Nobody())
        except (Conflict, NotFound):
            return  # deleted, with its namespace perhaps, or written again meanwhile
        except (Unavailable, ShuttingDown, OutcomeUnknown):
            raise  # the store takes no changes any more
        except ZstorError as error:
            if self._metastore.get(namespace.id, row.name) != row.envelope:
                return
            report.failed += 1
            if len(report.found) < REPORTED:
                report.found.append(NotRepaired(namespace.name, row.name, error.type, error.message))
        else:
            report.repaired += repaired.made > 0
            report.lacking += repaired.lacking > 0
