"""The authority that is a service with ItsYou.Online's HTTP API: organisations for namespaces, members for rights, its tokens.

    O > O.0stor > O.0stor.N (its members are admins) > O.0stor.N.read, .write, .delete

A right is given by an invitation, which the user has to accept; `get` tells only those who did, and no right that is inherited from a
member of O. The service signs tokens for the user of the API key alone. Every answer that the service may give, and what it means, is
in docs/sharing.md; an answer that it may not give is Unavailable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import jwt

from zstor_local.access.authority import Given, Revoked, Token
from zstor_local.access.itsyouonline_http import Answer, Service
from zstor_local.access.trust import AUDIENCE, TrustDocument
from zstor_local.config import AuthorityKind
from zstor_local.errors import AlreadyExists, InvalidParams, NotFound, NotSupported, PermissionDenied, TooLarge, Unavailable, ZstorError
from zstor_local.model.permission import OWNER, PERMISSIONS, STORE_NAMESPACE, Permission, Rights, scope
from zstor_local.store.namespaces import no_namespace

ISSUER: Final = "itsyouonline"
CHILDREN: Final[tuple[Permission, ...]] = PERMISSIONS[:3]
ORGANIZATIONS_MAX: Final = 1_000  # of one user, as the service has it
INVITATIONS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Tree:
    """The namespaces of an organisation, each with those of its children that are there."""

    namespaces: Mapping[str, frozenset[str]]

    def is_whole(self, namespace: str) -> bool:
        return self.namespaces.get(namespace, frozenset()) >= {*CHILDREN}


class ItsYouOnline:
    """See the laws of access.authority.Authority."""

    kind: AuthorityKind = "itsyouonline"

    def __init__(self, service: Service, organization: str, keys: Sequence[Mapping[str, str]]) -> None:
        """`keys`: the service's public keys, as JWKs, which its API does not tell."""
        self._service = service
        self.organization = organization
        self._keys = [{name: value for name, value in key.items() if name != "kid"} for key in keys]  # its tokens name no key

    # --- Namespaces ---

    async def create(self, namespace: str) -> None:
        await self._ensure_root()
        tree = await self._tree()
        if tree.is_whole(namespace):
            raise AlreadyExists(f"there is a namespace {namespace} already", hint="`zstor perm ls` shows who may use it")
        ours = namespace not in tree.namespaces
        try:
            if ours:
                ours = await self._make(f"{self._root}", self._of(namespace))
            for child in CHILDREN:
                if child not in tree.namespaces.get(namespace, frozenset()):
                    await self._make(self._of(namespace), self._of(namespace, child))
        except ZstorError:
            if ours:  # nothing half made stays; what was there before us does
                await self._undo(namespace)
            raise

    async def delete(self, namespace: str) -> None:
        answer = await self._service.call("DELETE", f"/organizations/{self._of(namespace)}", repeatable=True)
        if answer.status in (204, 404) or (answer.status == 403 and namespace not in (await self._tree()).namespaces):
            return
        raise self._refused(answer, f"the namespace {namespace} cannot be deleted")

    async def namespaces(self) -> Sequence[str]:
        return sorted(name for name in (await self._tree()).namespaces if name != STORE_NAMESPACE)

    async def _ensure_root(self) -> None:
        """O.0stor, and O itself if nobody has it."""
        answer = await self._post_organization(self.organization, self._root)
        if answer.status in (403, 404):
            if (await self._service.call("GET", f"/organizations/{self.organization}")).status == 200:
                raise PermissionDenied(f"the API key may not change the organisation {self.organization}", hint="use one of an owner")
            made = await self._service.call("POST", "/organizations", json={"globalid": self.organization})
            if made.status == 409:
                raise PermissionDenied(f"the organisation {self.organization} is somebody else's", hint="set another in [authority]")
            if made.status != 201:
                raise self._refused(made, f"the organisation {self.organization} cannot be made")
            answer = await self._post_organization(self.organization, self._root)
        if answer.status not in (201, 409):
            raise self._refused(answer, f"the organisation {self._root} cannot be made")

    async def _make(self, parent: str, globalid: str) -> bool:
        """Whether it was made now; one that was made meanwhile is as good."""
        answer = await self._post_organization(parent, globalid)
        if answer.status not in (201, 409):
            raise self._refused(answer, f"the organisation {globalid} cannot be made")
        return answer.status == 201

    async def _post_organization(self, parent: str, globalid: str) -> Answer:
        """Repeated if it broke off: one that did happen is a 409 the second time."""
        return await self._service.call("POST", f"/organizations/{parent}", json={"globalid": globalid}, repeatable=True)

    async def _undo(self, namespace: str) -> None:
        try:
            await self.delete(namespace)
        except ZstorError:
            return  # the next `create` completes it

    async def _tree(self) -> _Tree:
        answer = await self._service.call("GET", f"/organizations/{self._root}/tree")
        if answer.status in (403, 404):  # no such organisation is a 403 too
            own = await self._service.call("GET", f"/organizations/{self.organization}")
            if own.status == 200:
                return _Tree({})
            raise self._refused(own, f"the organisation {self.organization} cannot be read")
        if answer.status != 200:
            raise self._refused(answer, "the namespaces cannot be listed")
        found: dict[str, frozenset[str]] = {}
        for child in _children(answer.object()):
            name = child.get("globalid")
            prefix = f"{self._root}."
            if isinstance(name, str) and name.startswith(prefix) and "." not in name[len(prefix) :]:
                found[name[len(prefix) :]] = frozenset(str(each.get("globalid")).removeprefix(f"{name}.") for each in _children(child))
        return _Tree(found)

    # --- Rights ---

    async def give(self, namespace: str, user: str, rights: Rights) -> Given:
        had = await self.get(namespace, user)
        for permission in (rights - had).names:
            organization = self._of(namespace, permission)
            # Not repeated by itself: a second invitation is another mail.
            answer = await self._service.call("POST", f"/organizations/{organization}/members", json={"searchstring": user})
            if answer.status == 404:
                raise NotFound(f"ItsYou.Online knows no user {user}", hint="rights given before in this call stay", parameter="user")
            if answer.status not in (201, 409):  # 409: a member, owner or invited already
                raise self._refused(answer, f"{permission} in {namespace} cannot be given", limit=INVITATIONS_MAX)
        now = await self.get(namespace, user)
        return Given(now, rights - now)

    async def remove(self, namespace: str, user: str, rights: Rights) -> Given:
        await self.get(namespace, user)  # NotFound where there is no such namespace
        for permission in rights.names:
            answer = await self._service.call(
                "DELETE", f"/organizations/{self._of(namespace, permission)}/members/{user}", repeatable=True
            )
            if answer.status not in (204, 404):
                raise self._refused(answer, f"{permission} in {namespace} cannot be taken away")
        return Given(await self.get(namespace, user))

    async def get(self, namespace: str, user: str) -> Rights:
        return (await self.users(namespace)).get(user, Rights())

    async def users(self, namespace: str) -> Mapping[str, Rights]:
        found: dict[str, Rights] = {}
        for permission in PERMISSIONS:
            for user in await self._members(namespace, permission):
                found[user] = found.get(user, Rights()) | Rights.of([permission])
        return found

    async def _members(self, namespace: str, permission: Permission) -> Sequence[str]:
        answer = await self._service.call("GET", f"/organizations/{self._of(namespace, permission)}/users")
        if answer.status in (403, 404):
            if namespace not in (await self._tree()).namespaces:
                raise no_namespace(namespace)
            if answer.status == 404:
                raise Unavailable(f"the namespace {namespace} is half made at ItsYou.Online", hint="create it again", retryable=False)
        if answer.status != 200:
            raise self._refused(answer, f"the members of {namespace} cannot be read")
        users = answer.object().get("users")
        if not isinstance(users, list) or not all(isinstance(each, dict) and isinstance(each.get("username"), str) for each in users):
            raise self._service.nonsense()
        return [each["username"] for each in users if each.get("role") != "owner"]

    # --- Tokens ---

    async def token(self, namespace: str, permissions: Sequence[Permission], user: str | None, seconds: int) -> Token:
        if not permissions:
            raise PermissionDenied("a token without a permission is none")
        if user is not None and user != OWNER and user != await self._service.user():
            raise NotSupported(
                "ItsYou.Online signs tokens for the user of the API key alone", hint=f"{user} gets one with an API key of their own"
            )
        wanted = tuple(scope(self.organization, namespace, permission) for permission in permissions)
        found = await self._sign(wanted, seconds)
        if namespace == STORE_NAMESPACE and not {*wanted} <= {*found.scopes}:
            await self._ensure_root()
            await self._make(self._root, self._of(STORE_NAMESPACE))
            found = await self._sign(wanted, seconds)
        lacking = [each for each in wanted if each not in found.scopes]
        if lacking:
            raise PermissionDenied(f"ItsYou.Online left out {', '.join(lacking)}: the key's user lacks it, or has not accepted it")
        if {*found.scopes} != {*wanted}:
            raise self._service.nonsense()
        return Token(found.text, found.expires, wanted)

    async def _sign(self, scopes: tuple[str, ...], seconds: int) -> Token:
        answer = await self._service.sign(scopes, seconds)
        if answer.status == 401:
            raise PermissionDenied("ItsYou.Online gives this API key no such token", hint="use a user's API key, not an organisation's")
        if answer.status != 200:
            raise self._refused(answer, "no token was signed")
        text = answer.text().strip()
        try:
            claims = jwt.decode(text, options={"verify_signature": False})
        except jwt.PyJWTError:
            raise self._service.nonsense() from None
        expires, found = claims.get("exp"), claims.get("scope")
        if type(expires) is not int or not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise self._service.nonsense()
        return Token(text, expires, tuple(found))

    async def trust(self) -> TrustDocument:
        return {
            "issuer": ISSUER,
            "organization": self.organization,
            "profile": "itsyouonline",
            "audience": AUDIENCE,
            "keys": [dict(key) for key in self._keys],
            "revoked": [],
            "updated": 0,
        }

    async def rotate(self, *, signs_in_seconds: int) -> str:
        raise self._not_supported("rotates its keys itself")

    async def revoke(self, what: Revoked) -> None:
        raise self._not_supported("revokes no tokens: they end by themselves")

    # --- Names and errors ---

    @property
    def _root(self) -> str:
        return f"{self.organization}.0stor"

    def _of(self, namespace: str, permission: str = "admin") -> str:
        """The organisation whose members have the permission."""
        stem = f"{self._root}.{namespace}"
        return stem if permission == "admin" else f"{stem}.{permission}"

    def _not_supported(self, what: str) -> NotSupported:
        return NotSupported(f"ItsYou.Online {what}", hint="only the built-in authority does that")

    def _refused(self, answer: Answer, what: str, *, limit: int = ORGANIZATIONS_MAX) -> ZstorError:
        """An answer that is none of those that mean something where it came."""
        if answer.status == 400:
            return InvalidParams(f"{what}: ItsYou.Online does not take the name")
        if answer.status == 403:
            return PermissionDenied(
                f"{what}: the API key lacks the right, or there is no such organisation", hint="use one of an owner"
            )
        if answer.status == 404:
            return NotFound(f"{what}: ItsYou.Online does not know it")
        if answer.status == 422:
            return TooLarge(f"{what}: ItsYou.Online allows no more of them", limit=limit)
        return Unavailable(f"{what}: ItsYou.Online answered {answer.status}", hint="try again later")


def _children(node: Mapping[str, object]) -> Sequence[Mapping[str, object]]:
    children = node.get("children")
    return [each for each in children if isinstance(each, dict)] if isinstance(children, list) else []
