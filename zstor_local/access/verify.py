"""Checks tokens: a JWT against the keys that are trusted, by every rule of docs/security.md. Pure: no clock, no files, no network.

    three parts, at most TOKEN_BYTES → header of exactly alg, typ and kid → the issuer's key by kid → ES384 signature
    → strict claims: iss, aud, sub, iat, nbf, exp, jti → scopes as parsed (namespace, permission) pairs → less what is revoked

The algorithm is fixed and never taken from the token; kid is looked up and never used as anything else. The issuer's profile tells
which claims there must be: our own authority names all of them, ItsYou.Online's tokens bear neither sub nor kid nor jti.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

import jwt

from zstor_local import limits
from zstor_local.access.trust import ALGORITHM, LEEWAY_SECONDS, TOKEN_SECONDS_MAX, TOKEN_TYPE, TRUST_TYPE, Trust, parse_trust
from zstor_local.errors import InvalidParams
from zstor_local.model.permission import STORE_NAMESPACE, Permission, Rights, check_user, parse_scope

TOKEN_BYTES: Final = 8 * 1024
TRUST_BYTES: Final = 1024 * 1024  # with as many revocations as a key ring keeps
CACHED_TOKENS: Final = 4_096  # checked ones that are remembered until they expire: a signature costs 0.6 ms
JSON_DEPTH: Final = 8

_PART: Final = re.compile(r"[A-Za-z0-9_-]+\Z")
_HEADER: Final = frozenset({"alg", "typ", "kid"})  # whatever else a header says (jku, jwk, x5c, crit, zip, b64 …) is refused
_TEXT_BYTES: Final = 255
_SIGNATURES: Final = jwt.PyJWS(algorithms=[ALGORITHM])


class TokenRefused(Exception):
    """A token that does not count. The text says why, for logs and for its bearer; it holds nothing of the token itself."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a token says that counts: whose it is, and the rights it gives in which namespaces. Times in seconds since 1970."""

    issuer: str
    user: str
    rights: Mapping[str, Rights]
    issued: int
    expires: int
    shard: str | None = None  # the only one that it is for, in hex

    def allows(self, namespace: str, permission: Permission) -> bool:
        return namespace in self.rights and self.rights[namespace].allows(permission)


def verify(token: str, trusts: Mapping[str, Trust], now: int) -> Verified:
    """What the token is good for at `now` (seconds since 1970); TokenRefused otherwise. `trusts` by issuer."""
    header, claims = _parse(token, TOKEN_BYTES)
    trust = _issuer(claims, trusts)
    _check_signature(token, header, trust, TOKEN_TYPE)
    expires, issued = _check_times(claims, trust, now)
    _check_audience(claims, trust)
    user, jti = _bearer(claims, trust)
    if any(each.jti is not None and each.covers(jti=jti, iat=issued, sub=user, namespace="") for each in trust.revoked):
        _refuse("the token was revoked")
    told = _rights(claims, trust)
    rights = {
        namespace: granted
        for namespace, granted in told.items()
        if namespace == STORE_NAMESPACE  # the daemon's own: it ends with its key alone, or by its jti above
        or not any(each.covers(jti=jti, iat=issued, sub=user, namespace=namespace) for each in trust.revoked)
    }
    if told and not rights:  # so that its bearer asks for another one
        _refuse("the token was revoked")
    shard = _text(claims, "shard") if "shard" in claims else None
    return Verified(trust.issuer, user, rights, issued, expires, shard)


def verify_trust(document: str, known: Trust) -> Trust:
    """An issuer's newer trust document, signed with a key of `known`; TokenRefused if it is not, or if it is not newer."""
    header, claims = _parse(document, TRUST_BYTES)
    _check_signature(document, header, known, TRUST_TYPE)
    return _newer(claims, known)


def read_trust(document: str, known: Trust) -> Trust:
    """The same of a document that was verified when it came: nobody else can have put it where it lies."""
    return _newer(_parse(document, TRUST_BYTES)[1], known)


