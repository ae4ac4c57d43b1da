"""Tokens that are refused, each beside a twin that differs in that one thing and passes."""

from __future__ import annotations

import hashlib
import hmac
import json
import warnings

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.access.tokens import (
    HEADER,
    ISSUER,
    KEY,
    NOW,
    OLD_KEY,
    READ,
    SERVICE_KEY,
    STRANGERS_KEY,
    document,
    encoded,
    own,
    own_claims,
    own_trust,
    public,
    service,
    service_claims,
    service_trust,
    sign,
    text,
    without,
)
from zstor_local.access.trust import AUDIENCE, TRUST_TYPE, Trust
from zstor_local.access.verify import JSON_DEPTH, TOKEN_BYTES, TokenRefused, TokenVerifier, Verified, verify, verify_trust

TRUSTS = {trust.issuer: trust for trust in (own_trust(), service_trust())}


def check(token: str, namespace: str = "photos", *, now: int = NOW, trusts: dict[str, Trust] | None = None) -> Verified:
    """The token, good for reading in the namespace; TokenRefused otherwise."""
    verified = verify(token, TRUSTS if trusts is None else trusts, now)
    if not verified.allows(namespace, "read"):
        raise TokenRefused("no right to read there")
    return verified


def hmac_signed(secret: bytes, **header: object) -> str:
    """The classic confusion: HMAC with what everybody knows as the secret."""
    signed = f"{text(json.dumps({**HEADER, 'alg': 'HS384', **header}).encode())}.{text(json.dumps(own_claims()).encode())}"
    return f"{signed}.{text(hmac.new(secret, signed.encode(), hashlib.sha384).digest())}"


def public_bytes(encoding: Encoding, layout: PublicFormat) -> bytes:
    return KEY.public_key().public_bytes(encoding, layout)


def der_signature(token: str) -> str:
    """The signature in the other format of ECDSA."""
    from cryptography.hazmat.primitives import hashes

    signed = token.rpartition(".")[0]
    return f"{signed}.{text(KEY.sign(signed.encode(), ec.ECDSA(hashes.SHA384())))}"


def unsigned(algorithm: str, signature: str = "") -> str:
    head = text(json.dumps({**HEADER, "alg": algorithm}).encode())
    return f"{head}.{text(json.dumps(own_claims()).encode())}.{signature}"


def json_with(member: str) -> bytes:
    """The claims with a member written by hand, behind the others."""
    return json.dumps(own_claims()).encode()[:-1] + b", " + member.encode() + b"}"


def nested(lists: int) -> bytes:
    """The claims with so many lists in one another, inside of their own object."""
    return json_with('"a": ' + "[" * lists + "]" * lists)


GOOD = own()
HEAD, CLAIMS, SIGNATURE = GOOD.split(".")
P256 = ec.generate_private_key(ec.SECP256R1())
P521 = ec.generate_private_key(ec.SECP521R1())
OTHER_CLAIMS = text(json.dumps(own_claims(scope=["user:memberof:local.0stor.photos"])).encode())
HEADER_TWICE = json.dumps(HEADER).encode()[:-1] + b', "alg": "ES384"}'

