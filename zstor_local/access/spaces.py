"""Creating and deleting namespaces: the store's part and the authority's, in an order in which nothing is lost half way."""

from __future__ import annotations

from contextlib import suppress

from zstor_local.access.authority import Authority, Revoked
from zstor_local.counted import counted
from zstor_local.errors import AlreadyExists, NotEmpty, NotFound, NotSupported, ZstorError
from zstor_local.model.policy import Policy
from zstor_local.store.caller import Caller
from zstor_local.store.namespaces import Namespace
from zstor_local.store.store import Store


class Spaces:
    """The use cases."""

    def __init__(self, store: Store, authority: Authority) -> None:
        self._store = store
        self._authority = authority

    async def create(self, name: str, *, policy: Policy | None, quota: int | None, placement: tuple[str, ...]) -> Namespace:
        """The authority first: where that fails there is nothing to undo. One that it knows already is made here all the same, as by a
        second machine of the same organisation. AlreadyExists if the store has it.
        """
        self._store.namespaces.must_not_be_joined(name)
        made = True
        try:
            await self._authority.create(name)
        except AlreadyExists:
            made = False
        try:
            return await self._store.namespaces.create(name, policy=policy, quota=quota, placement=placement)
        except AlreadyExists:
            raise  # another call was faster, and needs the authority's part
        except ZstorError:
            if made:
                with suppress(ZstorError):
                    await self._authority.delete(name)
            raise

    async def delete(self, name: str, caller: Caller, *, force: bool) -> int:
        """The store first: while objects are there nobody loses a right. Running tokens end at once. Returns how many objects went."""
        objects = 0
        try:
            if force:
                objects = await self._store.removal.remove(name, caller)
            else:
                await self._remove_empty(name, caller)
        except NotFound:
            if name not in await self._authority.namespaces():
                raise
        await self._authority.delete(name)
        with suppress(NotSupported):
            await self._authority.revoke(Revoked(namespace=name))
        return objects

    async def _remove_empty(self, name: str, caller: Caller) -> None:
        namespace = self._store.namespaces.get(name)
        usage = self._store.namespaces.usage(namespace)
        if usage.objects:
            raise NotEmpty(
                f"the namespace {name} is not empty: it has {counted(usage.objects, 'object')}",
                hint="`zstor namespace rm --force` (`force`) deletes them with it, for good",
                objects=usage.objects,
            )
        caller.begin_commit()
        await self._store.namespaces.remove(namespace)
