"""A shard on a server leaves the store: its place there is free for another one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio

from tests.remote.house import CHUNK, House, housing
from tests.shardserver.server import LIMIT
from tests.store.home import content, get, put
from zstor_local.errors import Conflict, NoSpace
from zstor_local.metastore.base import CommitRefused, Metastore, Transaction
from zstor_local.model.ids import ShardUid
from zstor_local.model.policy import Policy
from zstor_local.shards.marker import Marker
from zstor_local.shards.opening import ShardOpener
from zstor_local.store.caller import Nobody

SMALL, LARGE = content(1, 9_000), content(2, CHUNK + 1_000)


def spaces(house: House) -> list[str]:
    return sorted(each.name for each in (house.servers[0].data / "spaces").iterdir())


async def check(house: House) -> None:
    assert await get(house.store, "small") == SMALL
    assert await get(house.store, "large") == LARGE


async def test_a_drained_shard_leaves_its_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with housing(tmp_path, near=3, servers=1, policy=Policy(2, 3, chunk_size=CHUNK)) as house:
        store, server = house.store, house.servers[0]
        with trio.fail_after(LIMIT):
            await put(store, "small", SMALL)
            await put(store, "large", LARGE)
            entry = next(each for each in store.places.record.shards if each.id == "shard3")
            await store.membership.remove("shard3", Nobody())
            assert spaces(house) == []
            await check(house)

            added = await store.membership.add(server.url, None)
            assert added.number != entry.number
            assert len(spaces(house)) == 1
            await trio.to_thread.run_sync(store.places.opener.retire, entry, server.url)  # once more: another shard lies there now
            assert len(spaces(house)) == 1
            await check(house)

            server.kill()
            with caplog.at_level(logging.WARNING, "zstor.shards"):
                await store.membership.remove(added.id, Nobody())
            assert added.id in store_warnings(caplog)
            await check(house)


async def test_a_place_on_a_server_whose_listing_failed_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with housing(tmp_path, near=3, servers=1, policy=Policy(2, 3, chunk_size=CHUNK)) as house:
        store, url = house.store, house.servers[0].url

        def refused(metastore: Metastore, transaction: Transaction) -> None:
            raise CommitRefused("the disk is full", no_space=True)

        with trio.fail_after(LIMIT):
            await store.membership.remove("shard3", Nobody())
            with monkeypatch.context() as patch:
                patch.setattr(type(store.metastore), "commit", refused)
                with pytest.raises(NoSpace):
                    await store.membership.add(url, None)
            assert store.pool.state((await store.membership.add(url, None)).number) == "ok"


async def test_what_an_interrupted_add_left_on_a_server_is_no_obstacle_and_what_was_ever_used_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with housing(tmp_path, near=3, servers=1, policy=Policy(2, 3, chunk_size=CHUNK)) as house:
        store, url = house.store, house.servers[0].url
        with trio.fail_after(LIMIT):
            await store.membership.remove("shard3", Nobody())
            left = Marker(store.core.sealer.store_id, ShardUid(bytes(16)), 9, 0)
            await trio.to_thread.run_sync(store.places.opener.create, url, left)
            added = await store.membership.add(url, None)
            assert store.pool.state(added.number) == "ok"

            monkeypatch.setattr(ShardOpener, "retire", lambda *_: None)  # as where its server cannot be reached then
            await store.membership.remove(added.id, Nobody())
            with pytest.raises(Conflict, match="already another shard") as caught:
                await store.membership.add(url, None)
            assert caught.value.hint == "put another name behind the server's URL"
            assert spaces(house) == [store.core.sealer.store_id.hex()]


def store_warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if "stays on its server" in record.getMessage())
