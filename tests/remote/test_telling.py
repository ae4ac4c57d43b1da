"""Which servers are told of permissions, and when."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.remote.house import CHUNK, housing
from zstor_local.access.authority import Authority
from zstor_local.access.telling import LOOK_SECONDS, PAUSE_SECONDS, Telling
from zstor_local.access.trust import TrustDocument
from zstor_local.errors import NotSupported, Unavailable
from zstor_local.model.ids import ObjectName
from zstor_local.model.policy import Policy
from zstor_local.shards.base import Notices
from zstor_local.shards.http.shard import HttpShard
from zstor_local.store.caller import Nobody
from zstor_local.store.sources import BytesSource
from zstor_local.store.writes import WriteOptions


class NoDocument:
    """An authority whose keys servers are given by hand."""

    kind = "itsyouonline"

    async def trust(self) -> TrustDocument:
        raise NotSupported("it has none")


async def test_a_store_that_only_reads_tells_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be an older copy; its shards were never started, and each look would log that for each of them."""
    told: list[Notices] = []

    def tell(shard: HttpShard, notices: Notices) -> bool:
        told.append(notices)
        return True

    monkeypatch.setattr(HttpShard, "tell", tell)
    async with housing(tmp_path, near=1, servers=1, policy=Policy(1, 2, chunk_size=CHUNK)) as house:
        telling = Telling(house.store, cast("Authority", NoDocument()))
        house.store.read_only = "the metastore is older than a shard"
        await telling.tell()
        assert not told
        house.store.read_only = None
        await telling.tell()
        assert len(told) == 1


async def test_what_cannot_be_told_is_not_tried_on_and_on(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the first signing key cannot be committed, since the servers are away: what fails wakes those who wait for news, too."""
    times = 0

    async def tell(telling: Telling) -> None:
        nonlocal times
        times += 1
        if times > 2:
            nursery.cancel_scope.cancel()
        telling._store.committer.tell()
        raise Unavailable("too few shards")

    monkeypatch.setattr(Telling, "tell", tell)
    async with housing(tmp_path, near=2, servers=0, policy=Policy(1, 2, chunk_size=CHUNK)) as house, trio.open_nursery() as nursery:
        nursery.start_soon(Telling(house.store, cast("Authority", NoDocument())).run)
        await wait_all_tasks_blocked()
        assert times == 1
        for seconds in (LOOK_SECONDS, PAUSE_SECONDS):
            mock_clock.jump(seconds)
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert times == 2


async def test_many_commits_cost_one_look(tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they changed is told together: a look takes as long as a part of a small write."""
    looks: list[float] = []

    async def look(telling: Telling) -> None:
        looks.append(trio.current_time())

    monkeypatch.setattr(Telling, "tell", look)
    async with housing(tmp_path, near=2, servers=0, policy=Policy(1, 2, chunk_size=CHUNK)) as house, trio.open_nursery() as nursery:
        nursery.start_soon(Telling(house.store, cast("Authority", NoDocument())).run)
        for number in range(5):
            await house.store.writer.write(ObjectName("default", f"{number}"), BytesSource(b"bytes"), WriteOptions(), Nobody())
            await wait_all_tasks_blocked()
        assert len(looks) == 1
        mock_clock.jump(PAUSE_SECONDS)
        await wait_all_tasks_blocked()
        assert len(looks) == 2
        nursery.cancel_scope.cancel()
