"""What a shard server must know to check tokens: an issuer's public keys (a JWK Set, RFC 7517), and which tokens it has revoked.

    {"issuer": "zstor:<store id>", "organization": "local", "profile": "zstor", "audience": "zstor-shard",
     "keys": [{"kty": "EC", "crv": "P-384", "x": …, "y": …, "alg": "ES384", "use": "sig", "kid": …}],
     "revoked": [{"until": 1700000000, "jti": …} or {"until": …, "issued_until": …, "sub": …, "namespace": …}],
     "updated": 1700000000123456}

Beside `keys` these members are ours; the RFC has others ignore what they do not know. `profile` says how strict the issuer's tokens
are: `zstor` demands kid, iss, aud, sub, iat, exp and jti; `itsyouonline` is for that service's tokens, which bear no sub and no kid.
A revocation counts until `until` (seconds): then every token that it means has expired. `updated` (microseconds) grows with every
change of keys or revocations: of two documents of an issuer the one with the higher counts.

The same document travels as a JWS of type TRUST_TYPE, signed by the issuer, where it comes over a way that nobody vouches for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from zstor_local.errors import InvalidParams
from zstor_local.model.permission import check_organization

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

Profile = Literal["zstor", "itsyouonline"]
ALGORITHM: Final = "ES384"
AUDIENCE: Final = "zstor-shard"
TOKEN_TYPE: Final = "JWT"  # noqa: S105 (the `typ` of a token's header)
TRUST_TYPE: Final = "zstor-trust+jwt"  # the `typ` of a signed trust document, so that it is never taken for a token
TOKEN_SECONDS: Final = 300
TOKEN_SECONDS_MAX: Final = 86_400
LEEWAY_SECONDS: Final = 10  # clocks of daemon and shard may differ by this

Member: TypeAlias = "str | int | Mapping[str, str] | Sequence[Member] | Mapping[str, Member]"
TrustDocument: TypeAlias = Mapping[str, Member]


@dataclass(frozen=True, slots=True)
class Revocation:
    """Tokens that count no more: one by its `jti`, or all that were issued until a second, of a user, in a namespace (None: any)."""

    until: int
    jti: str | None = None
    issued_until: int | None = None
    sub: str | None = None
    namespace: str | None = None

    def document(self) -> Mapping[str, str | int]:
        members = {
            "until": self.until,
            "jti": self.jti,
            "issued_until": self.issued_until,
            "sub": self.sub,
            "namespace": self.namespace,
        }
        return {name: value for name, value in members.items() if value is not None}

    def covers(self, *, jti: str | None, iat: int, sub: str | None, namespace: str) -> bool:
        """Whether a token that grants something in the namespace is meant."""
        if self.jti is not None:
            return jti == self.jti
        return iat <= (self.issued_until or 0) and self.sub in (None, sub) and self.namespace in (None, namespace)


@dataclass(frozen=True, slots=True)
class Trust:
    """A trust document, checked: keys by kid ("" for the one key of an issuer that names none)."""

    issuer: str
    organization: str
    profile: Profile
    audience: str
    keys: Mapping[str, ec.EllipticCurvePublicKey]
    revoked: tuple[Revocation, ...] = ()
    updated: int = 0


def parse_trust(text: str | bytes) -> Trust:
    """A document as `zstor token keys` prints it. InvalidParams says what is wrong with any other."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidParams("the trust document is not JSON") from None
    if not isinstance(document, dict):
        raise InvalidParams("the trust document is not an object")
    profile = document.get("profile", "zstor")
    if profile not in ("zstor", "itsyouonline"):
        raise InvalidParams(f"the trust document has an unknown profile {profile!r}", hint="zstor or itsyouonline")
    return Trust(
        issuer=_text(document, "issuer"),
        organization=check_organization(_text(document, "organization")),
        profile=profile,
        audience=_text(document, "audience", AUDIENCE),
        keys=_keys(document, profile),
        revoked=tuple(_revocation(each) for each in _list(document, "revoked")),
        updated=_number(document, "updated", 0),
    )


def _keys(document: Mapping[str, object], profile: Profile) -> Mapping[str, ec.EllipticCurvePublicKey]:
    from jwt import PyJWK  # here: it takes long to import, and a daemon with its own shards alone reads no keys
    from jwt.exceptions import PyJWTError

    keys: dict[str, ec.EllipticCurvePublicKey] = {}
    for jwk in _list(document, "keys"):
        if not isinstance(jwk, dict) or jwk.get("kty") != "EC" or jwk.get("crv") != "P-384" or jwk.get("alg", ALGORITHM) != ALGORITHM:
            raise InvalidParams("the trust document holds a key that is not for ES384", hint="kty EC, crv P-384")
        if "d" in jwk:
            raise InvalidParams("the trust document holds a private key", hint="make a new key: that one has been shown")
        try:
            key = PyJWK(jwk, ALGORITHM).key
        except (PyJWTError, ValueError, TypeError, KeyError):
            raise InvalidParams("the trust document holds a key that cannot be read") from None
        kid = jwk.get("kid", "")
        if not isinstance(kid, str) or kid in keys or (not kid and profile == "zstor"):
            raise InvalidParams("each key of the trust document needs a kid of its own")
        keys[kid] = key
    return keys


def _revocation(members: object) -> Revocation:
    if not isinstance(members, dict):
        raise InvalidParams("a revocation is not an object")
    jti = _text(members, "jti") if "jti" in members else None
    issued = _number(members, "issued_until") if jti is None else None
    sub = _text(members, "sub") if "sub" in members else None
    namespace = _text(members, "namespace") if "namespace" in members else None
    return Revocation(_number(members, "until"), jti, issued, sub, namespace)


def _text(members: Mapping[str, object], name: str, default: str | None = None) -> str:
    value = members.get(name, default)
    if not isinstance(value, str) or not 1 <= len(value) <= 255:
        raise InvalidParams(f"{name} is missing in the trust document, or no text of 1 to 255 characters")
    return value


def _number(members: Mapping[str, object], name: str, default: int | None = None) -> int:
    value = members.get(name, default)
    if type(value) is not int or value < 0:
        raise InvalidParams(f"{name} is missing in the trust document, or no number")
    return value


def _list(members: Mapping[str, object], name: str) -> list[object]:
    value = members.get(name, [])
    if not isinstance(value, list):
        raise InvalidParams(f"{name} of the trust document is not a list")
    return value
