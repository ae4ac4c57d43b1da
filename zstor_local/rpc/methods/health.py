"""`object.check` and `object.repair`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from zstor_local.errors import Conflict, CorruptRecord, NotFound, PermissionDenied
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import COMMIT_ERRORS, METASTORE_ERRORS, READ_ERRORS
from zstor_local.rpc.methods.names import Key, MetadataIn, Namespace, Naming
from zstor_local.rpc.methods.pages import much_known
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.strict_json import Json  # noqa: F401 (the annotations below name it)
from zstor_local.store.metadata import Metadata, describe
from zstor_local.store.store import Store


class ShareView(TypedDict):
    """One share. `missing`: it is not there, or not sure to be after a power loss; `stale`: another version's lies in its place;
    `unreachable`: its shard is away.
    """

    shard: str
    index: int
    state: Literal["ok", "missing", "corrupt", "stale", "unreachable"]


class CheckView(TypedDict):
    """optimal: all shares are good; valid: enough to read it; invalid: fewer."""

    status: Literal["optimal", "valid", "invalid"]
    shares: list[ShareView]


class Repaired(TypedDict):
    """The object after the repair."""

    metadata: Metadata


def register(registry: Registry, store: Store) -> None:
    """Add the methods."""
    names = Naming(store)

    @registry.method("object.check", errors=[NotFound, *METASTORE_ERRORS], long=True)
    async def check(
        call: Call,
        /,
        key: Key | None = None,
        fast: Annotated[bool, "only look whether the shares are there and long enough"] = False,
        namespace: Namespace | None = None,
        metadata: MetadataIn | None = None,
    ) -> CheckView:
        """Look at every share of an object: open each of its blocks."""
        await call.reply_room(much_known(names.find(key, namespace, metadata)))  # what is looked at is in memory meanwhile
        stored = names.find(key, namespace, metadata)
        checked = await store.shares_health.check(stored, call, fast=fast)
        return {
            "status": checked.status,
            "shares": [
                {"shard": store.pool.name(number), "index": index, "state": checked.states[index]}
                for index, number in enumerate(stored.record.placement)
            ],
        }

    @registry.method(
        "object.repair",
        errors=[*READ_ERRORS, PermissionDenied, Conflict, *COMMIT_ERRORS],
        long=True,
    )
    async def repair(
        call: Call, /, key: Key | None = None, namespace: Namespace | None = None, metadata: MetadataIn | None = None
    ) -> Repaired:
        """Make an object's bad shares anew from the good ones. Shares of shards that are away go to other shards, where there are any.

        What is good is not touched; nothing to do is fine. A record that does not open is made anew from a good copy in a shard's log.
        """
        try:
            room = much_known(names.find(key, namespace, metadata))
        except CorruptRecord:
            if key is None:
                raise
            await store.damaged_rows.mend_object(names.name(key, namespace))
            room = much_known(names.find(key, namespace, metadata))
        await call.reply_room(room)
        repaired = await store.shares_health.repair(names.find(key, namespace, metadata), call)
        return {"metadata": describe(repaired.stored, store.pool)}
