"""The authority that is built in: rights and signing keys are rows of the store, sealed and copied to all shards like its others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from zstor_local.access.authority import Given, Revoked, Token
from zstor_local.access.owner import Owner
from zstor_local.access.ownership import issuer_name
from zstor_local.access.signing import JTI_BYTES, SEED_BYTES, Claims, SigningKey, sign_token
from zstor_local.access.signing_keys import SigningKeys
from zstor_local.access.trust import AUDIENCE, LEEWAY_SECONDS, TOKEN_SECONDS_MAX, Revocation, TrustDocument
from zstor_local.config import AuthorityKind
from zstor_local.errors import CorruptRecord, InvalidParams, PermissionDenied
from zstor_local.model.fields import decode, encode
from zstor_local.model.ids import StoreId
from zstor_local.model.permission import ALL, OWNER, PERMISSIONS, STORE_NAMESPACE, Permission, Rights, scope
from zstor_local.runtime import SECOND_US, Runtime
from zstor_local.store.namespaces import PERMISSIONS_TABLE, no_namespace
from zstor_local.store.store import Store
from zstor_local.store.storewide import StoredRow, StoreWide

SCHEMA: Final = 1

_AUTHORITY: Final = "authority"
_KEYS: Final = "keys"  # its one row


class BuiltInAuthority:
    """See the laws of access.authority.Authority. `exists` tells whether the store has a namespace of that name; `must_be_free` raises
    AlreadyExists if it has, and is asked in the committer's thread.
    """

    kind: AuthorityKind = "builtin"

    def __init__(
        self,
        runtime: Runtime,
        rows: StoreWide,
        store_id: StoreId,
        owner: Owner,
        *,
        organization: str,
        exists: Callable[[str], bool],
        must_be_free: Callable[[str], None],
    ) -> None:
        """`owner` is known to servers beside the authority's own keys."""
        self._runtime = runtime
        self._rows = rows
        self._owner = owner
        self._issuer = issuer_name(store_id)
        self.organization = organization
        self._exists = exists
        self._must_be_free = must_be_free

    # --- Namespaces and rights ---

    async def create(self, namespace: str) -> None:
        def change(_: StoredRow | None) -> bytes:
            self._must_be_free(namespace)
            return _encode({})  # also over what a creation that was broken off has left

        await self._rows.change(PERMISSIONS_TABLE, namespace, change)

    async def delete(self, namespace: str) -> None:
        await self._rows.remove(PERMISSIONS_TABLE, namespace)

    async def namespaces(self) -> Sequence[str]:
        names: list[str] = []
        while page := self._rows.names(PERMISSIONS_TABLE, after=names[-1] if names else None):
            names += page
        return names

    async def give(self, namespace: str, user: str, rights: Rights) -> Given:
        return Given(await self._change(namespace, user, lambda had: had | rights))

    async def remove(self, namespace: str, user: str, rights: Rights) -> Given:
        return Given(await self._change(namespace, user, lambda had: had - rights))

    async def get(self, namespace: str, user: str) -> Rights:
        return ALL if user == OWNER else self._users(namespace).get(user, Rights())

    async def users(self, namespace: str) -> Mapping[str, Rights]:
        return self._users(namespace)

    async def _change(self, namespace: str, user: str, change: Callable[[Rights], Rights]) -> Rights:
        if user == OWNER:
            raise InvalidParams(f"{OWNER} is the daemon's own user and has every right", parameter="user")
        self._must_exist(namespace, self._rows.get(PERMISSIONS_TABLE, namespace))
        result = Rights()

        def changed(current: StoredRow | None) -> bytes:
            nonlocal result
            users = {} if current is None else dict(_decode(current.value))
            result = change(users.pop(user, Rights()))
            return _encode({**users, user: result} if result else users)

        await self._rows.change(PERMISSIONS_TABLE, namespace, changed)
        return result

    def _users(self, namespace: str) -> Mapping[str, Rights]:
        row = self._rows.get(PERMISSIONS_TABLE, namespace)
        self._must_exist(namespace, row)
        return {} if row is None else _decode(row.value)

    def _must_exist(self, namespace: str, row: StoredRow | None) -> None:
        """Namespaces that a first write made have no row here before somebody is given something."""
        if row is None and namespace != STORE_NAMESPACE and not self._exists(namespace):
            raise no_namespace(namespace)

    # --- Tokens ---

    async def token(self, namespace: str, permissions: Sequence[Permission], user: str | None, seconds: int) -> Token:
        bearer = OWNER if user is None else user
        rights = await self.get(namespace, bearer)
        if bearer == OWNER:
            self._must_exist(namespace, self._rows.get(PERMISSIONS_TABLE, namespace))
        lacking = [permission for permission in permissions if not rights.allows(permission)]
        if lacking or not permissions:
            raise PermissionDenied(
                f"{bearer} has no permission to {' or '.join(lacking) or 'do nothing'} in {namespace}",
                hint="`zstor perm give` gives it",
            )
        scopes = tuple(scope(self.organization, namespace, permission) for permission in permissions)
        key, ring = await self._signing()
        issued = ring.first_second(bearer, namespace, self._now())
        claims = Claims(
            issuer=self._issuer,
            audience=AUDIENCE,
            user=bearer,
            scopes=scopes,
            issued=issued,
            expires=issued + seconds,
            jti=self._runtime.randomness.bytes(JTI_BYTES).hex(),
        )
        return Token(sign_token(key, claims), claims.expires, scopes)

    async def trust(self) -> TrustDocument:
        await self._signing()
        owner, changed = self._owner.known()
        row = self._rows.get(_AUTHORITY, _KEYS)
        ring = self._ring(row).pruned(self._now())
        return {
            "issuer": self._issuer,
            "organization": self.organization,
            "profile": "zstor",
            "audience": AUDIENCE,
            "keys": [key.jwk() for key in (*owner, *(kept.key for kept in ring.keys))],
            "revoked": [each.document() for each in ring.revoked],
            "updated": max(changed, 0 if row is None else row.sequence),
        }

    async def rotate(self, *, signs_in_seconds: int) -> str:
        key = self._new_key()
        now = self._now()
        await self._signing()
        await self._change_ring(lambda ring: ring.with_key(key, now + signs_in_seconds, now))
        return key.kid

    async def revoke(self, what: Revoked) -> None:
        now = self._now()
        if what.kid is not None:
            kid = what.kid
            await self._change_ring(lambda ring: self._able(ring.without_key(kid, now), now))
            return

        def revoked(ring: SigningKeys) -> SigningKeys:
            last = ring.last_second(what.user, what.namespace, now)
            until = last + TOKEN_SECONDS_MAX + LEEWAY_SECONDS + 1
            return ring.with_revocation(Revocation(until, what.jti, None if what.jti else last, what.user, what.namespace), now)

        await self._change_ring(revoked)

    async def _signing(self) -> tuple[SigningKey, SigningKeys]:
        """The key that signs now, made if there is none yet, and its ring."""
        ring = self._ring(self._rows.get(_AUTHORITY, _KEYS))
        if ring.signer(self._now()) is None:
            ring = await self._change_ring(lambda ring: self._able(ring, self._now()))
        key = ring.signer(self._now())
        if key is None:
            raise CorruptRecord("the authority has no key to sign with", hint="`zstor token keys --rotate` makes one")
        return key, ring

    def _able(self, ring: SigningKeys, now: int) -> SigningKeys:
        """The ring with a key that signs now. A later one that waits stays in it: with the clock set back it would else be lost."""
        if ring.signer(now) is not None:
            return ring
        return replace(ring, keys=(*SigningKeys().with_key(self._new_key(), now, now).keys, *ring.keys))

    def _new_key(self) -> SigningKey:
        return SigningKey.from_seed(self._runtime.randomness.bytes(SEED_BYTES))

    async def _change_ring(self, change: Callable[[SigningKeys], SigningKeys]) -> SigningKeys:
        row = await self._rows.change(_AUTHORITY, _KEYS, lambda current: change(self._ring(current)).encode())
        return self._ring(row)

    def _ring(self, row: StoredRow | None) -> SigningKeys:
        return (SigningKeys() if row is None else SigningKeys.decode(row.value)).since(self._owner.retired())

    def _now(self) -> int:
        return self._runtime.clock.now() // SECOND_US


def builtin_authority(store: Store) -> BuiltInAuthority:
    """The authority of an open store."""
    return BuiltInAuthority(
        store.runtime,
        store.rows,
        store.sealer.store_id,
        Owner(store),
        organization=store.config.authority.organization,
        exists=lambda name: store.namespaces.find_to_change(name) is not None,
        must_be_free=store.namespaces.must_be_free,
    )


def _encode(users: Mapping[str, Rights]) -> bytes:
    bits = {user: sum(1 << PERMISSIONS.index(name) for name in rights.names) for user, rights in users.items()}
    return encode({0: SCHEMA, 1: bits})


def _decode(data: bytes) -> Mapping[str, Rights]:
    plain = decode(data)
    users = plain.get(1)
    if plain.get(0) != SCHEMA or not isinstance(users, dict) or any(type(bits) is not int for bits in users.values()):
        raise CorruptRecord("the permissions of a namespace are malformed", hint="use the newest zstor that wrote to this store")
    return {user: Rights.of(name for at, name in enumerate(PERMISSIONS) if bits >> at & 1) for user, bits in users.items()}
