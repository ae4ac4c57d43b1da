"""Who may do what: an authority keeps namespaces' names and users' rights, and signs tokens. The laws every kind obeys.

One conformance suite (tests/access/conformance.py) runs against every implementation. What an authority decides is enforced by shard
servers, which check its tokens; the daemon's own user is trusted and asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from zstor_local.access.trust import TrustDocument
from zstor_local.config import AuthorityKind
from zstor_local.model.permission import Permission, Rights


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """A bearer token; repr does not show it. `expires` in seconds since 1970 UTC."""

    text: str
    expires: int
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """What a user has after a change. `pending` are rights that wait until the user accepts an invitation."""

    rights: Rights
    pending: Rights = field(default_factory=Rights)


@dataclass(frozen=True, slots=True)
class Revoked:
    """What no longer counts: one token by its jti, every token of a user and a namespace until now (None: any), or a signing key."""

    jti: str | None = None
    user: str | None = None
    namespace: str | None = None
    kid: str | None = None


class Authority(Protocol):
    """Laws.

    - `create` is all or nothing: it raises AlreadyExists where the namespace is there whole, completes one that was left half made,
      and leaves nothing half made behind where it fails, as far as the authority can still be reached. `delete` of what is not there
      is fine, and takes every right in it along.
    - `give` and `remove` may be repeated: giving what is there and removing what is not changes nothing. Rights are independent of
      each other; admin is a fourth one that implies the others, `get` tells what was given. NotFound for a namespace that is not there.
    - A token bears exactly the scopes asked for, or none is given: PermissionDenied if the user lacks one of them. `user` None is the
      owner, who has every right. A token says what was given when it was made: removing a right does not shorten one that runs.
    - What an authority cannot do at all is NotSupported; one that does not answer, or answers nonsense, is Unavailable. Names are
      checked before: nothing that is no namespace or user reaches it.
    """

    @property
    def kind(self) -> AuthorityKind: ...
    @property
    def organization(self) -> str: ...

    async def create(self, namespace: str) -> None: ...
    async def delete(self, namespace: str) -> None: ...
    async def namespaces(self) -> Sequence[str]:
        """Those it knows, sorted."""
        ...

    async def give(self, namespace: str, user: str, rights: Rights) -> Given: ...
    async def remove(self, namespace: str, user: str, rights: Rights) -> Given: ...
    async def get(self, namespace: str, user: str) -> Rights: ...
    async def users(self, namespace: str) -> Mapping[str, Rights]:
        """Everybody who was given something in the namespace."""
        ...

    async def token(self, namespace: str, permissions: Sequence[Permission], user: str | None, seconds: int) -> Token:
        """A token that expires after `seconds` (1 to trust.TOKEN_SECONDS_MAX)."""
        ...

    async def trust(self) -> TrustDocument:
        """What shard servers must know to check its tokens (access/trust.py)."""
        ...

    async def rotate(self, *, signs_in_seconds: int) -> str:
        """Make a new signing key, known at once and used after that time; the old one is known until its last token has expired.

        Returns the kid.
        """
        ...

    async def revoke(self, what: Revoked) -> None:
        """Have shard servers that get `trust` anew refuse these tokens."""
        ...
