"""Two users, two daemons, three shard servers, all processes of their own: invite, join, read, follow, renew, revoke."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.client import Client, error_type
from tests.shardserver.server import Server, scanned
from zstor_local.access.invitation import Pass, Secret, letter_secrets, open_letter, parse_public_key
from zstor_local.cli.private_daemon import PrivateDaemon
from zstor_local.coding.keys import KeyRing
from zstor_local.errors import CorruptRecord
from zstor_local.model.ids import NamespaceId, StoreId
from zstor_local.model.masterkey import MasterKey
from zstor_local.shards.http.wire import DIGEST, Batch, digest, pack_batch

LARGE = bytes(range(256)) * 4_000


@dataclass
class World:
    alice: Client
    bob: Client
    alices: PrivateDaemon
    bobs: PrivateDaemon
    servers: list[Server]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("sharing")
    homes = [place / name for name in ("alice", "bob")]
    for home in homes:
        home.mkdir()
    servers: list[Server] = []
    with PrivateDaemon(homes[0]) as alices, PrivateDaemon(homes[1]) as bobs:
        try:
            alices.start()
            bobs.start()
            alice, bob = Client(str(alices.socket)), Client(str(bobs.socket))
            trust = place / "trust.json"
            trust.write_text(json.dumps(alice.result("token.keys")))
            for number in range(3):
                server = Server(place / f"server{number}", [trust], f"unix:{place}/{number}.sock")
                servers.append(server)
                alice.result("shard.add", url=server.url)
            added = [shard["id"] for shard in alice.result("shard.list")["shards"]][-3:]
            alice.result("namespace.create", namespace="photos", policy={"k": 2, "m": 3}, placement=added)
            alice.write("small", b"small", namespace="photos", references=["holiday"])
            alice.write("large", LARGE, namespace="photos", previous_key="small")
            alice.result("permission.give", namespace="photos", user="bob", permission="read")
            key = bob.result("namespace.key")["public_key"]
            invitation = alice.result("namespace.invite", namespace="photos", user="bob", public_key=key)["invitation"]
            bob.request("namespace.join", {"invitation": invitation, "_meta": {"progressToken": "t"}})
            *told, joined = until_answered(bob)
            assert told
            assert {each["params"]["message"] for each in told} == {"objects"}
            assert joined["result"] == {"namespace": "photos", "objects": 2, "bytes": 5 + len(LARGE)}
            world = World(alice, bob, alices, bobs, servers)
            yield world
            world.alice.close()
            world.bob.close()
        finally:
            for server in servers:
                server.kill()


def until_answered(client: Client) -> list[Any]:
    """What comes before the reply, and the reply."""
    messages = [client.reply()]
    while "method" in messages[-1]:
        messages.append(client.reply())
    return messages


def bobs_token(world: World) -> str:
    return str(world.alice.result("token.create", namespace="photos", user="bob", permission="read")["token"])


def wait_for(client: Client, key: str) -> Any:
    """The key's change, as soon as the follower has heard of it."""
    cursor = 0
    while True:
        page = client.result("object.changes", namespace="photos", since=cursor, wait_seconds=60)
        cursor = page["cursor"]
        for item in page["items"]:
            if item["key"] == key:
                return item


def test_a_joined_namespace_answers_all_that_only_looks(world: World) -> None:
    bob = world.bob
    assert bob.read("small", namespace="photos") == b"small"
    assert bob.read("large", namespace="photos") == LARGE
    assert [item["key"] for item in bob.result("object.list", namespace="photos")["items"]][:1] == ["large"]
    metadata = bob.result("object.stat", key="small", namespace="photos")["metadata"]
    assert (metadata["references"], metadata["next_key"], metadata["health"]) == (["holiday"], "large", "optimal")
    walked = bob.result("object.walk", start_key="small", namespace="photos", values=True)["items"]
    assert [(item["key"], base64.b64decode(item["value_b64"])) for item in walked] == [("small", b"small"), ("large", LARGE)]
    assert bob.result("reference.find", reference="holiday", namespace="photos")["keys"] == ["small"]
    assert bob.result("object.read", metadata=metadata)["value_b64"] == base64.b64encode(b"small").decode()
    assert bob.result("object.check", key="large", namespace="photos")["status"] == "optimal"
    assert "photos" in [item["namespace"] for item in bob.result("namespace.list")["items"]]
    hers, his = (client.result("namespace.get", namespace="photos") for client in (world.alice, bob))
    assert his == {**hers, "placement": []}


def test_an_empty_object_of_a_joined_namespace_is_read_and_checked(world: World) -> None:
    world.alice.write("empty", b"", namespace="photos")
    wait_for(world.bob, "empty")
    assert world.bob.read("empty", namespace="photos") == b""
    for fast in (True, False):
        assert world.bob.result("object.check", key="empty", namespace="photos", fast=fast)["status"] == "optimal"


def test_what_the_owner_changes_is_followed(world: World) -> None:
    world.alice.write("new", b"1", namespace="photos")
    assert wait_for(world.bob, "new")["deleted"] is False
    assert world.bob.read("new", namespace="photos") == b"1"
    world.alice.result("object.delete", key="new", namespace="photos")
    while not wait_for(world.bob, "new")["deleted"]:
        pass
    assert world.bob.refusal("object.read", key="new", namespace="photos") == "not_found"


