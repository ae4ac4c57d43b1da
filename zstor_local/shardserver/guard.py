"""Who may do what: a bearer token to what it allows on one space."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from zstor_local.access.verify import TokenRefused, TokenVerifier, Verified
from zstor_local.model.ids import NamespaceId, ShardUid
from zstor_local.model.permission import STORE_NAMESPACE, Permission
from zstor_local.shardserver.memory import Bearer
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.rooms import Room
from zstor_local.shardserver.space import Space

log = logging.getLogger("zstor.shardserver")


@dataclass(frozen=True, slots=True)
class Guest:
    """The bearer of a good token, and until when it is good (seconds since 1970). `again` looks at it anew, as Guard.admit does."""

    token: Verified
    now: Callable[[], int]
    again: Callable[[], Guest]

    @property
    def bearer(self) -> Bearer:
        """Whose token it is."""
        return self.token.issuer, self.token.user

    def may_make(self, shard: ShardUid | None) -> bool:
        """Whether this is the daemon of a store, and speaks of this shard."""
        return self.token.allows(STORE_NAMESPACE, "admin") and shard is not None and self.token.shard == shard.hex()

    def owns(self, space: Space) -> bool:
        """Whether this is the daemon of the space's store and the token is for this shard of it: it may do everything there."""
        return self.token.issuer == space.issuer and self.may_make(space.shard)

    def check_owner(self, space: Space) -> None:
        if not self.owns(space):
            raise Refusal("forbidden", "only the owner of the store may do that, with a token for this shard")

    def check_store(self, space: Space) -> None:
        """Refusal `forbidden` unless this is the daemon of the space's store, whichever shard it speaks of: it may ask who is here."""
        if self.token.issuer != space.issuer or not self.token.allows(STORE_NAMESPACE, "admin"):
            raise Refusal("forbidden", "only the owner of the store may do that")

    def check(self, space: Space, namespace: NamespaceId | None, permission: Permission) -> None:
        """Refusal `forbidden` unless the token gives the permission in the namespace; without one the owner alone is meant."""
        if not self.owns(space) and not self._may(space, space.rooms.find(namespace), permission):
            raise Refusal("forbidden", f"the token does not give {permission} there")

    def check_anywhere(self, space: Space, permission: Permission) -> None:
        """Refusal `forbidden` unless there is a namespace in which the token gives the permission."""
        if not self.owns(space) and not any(self._may(space, room, permission) for room in space.rooms):
            raise Refusal("forbidden", f"the token does not give {permission} there")

    def _may(self, space: Space, room: Room | None, permission: Permission) -> bool:
        if room is None or room.name is None:
            return False
        return self.token.issuer == (room.issuer or space.issuer) and self.token.allows(room.name, permission)

    @property
    def expired(self) -> bool:
        """Looked at again while a long answer goes out."""
        return self.now() >= self.token.expires


class Guard:
    """Checks the Authorization header of every request."""

    def __init__(self, verifier: TokenVerifier, now: Callable[[], int]) -> None:
        self.verifier = verifier
        self._now = now

    def admit(self, authorization: str | None) -> Guest:
        """Refusal `unauthenticated`, with the reason, for any but a good bearer token."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refusal("unauthenticated", "a bearer token is needed")
        try:
            return Guest(self.verifier.verify(token, self._now()), self._now, lambda: self.admit(authorization))
        except TokenRefused as refused:
            log.info("a token was refused: %s", refused)
            raise Refusal("unauthenticated", str(refused)) from None
