"""Shard servers that were away, or put back to an older copy: who follows their logs goes on with what is written there then."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.access.two_users import World, two_users, wait_for


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with two_users(tmp_path_factory.mktemp("put-back")) as world:
        world.create("photos", {"k": 1, "m": 1})
        yield world


def put_back(world: World, number: int) -> None:
    data = world.servers[number].data
    world.servers[number].kill()
    shutil.rmtree(data)
    shutil.copytree(data.with_suffix(".copy"), data)
    world.serve_again(number)


def test_what_is_written_behind_an_older_copy_is_followed(world: World) -> None:
    """Each write is on one of the servers alone."""
    world.alice.write("old", b"old", namespace="photos")
    world.join("photos")
    wait_for(world.bob, "old")
    for number, server in enumerate(world.servers):
        assert server.stop() == 0
        shutil.copytree(server.data, server.data.with_suffix(".copy"))
        world.serve_again(number)
    for number in range(9):
        world.alice.write(f"lost{number}", bytes(10_000), namespace="photos")
        wait_for(world.bob, f"lost{number}")
    for number in range(3):
        put_back(world, number)
    for number in range(6):
        world.alice.write(f"new{number}", b"new", namespace="photos")
    for number in range(6):
        wait_for(world.bob, f"new{number}")
        assert world.bob.read(f"new{number}", namespace="photos") == b"new"


def test_that_nobody_tells_of_news_is_said_until_somebody_does(world: World) -> None:
    for server in world.servers:
        server.kill()
    while not unheard(world):
        pass
    for number in range(3):
        world.serve_again(number)
    world.alice.write("heard", b"of", namespace="photos")
    wait_for(world.bob, "heard")
    while unheard(world):
        pass


def unheard(world: World) -> list[str]:
    return [each for each in world.bob.result("daemon.status")["warnings"] if "joined namespace photos" in each]