# What it attacks: the token, and its twin. The twin of most is the good token itself, made the same way.
ATTACKS: dict[str, tuple[str, str]] = {
    # --- the algorithm ---
    "alg none": (unsigned("none"), GOOD),
    "alg None": (unsigned("None"), GOOD),
    "alg none with the good signature": (unsigned("none", SIGNATURE), GOOD),
    "alg ES384 in lower case": (own({**HEADER, "alg": "es384"}), own(HEADER)),
    "alg missing": (own(without(HEADER, "alg")), own(HEADER)),
    "alg a list": (own({**HEADER, "alg": ["ES384"]}), own(HEADER)),
    "alg null": (own({**HEADER, "alg": None}), own(HEADER)),
    "HMAC with the PEM of the key": (hmac_signed(public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)), GOOD),
    "HMAC with the DER of the key": (hmac_signed(public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)), GOOD),
    "HMAC with the point of the key": (hmac_signed(public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)), GOOD),
    "HMAC with the JWK as JSON": (hmac_signed(json.dumps(public(KEY, "key-2")).encode()), GOOD),
    "HMAC with nothing": (hmac_signed(b""), GOOD),
    "HMAC said to be ES384": (hmac_signed(public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), alg="ES384"), GOOD),
    "ES256 with another key": (
        encoded(own_claims(), P256, "ES256", {"kid": "key-2"}),
        encoded(own_claims(), KEY, "ES384", {"kid": "key-2"}),
    ),
    "ES512 with another key": (
        encoded(own_claims(), P521, "ES512", {"kid": "key-2"}),
        encoded(own_claims(), KEY, "ES384", {"kid": "key-2"}),
    ),
    "EdDSA with another key": (
        encoded(own_claims(), ed25519.Ed25519PrivateKey.generate(), "EdDSA", {"kid": "key-2"}),
        encoded(own_claims(), KEY, "ES384", {"kid": "key-2"}),
    ),
    "RS256 with another key": (
        encoded(own_claims(), rsa.generate_private_key(65_537, 2_048), "RS256", {"kid": "key-2"}),
        encoded(own_claims(), KEY, "ES384", {"kid": "key-2"}),
    ),
    # --- the key ---
    "a stranger's key under a known kid": (own(key=STRANGERS_KEY), own(key=KEY)),
    "another known key than kid says": (own(key=OLD_KEY), own({**HEADER, "kid": "key-1"}, key=OLD_KEY)),
    "kid unknown": (own({**HEADER, "kid": "key-3"}), own({**HEADER, "kid": "key-2"})),
    "kid missing": (own(without(HEADER, "kid")), own(HEADER)),
    "kid a path": (own({**HEADER, "kid": "../../../../dev/null"}), own(HEADER)),
    "kid a query": (own({**HEADER, "kid": "key-2' or '1'='1"}), own(HEADER)),
    "kid a number": (own({**HEADER, "kid": 0}), own(HEADER)),
    "kid a list": (own({**HEADER, "kid": ["key-2"]}), own(HEADER)),
    "kid null": (own({**HEADER, "kid": None}), own(HEADER)),
    "kid empty": (own({**HEADER, "kid": ""}), own(HEADER)),
    "the service's key for our issuer": (own(key=SERVICE_KEY), service(key=SERVICE_KEY)),
    "our key for the service's issuer": (service(key=KEY), service(key=SERVICE_KEY)),
    # --- the header ---
    "jwk brought along": (own({**HEADER, "jwk": public(STRANGERS_KEY, "key-2")}, key=STRANGERS_KEY), own(HEADER)),
    "jwk of the right key": (own({**HEADER, "jwk": public(KEY, "key-2")}), own(HEADER)),
    "jku": (own({**HEADER, "jku": "https://evil.example/keys"}), own(HEADER)),
    "x5u": (own({**HEADER, "x5u": "https://evil.example/certificate"}), own(HEADER)),
    "x5c": (own({**HEADER, "x5c": ["MIIB"]}), own(HEADER)),
    "x5t": (own({**HEADER, "x5t": "AAAA"}), own(HEADER)),
    "crit unknown": (own({**HEADER, "crit": ["exp"], "exp": NOW}), own(HEADER)),
    "crit empty": (own({**HEADER, "crit": []}), own(HEADER)),
    "b64 false": (own({**HEADER, "b64": False}), own(HEADER)),
    "zip": (own({**HEADER, "zip": "DEF"}), own(HEADER)),
    "cty JWT": (own({**HEADER, "cty": "JWT"}), own(HEADER)),
    "typ missing": (own(without(HEADER, "typ")), own(HEADER)),
    "typ of another kind": (own({**HEADER, "typ": TRUST_TYPE}), own(HEADER)),
    "typ at+jwt": (own({**HEADER, "typ": "at+jwt"}), own(HEADER)),
    "header with a member twice": (sign(HEADER_TWICE, own_claims()), sign(HEADER, own_claims())),
    "header a list": (sign(b'["ES384"]', own_claims()), sign(HEADER, own_claims())),
    "header in UTF-16": (sign(json.dumps(HEADER).encode("utf-16"), own_claims()), sign(json.dumps(HEADER).encode(), own_claims())),
    "header with a mark before it": (sign(b"\xef\xbb\xbf" + json.dumps(HEADER).encode(), own_claims()), sign(HEADER, own_claims())),
    # --- the form ---
    "empty": ("", GOOD),
    "two parts": (f"{HEAD}.{CLAIMS}", GOOD),
    "four parts": (f"{GOOD}.{SIGNATURE}", GOOD),
    "five parts, as an encrypted one": (f"{GOOD}.{SIGNATURE}.{SIGNATURE}", GOOD),
    "no signature": (f"{HEAD}.{CLAIMS}.", GOOD),
    "JSON serialization": (json.dumps({"protected": HEAD, "payload": CLAIMS, "signature": SIGNATURE}), GOOD),
    "padding": (f"{GOOD}==", GOOD),
    "the other alphabet": (f"{HEAD}.{CLAIMS}.{'+' * len(SIGNATURE)}", GOOD),
    "a newline behind": (GOOD + "\n", GOOD),
    "a blank inside": (f"{HEAD}. {CLAIMS}.{SIGNATURE}", GOOD),
    "Bearer in front": (f"Bearer {GOOD}", GOOD),
    "a NUL": (GOOD + "\0", GOOD),
    "letters beyond ASCII": (GOOD[:-1] + "\N{FULLWIDTH LATIN CAPITAL LETTER A}", GOOD),
    "a lone surrogate": (GOOD[:-1] + "\ud800", GOOD),
    "other claims under the signature": (f"{HEAD}.{OTHER_CLAIMS}.{SIGNATURE}", GOOD),
    "the signature cut": (GOOD[:-4], GOOD),
    "the signature of zeros": (f"{HEAD}.{CLAIMS}.{text(bytes(96))}", GOOD),
    "the signature in DER": (der_signature(GOOD), GOOD),
    "one bit of the signature": (f"{HEAD}.{CLAIMS}.{'B' if SIGNATURE[0] != 'B' else 'C'}{SIGNATURE[1:]}", GOOD),
    "too long": (own(note="x" * TOKEN_BYTES), own(note="x" * 4_000)),
    "a payload that is no object": (sign(HEADER, b'"alice"'), sign(HEADER, own_claims())),
    "a payload that is no JSON": (sign(HEADER, b"alice"), sign(HEADER, own_claims())),
    "a payload too deep": (sign(HEADER, nested(JSON_DEPTH)), sign(HEADER, nested(JSON_DEPTH - 1))),
    "a payload too deep to be walked through": (sign(HEADER, nested(600)), GOOD),
    "a payload too deep to be parsed": (sign(HEADER, nested(2_000)), GOOD),
    "NaN": (sign(HEADER, json_with('"a": NaN')), sign(HEADER, json_with('"a": 1'))),
    "bad UTF-8": (sign(HEADER, json_with('"a": 1').replace(b'"a"', b'"\xff"')), sign(HEADER, json_with('"a": 1'))),
    # --- the times ---
    "exp missing": (sign(HEADER, without(own_claims(), "exp")), own()),
    "exp past": (own(iat=NOW - 400, exp=NOW - 10), own(iat=NOW - 400, exp=NOW + 1)),
    "exp text": (own(exp=str(NOW + 300)), own(exp=NOW + 300)),
    "exp a fraction": (own(exp=NOW + 300.5), own(exp=NOW + 300)),
    "exp true": (own(exp=True), own(exp=NOW + 300)),
    "exp null": (own(exp=None), own(exp=NOW + 300)),
    "exp infinite": (sign(HEADER, json.dumps(without(own_claims(), "exp")).encode()[:-1] + b', "exp": 1e999}'), own()),
    "exp in another age": (own(exp=10**20), own(exp=NOW + 86_400)),
    "exp negative": (own(exp=-1), own()),
    "exp more than a day after iat": (own(exp=NOW + 86_401), own(exp=NOW + 86_400)),
    "exp before iat": (own(iat=NOW + 5, exp=NOW + 4), own(iat=NOW + 5, exp=NOW + 6)),
    "exp twice": (sign(HEADER, json_with(f'"exp": {NOW + 9_000}')), sign(HEADER, own_claims(exp=NOW + 9_000))),
    "iat missing": (sign(HEADER, without(own_claims(), "iat")), own()),
    "iat in the future": (own(iat=NOW + 60), own(iat=NOW + 10)),
    "iat text": (own(iat="now"), own(iat=NOW)),
    "nbf in the future": (own(nbf=NOW + 60), own(nbf=NOW + 10)),
    "nbf text": (own(nbf="soon"), own(nbf=NOW)),
    # --- for whom, by whom ---
    "aud missing": (sign(HEADER, without(own_claims(), "aud")), own()),
    "aud another": (own(aud="zstor-shards"), own(aud=AUDIENCE)),
    "aud a list with us in it": (own(aud=[AUDIENCE, "other"]), own(aud=AUDIENCE)),
    "aud a list of us": (own(aud=[AUDIENCE]), own(aud=AUDIENCE)),
    "aud a part of ours": (own(aud=AUDIENCE[:-1]), own(aud=AUDIENCE)),
    "iss missing": (sign(HEADER, without(own_claims(), "iss")), own()),
    "iss unknown": (own(iss="zstor:ffff"), own(iss=ISSUER)),
    "iss a part of a known one": (own(iss=ISSUER[:-1]), own(iss=ISSUER)),
    "iss a list": (own(iss=[ISSUER]), own(iss=ISSUER)),
    "sub missing": (sign(HEADER, without(own_claims(), "sub")), own()),
    "sub a number": (own(sub=1), own(sub="1")),
    "sub empty": (own(sub=""), own(sub="a")),
    "sub with a control character": (own(sub="alice\n"), own(sub="alice")),
    "jti missing": (sign(HEADER, without(own_claims(), "jti")), own()),
    "jti a number": (own(jti=7), own(jti="7")),
    # --- what for ---
    "scope missing": (sign(HEADER, without(own_claims(), "scope")), own()),
    "scope text": (own(scope=READ), own(scope=[READ])),
    "scope null": (own(scope=None), own(scope=[READ])),
    "scope an object": (own(scope={READ: True}), own(scope=[READ])),
    "scope a list with a number": (own(scope=[READ, 1]), own(scope=[READ, "1"])),
    "scope empty": (own(scope=[]), own(scope=[READ])),
    "scope of another verb": (own(scope=["user:memberof:local.0stor.photos.write"]), own(scope=[READ])),
    "scope of another namespace": (own(scope=["user:memberof:local.0stor.photo.read"]), own(scope=[READ])),
    "scope of a longer namespace": (own(scope=["user:memberof:local.0stor.photos2.read"]), own(scope=[READ])),
    "scope of another organization": (own(scope=["user:memberof:locals.0stor.photos.read"]), own(scope=[READ])),
    "scope of the organization alone": (own(scope=["user:memberof:local.0stor"]), own(scope=["user:memberof:local.0stor.photos"])),
    "scope with an unknown verb": (own(scope=[READ + "er"]), own(scope=[READ])),
    "scope with a dot too many": (own(scope=[READ + ".read"]), own(scope=[READ])),
    "scope in capitals": (own(scope=[READ.upper()]), own(scope=[READ])),
    "scope without its prefix": (own(scope=["local.0stor.photos.read"]), own(scope=[READ])),
    "scope with a blank": (own(scope=[READ + " "]), own(scope=[READ])),
    "scope that names two namespaces": (own(scope=["user:memberof:local.0stor.x.0stor.photos.read"]), own(scope=[READ])),
    "scopes joined by commas": (
        own(scope=["user:memberof:local.0stor.x.read," + READ]),
        own(scope=["user:memberof:local.0stor.x.read", READ]),
    ),
    # --- ItsYou.Online's ---
    "the service: expired": (service(exp=NOW - 10), service(exp=NOW + 1)),
    "the service: no exp": (sign({"alg": "ES384"}, without(service_claims(), "exp"), SERVICE_KEY), service({"alg": "ES384"})),
    "the service: more than a day left": (service(exp=NOW + 86_500), service(exp=NOW + 86_400)),
    "the service: nobody named": (
        sign({"alg": "ES384"}, without(service_claims(), "username"), SERVICE_KEY),
        service({"alg": "ES384"}),
    ),
    "the service: a key named": (service({"alg": "ES384", "kid": "key-2"}), service({"alg": "ES384"})),
    "the service: another type": (service({"alg": "ES384", "typ": TRUST_TYPE}), service({"alg": "ES384", "typ": "JWT"})),
    "the service: aud an object": (service(aud={"a": 1}), service(aud=["client", "another"])),
    "the service: scope not a list": (service(scope="user:memberof:org.0stor.photos.read"), service()),
    "the service: our organization": (service(scope=[READ]), service()),
    "our issuer as the service writes": (sign({"alg": "ES384"}, {**service_claims(), "iss": ISSUER}), service({"alg": "ES384"})),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_attack_is_refused_and_its_twin_passes(attack: str) -> None:
    token, twin = ATTACKS[attack]
    assert check(twin).user
    with pytest.raises(TokenRefused) as refused:
        check(token)
    assert not any(part in str(refused.value) for part in token.split(".") if len(part) > 20)


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 60
    assert len({token for token, _ in ATTACKS.values()}) == len(ATTACKS)