def is_trust(document: str) -> bool:
    """Whether that is a signed trust document at all, whoever signed it."""
    try:
        parse_trust(json.dumps(_parse(document, TRUST_BYTES)[1]))
    except (InvalidParams, TokenRefused):
        return False
    return True


def _newer(claims: Mapping[str, object], known: Trust) -> Trust:
    try:
        trust = parse_trust(json.dumps(claims))
    except InvalidParams as error:
        raise TokenRefused(error.message) from None
    if (trust.issuer, trust.organization, trust.profile) != (known.issuer, known.organization, known.profile):
        _refuse("the trust document is another issuer's")
    if trust.updated <= known.updated:
        _refuse("the trust document is not newer than the one that is known")
    return trust


class TokenVerifier:
    """`verify` with a memory. Replace its trusts when a document changes: what was remembered is forgotten."""

    def __init__(self, trusts: Iterable[Trust]) -> None:
        self._trusts: dict[str, Trust] = {}
        self._seen: dict[bytes, Verified] = {}
        for trust in trusts:
            self.trust(trust)

    @property
    def trusts(self) -> Mapping[str, Trust]:
        return self._trusts

    def trust(self, trust: Trust) -> None:
        """Take an issuer's document in place of what was known of it."""
        self._trusts[trust.issuer] = trust
        self._seen.clear()

    def verify(self, token: str, now: int) -> Verified:
        """As the function `verify`. Remembered is what a good token says; its times are looked at again each time."""
        name = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._seen.get(name)
        if known is not None and known.issued - LEEWAY_SECONDS <= now < known.expires + LEEWAY_SECONDS:
            return known
        verified = verify(token, self._trusts, now)
        while len(self._seen) >= CACHED_TOKENS:
            del self._seen[next(iter(self._seen))]
        self._seen[name] = verified
        return verified


# --- The rules ---


def _refuse(reason: str) -> NoReturn:
    raise TokenRefused(reason)


def _parse(token: str, limit: int) -> tuple[Mapping[str, object], Mapping[str, object]]:
    """Header and claims, strictly read and not yet believed."""
    if len(token) > limit:
        _refuse(f"the token is longer than {limit} bytes")
    parts = token.split(".")
    if len(parts) != 3 or not all(_PART.match(part) for part in parts):
        _refuse("the token is not three parts of base64url")
    header, claims, _ = (_decode(part) for part in parts)
    return _object(header, "header"), _object(claims, "payload")


def _decode(part: str) -> bytes:
    """The bytes of a part; only the one way to write them is taken."""
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        raise TokenRefused("a part of the token is not base64url") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != part:
        _refuse("a part of the token is not written in the one way of base64url")
    return data


def _object(data: bytes, what: str) -> Mapping[str, object]:
    """A JSON object in UTF-8, without duplicate members, NaN or deep nesting."""
    try:
        value = json.loads(data.decode("utf-8", "strict"), object_pairs_hook=_members, parse_constant=_constant)
    except (ValueError, RecursionError):
        raise TokenRefused(f"the token's {what} is not strict JSON") from None
    if not isinstance(value, dict) or _is_deeper(value, JSON_DEPTH):
        _refuse(f"the token's {what} is not a flat JSON object")
    return value


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _constant(name: str) -> NoReturn:
    raise ValueError(name)


