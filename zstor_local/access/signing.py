"""Signing with ES384: the key, a token's claims, a trust document. Pure: random bytes and the time are given."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from zstor_local.access.trust import ALGORITHM, TOKEN_TYPE, TRUST_TYPE, TrustDocument

SEED_BYTES: Final = 56  # 64 bits more than the curve's order has: FIPS 186-5, A.2.1
JTI_BYTES: Final = 16  # of the random id of a token
_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973  # of P-384
_COORDINATE_BYTES: Final = 48


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SigningKey:
    """A private key of P-384. repr shows none of it."""

    scalar: int
    _key: ec.EllipticCurvePrivateKey = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_key", ec.derive_private_key(self.scalar, ec.SECP384R1()))

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key that SEED_BYTES fresh random bytes give."""
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes")
        return cls(int.from_bytes(seed, "big") % (_ORDER - 1) + 1)

    @classmethod
    def parse(cls, secret: bytes) -> SigningKey:
        """The reverse of `secret`; ValueError for bytes that are none."""
        scalar = int.from_bytes(secret, "big")
        if len(secret) != _COORDINATE_BYTES or not 0 < scalar < _ORDER:
            raise ValueError("that is no private key of P-384")
        return cls(scalar)

    @property
    def secret(self) -> bytes:
        """48 bytes."""
        return self.scalar.to_bytes(_COORDINATE_BYTES, "big")

    @property
    def kid(self) -> str:
        """The key's thumbprint (RFC 7638)."""
        required = {name: self._public()[name] for name in ("crv", "kty", "x", "y")}
        return _base64url(hashlib.sha256(json.dumps(required, separators=(",", ":")).encode()).digest())

    def jwk(self) -> Mapping[str, str]:
        """The public key as RFC 7517 writes it."""
        return {**self._public(), "alg": ALGORITHM, "use": "sig", "kid": self.kid}

    def _public(self) -> Mapping[str, str]:
        numbers = self._key.public_key().public_numbers()
        x, y = (_base64url(number.to_bytes(_COORDINATE_BYTES, "big")) for number in (numbers.x, numbers.y))
        return {"crv": "P-384", "kty": "EC", "x": x, "y": y}

    def sign(self, claims: Mapping[str, object], kind: str) -> str:
        """A compact JWS of the claims. `kind` is its header's `typ`."""
        import jwt  # here: it takes long to import, and a daemon with its own shards alone signs nothing

        return jwt.encode({**claims}, self._key, ALGORITHM, headers={"typ": kind, "kid": self.kid})


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says. Times in whole seconds since 1970 UTC. `shard` is the one that it is for, in hex; None: it names none."""

    issuer: str
    audience: str
    user: str
    scopes: Sequence[str]
    issued: int
    expires: int
    jti: str
    shard: str | None = None


def sign_token(key: SigningKey, claims: Claims) -> str:
    """A bearer token for shard servers."""
    return key.sign(
        {
            "iss": claims.issuer,
            "aud": claims.audience,
            "sub": claims.user,
            "username": claims.user,
            "scope": [*claims.scopes],
            "iat": claims.issued,
            "exp": claims.expires,
            "jti": claims.jti,
            **({} if claims.shard is None else {"shard": claims.shard}),
        },
        TOKEN_TYPE,
    )


def sign_trust(key: SigningKey, document: TrustDocument) -> str:
    """A trust document that whoever knows one of the issuer's keys can take from anybody."""
    return key.sign({"iss": document["issuer"], **document}, TRUST_TYPE)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