def test_content_is_kept_on_servers_too_though_its_namespace_is_nobodys(world: World) -> None:
    """What the store keeps for itself has a name that no token can bear: servers are not told of it, and take it all the same."""
    identity = world.alice.result("cas.upload", value="content")["id"]
    world.alice.result("cas.pin", id=identity, owner="another")
    shards = world.alice.result("daemon.status")["shards"]
    assert {shard["state"] for shard in shards} == {"ok"}


def test_a_write_is_refused_by_the_daemon_and_by_the_servers(world: World) -> None:
    assert world.bob.refusal("object.write", key="x", value="x", namespace="photos") == "permission_denied"
    assert world.bob.refusal("object.delete", key="small", namespace="photos") == "permission_denied"
    assert world.bob.refusal("object.repair", key="small", namespace="photos") == "permission_denied"
    assert world.bob.refusal("reference.append", key="small", references=["x"], namespace="photos") == "permission_denied"
    store = world.alice.result("token.keys")["issuer"].removeprefix("zstor:")
    batch = pack_batch(Batch([scanned(1, b"share")]))
    for server in world.servers:
        with server.client(bobs_token(world), writer=99) as client:
            refused = client.post(f"/v1/{store}/log?batch=1", content=batch, headers={DIGEST: digest(batch)})
            assert refused.status_code in (403, 409), refused.text
            assert client.put(f"/v1/{store}/letters/{'0' * 32}", content=b"x", headers={DIGEST: digest(b"x")}).status_code == 403
            assert client.get(f"/v1/{store}/log?namespace={'0' * 32}").status_code == 403


LOOKS = {
    *("namespace.get", "object.changes", "object.check", "object.list", "object.read", "object.read_file", "object.read_stream"),
    *("object.stat", "object.walk", "reference.find"),
}
OURS = {"namespace.join", "namespace.delete", "token.revoke"}  # what they change is the reader's own


@pytest.mark.parametrize("by", ["key", "metadata"])
def test_every_method_looks_or_is_refused(world: World, tmp_path: Path, by: str) -> None:
    """Also those that are still to come: the list is the daemon's."""
    (tmp_path / "file").write_bytes(b"file")
    metadata = world.bob.result("object.stat", key="small", namespace="photos")["metadata"]
    given: dict[str, Any] = {"new_key": "new", "references": ["x"], "reference": "x"}  # wherever it is taken, all others where needed
    needed: dict[str, Any] = {"start_key": "small", "user": "carol", "permission": "read"}
    needed["public_key"] = world.bob.result("namespace.key")["public_key"]
    own: dict[str, dict[str, Any]] = {
        "object.write": {"value": "x"},
        "object.write_file": {"path": str(tmp_path / "file")},
        "object.read_file": {"path": str(tmp_path / "out")},
        "namespace.set": {"quota_bytes": 1},
    }

    def everything() -> list[Any]:
        alice, asked = world.alice, ("object.list", "permission.list", "namespace.get")
        return [*(alice.result(method, namespace="photos") for method in asked), alice.result("token.keys")]

    before, looked = everything(), set()
    with Client(str(world.bobs.socket)) as bob:  # of its own, for a stream is not read to its end
        for method in world.bob.result("rpc.discover")["methods"]:
            name, required = method["name"], {each["name"]: each.get("required", False) for each in method["params"]}
            if "namespace" not in required or name in OURS:
                continue
            params = {"namespace": "photos", **own.get(name, {})}
            params |= {each: given[each] for each in given if each in required} | {
                each: needed[each] for each in needed if required.get(each)
            }
            if "key" in required:
                params |= {"metadata": metadata} if by == "metadata" and "metadata" in required else {"key": "small"}
            bob.request(name, params)
            while "id" not in (reply := bob.reply()):
                pass  # a stream's
            if "result" in reply:
                looked.add(name)
            else:
                assert error_type(reply) == {"namespace.create": "already_exists"}.get(name, "permission_denied"), reply
    assert looked == LOOKS
    assert everything() == before
    assert error_type(world.bob.call("object.stat", {"key": "new", "namespace": "photos"})) == "not_found"


def test_a_restarted_reader_goes_on(world: World) -> None:
    world.bob.close()
    world.bobs.stop()
    world.bobs.start()
    world.bob = Client(str(world.bobs.socket))
    wait_for(world.bob, "large")
    assert world.bob.read("large", namespace="photos") == LARGE


def test_a_token_that_counts_no_more_is_renewed_by_a_letter(world: World) -> None:
    world.alice.result("token.revoke", user="bob")
    world.alice.write("after", b"after", namespace="photos")
    wait_for(world.bob, "after")
    assert world.bob.read("after", namespace="photos") == b"after"