def _is_deeper(value: object, levels: int) -> bool:
    """Whether more levels of objects and lists lie in one another. It looks no deeper: nobody has vouched for the value yet."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inside is not None and (not levels or any(_is_deeper(each, levels - 1) for each in inside))


def _issuer(claims: Mapping[str, object], trusts: Mapping[str, Trust]) -> Trust:
    issuer = claims.get("iss")
    trust = trusts.get(issuer) if isinstance(issuer, str) else None
    if trust is None:
        _refuse("the token's issuer is not trusted here")
    return trust


def _check_signature(token: str, header: Mapping[str, object], trust: Trust, kind: str) -> None:
    if header.get("alg") != ALGORITHM:
        _refuse(f"the token is not signed with {ALGORITHM}")
    own = trust.profile == "zstor"
    if header.get("typ") != kind and (own or kind != TOKEN_TYPE or "typ" in header):
        _refuse(f"the token's type is not {kind}")
    if unknown := header.keys() - _HEADER:
        _refuse(f"the token's header says more than alg, typ and kid: {sorted(unknown)[0][:32]!r}")
    kid = header.get("kid", None if own else "")
    key = trust.keys.get(kid) if isinstance(kid, str) else None
    if key is None:
        _refuse("the token's key is not a known one")
    try:
        _SIGNATURES.decode(token, key, algorithms=[ALGORITHM])
    except (jwt.PyJWTError, ValueError, TypeError):
        raise TokenRefused("the token's signature does not hold") from None


def _check_times(claims: Mapping[str, object], trust: Trust, now: int) -> tuple[int, int]:
    """When it expires and when it was issued."""
    expires = _seconds(claims, "exp")
    # The service may leave iat out: then only how long a token still runs can be bounded.
    told = "iat" in claims or trust.profile == "zstor"
    issued = _seconds(claims, "iat") if told else expires - TOKEN_SECONDS_MAX
    if now >= expires + LEEWAY_SECONDS:
        _refuse("the token has expired: if it is new, compare the clocks")
    if issued > now + LEEWAY_SECONDS:
        _refuse("the token was issued in the future: compare the clocks")
    if "nbf" in claims and _seconds(claims, "nbf") > now + LEEWAY_SECONDS:
        _refuse("the token is not valid yet")
    if not 0 < expires - issued <= TOKEN_SECONDS_MAX:
        _refuse(f"the token is not made for at most {TOKEN_SECONDS_MAX} seconds")
    return expires, issued


def _seconds(claims: Mapping[str, object], name: str) -> int:
    value = claims.get(name)
    if type(value) is not int or not 0 <= value <= limits.SAFE_INTEGER:
        _refuse(f"the token's {name} is missing or no number of seconds")
    return value


def _check_audience(claims: Mapping[str, object], trust: Trust) -> None:
    """Our own tokens name exactly us, as text. ItsYou.Online's name whoever asked for them, in a list or not at all."""
    audience = claims.get("aud")
    if trust.profile == "zstor":
        if audience != trust.audience:
            _refuse("the token is not for this audience")
    elif "aud" in claims:
        named = audience if isinstance(audience, list) else [audience]
        if not all(isinstance(each, str) for each in named):
            _refuse("the token's aud is neither text nor a list of texts")


def _bearer(claims: Mapping[str, object], trust: Trust) -> tuple[str, str | None]:
    """Whose token it is, and its id."""
    if trust.profile == "zstor":
        return _user(claims, "sub"), _text(claims, "jti")
    user = _user(claims, "username" if "username" in claims else "globalid")
    return user, _text(claims, "jti") if "jti" in claims else None


def _user(claims: Mapping[str, object], name: str) -> str:
    try:
        return check_user(_text(claims, name))
    except InvalidParams:
        raise TokenRefused(f"the token's {name} is not a user's name") from None


def _text(claims: Mapping[str, object], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= _TEXT_BYTES:
        _refuse(f"the token's {name} is missing or no text of 1 to {_TEXT_BYTES} characters")
    return value


def _rights(claims: Mapping[str, object], trust: Trust) -> dict[str, Rights]:
    """By namespace. Scopes that mean nothing here give nothing."""
    scopes = claims.get("scope")
    if not isinstance(scopes, list) or not all(isinstance(each, str) for each in scopes):
        _refuse("the token's scope is not a list of texts")
    rights: dict[str, Rights] = {}
    for text in scopes:
        parsed = parse_scope(text, trust.organization)
        if parsed is not None:
            namespace, permission = parsed
            rights[namespace] = rights.get(namespace, Rights()) | Rights.of([permission])
    return rights
