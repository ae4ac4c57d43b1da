"""What the owner's daemon refused is not shown to who reads the namespace, though some servers took it: two daemons, three servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.access.two_users import World, two_users, wait_for


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with two_users(tmp_path_factory.mktemp("refused")) as world:
        world.create("photos")
        world.alice.write("old", b"old", namespace="photos")
        world.join("photos")
        yield world


def refuse(world: World) -> None:
    """Two writes of which two servers of three hear before they are refused."""
    for key in ("old", "new"):
        world.servers[2].kill()
        assert world.alice.refusal("object.write", key=key, value="refused", namespace="photos") == "not_enough_shards"
        world.serve_again(2)


def test_what_was_refused_is_not_shown(world: World) -> None:
    refuse(world)
    world.alice.write("after", b"after", namespace="photos")
    wait_for(world.bob, "after")
    for reader in (world.alice, world.bob):
        assert reader.read("old", namespace="photos") == b"old"
        assert reader.refusal("object.read", key="new", namespace="photos") == "not_found"


def test_a_server_that_is_away_when_somebody_is_invited_or_written_to_is_read_when_it_is_back(world: World) -> None:
    world.servers[2].kill()
    world.restart_alice()
    world.join("photos")
    world.serve_again(2)
    world.servers[0].kill()
    assert world.bob.read("old", namespace="photos") == b"old"
    world.serve_again(0)
