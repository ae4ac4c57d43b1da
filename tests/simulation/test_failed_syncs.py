"""The power loss model: what a failed sync was to save is lost, whatever a later one says."""

from __future__ import annotations

import errno

import pytest

from tests.simulation.after_power_loss import create, found
from tests.simulation.outcomes import ALL, NOTHING
from tests.simulation.world import Mount, World
from zstor_local.runtime import sync_directory


def test_after_a_failed_sync_a_second_one_saves_nothing(world: World) -> None:
    files = world.files
    fd = create(files, "/d/a", b"", sync=True)
    sync_directory(files, "/d")
    files.pwritev(fd, [b"lost"], 0)
    files.fail("fsync", lambda path: path == "/d/a", errno.EIO)
    with pytest.raises(OSError):
        files.fsync(fd)
    files.pwritev(fd, [b"kept"], 4)
    files.fsync(fd)
    assert files.contents("/d/a") == b"lostkept"
    assert world.crash(NOTHING).files.contents("/d/a") == bytes(4) + b"kept"
    assert world.crash(ALL).files.contents("/d/a") == b"lostkept"


@pytest.mark.parametrize("operation", ["fsync", "fdatasync", "syncfs"])
def test_once_the_cache_is_dropped_a_file_is_seen_as_a_failed_sync_left_it(operation: str) -> None:
    seen = set()
    for number in range(100):
        world = World(number, mounts=[Mount("/d")])
        files = world.files
        fd = create(files, "/d/a", b"whole", sync=True)
        sync_directory(files, "/d")
        files.pwritev(fd, [b"lost"], number)
        files.pwritev(fd, [b"kept"], 0)
        files.fail(operation, lambda path: path == "/d/a", errno.EIO)
        with pytest.raises(OSError):
            getattr(files, operation)(fd)
        files.pwritev(fd, [b"K"], 0)
        files.drop_cache(fd)
        assert files.contents("/d/a").startswith(b"Kept")  # a dirty file is not dropped
        files.fsync(fd)
        files.drop_cache(fd)
        seen.add(files.contents("/d/a"))
        assert found(world, "/d/a") == {files.contents("/d/a")}
    assert any(b"lost" in each for each in seen)
    assert b"Khole" in seen
    assert all(each.startswith(b"K") for each in seen)


def test_after_a_failed_sync_of_a_directory_a_second_one_saves_nothing(world: World) -> None:
    files = world.files
    files.fail("fsync_directory", lambda path: True, errno.EIO)
    create(files, "/d/a", b"")
    with pytest.raises(OSError):
        sync_directory(files, "/d")
    create(files, "/d/b", b"")
    sync_directory(files, "/d")
    assert world.crash(NOTHING).files.list("/d") == ["b"]


def test_after_a_failed_syncfs_a_second_one_saves_nothing(world: World) -> None:
    files = world.files
    fd = create(files, "/d/a", b"1", sync=True)
    sync_directory(files, "/d")
    files.pwritev(fd, [b"2"], 0)
    create(files, "/d/b", b"")
    files.fail("syncfs", lambda path: True, errno.EIO)
    with pytest.raises(OSError):
        files.syncfs(fd)
    files.syncfs(fd)
    after = world.crash(NOTHING).files
    assert (after.list("/d"), after.contents("/d/a")) == (["a"], b"1")


@pytest.mark.parametrize("operation", ["fsync_directory", "syncfs"])
def test_a_name_that_is_given_anew_after_a_failed_sync_is_saved_by_the_next(world: World, operation: str) -> None:
    files = world.files
    fd = create(files, "/d/a", b"first")
    create(files, "/d/b", b"")
    files.unlink("/d/a")
    files.fail(operation, lambda path: True, errno.EIO)
    with pytest.raises(OSError):
        sync_directory(files, "/d") if operation == "fsync_directory" else files.syncfs(fd)
    create(files, "/d/a", b"second", sync=True)
    sync_directory(files, "/d")
    for outcome in (NOTHING, ALL):
        after = world.crash(outcome).files
        assert after.contents("/d/a") == b"second"
        assert ("b" in after.list("/d")) == (outcome is ALL)
