"""`shard.*`: which shards the store has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, TypedDict

from zstor_local.errors import AlreadyExists, Busy, Conflict, NotFound, ShuttingDown
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.daemon import ShardView, shard_views
from zstor_local.rpc.methods.failures import COMMIT_ERRORS
from zstor_local.rpc.registry import Registry
from zstor_local.store.departures import Removed
from zstor_local.store.store import Store

ShardId = Annotated[str, "the shard's id, as `shard.list` shows it"]


class ShardList(TypedDict):
    """Every shard of the store."""

    shards: list[ShardView]


class RemovedView(TypedDict):
    """A shard that is none any more: shares moved to others, and objects that have a share less, as no other shard can take it."""

    shard: str
    moved: int
    lacking: int


def register(registry: Registry, store: Store, *, told: Callable[[], Awaitable[None]]) -> None:
    """Add the methods. `told` returns when readers of shared namespaces were told of shards, but for servers that are slow."""
    membership = store.membership

    @registry.method("shard.list")
    async def list_(call: Call, /) -> ShardList:
        """Look at every shard now, and tell how each is."""
        await store.presence.look()
        return {"shards": shard_views(store)}

    @registry.method("shard.add", errors=[AlreadyExists, Conflict, *COMMIT_ERRORS])
    async def add(
        call: Call,
        /,
        url: Annotated[str, "a new or empty directory's absolute path, or a URL"],
        group: Annotated[str, "what it shares its fate with; its file system or host if left out"] | None = None,
    ) -> ShardView:
        """Give the store a new shard. New objects use it at once; others stay where they are.

        At a place of a shard that the store has and misses, or is draining, that shard is taken back.
        """
        added = await membership.add(url, group)
        await told()
        return next(view for view in shard_views(store) if view["id"] == added.id)

    @registry.method("shard.replace", errors=[NotFound, Conflict, Busy, ShuttingDown, *COMMIT_ERRORS], long=True)
    async def replace(
        call: Call, /, shard: ShardId, url: Annotated[str, "the new, empty place; where the old one was, if left out"] | None = None
    ) -> RemovedView:
        """Give a dead shard's id to a new, empty place, and make anew what the old one held.

        It goes on without its caller, and after a restart.
        """
        replaced = await membership.replace(shard, url, call)
        await told()
        return _view(replaced)

    @registry.method("shard.remove", errors=[NotFound, Conflict, Busy, ShuttingDown, *COMMIT_ERRORS], long=True)
    async def remove(
        call: Call,
        /,
        shard: ShardId,
        force: Annotated[bool, "do not move anything first: the shard is dead, or others lack room"] = False,
    ) -> RemovedView:
        """Move what a shard holds to others, then forget it.

        It goes on without its caller, and after a restart; `shard.add` with its url takes the shard back meanwhile. With `force` it is
        forgotten at once, unless objects would fall below k shares: `data.objects` names them, and the shard stays as it was.
        """
        removed = await membership.remove(shard, call, force=force)
        await told()
        return _view(removed)


def _view(removed: Removed) -> RemovedView:
    return {"shard": removed.shard, "moved": removed.moved, "lacking": removed.lacking}
