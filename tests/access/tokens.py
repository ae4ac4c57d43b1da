"""Tokens as tests need them: good ones, and any that a forger could write."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from zstor_local.access.trust import AUDIENCE, Trust, parse_trust

NOW: Final = 1_800_000_000
ISSUER: Final = "zstor:0123456789abcdef"
SERVICE: Final = "itsyouonline"
KEY: Final = ec.generate_private_key(ec.SECP384R1())
OLD_KEY: Final = ec.generate_private_key(ec.SECP384R1())
SERVICE_KEY: Final = ec.generate_private_key(ec.SECP384R1())
STRANGERS_KEY: Final = ec.generate_private_key(ec.SECP384R1())
READ: Final = "user:memberof:local.0stor.photos.read"

Members = Mapping[str, object]


def public(key: ec.EllipticCurvePrivateKey, kid: str | None) -> dict[str, object]:
    jwk = {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "alg": "ES384", "use": "sig"}
    return jwk if kid is None else {**jwk, "kid": kid}


def document(**other: object) -> dict[str, object]:
    """The trust document of our own authority."""
    own = {"issuer": ISSUER, "organization": "local", "keys": [public(KEY, "key-2"), public(OLD_KEY, "key-1")]}
    return {**own, **other}


def own_trust(**other: object) -> Trust:
    return parse_trust(json.dumps(document(**other)))


def service_trust() -> Trust:
    """ItsYou.Online's: one key without a kid."""
    members = {"issuer": SERVICE, "organization": "org", "profile": "itsyouonline", "keys": [public(SERVICE_KEY, None)]}
    return parse_trust(json.dumps(members))


def own_claims(**other: object) -> dict[str, object]:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": NOW, "exp": NOW + 300, "jti": "token-1", "scope": [READ]}
    return {**claims, **other}


def service_claims(**other: object) -> dict[str, object]:
    claims = {"iss": SERVICE, "username": "alice", "azp": "client", "exp": NOW + 300, "scope": ["user:memberof:org.0stor.photos.read"]}
    return {**claims, **other}


def without(members: Members, name: str) -> dict[str, object]:
    return {each: value for each, value in members.items() if each != name}


def text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(header: Members | bytes, payload: Members | bytes, key: ec.EllipticCurvePrivateKey = KEY) -> str:
    """Whatever is given, with a signature of ES384 that holds."""
    parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, payload)]
    signed = ".".join(map(text, parts))
    return f"{signed}.{text(ECAlgorithm(ECAlgorithm.SHA384).sign(signed.encode(), key))}"


HEADER: Final[Members] = {"alg": "ES384", "typ": "JWT", "kid": "key-2"}


def own(header: Members | None = None, key: ec.EllipticCurvePrivateKey = KEY, **claims: object) -> str:
    """A token of our own authority, signed well; `claims` in place of or beside the usual ones."""
    return sign(HEADER if header is None else header, own_claims(**claims), key)


def service(header: Members | None = None, key: ec.EllipticCurvePrivateKey = SERVICE_KEY, **claims: object) -> str:
    return sign({"alg": "ES384", "typ": "JWT"} if header is None else header, service_claims(**claims), key)


def encoded(claims: Members, key: object, algorithm: str, headers: dict[str, object] | None = None) -> str:
    """As a library writes it."""
    return jwt.encode(dict(claims), key, algorithm=algorithm, headers=headers)  # type: ignore[arg-type]
