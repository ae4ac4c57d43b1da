"""A store on shard servers alone whose master key was replaced: the newest key is all that is needed to make the metastore anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.daemon.process import Daemon
from tests.remote.test_permissions import zstor
from tests.shardserver.server import Server

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
        daemon.stop()
        for file in daemon.store.glob("*.sqlite*"):
            file.unlink()
        zstor(tmp_path, daemon, "rebuild")
        daemon.start()
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
        assert (len(before), len(beside)) == (1, 2)
        assert beside[0] == before[0]
