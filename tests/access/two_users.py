"""Alice and Bob: a daemon each, three shard servers that she owns, all processes of their own, and a namespace that he reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.daemon.client import Client
from tests.shardserver.server import Server
from zstor_local.cli.private_daemon import PrivateDaemon


@dataclass
class World:
    place: Path
    alice: Client
    bob: Client
    alices: PrivateDaemon
    bobs: PrivateDaemon
    servers: list[Server] = field(default_factory=list)
    added: list[str] = field(default_factory=list)  # what the servers are called in her store

    def serve(self, number: int) -> None:
        """Have a server run, again."""
        server = Server(self.place / f"server{number}", [self.place / "trust.json"], f"unix:{self.place}/{number}.sock")
        self.servers[number : number + 1] = [server]

    def serve_again(self, number: int) -> None:
        """The same, and wait until the owner's daemon has it back."""
        self.serve(number)
        while self.state(number) != "ok":
            pass

    def state(self, number: int) -> str:
        """A server's, as the owner's daemon sees it."""
        states = {each["id"]: str(each["state"]) for each in self.alice.result("shard.list")["shards"]}
        return states[self.added[number]]

    def create(self, namespace: str, policy: Mapping[str, int] | None = None) -> None:
        """A namespace of hers that he may read, on the servers alone."""
        self.alice.result("namespace.create", namespace=namespace, policy=policy or {"k": 2, "m": 3}, placement=self.added)
        self.alice.result("permission.give", namespace=namespace, user="bob", permission="read")

    def invitation(self, namespace: str) -> str:
        key = self.bob.result("namespace.key")["public_key"]
        return str(self.alice.result("namespace.invite", namespace=namespace, user="bob", public_key=key)["invitation"])

    def join(self, namespace: str) -> Any:
        return self.bob.result("namespace.join", invitation=self.invitation(namespace))

    def restart_bob(self) -> None:
        self.bob.close()
        self.bobs.stop()
        self.bobs.start()
        self.bob = Client(str(self.bobs.socket))

    def restart_alice(self, *, kill: bool = False) -> None:
        self.alice.close()
        if kill:
            self.alices.kill()
        else:
            self.alices.stop()
        self.alices.start()
        self.alice = Client(str(self.alices.socket))


@contextmanager
def two_users(place: Path) -> Iterator[World]:
    homes = [place / name for name in ("alice", "bob")]
    for home in homes:
        home.mkdir()
    with PrivateDaemon(homes[0]) as alices, PrivateDaemon(homes[1]) as bobs:
        alices.start()
        bobs.start()
        world = World(place, Client(str(alices.socket)), Client(str(bobs.socket)), alices, bobs)
        try:
            (place / "trust.json").write_text(json.dumps(world.alice.result("token.keys")))
            for number in range(3):
                world.serve(number)
                world.alice.result("shard.add", url=world.servers[number].url)
            world.added = [shard["id"] for shard in world.alice.result("shard.list")["shards"]][-3:]
            yield world
        finally:
            world.alice.close()
            world.bob.close()
            for server in world.servers:
                server.kill()


def until_answered(client: Client) -> Sequence[Any]:
    """What comes before the reply, and the reply."""
    messages = [client.reply()]
    while "method" in messages[-1]:
        messages.append(client.reply())
    return messages


def wait_for(client: Client, key: str, namespace: str = "photos") -> Any:
    """The key's change, as soon as the follower has heard of it."""
    cursor = 0
    while True:
        page = client.result("object.changes", namespace=namespace, since=cursor, wait_seconds=60)
        cursor = page["cursor"]
        for item in page["items"]:
            if item["key"] == key:
                return item
