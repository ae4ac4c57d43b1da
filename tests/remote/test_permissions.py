"""A store on three servers from its first start, two namespaces, two users: give, use, remove, expire, revoke. The servers decide."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from tests.daemon.client import Client
from tests.daemon.process import Daemon
from tests.shardserver.server import LIMIT, Server, scanned, send
from zstor_local.shards.http.wire import Batch, pack_batch, parse_batch

LARGE = bytes(range(256)) * 4_000


@dataclass
class World:
    daemon: Daemon
    owner: Client
    servers: list[Server]

    def spaces(self) -> str:
        trust: dict[str, str] = json.loads((self.daemon.home / "trust.json").read_text())
        return trust["issuer"].removeprefix("zstor:")

    def id_of(self, namespace: str) -> str:
        """What servers call it: told by one of them to nobody but the owner, so the test looks at its disk."""
        for about in self.servers[0].data.glob("spaces/*/rooms/*/about.json"):
            if json.loads(about.read_text())["name"] == namespace:
                return about.parent.name
        raise AssertionError(f"the server was not told of {namespace}")

    def token(self, namespace: str, *permissions: str, user: str, seconds: int = 300) -> str:
        params: dict[str, Any] = {"namespace": namespace, "permission": [*permissions], "user": user, "ttl_seconds": seconds}
        return str(self.owner.result("token.create", **params)["token"])

    def read(self, token: str, namespace: str) -> list[httpx.Response]:
        """What each server answers who asks for the namespace's records with that token."""
        answers = []
        for server in self.servers:
            with server.client(token) as guest:
                answers.append(guest.get(f"/v1/{self.spaces()}/log?namespace={self.id_of(namespace)}"))
        return answers

    def write(self, token: str, namespace: str) -> list[httpx.Response]:
        body = pack_batch(Batch([scanned(9_999, b"forged", namespace=bytes.fromhex(self.id_of(namespace)))]))  # type: ignore[arg-type]
        answers = []
        for server in self.servers:
            with server.client(token) as guest:
                answers.append(send(guest, "POST", f"/v1/{self.spaces()}/log?batch=1", body))
        return answers


def zstor(home: Path, daemon: Daemon, *arguments: str) -> str:
    command = [sys.executable, "-m", "zstor_local", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home, env=daemon.environment, timeout=LIMIT, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("three")
    with Daemon(home) as daemon:
        shards = "".join(f'[[shard]]\nid = "s{number}"\nurl = "http+unix://{home}/s{number}.sock"\n' for number in range(3))
        daemon.config_file.parent.mkdir(parents=True)
        daemon.config_file.write_text(f"[policy]\nk = 1\nm = 3\n{shards}")
        trust = home / "trust.json"
        trust.write_text(zstor(home, daemon, "shard", "trust"))
        servers: list[Server] = []
        try:
            servers += (Server(home / f"s{number}", [trust], f"unix:{home}/s{number}.sock") for number in range(3))
            daemon.start()
            owner = daemon.client()
            for namespace in ("photos", "mail"):
                owner.result("namespace.create", namespace=namespace)
                owner.write("small", b"small", namespace=namespace)
                owner.write("large", LARGE, namespace=namespace)
            world = World(daemon, owner, servers)
            yield world
            world.owner.close()
            daemon.stop()
        finally:
            for server in servers:
                server.kill()


def test_what_was_given_can_be_used_there_and_nowhere_else(world: World) -> None:
    world.owner.result("permission.give", namespace="photos", user="bob", permission="read")
    token = world.token("photos", "read", user="bob")
    for answer in world.read(token, "photos"):
        assert answer.status_code == 200
        assert parse_batch(answer.content).entries
    assert [answer.status_code for answer in world.read(token, "mail")] == [403] * 3
    assert [answer.status_code for answer in world.write(token, "photos")] == [403] * 3
    assert not any(b"small" in answer.content or LARGE[:1_000] in answer.content for answer in world.read(token, "photos"))


def test_two_users_have_their_own_rights(world: World) -> None:
    world.owner.result("permission.give", namespace="mail", user="carol", permission=["read", "write"])
    token = world.token("mail", "read", "write", user="carol")
    assert [answer.status_code for answer in world.read(token, "mail")] == [200] * 3
    assert [answer.status_code for answer in world.read(token, "photos")] == [403] * 3
    # She may write, but the daemon's own life has the fence.
    assert [answer.json()["type"] for answer in world.write(token, "mail")] == ["fenced"] * 3


def test_what_was_removed_gives_no_new_token(world: World) -> None:
    world.owner.result("permission.give", namespace="photos", user="dave", permission="read")
    token = world.token("photos", "read", user="dave")
    world.owner.result("permission.remove", namespace="photos", user="dave", permission="read")
    assert world.owner.refusal("token.create", namespace="photos", permission=["read"], user="dave") == "permission_denied"
    assert [answer.status_code for answer in world.read(token, "photos")] == [200] * 3  # a running one runs on
    world.owner.result("token.revoke", user="dave")
    assert [answer.status_code for answer in world.read(token, "photos")] == [401] * 3  # but for this


def test_a_token_lives_as_long_as_it_was_asked_for(world: World) -> None:
    """That servers refuse it from then on: tests/shardserver/test_expiry.py."""
    world.owner.result("permission.give", namespace="photos", user="eve", permission="read")
    token = world.token("photos", "read", user="eve", seconds=200)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 200
    assert [answer.status_code for answer in world.read(token, "photos")] == [200] * 3


def test_the_daemon_goes_on_with_one_server_and_tells_those_that_come_back(world: World) -> None:
    world.servers[2].kill()
    assert world.owner.read("large", namespace="photos") == LARGE
    world.owner.write("later", b"later", namespace="photos")
    world.owner.result("token.revoke", user="bob")
    home = world.daemon.home
    world.servers[2] = Server(home / "s2", [home / "trust.json"], f"unix:{home}/s2.sock")
    while world.owner.result("daemon.status")["state"] != "ok":
        world.owner.result("shard.list")
    assert world.owner.read("later", namespace="photos") == b"later"


def test_the_metastore_is_made_anew_from_servers_alone(world: World) -> None:
    world.owner.close()
    world.daemon.stop()
    for file in world.daemon.store.glob("*.sqlite*"):
        file.unlink()
    zstor(world.daemon.home, world.daemon, "rebuild")
    world.daemon.start()
    world.owner = world.daemon.client()
    for namespace in ("photos", "mail"):
        assert world.owner.read("large", namespace=namespace) == LARGE
        assert world.owner.read("small", namespace=namespace) == b"small"
