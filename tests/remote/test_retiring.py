"""A deleted namespace goes from shard servers, once no shard has to be told of it any more; and it stays gone."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.remote.house import CHUNK, House, housing
from tests.shardserver.server import LIMIT, Server
from tests.store.home import content, get, put
from zstor_local.model.ids import NamespaceId
from zstor_local.model.policy import Policy
from zstor_local.shards.base import ShardError
from zstor_local.shards.http.shard import HttpShard
from zstor_local.store.caller import Nobody
from zstor_local.store.retiring import TABLE

SMALL, LARGE = content(1, 9_000), content(2, CHUNK + 1_000)
POLICY = Policy(1, 3, chunk_size=CHUNK)


async def filled(house: House) -> str:
    """A namespace with something in it; its id in hex."""
    store = house.store
    await put(store, "kept", SMALL)
    for key, value in (("small", SMALL), ("large", LARGE)):
        await put(store, key, value, namespace="photos")
    namespace = store.namespaces.get("photos").id.hex()
    assert all(kept_of(server, namespace) for server in house.servers)
    return namespace


async def settled(house: House) -> None:
    """Everything is there, told and freed."""
    await house.settle()
    while house.store.metastore.garbage_count():
        await house.store.freeing.free_some()
        await trio.sleep(0)


def kept_of(server: Server, namespace: str) -> list[Path]:
    (space,) = (server.data / "spaces").iterdir()
    return [*(space / "rooms" / namespace / "log").iterdir()]


async def test_it_goes_from_every_server(tmp_path: Path) -> None:
    async with housing(tmp_path, near=1, servers=2, policy=POLICY) as house:
        with trio.fail_after(LIMIT):
            namespace = await filled(house)
            await house.store.removal.remove("photos", Nobody())
            await settled(house)
            await house.store.retiring.retire()
            assert [kept_of(server, namespace) for server in house.servers] == [[], []]
            assert [*house.store.rows.scan(TABLE)] == []
            await house.store.retiring.retire()
            assert await get(house.store, "kept") == SMALL


async def test_it_stays_while_a_shard_may_have_to_be_told(tmp_path: Path) -> None:
    """On one that was away, objects might come back by a rebuild that reads nowhere else of their end."""
    async with housing(tmp_path, near=1, servers=2, policy=POLICY) as house:
        with ExitStack() as again, trio.fail_after(LIMIT):
            store, (here, away) = house.store, house.servers
            namespace = await filled(house)
            away.kill()
            await store.removal.remove("photos", Nobody())
            while store.health == "ok":
                await store.presence.look()
            await store.retiring.retire()
            assert kept_of(here, namespace)
            house.servers[1] = Server(away.data, [tmp_path / "trust.json"], f"unix:{tmp_path}/server1.sock")
            again.callback(house.servers[1].stop)
            await settled(house)
            await store.retiring.retire()
            assert [kept_of(server, namespace) for server in house.servers] == [[], []]


async def test_a_store_in_which_there_is_always_something_to_free_does_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with housing(tmp_path, near=1, servers=2, policy=POLICY) as house:
        with trio.fail_after(LIMIT):
            namespace = await filled(house)
            await house.store.removal.remove("photos", Nobody())
            await settled(house)
            for count, stays in ((1_000_000, True), (500, False)):
                monkeypatch.setattr(house.store.metastore, "garbage_count", lambda count=count: count)
                await house.store.retiring.retire()
                assert bool(kept_of(house.servers[0], namespace)) is stays


async def test_one_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with housing(tmp_path, near=1, servers=2, policy=POLICY) as house:
        with trio.fail_after(LIMIT):
            store, (one, other) = house.store, house.servers
            namespace = await filled(house)
            await store.removal.remove("photos", Nobody())
            await settled(house)

            def refuse(self: HttpShard, namespace: NamespaceId) -> None:
                if self.number == 2:
                    raise ShardError("failed", "no")
                retire(self, namespace)

            retire = HttpShard.retire
            with monkeypatch.context() as patch:
                patch.setattr(HttpShard, "retire", refuse)
                assert not await store.retiring.retire()
            assert (kept_of(one, namespace), bool(kept_of(other, namespace))) == ([], True)
            monkeypatch.setattr(HttpShard, "retire", lambda self, namespace: self.number == 2 and retire(self, namespace))
            assert await store.retiring.retire()
            assert not kept_of(other, namespace)
            assert [*store.rows.scan(TABLE)] == []


async def test_a_store_without_servers_remembers_nothing(tmp_path: Path) -> None:
    async with housing(tmp_path, near=3, servers=0, policy=POLICY) as house:
        await filled(house)
        await house.store.removal.remove("photos", Nobody())
        assert [*house.store.rows.scan(TABLE)] == []
