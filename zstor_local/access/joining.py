"""Reading another user's namespace: its records are followed on the shard servers, its objects read from there.

What the owner's daemon gave, a pass, is a row of our store; letters renew it. The records themselves are read anew at each start.
Nothing is ever written there: our token lets us read only, and the shard servers check it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from zstor_local.access.authority import Authority
from zstor_local.access.invitation import Pass, open_invitation, public_key
from zstor_local.access.joined import Joined
from zstor_local.access.joined_rows import Rows, remove_rows
from zstor_local.access.joined_shard import IDENTITY, IDENTITY_TABLE, JoinedShard, private_key
from zstor_local.coding.keys import KEY_BYTES
from zstor_local.errors import AlreadyExists, NotFound, Unauthenticated, Unavailable, ZstorError
from zstor_local.model.ids import check_namespace
from zstor_local.model.record import STORE_WIDE
from zstor_local.runtime import Network
from zstor_local.shards.base import ShardError
from zstor_local.store.namespaces import JOINED_TABLE, Namespace
from zstor_local.store.store import Store
from zstor_local.store.storewide import StoredRow

JOIN_SECONDS: Final = 30.0  # that a join waits for the first look at all servers

log = logging.getLogger("zstor.access")


class Joining:
    """The use cases, and the tasks that follow."""

    def __init__(self, store: Store, authority: Authority, network: Network) -> None:
        self._store = store
        self._authority = authority
        self._network = network
        self._joined: dict[str, Joined] = {}
        self._nursery: trio.Nursery | None = None
        self._numbers = 0
        self._turn = trio.Lock()  # of those who join and leave

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow what was joined before, and what is joined from now on."""
        await self._store.runtime.threads.run(remove_rows, self._store.runtime.files, self._store.config.store)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for row in self._store.rows.each(JOINED_TABLE):
                    try:
                        await self._open(row.name, Pass.decode(row.value))
                    except ZstorError as error:
                        log.error("the joined namespace %s is left out: %s", row.name, error)
                task_status.started()
                await trio.sleep_forever()
        finally:
            for joined in self._joined.values():
                joined.close()

    async def public_key(self) -> str:
        """Our own, made on first use."""
        row = await self._store.rows.change(
            IDENTITY_TABLE, IDENTITY, lambda row: self._store.runtime.randomness.bytes(KEY_BYTES) if row is None else row.value
        )
        if row is None:
            raise AssertionError("a row that was put is there")
        return public_key(row.value)

    async def join(self, invitation: str, name: str | None, progress: Callable[[int], None]) -> Namespace:
        """Read the namespace that the invitation gives, under its own name or another one. Durable when this returns, and caught up
        with each server that answers. AlreadyExists for a name that is taken here. `progress` is told how many objects are known.
        """
        given = open_invitation(invitation, private_key(self._store))
        name = check_namespace(name or given.namespace)
        async with self._turn:
            joined = await self._take(given, name)
        with trio.move_on_after(JOIN_SECONDS):
            await self._catch_up(joined, progress)
        return joined.namespace

    async def _take(self, given: Pass, name: str) -> Joined:
        """Join it, or renew what is joined already."""
        self._must_be_anothers(given)
        before = self._joined.get(name)
        if before is not None and before.given.is_of_one_owner_with(given):
            await self._store.rows.put(JOINED_TABLE, name, given.encode())  # a newer invitation
            before.renew(given)
            return before
        if before is not None:
            raise AlreadyExists(f"there is a namespace {name} here", hint="give it another name with `namespace`")
        if any(each.given.namespace_id == given.namespace_id for each in self._joined.values()):
            raise AlreadyExists("that namespace is joined already, under another name", hint="`zstor namespace ls` shows it")

        def take(_: StoredRow | None) -> bytes:
            self._store.namespaces.must_be_free(name)
            return given.encode()

        await self._store.rows.change(JOINED_TABLE, name, take)
        return await self._open(name, given)

    async def _catch_up(self, joined: Joined, progress: Callable[[int], None]) -> None:
        errors: list[ShardError] = []

        def took() -> None:
            progress(joined.rows.usage(joined.namespace.id).objects)

        async def catch_up(shard: JoinedShard) -> None:
            try:
                await shard.catch_up(took)
            except ShardError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for shard in joined.shards.values():
                nursery.start_soon(catch_up, shard)
        if errors and len(errors) == len(joined.shards):
            wrong = Unauthenticated if errors[0].code in ("unauthenticated", "forbidden") else Unavailable
            raise wrong(f"no shard server lets us read: {errors[0]}", hint="it is joined, and read as soon as one does")

    async def leave(self, name: str) -> None:
        """Forget a namespace that was joined; NotFound if it was not."""
        async with self._turn:
            await self._leave(name)

    async def _leave(self, name: str) -> None:
        if not self.joined(name):
            raise NotFound(f"no namespace {name} was joined", hint="`zstor namespace ls` lists them")
        await self._store.rows.remove(JOINED_TABLE, name)
        joined = self._joined.pop(name, None)
        if joined is None:
            return  # it was left out at the start
        self._store.namespaces.joined.pop(name, None)
        for number in joined.shards:
            self._store.pool.joined.pop(number, None)
        self._store.reading.joined.pop(joined.namespace.id, None)
        with trio.CancelScope(shield=True):
            await joined.leave()
        self._store.sealer.foreign.pop(joined.namespace.id, None)

    def _must_be_anothers(self, given: Pass) -> None:
        """AlreadyExists for what would take the place of something of this store's, whoever claims to own it."""
        ours = {STORE_WIDE, *self._store.namespaces.ids()}
        if given.store_id == self._store.sealer.store_id or given.namespace_id in ours:
            raise AlreadyExists("that is a namespace of this very store", hint="read it by its name")

    def warnings(self) -> list[str]:
        """Of each namespace that is not followed just now why not; one line each."""
        return [
            f"the joined namespace {joined.name} shows what was there when a server last told of it: {joined.unheard}"
            for joined in self._joined.values()
            if joined.unheard is not None
        ]

    def joined(self, name: str) -> bool:
        """Whether it is one to leave: also one that was left out at the start, unless the store has its own of that name by now."""
        if name in self._joined:
            return True
        return name in self._store.rows.names(JOINED_TABLE, name, limit=1) and self._store.namespaces.record(name) is None

    async def _open(self, name: str, given: Pass) -> Joined:
        if self._nursery is None:
            raise Unavailable("the daemon is starting", hint="try again")
        self._must_be_anothers(given)
        rows = await self._store.runtime.threads.run(Rows, self._store, given)
        self._numbers += 1
        joined = Joined(self._store, self._network, self._authority, name, given, self._numbers, rows)
        self._store.sealer.foreign[given.namespace_id] = joined.foreign
        self._store.reading.joined[given.namespace_id] = joined.rows
        self._store.pool.joined.update(joined.shards)
        self._store.namespaces.joined[name] = joined.namespace
        self._joined[name] = joined
        self._nursery.start_soon(joined.follow)
        return joined
