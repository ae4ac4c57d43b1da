"""Records on a shard server that newer ones have superseded: a scrub names them, and they go when the server compacts its log."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.remote.house import CHUNK, House, housing, serving
from tests.shardserver.server import LIMIT
from tests.store.home import content, delete, freed, get, keys, put
from tests.store.test_scrub import scrubbed
from zstor_local import limits
from zstor_local.model.ids import NamespaceId
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE, Envelope, Kind
from zstor_local.shards.http.shard import HttpShard
from zstor_local.shardserver.compaction import Compaction
from zstor_local.store.opening import open_store
from zstor_local.store.pace import unpaced
from zstor_local.store.rebuild import rebuild
from zstor_local.system import real_runtime

POLICY = Policy(1, 2, chunk_size=CHUNK)
TIMES = 40


async def envelopes(house: House) -> Sequence[Envelope]:
    """The records on the server, of objects and their ends."""
    shard = house.store.pool.get(1)
    assert shard is not None
    scanned = await house.store.runtime.threads.run(lambda: [*shard.scan()])
    return [each.entry.envelope for each in scanned if each.entry.envelope.namespace != STORE_WIDE]


async def compacted(house: House) -> None:
    assert house.liar is not None
    await freed(house.store)
    await scrubbed(house.store)
    assert await Compaction(house.liar.volume).compact(unpaced) > 0


async def test_a_key_that_is_written_on_and_on_leaves_no_more_than_its_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEGMENT_BYTES", 8 * limits.KIB)
    monkeypatch.setattr(limits, "SEGMENT_STEP_BYTES", 2 * limits.KIB)
    async with housing(tmp_path, near=1, servers=0, liar=True, policy=POLICY) as house:
        with trio.fail_after(LIMIT):
            store = house.store
            for number in range(TIMES):
                await put(store, "a", content(number, 500))
                await put(store, "b", content(number, 500))
                await delete(store, "b")
            await put(store, "once", content(1, 500))
            before = await envelopes(house)
            await compacted(house)
            after = await envelopes(house)
            assert len(after) < len(before) / 3
            newest = store.metastore.newest(before[0].namespace, [each.sequence for each in before])
            assert newest <= {each.sequence for each in after}
            assert len(newest) == 3
            assert await get(store, "a") == content(TIMES - 1, 500)


async def test_the_server_alone_brings_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of its log is what a rebuild needs."""
    monkeypatch.setattr(limits, "SEGMENT_BYTES", 8 * limits.KIB)
    monkeypatch.setattr(limits, "SEGMENT_STEP_BYTES", 2 * limits.KIB)
    async with housing(tmp_path, near=1, servers=0, liar=True, policy=POLICY) as house:
        with trio.fail_after(LIMIT):
            await put(house.store, "large", content(1, CHUNK + 1_000))
            await put(house.store, "large", content(2, CHUNK + 1_000))
            for number in range(TIMES):
                await put(house.store, f"{number % 3}", content(number, 500))
                await put(house.store, "other", content(number, 500), namespace=f"photos{number % 2}")
                await put(house.store, f"gone {number % 2}", content(number, 500))
                await delete(house.store, f"gone {number % 2}")
            before = await envelopes(house)
            await compacted(house)
            assert len(await envelopes(house)) < len(before) / 3
    async with serving(tmp_path, near=1, servers=0, liar=True, policy=POLICY) as ground:
        with trio.fail_after(LIMIT):
            shutil.rmtree(tmp_path / "near0")
            for file in Path(ground.config.store).glob("*.sqlite*"):
                file.unlink()
            again = partial(rebuild, real_runtime(), ground.engines, ground.config, accept_loss=True, progress=lambda what, count: None)
            report = await trio.to_thread.run_sync(again)
            assert (report.objects, report.unreadable, report.older) == (6, [], [])
            async with open_store(real_runtime(), ground.engines, ground.config) as store:
                assert await keys(store) == ["0", "1", "2", "large"]
                for number in range(TIMES - 3, TIMES):
                    assert await get(store, f"{number % 3}") == content(number, 500)
                for number in range(TIMES - 2, TIMES):
                    assert await get(store, "other", namespace=f"photos{number % 2}") == content(number, 500)
                assert await get(store, "large") == content(2, CHUNK + 1_000)


async def test_the_end_of_a_key_stays_while_it_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where too little is left of what was written since, it is what buries what was before."""
    named: Counter[NamespaceId] = Counter()

    def supersede(self: HttpShard, namespace: NamespaceId, sequences: Sequence[int]) -> None:
        if namespace != STORE_WIDE:
            named[namespace] += len(sequences)
            assert {*sequences} <= allowed

    async with housing(tmp_path, near=1, servers=0, liar=True, policy=POLICY) as house:
        with trio.fail_after(LIMIT):
            store = house.store
            for number in range(3):
                await put(store, "a", content(number, 500))
                await delete(store, "a")
            await put(store, "a", content(4, 500))
            ends = [each.sequence for each in await envelopes(house) if each.kind is Kind.TOMBSTONE]
            allowed = {each.sequence for each in await envelopes(house)} - {*ends}
            monkeypatch.setattr(HttpShard, "supersede", supersede)
            await scrubbed(store)
            space = store.namespaces.get("default").id
            assert named[space] == 3
            await delete(store, "a")
            allowed |= {*ends, max(allowed)}
            named.clear()
            await scrubbed(store)
            assert named[space] == 7


async def test_what_is_not_on_the_server_supersedes_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It missed the newest record: what it has is the newest that it can tell of."""
    named: list[NamespaceId] = []
    async with housing(tmp_path, near=1, servers=0, liar=True, policy=POLICY) as house:
        with trio.fail_after(LIMIT):
            store = house.store
            for number in range(3):
                await put(store, "a", content(number, 500))
            missed, scan = max(each.sequence for each in await envelopes(house)), HttpShard.scan
            monkeypatch.setattr(HttpShard, "scan", lambda self: (each for each in scan(self) if each.entry.envelope.sequence != missed))
            monkeypatch.setattr(HttpShard, "supersede", lambda self, namespace, sequences: named.append(namespace))
            await scrubbed(store)
            assert store.namespaces.get("default").id not in named