# --- What a good token says ---


def test_a_token_says_whose_it_is_and_what_for() -> None:
    scopes = [READ, "user:memberof:local.0stor.mail", "user:memberof:local.0stor.photos.delete", "user:address"]
    verified = verify(own(scope=scopes), TRUSTS, NOW)
    assert (verified.issuer, verified.user) == (ISSUER, "alice")
    assert (verified.issued, verified.expires) == (NOW, NOW + 300)
    granted = {
        (space, each) for space in ("photos", "mail") for each in ("read", "write", "delete", "admin") if verified.allows(space, each)
    }
    assert granted == {("photos", "read"), ("photos", "delete"), *(("mail", each) for each in ("read", "write", "delete", "admin"))}
    assert not verified.allows("other", "read")


def test_a_token_of_the_service_may_name_an_organization() -> None:
    assert (
        check(sign({"alg": "ES384"}, {**without(service_claims(), "username"), "globalid": "org.team"}, SERVICE_KEY)).user == "org.team"
    )


def test_clocks_may_differ_by_the_leeway() -> None:
    token = own()
    assert check(token, now=NOW - 10)
    assert check(token, now=NOW + 309)
    for now in (NOW - 11, NOW + 310):
        with pytest.raises(TokenRefused):
            check(token, now=now)


