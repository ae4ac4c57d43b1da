"""A new master key for a store on shard servers: they let it in as before, at once and after they or the daemon were started again."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import trio

from tests.remote.house import CHUNK, House, housing
from tests.shardserver.server import LIMIT, Server
from tests.store.home import content, get, put
from zstor_local.model.policy import Policy
from zstor_local.store.caller import Nobody

SMALL, LARGE = content(1, 9_000), content(2, 3 * CHUNK + 1_000)


async def rotated(house: House) -> None:
    job, _ = await house.store.rotation.rotate()
    while True:
        news = job.news()
        if not job.running:
            break
        await news.wait()
    assert job.error is None
    assert not house.store.rotation.pending


async def works(house: House, turn: int) -> None:
    store = house.store
    with trio.fail_after(LIMIT):
        await house.settle()
        assert await get(store, "small") == SMALL
        assert await get(store, "large") == LARGE
        for key, size in (("new", 9_000), ("new large", 700_000)):
            stored = await put(store, key, content(turn, size))
            assert stored.owed == 0
            assert await get(store, key) == content(turn, size)


async def test_servers_let_a_store_in_whose_master_key_was_replaced(tmp_path: Path) -> None:
    async with housing(tmp_path, near=1, servers=3, policy=Policy(2, 4, chunk_size=CHUNK)) as house:
        await put(house.store, "small", SMALL)
        await put(house.store, "large", LARGE)
        for turn in range(2):
            await rotated(house)
            await works(house, turn)
        with ExitStack() as started_again:
            for number, server in enumerate(house.servers):
                server.kill()
                again = Server(server.data, [tmp_path / "trust.json"], f"unix:{tmp_path}/server{number}.sock")
                started_again.callback(again.stop)
            await works(house, 3)
            assert (await house.store.repair_all.run(Nobody())).failed == 0
