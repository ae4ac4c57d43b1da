"""A server that cannot read one namespace's log: what it has of the others is read all the same, and nothing is written to it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.remote.house import CHUNK, housing
from tests.shardserver.server import LIMIT, Server
from tests.store.home import content, get, put
from zstor_local.errors import Unreadable
from zstor_local.model.policy import Policy
from zstor_local.shards.pool import Absent

SMALL = content(1, 9_000)
POLICY = Policy(1, 3, chunk_size=CHUNK)


async def test_others_are_read_on_until_it_can_be_read_again(tmp_path: Path) -> None:
    async with housing(tmp_path, near=1, servers=2, policy=POLICY) as house:
        with ExitStack() as again, trio.fail_after(LIMIT):
            store, server = house.store, house.servers[1]
            await put(store, "kept", SMALL)
            await put(store, "small", SMALL, namespace="photos")
            namespace = store.namespaces.get("photos").id.hex()
            server.stop()
            (space,) = (server.data / "spaces").iterdir()
            (space / "rooms" / namespace / "log").rename(tmp_path / "log")
            (space / "rooms" / namespace / "log").touch()
            server = Server(server.data, [tmp_path / "trust.json"], f"unix:{tmp_path}/server1.sock")
            again.callback(server.stop)
            await put(store, "later", SMALL)
            assert store.pool.state(2) == "readonly"
            await store.presence.look()
            assert store.pool.state(2) == "readonly"
            for away in store.places.record.shards[:2]:
                store.pool.put(Absent(away, "missing", "away"))
            assert await get(store, "kept") == SMALL
            with pytest.raises(Unreadable):
                await get(store, "small", namespace="photos")
            (space / "rooms" / namespace / "log").unlink()
            (tmp_path / "log").rename(space / "rooms" / namespace / "log")
            await house.settle()
            assert store.health == "ok"
