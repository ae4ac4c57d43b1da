"""`object.changes`: what happened since, for programs that follow a namespace."""

from __future__ import annotations

from typing import Annotated, NotRequired, TypedDict

import trio

from zstor_local import limits
from zstor_local.errors import Busy, InvalidParams, ShuttingDown
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import METASTORE_ERRORS
from zstor_local.rpc.methods.names import Namespace, Naming
from zstor_local.rpc.methods.pages import page_of, reply_bytes
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.schema import Range
from zstor_local.store.changes import Changed, Changes
from zstor_local.store.metadata import Metadata, describe
from zstor_local.store.store import Store


class Change(TypedDict):
    """A key's last change. `metadata` is what it has now; a deleted key has none."""

    key: str
    sequence: int
    deleted: bool
    metadata: NotRequired[Metadata]


class ChangesPage(TypedDict):
    """Changes, the oldest first. `cursor` is the `since` of the next call; ask again at once while `more` is true."""

    items: list[Change]
    cursor: int
    more: bool


def register(registry: Registry, store: Store) -> None:
    """Add the method."""
    names = Naming(store)
    use = Changes(store.core, store.namespaces)

    @registry.method("object.changes", errors=[*METASTORE_ERRORS, Busy, ShuttingDown])
    async def changes(
        call: Call,
        /,
        since: Annotated[int, "the cursor of the call before; 0 begins with all that is there", Range(0)] = 0,
        wait_seconds: Annotated[float, "wait so long for news, if there are none", Range(0, limits.LONG_POLL_SECONDS)] = 0,
        limit: Annotated[int, "items at most", Range(1, limits.LIST_ITEMS)] = limits.LIST_ITEMS,
        namespace: Namespace | None = None,
    ) -> ChangesPage:
        """List the keys that changed since, each once, with what it has now; deleted keys too.

        Nothing new is an empty answer. A key that changed several times stands where its last change was. One whose shares went to
        other shards has changed: its metadata names them. Sequences of a namespace that was joined are this daemon's own, in the order
        in which it heard of changes; after a restart all that is there has changed.
        """
        name = names.namespace(namespace)
        if since > store.metastore.state().sequence and name not in store.namespaces.joined:  # whose sequences are another store's
            raise InvalidParams(
                "that cursor is not one of this store's: it is ahead of the last change", hint="begin again with 0", parameter="since"
            )
        if wait_seconds:
            await _news(call, name, since, wait_seconds)
        if not use.are_there(name, since):
            return {"items": [], "cursor": since, "more": False}
        return await _page(call, name, since, limit)

    async def _news(call: Call, namespace: str, since: int, seconds: float) -> None:
        """Wait for some, for so long at most. Thousands may wait, and every commit wakes them all: none needs room for a page yet."""
        news = store.committer.news()  # before looking, so that nothing is missed
        if use.are_there(namespace, since):
            return
        with call.long_poll(), trio.move_on_after(seconds):
            while True:
                await news.wait()
                news = store.committer.news()
                if use.are_there(namespace, since):
                    return

    async def _page(call: Call, namespace: str, since: int, limit: int) -> ChangesPage:
        items, more = await page_of(call, use.since(namespace, since, limit + 1), limit, _size)
        return {"items": [_view(each) for each in items], "cursor": items[-1].sequence if items else since, "more": more}

    def _view(changed: Changed) -> Change:
        change: Change = {"key": changed.key, "sequence": changed.sequence, "deleted": changed.stored is None}
        if changed.stored is not None:
            change["metadata"] = describe(changed.stored, store.pool)
        return change


def _size(changed: Changed) -> int:
    return 200 + 6 * len(changed.key) if changed.stored is None else reply_bytes(changed.stored)
