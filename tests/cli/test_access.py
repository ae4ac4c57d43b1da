"""`zstor namespace`, `zstor perm` and `zstor token` with a daemon."""

from __future__ import annotations

import json

import jwt
import pytest

from tests.cli.test_end_to_end import done, zstor
from zstor_local.access.trust import parse_trust
from zstor_local.cli.private_daemon import PrivateDaemon


def text(daemon: PrivateDaemon, *arguments: str) -> str:
    return done(zstor(daemon, *arguments)).decode()


def test_namespaces(daemon: PrivateDaemon) -> None:
    made = text(
        daemon, "namespace", "create", "photos", "-k", "2", "-m", "4", "--chunk-size", "512K", "--quota", "1MiB", "--padding", "padme"
    )
    assert made == (
        "photos: 0 objects, 0 B of 1.0 MiB\n"
        "  any 2 of 4 shares give an object back; chunks of 512 KiB, compression zstd, padding padme\n"
    )
    done(zstor(daemon, "put", "-", "key", "-n", "photos", stdin=b"12345"))
    assert "photos: 1 object, 5 B of 1.0 MiB\n" in text(daemon, "namespace", "ls")
    full = zstor(daemon, "put", "-", "big", "-n", "photos", "--size", "2000000", stdin=bytes(2_000_000))
    assert (full.returncode, b"is full" in full.stderr) == (1, True)
    changed = json.loads(text(daemon, "namespace", "set", "photos", "--quota", "none", "-k", "3", "--json"))
    assert (changed["quota_bytes"], changed["policy"]["k"], changed["bytes"]) == (None, 3, 5)
    assert json.loads(text(daemon, "namespace", "get", "photos", "--json")) == changed
    refused = zstor(daemon, "namespace", "rm", "photos")
    assert (refused.returncode, b"has 1 object" in refused.stderr) == (1, True)
    assert text(daemon, "namespace", "rm", "photos", "--force") == "deleted the namespace photos and 1 object\n"
    assert "photos" not in text(daemon, "namespace", "ls", "--json")
    assert zstor(daemon, "namespace", "create", "a", "--quota", "lots").returncode == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--user bbo", "every token of bbo that was signed until now, if there is one"),
        ("--namespace musci", "every token for musci that was signed until now, if there is one"),
        ("--user bob --namespace music", "every token of bob for music that was signed until now, if there is one"),
        ("--jti slip", "the token slip, if there is one"),
        ("--all", "every token that was signed until now"),
    ],
)
def test_what_is_revoked_is_said_so_that_a_slip_is_seen(arguments: str, said: str, daemon: PrivateDaemon) -> None:
    assert text(daemon, "token", "revoke", *arguments.split()) == f"revoked {said}\n"


def test_permissions_and_tokens(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "namespace", "create", "music"))
    assert text(daemon, "perm", "give", "music", "bob", "read", "write") == "bob: read, write\n"
    assert text(daemon, "perm", "get", "music", "bob") == "bob: read, write\n"
    assert json.loads(text(daemon, "perm", "get", "music", "eve", "--json")) == dict.fromkeys(
        ["read", "write", "delete", "admin"], False
    )
    assert text(daemon, "perm", "ls", "music") == "bob: read, write\n"
    token = text(daemon, "token", "create", "music", "read", "--user", "bob", "--ttl", "60").strip()
    trust = parse_trust(text(daemon, "token", "keys"))
    claims = jwt.decode(token, trust.keys[jwt.get_unverified_header(token)["kid"]], ["ES384"], audience=trust.audience)
    assert claims["scope"] == ["user:memberof:local.0stor.music.read"]
    assert claims["exp"] - claims["iat"] == 60
    assert text(daemon, "perm", "remove", "music", "bob", "write") == "bob: read\n"
    assert zstor(daemon, "token", "create", "music", "write", "--user", "bob").returncode == 1
    assert text(daemon, "token", "revoke", "--user", "bob") == "revoked every token of bob that was signed until now, if there is one\n"
    assert len(parse_trust(text(daemon, "token", "keys", "--json")).revoked) == 1
    assert len(parse_trust(text(daemon, "token", "keys", "--rotate", "--signs-in", "60")).keys) == 3
    assert zstor(daemon, "token", "revoke").returncode == 3
    assert zstor(daemon, "token", "keys", "--signs-in", "60").returncode == 3
