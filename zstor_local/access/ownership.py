"""The daemon's own tokens: what a store shows to the shard servers that keep its shards. Pure: the time and random bytes are given.

They are signed with a key that follows from the store's own, so that they can be made before there is a metastore, and whichever
authority gives tokens to users. A shard server that trusts the document of `owner_document` makes and serves that store's shards.

Each is for one shard: a server that shows to others what it was shown gets nothing there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from zstor_local.access.signing import JTI_BYTES, SEED_BYTES, Claims, SigningKey, sign_token
from zstor_local.access.trust import AUDIENCE, TOKEN_SECONDS, TrustDocument
from zstor_local.coding.keys import NamespaceKeys
from zstor_local.model.ids import ShardUid, StoreId
from zstor_local.model.permission import OWNER, STORE_NAMESPACE, scope
from zstor_local.runtime import SECOND_US, Clock, Randomness

RENEW_SECONDS: Final = 30  # before a token expires

_INFO: Final = b"zstor/1 owner of shards"


def issuer_name(store_id: StoreId) -> str:
    """The `iss` of a store's tokens."""
    return f"zstor:{store_id.hex()}"


class OwnerKeys:
    """The keys that sign a store's own tokens, one from each master key. Servers know that of the first one from the start, and are
    told of later ones: who has only the newest master key, and is to make the store anew from what they hold, must be let in.
    """

    def __init__(self, keys: NamespaceKeys) -> None:
        """`keys`: those of the store-wide records."""
        self._keys = keys
        self._made: dict[bytes, SigningKey] = {}

    def now(self) -> tuple[SigningKey, ...]:
        """The newest first."""
        seeds = self._keys.derive_each(_INFO, SEED_BYTES)
        self._made = {seed: self._made.get(seed) or SigningKey.from_seed(seed) for seed in seeds}
        return tuple(self._made.values())


def owner_document(keys: Sequence[SigningKey], store_id: StoreId, organization: str, updated: int = 0) -> TrustDocument:
    """What a shard server must know of a store before it has seen anything of it, and after a rotation of its master key."""
    return {
        "issuer": issuer_name(store_id),
        "organization": organization,
        "profile": "zstor",
        "audience": AUDIENCE,
        "keys": [key.jwk() for key in keys],
        "revoked": [],
        "updated": updated,
    }


class OwnerTokens:
    """One token after the other, each used until shortly before it expires. Without a shard they ask for nothing but a marker.

    A server may know none but an older key, or no more than the newest: whichever it took last signs, until it is refused.
    """

    def __init__(
        self,
        keys: Callable[[], Sequence[SigningKey]],
        store_id: StoreId,
        organization: str,
        clock: Clock,
        randomness: Randomness,
        shard: ShardUid | None = None,
    ) -> None:
        self._keys = keys
        self._signer: SigningKey | None = None
        self._store_id = store_id
        self._organization = organization
        self._clock = clock
        self._randomness = randomness
        self._shard = shard
        self._token = ""
        self._expires = 0
        self._of: dict[ShardUid, OwnerTokens] = {}

    def of(self, shard: ShardUid) -> OwnerTokens:
        """Those for one shard, always the same ones."""
        if shard not in self._of:
            self._of[shard] = OwnerTokens(self._keys, self._store_id, self._organization, self._clock, self._randomness, shard)
        return self._of[shard]

    @property
    def behind(self) -> bool:
        """Whether the last one was signed with an older key than the newest."""
        return self._signer is not None and self._signer.kid != self._keys()[0].kid

    async def token(self, refused: int = 0) -> str | None:
        """A token that is good for half a minute at least. `refused`: how many were refused just now, for the same; None where no
        other one is left to try.
        """
        now = self._clock.now() // SECOND_US
        if refused or not self._token or not self._expires - TOKEN_SECONDS <= now < self._expires - RENEW_SECONDS:
            keys = self._keys()
            if refused > len(keys):
                return None
            signer = self._signer = keys[refused - 1] if refused else self._signer or keys[0]
            self._expires = now + TOKEN_SECONDS
            jti = self._randomness.bytes(JTI_BYTES).hex()
            self._token = sign_token(
                signer,
                Claims(
                    issuer=issuer_name(self._store_id),
                    audience=AUDIENCE,
                    user=OWNER,
                    scopes=[scope(self._organization, STORE_NAMESPACE, "admin")],
                    issued=now,
                    expires=self._expires,
                    jti=jti,
                    shard=None if self._shard is None else self._shard.hex(),
                ),
            )
        return self._token
