"""`namespace.*`: separate sets of keys, each with its policy, its quota and its permissions."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Final, Literal, NotRequired, TypedDict

from zstor_local import limits
from zstor_local.access.joining import Joining
from zstor_local.access.spaces import Spaces
from zstor_local.errors import AlreadyExists, Busy, InvalidParams, NotEmpty, NotFound, PermissionDenied, ShuttingDown
from zstor_local.model.ids import check_namespace
from zstor_local.model.policy import Policy
from zstor_local.model.storewide import NamespaceRecord
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import COMMIT_ERRORS, METASTORE_ERRORS, Failures
from zstor_local.rpc.methods.pages import cursor_of, key_of, short_page_of
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.schema import Length, Range
from zstor_local.store import namespaces
from zstor_local.store.metadata import PolicyView
from zstor_local.store.store import Store

Name = Annotated[str, "1 to 63 of a-z, 0-9, _ and -, beginning and ending with a letter or digit"]
Quota = Annotated[int | None, "plain bytes that the objects may have together; null: no quota", Range(0)]
Placement = Annotated[
    list[Annotated[str, Length(1, 63)]] | None, "the shards or groups that shares go to, by name; empty: all shards", Length(0, 255)
]

CHANGE_ERRORS: Final[Failures] = [*COMMIT_ERRORS, ShuttingDown]


class PolicyIn(TypedDict, total=False):
    """How objects are stored; what is left out is as before, at first as configured."""

    k: Annotated[int, "shares that give an object back", Range(1, limits.SHARES_MAX)]
    m: Annotated[int, "shares in all, one to a shard", Range(1, limits.SHARES_MAX)]
    chunk_size: Annotated[int, "bytes, a power of two", Range(limits.CHUNK_SIZE_MIN, limits.CHUNK_SIZE_MAX)]
    compression: Literal["zstd", "none"]
    padding: Literal["none", "padme"]


class NamespaceView(TypedDict):
    """A namespace. `bytes` and `quota_bytes` count plain bytes; `placement` is empty where shares go to all shards."""

    namespace: str
    policy: PolicyView
    placement: list[str]
    objects: int
    bytes: int
    quota_bytes: int | None
    created_epoch: int


class NamespacePage(TypedDict):
    """A part of the list, by name; `cursor` continues it, null at its end."""

    items: list[NamespaceView]
    cursor: str | None


class NamespaceDeleted(TypedDict):
    """How many objects went with it. `left` where it was joined: its owner keeps it."""

    deleted: bool
    objects: int
    left: NotRequired[bool]


class Rewriting(TypedDict):
    """The job that does it; its result is `{objects, unreadable}`."""

    job: str


def register(registry: Registry, store: Store, spaces: Spaces, joining: Joining) -> None:
    """Add the methods."""

    @registry.method("namespace.create", errors=[AlreadyExists, PermissionDenied, *CHANGE_ERRORS])
    async def create(
        call: Call,
        /,
        namespace: Name,
        policy: PolicyIn | None = None,
        quota_bytes: Quota = None,
        placement: Placement = None,
    ) -> NamespaceView:
        """Create a namespace. A first write to a new name creates one too, with the configured policy and without a quota."""
        name = check_namespace(namespace)
        call.begin_commit()
        made = await spaces.create(
            name, policy=_policy(policy, store.config.policy), quota=quota_bytes, placement=tuple(dict.fromkeys(placement or ()))
        )
        return _view(made)

    @registry.method("namespace.delete", errors=[NotFound, NotEmpty, PermissionDenied, *CHANGE_ERRORS])
    async def delete(
        call: Call, /, namespace: Name, force: Annotated[bool, "delete its objects with it, and their shares"] = False
    ) -> NamespaceDeleted:
        """Delete a namespace and everybody's permissions in it. With objects in it it is refused, unless `force` deletes them too.

        One that was joined is only left: its owner keeps it. A deletion that has begun is finished, over restarts if need be. The same
        name can be used again then, by another namespace.
        """
        if joining.joined(check_namespace(namespace)):
            call.begin_commit()
            await joining.leave(namespace)
            return {"deleted": True, "objects": 0, "left": True}
        return {"deleted": True, "objects": await spaces.delete(check_namespace(namespace), call, force=force)}

    @registry.method("namespace.list", errors=METASTORE_ERRORS)
    async def list_(
        call: Call,
        /,
        limit: Annotated[int, "namespaces in a page at most", Range(1, limits.LIST_ITEMS)] = limits.LIST_ITEMS,
        cursor: Annotated[str | None, "where the page before ended"] = None,
    ) -> NamespacePage:
        """List the namespaces by name."""
        found, more = short_page_of(store.namespaces.in_order(None if cursor is None else key_of(cursor)), limit)
        return {"items": [_view(each) for each in found], "cursor": cursor_of(found[-1].name) if more else None}

    @registry.method("namespace.get", errors=[NotFound, *METASTORE_ERRORS])
    async def get(call: Call, /, namespace: Name) -> NamespaceView:
        """Tell a namespace's policy and quota, and what it holds."""
        return _view(store.namespaces.get(check_namespace(namespace)))

    @registry.method("namespace.set", errors=[NotFound, PermissionDenied, *CHANGE_ERRORS])
    async def set_(
        call: Call,
        /,
        namespace: Name,
        policy: PolicyIn | None = None,
        quota_bytes: Annotated[int | None, "plain bytes that the objects may have together; −1: no quota", Range(-1)] = None,
        placement: Placement = None,
    ) -> NamespaceView:
        """Change a namespace; what is left out stays. A policy is for versions written from now on: `namespace.rewrite` converts the
        others. A quota below what is there keeps all that, and refuses what would add to it.
        """

        def change(record: NamespaceRecord) -> NamespaceRecord:
            if record.deleting:
                raise NotFound(f"the namespace {namespace} is being deleted", hint="wait until it is gone, or use another name")
            return replace(
                record,
                policy=_policy(policy, record.policy) or record.policy,
                quota=record.quota if quota_bytes is None else None if quota_bytes < 0 else quota_bytes,
                placement=record.placement if placement is None else tuple(dict.fromkeys(placement)),
            )

        call.begin_commit()
        return _view(await store.namespaces.change(check_namespace(namespace), change))

    @registry.method("namespace.rewrite", errors=[NotFound, PermissionDenied, Busy, *CHANGE_ERRORS])
    async def rewrite(call: Call, /, namespace: Name) -> Rewriting:
        """Write every object of a namespace again, with its policy as it is now and with new data keys; the answer names the job.

        Keys, times, references, user members and links stay. It goes on over restarts, and by itself when shards that it lacked are
        back, and disturbs nobody who writes meanwhile. Where it is asked for, or the policy is changed, before it is at its end, it
        goes over everything once more.
        """
        name = check_namespace(namespace)
        call.begin_commit()
        return {"job": (await store.rewriting.start(name)).id}

    def _view(namespace: namespaces.Namespace) -> NamespaceView:
        usage, policy = store.namespaces.usage(namespace), namespace.policy
        return {
            "namespace": namespace.name,
            "policy": {
                "k": policy.k,
                "m": policy.m,
                "chunk_size": policy.chunk_size,
                "compression": policy.compression,
                "padding": policy.padding,
            },
            "placement": [*namespace.placement],
            "objects": usage.objects,
            "bytes": usage.bytes,
            "quota_bytes": namespace.gate.quota,
            "created_epoch": namespace.created,
        }


def _policy(given: PolicyIn | None, base: Policy) -> Policy | None:
    if given is None:
        return None
    try:
        return replace(base, **given)
    except InvalidParams as error:
        raise InvalidParams(error.message, parameter="policy") from None
