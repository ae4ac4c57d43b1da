"""The authority that the configuration names: what it needs, and that nothing is taken which others can read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.store.home import Home
from zstor_local.access.opening import open_authority
from zstor_local.access.signing import SEED_BYTES, SigningKey
from zstor_local.access.trust import parse_trust
from zstor_local.config import AuthorityConfig
from zstor_local.store.faults import StoreFault
from zstor_local.store.store import Store

KEY = SigningKey.from_seed(bytes(SEED_BYTES))
PEM = KEY._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
OTHER_CURVE = (
    ec.derive_private_key(5, ec.SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
)
SECRET = 'client_id = "a"\nclient_secret = "s3cret"\n'  # noqa: S105 (a stand-in)


def configured(
    store: Store, path: Path, *, credentials: str = SECRET, keys: str = PEM, mode: int = 0o600, url: str = "https://iyo.example/api"
) -> None:
    (path / "credentials").write_text(credentials)
    (path / "credentials").chmod(mode)
    (path / "keys").write_text(keys)
    authority = AuthorityConfig("itsyouonline", url, "acme", f"{path}/credentials", f"{path}/keys")
    store.config = replace(store.config, authority=authority)


@pytest.mark.parametrize("keys", [PEM, json.dumps({"keys": [KEY.jwk()]})], ids=["PEM", "JWK Set"])
async def test_the_service_is_used_with_its_key(home: Home, keys: str) -> None:
    async with home.open() as store:
        configured(store, home.path, keys=keys)
        async with open_authority(store) as authority:
            assert (authority.kind, authority.organization) == ("itsyouonline", "acme")
            trust = parse_trust(json.dumps(await authority.trust()))
            assert trust.profile == "itsyouonline"
            assert [*trust.keys] == [""]
            assert trust.keys[""].public_numbers() == KEY._key.public_key().public_numbers()


async def test_without_a_word_it_is_built_in(home: Home) -> None:
    async with home.open() as store, open_authority(store) as authority:
        assert (authority.kind, authority.organization) == ("builtin", "local")


@pytest.mark.parametrize(
    "wrong",
    [
        {"credentials": ""},
        {"credentials": 'client_id = "a"'},
        {"credentials": "s3cret"},
        {"credentials": "client_id = 5\nclient_secret = 's3cret'"},
        {"mode": 0o640},
        {"mode": 0o604},
        {"keys": "nonsense"},
        {"keys": OTHER_CURVE},
        {"keys": "{}"},
        {"keys": '{"keys": [{"kty": "oct", "k": "AA"}]}'},
        {"keys": "-----BEGIN PUBLIC KEY-----\nAA\n-----END PUBLIC KEY-----"},
        {"url": "http://iyo.example"},
    ],
)
async def test_what_cannot_be_used_safely_is_refused(home: Home, wrong: dict[str, object]) -> None:
    async with home.open() as store:
        configured(store, home.path, **wrong)  # type: ignore[arg-type]
        with pytest.raises(StoreFault) as caught:
            async with open_authority(store):
                pass
        assert caught.value.hint
        assert "s3cret" not in f"{caught.value}{caught.value.hint}"


async def test_files_that_are_missing_are_named(home: Home) -> None:
    async with home.open() as store:
        for missing in ("credentials", "keys"):
            configured(store, home.path)
            (home.path / missing).unlink()
            with pytest.raises(StoreFault, match=missing):
                async with open_authority(store):
                    pass
