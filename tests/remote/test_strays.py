"""Shares that were freed and are on a server all the same, as after a request that it refused halfway: a scrub finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.remote.house import CHUNK, housing
from tests.shardserver.server import LIMIT
from tests.store.home import content, delete, freed, put
from tests.store.test_scrub import scrubbed
from zstor_local.model.ids import ShareId
from zstor_local.model.policy import Policy
from zstor_local.shards.base import Entry, ScannedEntry, Shard
from zstor_local.shards.http.wire import Batch, share_name

POLICY = Policy(1, 2, chunk_size=CHUNK)


async def held(shard: Shard) -> list[ShareId]:
    return await trio.to_thread.run_sync(lambda: [*shard.held(small=True), *shard.held(small=False)])


@pytest.mark.parametrize("size", [500, CHUNK + 1_000])
async def test_a_share_that_came_back_is_freed(tmp_path: Path, size: int) -> None:
    async with housing(tmp_path, near=1, servers=0, liar=True, policy=POLICY) as house:
        with trio.fail_after(LIMIT):
            store, shard = house.store, house.store.pool.get(1)
            assert shard is not None
            assert house.liar is not None
            (space,) = house.liar.volume.spaces.values()
            stored = await put(store, "a", content(1, size))
            share = ShareId(stored.version, stored.record.placement.index(1))
            with space.opened(None, share, small=stored.record.small) as (length, read):
                data = read(0, length)
            await delete(store, "a")
            await freed(store)
            assert await held(shard) == []
            if stored.record.small:
                space._append(Batch([ScannedEntry(Entry(stored.envelope, share.index, data), 0)]))
            else:
                name = share_name(share)
                (tmp_path / "liar" / "spaces" / store.sealer.store_id.hex() / "shares" / name[:2] / name).write_bytes(data)
            assert await held(shard) == [share]
            found = await scrubbed(store)
            assert (found.strays_freed, found.strays_kept) == (1, 0)
            await freed(store)
            assert await held(shard) == []