# --- Revocation ---


@pytest.mark.parametrize(
    ("revocation", "hit", "missed"),
    [
        ({"jti": "token-1"}, own(), own(jti="token-2")),
        ({"issued_until": NOW, "sub": "alice"}, own(), own(sub="bob")),
        ({"issued_until": NOW, "sub": "alice", "namespace": "photos"}, own(), own(iat=NOW + 1)),
        ({"issued_until": NOW, "namespace": "photos"}, own(sub="bob"), own(iat=NOW + 1, sub="bob")),
        ({"issued_until": NOW}, own(), own(iat=NOW + 1)),
    ],
)
def test_a_revoked_token_counts_no_more(revocation: dict[str, object], hit: str, missed: str) -> None:
    trusts = {ISSUER: own_trust(revoked=[{"until": NOW + 90_000, **revocation}])}
    assert check(missed, trusts=trusts)
    assert check(hit)
    with pytest.raises(TokenRefused):
        check(hit, trusts=trusts)


def test_revoking_everything_does_not_shut_the_daemon_itself_out() -> None:
    trusts = {ISSUER: own_trust(revoked=[{"until": NOW + 90_000, "issued_until": NOW}])}
    token = own(sub="owner", scope=["user:memberof:local.0stor._store", READ])
    verified = verify(token, trusts, NOW)
    assert verified.allows("_store", "admin")
    assert not verified.allows("photos", "read")


