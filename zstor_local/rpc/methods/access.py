"""`permission.*` and `token.*`: who may do what in a namespace, on shards that check tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Final, Literal, TypedDict, cast

from zstor_local.access.authority import Authority, Revoked
from zstor_local.access.trust import TOKEN_SECONDS, TOKEN_SECONDS_MAX
from zstor_local.errors import InvalidParams, NotFound, NotSupported, PermissionDenied, Unauthenticated, Unavailable
from zstor_local.model.ids import check_namespace
from zstor_local.model.permission import OWNER, Permission, Rights, check_user
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import COMMIT_ERRORS, METASTORE_ERRORS, Failures
from zstor_local.rpc.methods.namespaces import Name
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.schema import Length, Range
from zstor_local.runtime import SECOND_US

Words = Annotated[Permission | list[Permission], "read, write, delete, admin (which is all of them), or a list"]
User = Annotated[str, "the user's name: 1 to 255 of A-Z, a-z, 0-9 and . _ @ + -"]

ERRORS: Final[Failures] = [NotFound, PermissionDenied, Unauthenticated, Unavailable, *METASTORE_ERRORS]
CHANGE_ERRORS: Final[Failures] = [*ERRORS, *COMMIT_ERRORS]


class PermissionView(TypedDict):
    """What was given to a user in a namespace. Admin alone allows everything."""

    read: bool
    write: bool
    delete: bool
    admin: bool


class PermissionGiven(TypedDict):
    """What the user has now. `pending` waits until the user accepts an invitation, where the authority gives rights by such."""

    namespace: str
    user: str
    read: bool
    write: bool
    delete: bool
    admin: bool
    pending: list[Permission]


class PermissionList(TypedDict):
    """Everybody who was given something, by name."""

    items: list[PermissionGiven]


class TokenView(TypedDict):
    """A bearer token for shard servers. `expires_epoch` in microseconds."""

    token: str
    expires_epoch: int
    scopes: list[str]


class TrustView(TypedDict):
    """A JWK Set (RFC 7517) and what a shard server must know beside it: docs/sharing.md. `updated` grows with every change."""

    issuer: str
    organization: str
    profile: Literal["zstor", "itsyouonline"]
    audience: str
    keys: list[dict[str, str]]
    revoked: list[dict[str, object]]
    updated: int


class TokensRevoked(TypedDict):
    """What no longer counts, where shard servers have the new keys document."""

    revoked: bool


def register(registry: Registry, authority: Authority, *, told: Callable[[], Awaitable[None]]) -> None:
    """Add the methods. `told` returns when shard servers know what has changed, but for those that are slow."""

    @registry.method("permission.give", errors=CHANGE_ERRORS)
    async def give(call: Call, /, namespace: Name, user: User, permission: Words) -> PermissionGiven:
        """Give a user permissions in a namespace; giving what is there already is fine."""
        name, rights = check_namespace(namespace), Rights.of(_list(permission))
        who = check_user(user)
        call.begin_commit()
        given = await authority.give(name, who, rights)
        return _given(name, who, given.rights, given.pending)

    @registry.method("permission.remove", errors=CHANGE_ERRORS)
    async def remove(call: Call, /, namespace: Name, user: User, permission: Words) -> PermissionGiven:
        """Take permissions from a user; taking what is not there is fine. No new token has them from now on.

        Tokens that run keep them until they expire, a few minutes as a rule: `token.revoke` ends them at once.
        """
        name, rights = check_namespace(namespace), Rights.of(_list(permission))
        who = check_user(user)
        call.begin_commit()
        given = await authority.remove(name, who, rights)
        return _given(name, who, given.rights, given.pending)

    @registry.method("permission.get", errors=ERRORS)
    async def get(call: Call, /, namespace: Name, user: User) -> PermissionView:
        """Tell what was given to a user in a namespace."""
        return _view(await authority.get(check_namespace(namespace), check_user(user)))

    @registry.method("permission.list", errors=ERRORS)
    async def list_(call: Call, /, namespace: Name) -> PermissionList:
        """List everybody who was given something in a namespace."""
        name = check_namespace(namespace)
        users = await authority.users(name)
        return {"items": [_given(name, user, users[user], Rights()) for user in sorted(users)]}

    @registry.method("token.create", errors=CHANGE_ERRORS)
    async def create(
        call: Call,
        /,
        namespace: Name,
        permission: Words,
        user: Annotated[str | None, "whose token it is; left out, the owner's, who has every right"] = None,
        ttl_seconds: Annotated[int, "when it expires, from now", Range(1, TOKEN_SECONDS_MAX)] = TOKEN_SECONDS,
    ) -> TokenView:
        """Sign a bearer token for shard servers. A user gets one only for what was given: `permission_denied` otherwise."""
        who = None if user is None else check_user(user)
        token = await authority.token(check_namespace(namespace), _list(permission), who, ttl_seconds)
        await told()
        return {"token": token.text, "expires_epoch": token.expires * SECOND_US, "scopes": [*token.scopes]}

    @registry.method("token.keys", errors=[*CHANGE_ERRORS, NotSupported])
    async def keys(
        call: Call,
        /,
        rotate: Annotated[bool, "make a new signing key first"] = False,
        signs_in_seconds: Annotated[
            int, "when the new key begins to sign: time for shard servers to learn of it", Range(0, TOKEN_SECONDS_MAX)
        ] = 3_600,
    ) -> TrustView:
        """Tell the public keys that tokens are checked with, and what was revoked: what `zstor shard serve --trust` takes.

        After a rotation the old key signs until the new one does, and is known until the last token that it signed has expired.
        """
        if rotate:
            call.begin_commit()
            await authority.rotate(signs_in_seconds=signs_in_seconds)
        return cast(TrustView, dict(await authority.trust()))

    @registry.method("token.revoke", errors=[*CHANGE_ERRORS, NotSupported])
    async def revoke(
        call: Call,
        /,
        user: Annotated[str | None, "every token of this user that was signed until now"] = None,
        namespace: Annotated[str | None, "every token for this namespace; with a user, the user's for it"] = None,
        jti: Annotated[str | None, "the one token of this id", Length(1, 255)] = None,
        kid: Annotated[str | None, "a signing key, with all that it signed", Length(1, 255)] = None,
        all: Annotated[bool, "every token that was signed until now"] = False,  # noqa: A002 (the parameter's name on the wire)
    ) -> TokensRevoked:
        """Have shard servers refuse tokens that have not expired yet. Permissions stay as they are: see permission.remove.

        Shard servers of this store are told at once; one that is away when it is back, others when they are given `token.keys` anew.
        """
        whom = user is not None or namespace is not None
        if [whom, jti is not None, kid is not None, all].count(True) != 1:
            raise InvalidParams("say what to revoke: user or namespace or both, or jti, or kid, or all")
        what = Revoked(
            jti=jti,
            user=None if user is None else user if user == OWNER else check_user(user),
            namespace=None if namespace is None else check_namespace(namespace),
            kid=kid,
        )
        call.begin_commit()
        await authority.revoke(what)
        await told()
        return {"revoked": True}


def _list(words: Permission | list[Permission]) -> list[Permission]:
    listed: list[Permission] = [words] if isinstance(words, str) else [*dict.fromkeys(words)]
    if not listed:
        raise InvalidParams("permission is empty", hint="read, write, delete, admin, or a list of them", parameter="permission")
    return listed


def _view(rights: Rights) -> PermissionView:
    return {"read": rights.read, "write": rights.write, "delete": rights.delete, "admin": rights.admin}


def _given(namespace: str, user: str, rights: Rights, pending: Rights) -> PermissionGiven:
    return {"namespace": namespace, "user": user, **_view(rights), "pending": [*pending.names]}