def letters(world: World, secret: Secret) -> list[bytes]:
    """What anybody is given who knows where it lies."""
    store = world.alice.result("token.keys")["issuer"].removeprefix("zstor:")
    found = []
    for server in world.servers:
        with server.client(None) as client:
            answer = client.get(f"/v1/{store}/letters/{secret.id.hex()}")
            found += [answer.content] if answer.status_code == 200 else []
    return found


def opens(world: World, secret: Secret, private: bytes) -> bool:
    """Whether with this secret alone, and somebody's private key, one of the letters there is understood."""
    store, namespace = (bytes.fromhex(world.alice.result("token.keys")["issuer"].removeprefix("zstor:")), photos(world))
    guess = Pass("", namespace, StoreId(store), "", (bytes(32),), (), "letters", "", "", secret.key, secret.id, 0)
    for letter in letters(world, secret):
        with suppress(CorruptRecord):
            return bool(open_letter(letter, guess, private).record_keys)
    return False


def photos(world: World) -> NamespaceId:
    """The namespace's id, as a server has it."""
    (room,) = [about.parent for about in world.servers[0].data.glob("spaces/*/rooms/*/about.json") if '"photos"' in about.read_text()]
    return NamespaceId(bytes.fromhex(room.name))


def test_who_has_a_retired_master_key_reads_no_letters(world: World) -> None:
    """Its reader does, and reads on."""
    public = parse_public_key(world.bob.result("namespace.key")["public_key"])
    key_file = next(world.alices.home.rglob("master.key"))
    old = MasterKey.from_text(key_file.read_text())
    (secret,) = letter_secrets(KeyRing(old.key, old.store_id).store_wide(), photos(world), public)
    assert opens(world, secret, bytes(32))
    world.alice.result("job.wait", job=world.alice.result("key.rotate")["job"])
    assert opens(world, secret, bytes(32))
    world.alice.result("key.retire")
    assert len(letters(world, secret)) == 3
    assert not opens(world, secret, bytes(32))
    world.alice.write("retired", b"retired", namespace="photos")
    wait_for(world.bob, "retired")
    assert world.bob.read("retired", namespace="photos") == b"retired"
    key = world.bob.result("namespace.key")["public_key"]
    invitation = world.alice.result("namespace.invite", namespace="photos", user="bob", public_key=key)["invitation"]
    assert world.bob.result("namespace.join", invitation=invitation)["namespace"] == "photos"  # by the newest pass it is the same


def test_what_is_written_after_a_rotation_of_the_master_key_is_followed_at_once(world: World) -> None:
    """With the token from before, which is good for a day."""
    world.alice.result("job.wait", job=world.alice.result("key.rotate")["job"])
    world.alice.write("rotated", b"rotated", namespace="photos")
    wait_for(world.bob, "rotated")
    assert world.bob.read("rotated", namespace="photos") == b"rotated"


def test_what_moves_to_other_servers_is_read_there(world: World) -> None:
    """All of it, in the end: the last of the first servers told of the others before it went."""
    at = Path(world.servers[0].data.parent)
    before = [shard["id"] for shard in world.alice.result("shard.list")["shards"]][-3:]
    for number in range(3, 6):
        world.servers.append(Server(at / f"server{number}", [at / "trust.json"], f"unix:{at}/{number}.sock"))
        world.alice.result("shard.add", url=world.servers[number].url)
    after = [shard["id"] for shard in world.alice.result("shard.list")["shards"]][-3:]
    world.alice.result("namespace.set", namespace="photos", placement=after)
    for shard in before:
        world.alice.result("shard.remove", shard=shard)
    for server in world.servers[:3]:
        server.kill()
    del world.servers[:3]
    world.alice.write("moved", b"moved", namespace="photos")
    wait_for(world.bob, "moved")
    assert world.bob.read("moved", namespace="photos") == b"moved"
    assert world.bob.read("large", namespace="photos") == LARGE


def test_with_a_server_away_every_byte_is_read(world: World) -> None:
    world.servers[0].kill()
    assert world.bob.read("large", namespace="photos") == LARGE
    assert world.bob.read("small", namespace="photos") == b"small"


def warnings(client: Client) -> list[str]:
    """Of joined namespaces."""
    return [each for each in client.result("daemon.status")["warnings"] if "joined" in each]


def test_without_the_permission_nothing_more_is_read(world: World) -> None:
    world.alice.result("permission.remove", namespace="photos", user="bob", permission="read")
    world.alice.result("token.revoke", user="bob")
    while "result" in (reply := world.bob.call("object.read", {"key": "large", "namespace": "photos"})):
        pass  # a server that is slow to listen still answers
    assert error_type(reply) == "unreadable"
    assert warnings(world.bob) == []
    world.alice.result("object.delete", key="moved", namespace="photos")
    while not (told := warnings(world.bob)):
        pass  # two servers heard of that, and let him wait for it no longer
    assert "joined namespace photos" in told[0]
    key = world.bob.result("namespace.key")["public_key"]
    assert world.alice.refusal("namespace.invite", namespace="photos", user="bob", public_key=key) == "permission_denied"
    assert world.bob.result("namespace.delete", namespace="photos") == {"deleted": True, "objects": 0, "left": True}
    assert world.bob.refusal("object.read", key="large", namespace="photos") == "not_found"