def test_what_is_revoked_in_one_namespace_counts_in_others() -> None:
    trusts = {ISSUER: own_trust(revoked=[{"until": NOW + 90_000, "issued_until": NOW, "sub": "alice", "namespace": "mail"}])}
    token = own(scope=[READ, "user:memberof:local.0stor.mail"])
    assert check(token, trusts=trusts)
    with pytest.raises(TokenRefused):
        check(token, "mail", trusts=trusts)


# --- Trust documents that come over the network ---


def trust_update(key: ec.EllipticCurvePrivateKey = KEY, kind: str = TRUST_TYPE, **members: object) -> str:
    return sign({**HEADER, "typ": kind}, document(updated=2, **members), key)


def test_a_newer_trust_document_replaces_the_old_one() -> None:
    known = own_trust(updated=1)
    newer = verify_trust(trust_update(revoked=[{"until": NOW, "jti": "token-1"}]), known)
    assert newer.updated == 2
    assert [each.jti for each in newer.revoked] == ["token-1"]


@pytest.mark.parametrize(
    "refused",
    [
        trust_update(key=STRANGERS_KEY),
        trust_update(kind="JWT"),
        trust_update(issuer="zstor:ffff"),
        trust_update(organization="other"),
        trust_update(keys=[{"kty": "oct", "k": "AAAA", "kid": "key-2"}]),
        sign({**HEADER, "typ": TRUST_TYPE}, document(updated=1)),
        own(),
    ],
)
def test_another_trust_document_is_refused(refused: str) -> None:
    with pytest.raises(TokenRefused):
        verify_trust(refused, own_trust(updated=1))


# --- The memory ---


def test_a_remembered_token_expires_like_any_other() -> None:
    verifier = TokenVerifier(TRUSTS.values())
    token = own()
    assert verifier.verify(token, NOW) is verifier.verify(token, NOW + 100)
    with pytest.raises(TokenRefused):
        verifier.verify(token, NOW + 310)


def test_a_remembered_token_is_forgotten_when_the_trust_changes() -> None:
    verifier = TokenVerifier(TRUSTS.values())
    token = own()
    assert verifier.verify(token, NOW).allows("photos", "read")
    verifier.trust(own_trust(revoked=[{"until": NOW + 90_000, "jti": "token-1"}]))
    with pytest.raises(TokenRefused):
        verifier.verify(token, NOW)


def test_a_bad_token_is_not_remembered() -> None:
    verifier = TokenVerifier(TRUSTS.values())
    token = own(iat=NOW + 60, exp=NOW + 300)
    with pytest.raises(TokenRefused):
        verifier.verify(token, NOW)
    assert verifier.verify(token, NOW + 60)


def test_no_warning_is_needed_to_refuse() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TokenRefused):
            check(hmac_signed(b"short"))
