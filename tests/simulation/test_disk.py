"""The power loss model: what may be gone of files, what may not, and that the worst does happen in some outcome."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.after_power_loss import create, found
from tests.simulation.outcomes import NOTHING, Every, Fate, Subset, Torn, outcomes
from tests.simulation.world import World
from zstor_local.runtime import sync_directory


def test_nothing_of_what_was_not_synced_need_survive(world: World) -> None:
    create(world.files, "/d/a", b"data")
    sync_directory(world.files, "/d")
    assert found(world, "/d/a") >= {b"", bytes(4), b"da", b"data"}


def test_a_synced_file_without_its_entry_is_gone(world: World) -> None:
    create(world.files, "/d/a", b"data", sync=True)
    assert found(world, "/d/a") == {None, b"data"}


@pytest.mark.parametrize("operation", ["fsync", "fdatasync", "syncfs"])
def test_a_synced_file_with_its_entry_is_there(world: World, operation: str) -> None:
    fd = create(world.files, "/d/a", b"data")
    sync_directory(world.files, "/d")
    sync: Callable[[int], None] = getattr(world.files, operation)
    sync(fd)
    assert found(world, "/d/a") == {b"data"}
    assert world.files.unpinned() == []


def test_syncfs_pins_all_of_its_file_system_and_of_no_other(world: World) -> None:
    files = world.files
    files.mkdir("/d/sub")
    fd = create(files, "/d/sub/a", b"1")
    create(files, "/d/b", b"2")
    create(files, "/e/c", b"3")
    files.rename("/d/b", "/d/sub/b")
    files.syncfs(fd)
    after = world.crash(NOTHING).files
    assert after.list("/d") == ["sub"]
    assert after.list("/d/sub") == ["a", "b"]
    assert after.contents("/d/sub/b") == b"2"
    assert after.list("/e") == []


def test_later_writes_may_survive_earlier_ones(world: World) -> None:
    files = world.files
    fd = create(files, "/d/a", b"....", sync=True)
    sync_directory(files, "/d")
    files.pwritev(fd, [b"1"], 0)
    files.pwritev(fd, [b"2"], 2)
    assert found(world, "/d/a") >= {b"....", b"1...", b"..2.", b"1.2."}


def test_a_truncate_may_be_lost_or_kept_alone(world: World) -> None:
    files = world.files
    fd = create(files, "/d/a", b"1234", sync=True)
    sync_directory(files, "/d")
    files.truncate(fd, 1)
    files.pwritev(fd, [b"x"], 1)
    assert found(world, "/d/a") >= {b"1234", b"1", b"1x34", b"1x"}


def test_torn_writes_break_at_sectors(world: World) -> None:
    files = world.files
    fd = create(files, "/d/a", b"-" * 4_096, sync=True)
    sync_directory(files, "/d")
    files.pwritev(fd, [b"+" * 4_096], 0)
    states = [world.crash(Subset(seed)).files.contents("/d/a") for seed in range(200)]
    torn = {state for state in states if b"-+" in state}
    assert torn
    assert all(len(set(state[at : at + 512])) == 1 for state in torn for at in range(0, 4_096, 512))
    assert world.crash(Torn(0)).files.contents("/d/a") == b"+" * 2_048 + b"-" * 2_048


def test_sizes_may_survive_without_data(world: World) -> None:
    create(world.files, "/d/a", b"x" * 5_000)
    sync_directory(world.files, "/d")
    assert world.crash(Every(Fate.ZEROS)).files.contents("/d/a") == bytes(5_000)


def test_every_outcome_is_the_same_each_time(world: World) -> None:
    create(world.files, "/d/a", b"x" * 5_000)
    create(world.files, "/d/b", b"y" * 5_000)
    for outcome in outcomes(world.files.unpinned()):
        assert world.crash(outcome).files.digest() == world.crash(outcome).files.digest()


def test_of_very_many_changes_some_are_tried(world: World) -> None:
    fd = create(world.files, "/d/a", b"1")
    for number in range(500):
        world.files.pwritev(fd, [b"1"], number)
    tried = list(outcomes(world.files.unpinned(), subsets=7, singles=20))
    assert len(tried) in (3 + 20 * 3 + 7, 3 + 20 * 3 - 1 + 7)  # the change of the directory cannot be torn
    assert tried == list(outcomes(world.files.unpinned(), subsets=7, singles=20))
    assert tried != list(outcomes(world.files.unpinned(), subsets=7, singles=20, seed=1))
