"""Tokens and trust documents: what is signed, and that others can check it."""

from __future__ import annotations

import json
from dataclasses import replace

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as some

from zstor_local.access.ownership import OwnerKeys
from zstor_local.access.signing import SEED_BYTES, Claims, SigningKey, sign_token, sign_trust
from zstor_local.access.trust import TRUST_TYPE, Revocation, parse_trust
from zstor_local.coding.keys import KeyRing
from zstor_local.errors import InvalidParams
from zstor_local.model.ids import StoreId

KEY = SigningKey.from_seed(bytes(range(SEED_BYTES)))
CLAIMS = Claims(
    issuer="zstor:ab",
    audience="zstor-shard",
    user="bob",
    scopes=["user:memberof:local.0stor.photos.read"],
    issued=1_700_000_000,
    expires=1_700_000_300,
    jti="00ff",
)


def document(**changes: object) -> dict[str, object]:
    return {"issuer": "zstor:ab", "organization": "local", "keys": [KEY.jwk()], "revoked": [], "updated": 7, **changes}


def test_an_owners_keys_are_made_once() -> None:
    """They are asked for with each token, and to make one takes longer than to sign."""
    keys = OwnerKeys(KeyRing(bytes(32), StoreId(bytes(16))).store_wide())
    assert keys.now()[0] is keys.now()[0]


def test_a_token_is_checked_by_the_public_key_of_the_trust_document() -> None:
    trust = parse_trust(json.dumps(document()))
    token = sign_token(KEY, CLAIMS)
    header = jwt.get_unverified_header(token)
    assert header == {"alg": "ES384", "typ": "JWT", "kid": KEY.kid}
    claims = jwt.decode(
        token, trust.keys[header["kid"]], ["ES384"], audience="zstor-shard", issuer=trust.issuer, options={"verify_exp": False}
    )
    assert claims == {
        "iss": "zstor:ab",
        "aud": "zstor-shard",
        "sub": "bob",
        "username": "bob",
        "scope": ["user:memberof:local.0stor.photos.read"],
        "iat": 1_700_000_000,
        "exp": 1_700_000_300,
        "jti": "00ff",
    }


def test_another_key_does_not_open_it() -> None:
    other = SigningKey.from_seed(bytes(SEED_BYTES))
    trust = parse_trust(json.dumps(document(keys=[other.jwk()])))
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(sign_token(KEY, CLAIMS), trust.keys[other.kid], ["ES384"], options={"verify_aud": False, "verify_exp": False})


def test_a_key_is_the_same_after_it_was_kept() -> None:
    again = SigningKey.parse(KEY.secret)
    assert (again.secret, again.kid, again.jwk()) == (KEY.secret, KEY.kid, KEY.jwk())
    assert len(KEY.secret) == 48


def test_no_private_part_shows() -> None:
    assert str(KEY.scalar) not in repr(KEY)
    assert "d" not in KEY.jwk()


@pytest.mark.parametrize("secret", [b"", bytes(48), b"\xff" * 48, bytes(47) + b"\1" + b"\0"])
def test_what_is_no_key_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match="private key"):
        SigningKey.parse(secret)


@given(some.binary(min_size=SEED_BYTES, max_size=SEED_BYTES))
def test_any_seed_gives_a_key(seed: bytes) -> None:
    assert SigningKey.parse(SigningKey.from_seed(seed).secret).kid == SigningKey.from_seed(seed).kid


def test_a_signed_trust_document_is_no_token() -> None:
    signed = sign_trust(KEY, {"issuer": "zstor:ab", "organization": "local"})
    assert jwt.get_unverified_header(signed)["typ"] == TRUST_TYPE
    payload = jwt.decode(signed, options={"verify_signature": False})
    assert payload == {"iss": "zstor:ab", "issuer": "zstor:ab", "organization": "local"}
    assert "scope" not in payload
    assert "exp" not in payload


def test_revocations_come_through_the_document() -> None:
    single = Revocation(99, jti="x")
    many = Revocation(99, issued_until=5, sub="bob", namespace="photos")
    trust = parse_trust(json.dumps(document(revoked=[single.document(), many.document()])))
    assert trust.revoked == (single, many)
    assert trust.updated == 7


@pytest.mark.parametrize(
    ("token", "revoked"),
    [
        ({"jti": "x", "iat": 9, "sub": "eve", "namespace": "a"}, False),
        ({"jti": "y", "iat": 5, "sub": "bob", "namespace": "photos"}, True),
        ({"jti": "y", "iat": 6, "sub": "bob", "namespace": "photos"}, False),
        ({"jti": "y", "iat": 5, "sub": "eve", "namespace": "photos"}, False),
        ({"jti": "y", "iat": 5, "sub": "bob", "namespace": "music"}, False),
    ],
)
def test_a_revocation_covers_a_users_tokens_until_its_second(token: dict[str, object], revoked: bool) -> None:
    assert Revocation(99, issued_until=5, sub="bob", namespace="photos").covers(**token) is revoked  # type: ignore[arg-type]
    assert Revocation(99, jti="y").covers(**token) is (token["jti"] == "y")  # type: ignore[arg-type]
    assert Revocation(99, issued_until=5).covers(**token) is (token["iat"] == 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"keys": [{**KEY.jwk(), "crv": "P-256"}]},
        {"keys": [{**KEY.jwk(), "kty": "oct"}]},
        {"keys": [{**KEY.jwk(), "alg": "HS256"}]},
        {"keys": [{**KEY.jwk(), "x": "AA"}]},
        {"keys": [{**KEY.jwk(), "x": KEY.jwk()["y"]}]},
        {"keys": [{**KEY.jwk(), "d": "AA"}]},
        {"keys": [KEY.jwk(), KEY.jwk()]},
        {"keys": [{name: value for name, value in KEY.jwk().items() if name != "kid"}]},
        {"keys": [{**KEY.jwk(), "kid": 5}]},
        {"keys": {"a": 1}},
        {"keys": ["x"]},
        {"issuer": ""},
        {"issuer": 5},
        {"organization": "a.b"},
        {"profile": "weak"},
        {"profile": ["zstor"]},
        {"updated": -1},
        {"updated": True},
        {"revoked": [{"until": 5}]},
        {"revoked": [5]},
        {"revoked": [{"jti": "x"}]},
    ],
)
def test_a_document_that_is_wrong_is_refused_whole(wrong: dict[str, object]) -> None:
    parse_trust(json.dumps(document()))
    with pytest.raises(InvalidParams):
        parse_trust(json.dumps(document(**wrong)))


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '"x"', "[" * 100_000])
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(InvalidParams):
        parse_trust(text)


def test_an_issuer_that_names_no_key_has_one_key_without_a_name() -> None:
    bare = {name: value for name, value in KEY.jwk().items() if name in ("kty", "crv", "x", "y")}
    trust = parse_trust(json.dumps(document(issuer="itsyouonline", profile="itsyouonline", keys=[bare])))
    assert [*trust.keys] == [""]


def test_each_user_has_his_own_claims() -> None:
    token = sign_token(KEY, replace(CLAIMS, user="eve"))
    assert jwt.decode(token, options={"verify_signature": False})["sub"] == "eve"
