"""The shards together: where shares go, and one flush for all logs or one for each."""

from __future__ import annotations

import errno
from collections.abc import Iterable

import pytest

from tests.shards.ground import Ground, entry, uid, version
from tests.simulation.files import SimulatedFiles
from tests.simulation.world import Mount, World
from zstor_local.model.ids import Version
from zstor_local.model.storewide import ShardEntry
from zstor_local.shards.base import Entry
from zstor_local.shards.pool import Absent, ShardPool


def listed(number: int) -> ShardEntry:
    return ShardEntry(number, uid(number), f"shard{number}", f"/nowhere/{number}", "")


def pool(ground: Ground, count: int = 4, *, absent: tuple[int, ...] = ()) -> ShardPool:
    shards = [ground.new(number) for number in range(count) if number not in absent]
    return ShardPool(shards, [Absent(listed(number), "missing", "not mounted") for number in absent])


def to_each(numbers: Iterable[int], wanted: Entry) -> dict[int, list[Entry]]:
    return {number: [wanted] for number in numbers}


@pytest.fixture
def one_disk() -> Ground:
    world = World(1, [Mount("/disk", kind="ext4")])
    return Ground(world.runtime, "/disk", world.files)


def calls(ground: Ground) -> list[str]:
    """The names of the syncs so far."""
    assert isinstance(ground.faults, SimulatedFiles)
    names = [site.name.rsplit(":", 1)[1].split("#")[0] for site in ground.faults.sites]
    return [name for name in names if name in ("fdatasync", "syncfs")]


# --- Placement ---


def test_a_version_gets_as_many_different_shards_as_it_has_shares(one_disk: Ground) -> None:
    shards = pool(one_disk, 6)
    for first in range(256):
        placement = shards.place(Version(bytes([first]) + bytes(15)), 4)
        assert len(set(placement)) == 4


def test_where_there_are_fewer_shards_than_shares_numbers_of_none_stand_for_the_others(one_disk: Ground) -> None:
    shards = pool(one_disk, 4)
    shards.drop(1)
    for placement in (shards.place(version(7), 6), shards.place(version(7), 6, shards.recent_states())):
        assert len(set(placement)) == 6
        assert set(placement[:3]) == {0, 2, 3}
        assert not any(map(shards.knows, placement[3:]))


def test_a_shard_that_goes_away_while_its_share_is_placed_has_a_number_still(one_disk: Ground) -> None:
    shards = pool(one_disk, 4)
    states = shards.recent_states()
    for number in (1, 2):
        shards.put(Absent(listed(number), "missing", "it went away"))
    placement = shards.place(version(7), 3, states)
    assert len(set(placement)) == 3
    assert set(placement) < {0, 1, 2, 3}


def test_versions_begin_at_every_shard(one_disk: Ground) -> None:
    shards = pool(one_disk, 6)
    assert {shards.place(Version(bytes([first]) + bytes(15)), 4)[0] for first in range(256)} == set(range(6))


def test_shards_that_are_away_come_last(one_disk: Ground) -> None:
    shards = pool(one_disk, 6, absent=(1, 4))
    placement = shards.place(version(1), 6)
    assert sorted(placement) == list(range(6))
    assert set(placement[4:]) == {1, 4}
    assert not {1, 4} & set(shards.place(version(1), 4))


def test_a_pool_knows_who_is_away_and_why(one_disk: Ground) -> None:
    shards = pool(one_disk, 3, absent=(1,))
    assert shards.numbers == [0, 1, 2]
    assert shards.usable() == [0, 2]
    assert shards.states() == {"shard0": "ok", "shard1": "missing", "shard2": "ok"}
    assert (shards.state(1), shards.reason(1), shards.get(1)) == ("missing", "not mounted", None)
    assert (shards.state(9), shards.name(9)) == ("missing", "9")
    assert "no shard" in shards.reason(9)


# --- Append and flush ---


def test_what_one_shard_refuses_the_others_take(one_disk: Ground) -> None:
    shards = pool(one_disk, 3, absent=(1,))
    one_disk.runtime.files.unlink(f"{one_disk.root(2)}/marker")
    failed = shards.append(to_each([0, 1, 2], entry(1)), 0)
    assert {number: error.state for number, error in failed.items()} == {1: "missing", 2: "missing"}
    assert [found.entry for found in shards.opened()[0].scan()] == [entry(1)]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_logs_on_one_good_file_system_share_one_syncfs(kind: str) -> None:
    world = World(1, [Mount("/disk", kind=kind)])
    ground = Ground(world.runtime, "/disk", world.files)
    shards = pool(ground)
    shards.append(to_each(range(4), entry(1)), 0)
    assert shards.flush(range(4)) == {}
    assert calls(ground) == ["syncfs"]


def test_logs_on_another_file_system_are_synced_one_by_one() -> None:
    world = World(1, [Mount("/disk", kind="zfs")])
    ground = Ground(world.runtime, "/disk", world.files)
    shards = pool(ground)
    shards.append(to_each(range(4), entry(1)), 0)
    assert shards.flush(range(4)) == {}
    assert calls(ground) == ["fdatasync"] * 4


def test_logs_on_several_file_systems_are_synced_one_by_one() -> None:
    world = World(1, [Mount(f"/disk/{number}") for number in range(3)])
    ground = Ground(world.runtime, "/disk", world.files)
    shards = pool(ground, 3)
    shards.append(to_each(range(3), entry(1)), 0)
    assert shards.flush(range(3)) == {}
    assert calls(ground) == ["fdatasync"] * 3


def test_while_a_large_write_runs_logs_are_synced_one_by_one(one_disk: Ground) -> None:
    shards = pool(one_disk)
    with shards.large_write():
        shards.append(to_each(range(4), entry(1)), 0)
        shards.flush(range(4))
    assert calls(one_disk) == ["fdatasync"] * 4
    shards.append(to_each(range(4), entry(2)), 0)
    shards.flush(range(4))
    assert calls(one_disk) == ["fdatasync"] * 4 + ["syncfs"]


def test_one_log_alone_is_synced_alone(one_disk: Ground) -> None:
    shards = pool(one_disk)
    shards.append({2: [entry(1)]}, 0)
    assert shards.flush([2]) == {}
    assert calls(one_disk) == ["fdatasync"]


def test_a_failed_syncfs_fails_every_log_that_it_covered_for_good(one_disk: Ground) -> None:
    shards = pool(one_disk)
    shards.append(to_each(range(3), entry(1)), 0)
    one_disk.faults.fail("syncfs", lambda path: True, errno.EIO)
    failed = shards.flush(range(3))
    assert set(failed) == {0, 1, 2}
    one_disk.faults.heal()
    assert shards.states() == {"shard0": "failed", "shard1": "failed", "shard2": "failed", "shard3": "ok"}
    assert set(shards.append(to_each(range(4), entry(2)), 0)) == {0, 1, 2}


def test_a_failed_fdatasync_fails_its_own_log(one_disk: Ground) -> None:
    shards = pool(one_disk)
    with shards.large_write():
        shards.append(to_each(range(4), entry(1)), 0)
        one_disk.faults.fail("fdatasync", lambda path: "/2/" in path, errno.EIO)
        assert set(shards.flush(range(4))) == {2}
    assert shards.usable() == [0, 1, 3]


def test_closing_lets_go_of_everything(one_disk: Ground) -> None:
    shards = pool(one_disk)
    shards.append(to_each(range(4), entry(1)), 0)
    shards.close()
    assert isinstance(one_disk.faults, SimulatedFiles)
    assert one_disk.faults.open_descriptors() == []
