"""`namespace.invite`, `namespace.join` and what they need: letting another user's daemon read a namespace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, TypedDict

from zstor_local.access.invitation import parse_public_key
from zstor_local.access.joining import Joining
from zstor_local.access.letters import Letters
from zstor_local.errors import AlreadyExists, NotFound, PermissionDenied, Unauthenticated
from zstor_local.model.ids import check_namespace
from zstor_local.model.permission import check_user
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.access import User
from zstor_local.rpc.methods.failures import COMMIT_ERRORS
from zstor_local.rpc.methods.namespaces import Name
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.schema import Length
from zstor_local.store.store import Store

INVITATION_CHARACTERS = 64 * 1024


class Invitation(TypedDict):
    """Text for the invited user alone: nobody else can open it."""

    invitation: str


class NamespaceJoined(TypedDict):
    """The namespace under its name here, and what is known of it so far."""

    namespace: str
    objects: int
    bytes: int


class JoiningKey(TypedDict):
    """What whoever invites this daemon's user needs."""

    public_key: str


def register(registry: Registry, store: Store, letters: Letters, joining: Joining, *, told: Callable[[], Awaitable[None]]) -> None:
    """Add the methods. `told` returns when shard servers know which namespaces there are."""

    @registry.method("namespace.invite", errors=[NotFound, PermissionDenied, *COMMIT_ERRORS])
    async def invite(
        call: Call, /, namespace: Name, user: User, public_key: Annotated[str, "the user's, from `namespace.key`", Length(1, 255)]
    ) -> Invitation:
        """Invite a user, who may read the namespace, to read it with a daemon of their own, on the shard servers that hold it.

        The invitation holds the namespace's key, sealed to the user's public key, and a first token. New tokens follow by themselves as
        long as the permission lasts and this daemon runs at times. What was once readable can have been copied: taking the permission
        away ends access to the shards, and `namespace.rewrite` makes new data keys.
        """
        name, who, public = check_namespace(namespace), check_user(user), parse_public_key(public_key)
        call.begin_commit()
        await told()
        return {"invitation": await letters.invite(name, who, public)}

    @registry.method("namespace.key", errors=COMMIT_ERRORS)
    async def key(call: Call, /) -> JoiningKey:
        """Tell the public key that invitations for this daemon's user are made with."""
        return {"public_key": await joining.public_key()}

    @registry.method(
        "namespace.join",
        errors=[AlreadyExists, PermissionDenied, Unauthenticated, *COMMIT_ERRORS],
        long=True,
    )
    async def join(
        call: Call,
        /,
        invitation: Annotated[str, "as the owner's namespace.invite answered it", Length(1, INVITATION_CHARACTERS)],
        namespace: Annotated[str | None, "its name here; left out, the owner's"] = None,
    ) -> NamespaceJoined:
        """Read another user's namespace from now on, under its own name or another one: get, list, stat, walk, changes, references.

        It follows what the owner writes, and can only be read. `namespace.delete` leaves it.
        """
        name = None if namespace is None else check_namespace(namespace)
        joined = await joining.join(invitation, name, lambda objects: call.progress(objects, message="objects"))
        usage = store.namespaces.usage(joined)
        return {"namespace": joined.name, "objects": usage.objects, "bytes": usage.bytes}
