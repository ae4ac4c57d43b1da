"""Shards on a shard server: the laws of all shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shards.conformance import ShardLaws
from tests.shards.http_ground import HttpGround


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[HttpGround]:
    ground = HttpGround(tmp_path)
    yield ground
    ground.end()


class TestHttpShard(ShardLaws):
    pass
