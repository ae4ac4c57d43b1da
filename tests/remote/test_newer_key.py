"""A store on shard servers alone whose master key was replaced: the newest key is all that is needed to make the metastore anew."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.daemon.process import Daemon
from tests.remote.test_permissions import zstor
from tests.shardserver.server import Server
from zstor_local.access.ownership import OwnerKeys, issuer_name
from zstor_local.access.signing import Claims, sign_token
from zstor_local.access.trust import AUDIENCE
from zstor_local.coding.keys import KeyRing
from zstor_local.model.masterkey import MasterKey
from zstor_local.model.permission import OWNER, STORE_NAMESPACE, scope

LARGE = bytes(range(256)) * 4_000
SERVICE = """
[authority]
kind = "itsyouonline"
url = "http://127.0.0.1:9"
credentials_file = "~/api-key"
keys_file = "~/service.pem"
"""


@pytest.fixture(params=["", SERVICE], ids=["builtin", "itsyouonline"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that is not started yet, and `s0` to `s2` as its home's sockets of servers."""
    with Daemon(tmp_path) as daemon:
        shards = "".join(f'[[shard]]\nid = "s{number}"\nurl = "http+unix://{tmp_path}/s{number}.sock"\n' for number in range(3))
        daemon.config_file.parent.mkdir(parents=True)
        daemon.config_file.write_text(f"[policy]\nk = 1\nm = 3\n{shards}{request.param}")
        (tmp_path / "api-key").write_text('client_id = "me"\nclient_secret = "open sesame"\n')
        (tmp_path / "api-key").chmod(0o600)
        public = ec.generate_private_key(ec.SECP384R1()).public_key()
        (tmp_path / "service.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        (tmp_path / "trust.json").write_text(zstor(tmp_path, daemon, "shard", "trust"))
        yield daemon


def serving(home: Path, number: int) -> Server:
    return Server(home / f"s{number}", [home / "trust.json"], f"unix:{home}/s{number}.sock")


def rotate(daemon: Daemon) -> None:
    with daemon.client() as client:
        client.result("job.wait", job=client.result("key.rotate")["job"])


def kids(document: str) -> list[str]:
    return [key["kid"] for key in json.loads(document)["keys"]]


def rebuild(daemon: Daemon, tmp_path: Path) -> None:
    """The metastore is lost and made anew from shards and key."""
    daemon.stop()
    for file in daemon.store.glob("*.sqlite*"):
        file.unlink()
    zstor(tmp_path, daemon, "rebuild")
    daemon.start()


def test_the_newest_key_alone_brings_everything_back(daemon: Daemon, tmp_path: Path) -> None:
    with ExitStack() as servers:
        running = [serving(tmp_path, number) for number in range(3)]
        for server in running:
            servers.callback(server.kill)
        daemon.start()
        with daemon.client() as client:
            client.write("before", LARGE)
        rotate(daemon)
        running[0].kill()
        rotate(daemon)
        running[0] = serving(tmp_path, 0)  # which knows of the first of them
        servers.callback(running[0].kill)
        with daemon.client() as client:
            while client.result("daemon.status")["state"] != "ok":
                client.result("shard.list")
            client.write("after", b"small")
        rebuild(daemon, tmp_path)
        with daemon.client() as client:
            assert client.read("before") == LARGE
            assert client.read("after") == b"small"
            assert client.result("daemon.status")["state"] == "ok"


def test_a_server_that_is_new_is_told_of_the_key_that_signs(daemon: Daemon, tmp_path: Path) -> None:
    with ExitStack() as servers:
        for number in range(3):
            servers.callback(serving(tmp_path, number).kill)
        before = kids((tmp_path / "trust.json").read_text())
        daemon.start()
        rotate(daemon)
        beside = kids(zstor(tmp_path, daemon, "shard", "trust"))
        daemon.stop()
        assert beside == kids(zstor(tmp_path, daemon, "shard", "trust"))
        assert (len(before), len(beside)) == (1, 1)
        assert beside != before


def key_of(daemon: Daemon) -> MasterKey:
    return MasterKey.from_text(daemon.key_file.read_text())


def lets_in(server: Server, master: MasterKey) -> bool:
    """Whether somebody with this master key is the owner there."""
    key, *_ = OwnerKeys(KeyRing(master.key, master.store_id).store_wide()).now()
    now = int(time.time())
    scopes = [scope("local", STORE_NAMESPACE, "admin")]
    claims = Claims(
        issuer=issuer_name(master.store_id), audience=AUDIENCE, user=OWNER, scopes=scopes, issued=now, expires=now + 60, jti="j"
    )
    return asked(server, master, sign_token(key, claims)) == 200


def asked(server: Server, master: MasterKey, token: str) -> int:
    with server.client(token) as client:
        return client.get(f"/v1/{master.store_id.hex()}").status_code


def warnings(daemon: Daemon) -> list[str]:
    with daemon.client() as client:
        found = client.result("daemon.status")["warnings"]
    return [warning for warning in found if "an older master key" in warning]


def test_an_older_key_is_good_for_nothing_once_it_is_retired(daemon: Daemon, tmp_path: Path) -> None:
    """Wherever the daemon or a server ends meanwhile; and the newest key alone brings everything back as before."""
    with ExitStack() as servers:
        running = [serving(tmp_path, number) for number in range(3)]
        for server in running:
            servers.callback(server.kill)
        daemon.start()
        old = key_of(daemon)
        with daemon.client() as client:
            client.write("before", LARGE)
        assert warnings(daemon) == []
        rotate(daemon)
        new = key_of(daemon)
        assert [lets_in(server, key) for server in running for key in (old, new)] == [True] * 6
        assert "zstor key retire" in warnings(daemon)[0]

        running[0].kill()
        with daemon.client() as client:
            client.result("key.retire")
            client.write("after", b"small")
        assert [lets_in(server, old) for server in running[1:]] == [False] * 2
        assert ["shard s0" in warning for warning in warnings(daemon)] == [True]
        daemon.kill()
        daemon.start()
        assert ["shard s0" in warning for warning in warnings(daemon) if "s0" in warning] == [True]
        running[0] = serving(tmp_path, 0)
        servers.callback(running[0].kill)
        while warnings(daemon):
            with daemon.client() as client:
                client.result("shard.list")
        assert not lets_in(running[0], old)

        for number in range(3):  # each is given the same document as in the beginning
            running[number].kill()
            running[number] = serving(tmp_path, number)
            servers.callback(running[number].kill)
        assert [lets_in(server, key) for server in running for key in (old, new)] == [False, True] * 3
        rebuild(daemon, tmp_path)
        with daemon.client() as client:
            assert client.read("before") == LARGE
            assert client.read("after") == b"small"
        assert [lets_in(server, old) for server in running] == [False] * 3


@pytest.mark.parametrize("daemon", [""], indirect=True)
def test_what_signed_tokens_ends_with_an_older_key(daemon: Daemon, tmp_path: Path) -> None:
    """Who has that key may have read it in the logs."""
    with ExitStack() as servers:
        server = serving(tmp_path, 0)
        servers.callback(server.kill)
        for number in (1, 2):
            servers.callback(serving(tmp_path, number).kill)
        daemon.start()
        assert "zstor key retire" in zstor(tmp_path, daemon, "key", "rotate", "--yes")
        with daemon.client() as client:
            client.result("namespace.create", namespace="photos")
            token = client.result("token.create", namespace="photos", permission=["read"])["token"]
            assert asked(server, key_of(daemon), token) == 403  # known, of somebody who is not the owner
            client.result("key.retire")
            assert asked(server, key_of(daemon), token) == 401
            another = client.result("token.create", namespace="photos", permission=["read"])["token"]
            assert asked(server, key_of(daemon), another) == 403
