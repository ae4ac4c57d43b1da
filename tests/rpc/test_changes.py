"""Waiting for changes: many may do so beside everything else."""

from __future__ import annotations

from pathlib import Path

import trio.testing

from tests.rpc.conftest import World
from tests.store.home import Home, put
from zstor_local.rpc.budget import Room
from zstor_local.rpc.methods import changes


async def test_who_waits_for_changes_wants_no_room_before_there_are_some(world: World, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.path.mkdir()
    async with home.open() as store:
        changes.register(world.registry, store)
        async with world.serving() as server, world.client() as client, world.client() as other:
            replies = server.dispatcher.replies
            everything = Room(replies)
            everything.hold(replies.left)
            assert await other.result("object.changes", {"namespace": "quiet"}) == {"items": [], "cursor": 0, "more": False}
            await client.request("object.changes", {"wait_seconds": 300, "namespace": "quiet"})
            await put(store, "a", b"of another namespace")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not replies.crowd
            await put(store, "a", b"news", namespace="quiet")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert replies.crowd
            everything.close()
            answer = await client.reply()
            assert isinstance(page := answer["result"], dict)
            assert isinstance(items := page["items"], list)
            assert len(items) == 1
