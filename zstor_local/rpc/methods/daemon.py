"""`daemon.*`: who serves, and how the store is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.upkeep import ScrubView, scrub_view
from zstor_local.rpc.openrpc import wire_limits
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.strict_json import Json
from zstor_local.shards.base import ShardState
from zstor_local.store.metrics import Queues, queues
from zstor_local.store.store import Store, StoreHealth

API = 1  # grows by one when something is added; nothing is ever taken away under the same name


@dataclass(frozen=True, slots=True)
class Identity:
    """This life of the daemon."""

    version: str
    pid: int
    start_id: str
    socket: str


class Info(TypedDict):
    """The daemon itself. `start_id` is new at every start."""

    version: str
    api: int
    pid: int
    start_id: str
    socket: str
    limits: dict[str, Json]
    capabilities: list[str]


class ShardView(TypedDict):
    """One shard; bytes and milliseconds, null where they cannot be told. A `draining` one gets no new shares."""

    id: str
    url: str
    group: str
    state: ShardState
    used: int | None
    free: int | None
    latency_ms: float | None
    last_error: str | None
    draining: bool


class MetastoreView(TypedDict):
    """Where the records are."""

    kind: str
    writable: bool


class Status(TypedDict):
    """The store's health at a glance."""

    state: StoreHealth
    shards: list[ShardView]
    metastore: MetastoreView
    objects: int
    bytes: int
    queues: Queues
    scrub: ScrubView
    warnings: list[str]


def shard_views(store: Store) -> list[ShardView]:
    """Every shard as it was when it was last looked at."""
    return [
        {
            "id": shard.id,
            "url": shard.url,
            "group": shard.group,
            "state": shard.state,
            "used": shard.used,
            "free": shard.free,
            "latency_ms": shard.latency_ms,
            "last_error": shard.last_error,
            "draining": shard.draining,
        }
        for shard in store.shard_statuses()
    ]


def register(registry: Registry, store: Store, identity: Identity, warnings: Callable[[], list[str]]) -> None:
    """Add the methods. `warnings`: those of what is built upon the store."""

    @registry.method("daemon.info")
    async def info(call: Call, /) -> Info:
        """Tell the daemon's version, limits and abilities."""
        return {
            "version": identity.version,
            "api": API,
            "pid": identity.pid,
            "start_id": identity.start_id,
            "socket": identity.socket,
            "limits": wire_limits(),
            "capabilities": ["batch", "cancel", "deadline", "fd", "progress", "stream"],
        }

    @registry.method("daemon.status")
    async def status(call: Call, /) -> Status:
        """Tell how the store is: its state, its shards, what waits to be done."""
        state = store.committer.state
        waiting, unread = queues(store)
        return {
            "state": store.health,
            "shards": shard_views(store),
            "metastore": {"kind": store.metastore.kind, "writable": store.health not in ("readonly", "failed")},
            "objects": state.objects,
            "bytes": state.bytes,
            "queues": waiting,
            "scrub": scrub_view(store.scrub.status()),
            "warnings": [*unread, *store.warnings(), *warnings()],
        }
