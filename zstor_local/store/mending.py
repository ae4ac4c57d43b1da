"""Mending by itself: shards that were away get what they are owed, and what reads found bad is repaired: shares, and records.

What cannot be mended now (its shard is away, too few shares are good) stays: the debts in the metastore, what is bad until somebody
reads or repairs it again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import NotFound, ZstorError
from zstor_local.metastore.base import Debt, Owed
from zstor_local.model.ids import ObjectName, Version
from zstor_local.model.record import STORE_WIDE, Envelope
from zstor_local.shards.base import Entry
from zstor_local.store.caller import Nobody
from zstor_local.store.change import Decision
from zstor_local.store.core import Core
from zstor_local.store.damaged_rows import DamagedRows
from zstor_local.store.free_space import FreeSpace
from zstor_local.store.health import Health
from zstor_local.store.namespaces import Namespaces
from zstor_local.store.reads import Objects
from zstor_local.store.several import for_each
from zstor_local.store.shares import ShareState
from zstor_local.store.stored import Stored

BATCH: Final = 200  # debts paid in one change
PAGE: Final = 1_000  # debts read at once
REMEMBERED: Final = 10_000  # versions on the repair list at most; a scrub finds the others
AGAIN_SECONDS: Final = 600.0  # after what could not be mended, and between two looks for debts: a disk may have room by then
MANY_IN_VAIN: Final = 10  # shares one after the other that a shard does not take: the others wait for the next look

log = logging.getLogger("zstor.store")


class Mending:
    """One task for a store; `wake` it when a shard came back."""

    def __init__(
        self, core: Core, namespaces: Namespaces, health: Health, free_space: FreeSpace, objects: Objects, damaged_rows: DamagedRows
    ) -> None:
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._namespaces = namespaces
        self._health = health
        self._free_space = free_space
        self._objects = objects
        self._damaged_rows = damaged_rows
        self._suspects = core.suspects
        self._suspects.on_found = lambda: self._woken.set()
        self._woken = trio.Event()
        self._bad: dict[Version, ObjectName] = {}  # of which reads found shares bad, by a key that named them
        self._room = trio.Event()
        self._in_vain: dict[Version, float] = {}  # when a repair was tried last, the longest ago first

    @property
    def waiting(self) -> int:
        """Versions on the repair list, and records."""
        return len(self._bad) + len(self._suspects)

    def wake(self) -> None:
        """A shard is there that was not: what was in vain may go well now."""
        self._in_vain.clear()
        self._suspects.forget_taken()
        self._woken.set()

    async def room(self) -> None:
        """Wait until the repair list has room for one more."""
        while len(self._bad) >= REMEMBERED:
            self._room = trio.Event()
            await self._room.wait()

    def suspect(self, stored: Stored, states: Mapping[int, ShareState]) -> None:
        """A read found these shares bad. Those whose shard is only away are not worth a repair."""
        worth = any(state != "unreachable" for state in states.values())
        if not worth or stored.version in self._bad or self._just_tried(stored.version) or len(self._bad) >= REMEMBERED:
            return
        bad = ", ".join(f"{index} is {state}" for index, state in sorted(states.items()))
        log.warning("version %s has bad shares: %s", stored.version.hex(), bad)
        self._bad[stored.version] = ObjectName(stored.namespace, stored.record.key)
        self._woken.set()

    def _just_tried(self, version: Version) -> bool:
        now = trio.current_time()
        while self._in_vain and now - next(iter(self._in_vain.values())) >= AGAIN_SECONDS:
            del self._in_vain[next(iter(self._in_vain))]
        return version in self._in_vain

    async def run(self) -> None:
        while True:
            with trio.move_on_after(AGAIN_SECONDS) as pause:
                await self._woken.wait()
            if pause.cancelled_caught:
                self._suspects.forget_taken()
            self._woken = trio.Event()
            await self.mend()

    async def mend(self) -> None:
        """One pass over all that waits."""
        await self._bring_back()
        for number in self._pool.usable():
            try:
                await self._pay(number)
            except ZstorError as error:
                log.warning("shard %s was not told all it missed: %s", self._pool.name(number), error)
        await for_each(list(self._bad.items()), lambda suspect: self._repair(*suspect))

    async def _bring_back(self) -> None:
        """The rows that were found not to open."""
        try:
            if rows := self._suspects.take():
                await self._damaged_rows.mend_rows(rows)
        except ZstorError as error:
            log.warning("records that do not open were not brought back: %s", error)

    async def _pay(self, number: int) -> None:
        """Give a shard the records that it missed, then the shares, as long as it takes them."""
        await self._page_by_page(number, Owed.RECORD, partial(self.tell, number))
        in_vain = 0
        large = trio.Lock()  # each reads all other shares: none begins before the one before it is known to be in vain

        def takes_more() -> bool:
            return in_vain < MANY_IN_VAIN and number not in self._free_space.full_shards()

        async def fill(debt: Debt) -> None:
            nonlocal in_vain
            stored = await self._owed(debt) if takes_more() else None
            if stored is None:
                return
            async with nullcontext() if stored.record.small else large:
                if takes_more():
                    in_vain = 0 if await self._fill(stored, debt) else in_vain + 1

        await self._page_by_page(number, Owed.SHARE, lambda debts: for_each(debts, fill))

    async def _page_by_page(self, number: int, kind: Owed, pay: Callable[[Sequence[Debt]], Awaitable[object]]) -> None:
        """Have what a shard is owed of that kind paid. After a long absence it is more than anybody should hold at once."""
        last: Debt | None = None
        while found := await self._runtime.threads.run(self._metastore.debts, number, PAGE, last):
            last = found[-1]
            await pay([debt for debt in found if debt.kind is kind])

    async def tell(self, number: int, debts: Sequence[Debt]) -> None:
        """Give a shard the newest records of these rows, whether it was known or not that it lacks them."""
        start = 0
        while start < len(debts):
            start += await self._tell(number, debts[start : start + BATCH])

    async def _tell(self, number: int, debts: Sequence[Debt]) -> int:
        """The same of the first ones; returns of how many. They are as many as one commit should hold."""
        count = 0

        def decide(_: Envelope | None) -> Decision:
            nonlocal count
            entries: list[Entry] = []
            count = size = 0
            while count < len(debts) and size < limits.GROUP_BYTES:
                newest = self._committer.view.newest(debts[count].space, debts[count].name)
                if newest is not None:
                    entries.append(Entry(newest))
                    size += len(newest.sealed)
                count += 1
            return Decision(resend={number: entries}, debts_paid=debts[:count])

        await self._committer.commit(STORE_WIDE, "", decide)
        return count

    async def _owed(self, debt: Debt) -> Stored | None:
        """The version whose share a shard is owed; nobody is owed one of a version that is gone."""
        namespace = self._namespaces.by_id(debt.space)
        keys = [key for space, key in self._metastore.named(debt.version) if space == debt.space]
        if namespace is None or not keys:
            await self._committer.commit(debt.space, "", self._paid_if_gone(debt))
            return None
        try:
            return self._objects.find(ObjectName(namespace.name, keys[0]))
        except ZstorError as error:
            log.warning("version %s still lacks a share: %s", debt.version.hex(), error)
            return None

    async def _fill(self, stored: Stored, debt: Debt) -> bool:
        """Make the share that a shard is owed. False if the shard does not take it."""
        try:
            await self._health.repair(stored, Nobody())
        except ZstorError as error:
            log.warning("version %s still lacks a share: %s", debt.version.hex(), error)
            return True
        return debt not in self._metastore.debts_of(debt.version)

    def _paid_if_gone(self, debt: Debt) -> Callable[[Envelope | None], Decision]:
        return lambda _: Decision() if self._committer.view.is_named(debt.space, debt.version) else Decision(debts_paid=[debt])

    async def _repair(self, version: Version, name: ObjectName) -> None:
        try:
            stored = self._objects.find(name)
            if stored.version == version:
                stored = (await self._health.repair(stored, Nobody())).stored
                if not all(map(self._pool.knows, stored.record.placement)):  # a removed shard's share, and no other shard for it
                    self._note_in_vain(version)
        except NotFound:
            pass
        except ZstorError as error:
            log.warning("version %s was not repaired: %s", version.hex(), error)
            self._note_in_vain(version)
        self._bad.pop(version, None)
        self._room.set()

    def _note_in_vain(self, version: Version) -> None:
        self._in_vain.pop(version, None)
        self._in_vain[version] = trio.current_time()
