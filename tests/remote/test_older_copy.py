"""A server that is put back to an older copy of what it held is found out when it is there again, not when its shares are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from tests.remote.house import House, housing
from tests.shardserver.server import LIMIT, Server
from tests.store.home import CHUNK, content, put
from zstor_local.model.policy import Policy

POLICY = Policy(2, 3, chunk_size=CHUNK)


def killed_and_started(house: House, trust: Path) -> None:
    [server] = house.servers
    house.servers[:] = [Server(server.data, [trust], f"unix:{server.socket}")]


async def test_it_is_told_and_scrubbed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with housing(tmp_path, near=2, servers=1, policy=POLICY) as house:
        store, [first] = house.store, house.servers
        try:
            with trio.fail_after(LIMIT):
                await put(store, "a", content(1, 10_000))
                first.kill()
                shutil.copytree(first.data, tmp_path / "copy")
                killed_and_started(house, tmp_path / "trust.json")
                await house.settle()
                await put(store, "b", content(2, 10_000))
                house.servers[0].kill()
                killed_and_started(house, tmp_path / "trust.json")
                await house.settle()
                assert "an older copy" not in caplog.text
                assert store.scrub.status().last_ended is None
                house.servers[0].kill()
                shutil.rmtree(first.data)
                shutil.copytree(tmp_path / "copy", first.data)
                killed_and_started(house, tmp_path / "trust.json")
                await house.settle()
                assert "an older copy was put back" in caplog.text
                while store.scrub.status().last_ended is None:
                    await store.scrub.news().wait()
                assert store.scrub.status().found.bad_shares == 1
        finally:
            house.servers[0].stop()
