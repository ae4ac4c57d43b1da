"""Deleting a namespace with all its objects, so that a crash at any moment only delays it.

1  the namespace's record says `deleting`: nobody finds it any more, nothing can be written to it
2  its objects are buried, some hundreds to a commit, and their shares become garbage
3  a tombstone takes the record's place, and everybody's rights in it go with the same commit

A start goes on where an earlier life was. The name is free again after step 3.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from zstor_local.errors import CorruptRecord, ZstorError
from zstor_local.metastore.base import RowName
from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import NO_VERSION, Envelope
from zstor_local.model.storewide import NamespaceRecord
from zstor_local.store.caller import Caller
from zstor_local.store.change import Decision, NewRecord
from zstor_local.store.core import Core
from zstor_local.store.edits import Edits, tombstone
from zstor_local.store.freeing import Freeing
from zstor_local.store.namespaces import Namespace, Namespaces, no_namespace

BATCH: Final = 200  # objects buried by one commit

log = logging.getLogger("zstor.store")


@dataclass(slots=True, eq=False)
class _Removal:
    """One namespace on its way out, for those who wait for it."""

    total: int
    done: int = 0
    error: ZstorError | None = None
    ended: bool = False
    news: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        self.news.set()
        self.news = trio.Event()

    def end(self, error: ZstorError | None) -> None:
        self.ended, self.error = True, error
        self.tell()


class NamespaceRemoval:
    """One task for a store."""

    def __init__(self, core: Core, namespaces: Namespaces, freeing: Freeing) -> None:
        self._core = core
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._namespaces = namespaces
        self._freeing = freeing
        self._woken = trio.Event()
        self._running: dict[NamespaceId, _Removal] = {}

    async def remove(self, name: str, caller: Caller) -> int:
        """Delete the namespace and everything in it; returns how many objects that were. NotFound if it is not there.

        Once it has begun it goes on, whether the caller waits or not; where it fails, the next call or start takes it up.
        """
        if self._namespaces.record(name) is None:
            raise no_namespace(name)

        def closing(record: NamespaceRecord) -> NamespaceRecord:
            return replace(record, deleting=True)

        caller.begin_commit()
        namespace = await self._namespaces.change(name, closing)
        removal = self._running.setdefault(namespace.id, _Removal(self._namespaces.usage(namespace).objects))
        self.wake()
        while not removal.ended:
            news = removal.news
            caller.progress(removal.done, removal.total)
            await news.wait()
        if removal.error is not None:
            raise removal.error
        return removal.done

    def wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            try:
                for namespace in self._namespaces.half_deleted():
                    await self._finish(namespace)
            except ZstorError as error:
                log.warning("which namespaces are being deleted cannot be seen: %s", error)
                while self._running:
                    self._running.popitem()[1].end(error)

    async def _finish(self, namespace: Namespace) -> None:
        removal = self._running.setdefault(namespace.id, _Removal(self._namespaces.usage(namespace).objects))
        try:
            while rows := self._metastore.scan(namespace.id, "", None, BATCH):
                await self._bury(namespace, [row.name for row in rows])
                self._freeing.wake()
                removal.done += len(rows)
                removal.tell()
            await self._namespaces.remove(namespace)
        except ZstorError as error:
            log.warning("the namespace %s is not yet deleted: %s", namespace.name, error)
            removal.end(error)
        else:
            removal.end(None)
        del self._running[namespace.id]

    async def _bury(self, namespace: Namespace, keys: list[str]) -> None:
        def decide(_: Envelope | None) -> Decision:
            edits = Edits(self._core, namespace)
            unreadable: dict[RowName, NewRecord] = {}
            now = self._runtime.clock.now()
            for key in keys:
                try:
                    if edits.find(key) is not None:
                        edits.remove(key)
                except CorruptRecord:
                    # It tells nobody where its shares are: its tombstone goes everywhere, for `zstor collect` to find them.
                    k = namespace.policy.k
                    unreadable[namespace.id, key] = tombstone(namespace, key, NO_VERSION, self._pool.numbers, now, k=k)
            change = edits.decision(now, insist=False, closing=True)
            return replace(change, records={**change.records, **unreadable}, objects=change.objects - len(unreadable))

        await self._committer.commit(namespace.id, keys[0], decide)
