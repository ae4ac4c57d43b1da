"""Which servers are told of permissions, and when."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from tests.remote.house import CHUNK, housing
from zstor_local.access.authority import Authority
from zstor_local.access.telling import Telling
from zstor_local.access.trust import TrustDocument
from zstor_local.errors import NotSupported
from zstor_local.model.policy import Policy
from zstor_local.shards.base import Notices
from zstor_local.shards.http.shard import HttpShard


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
