"""The power loss model: names that are made, changed and taken away, and directories."""

from __future__ import annotations

import os

from tests.simulation.after_power_loss import create, found, names
from tests.simulation.outcomes import NOTHING, AllBut, Only, outcomes
from tests.simulation.world import World
from zstor_local.runtime import sync_directory


def test_a_rename_may_be_undone_until_the_directory_is_synced(world: World) -> None:
    files = world.files
    files.place("/d/a", b"old")
    create(files, "/d/a.tmp", b"new", sync=True)
    files.rename("/d/a.tmp", "/d/a")
    assert found(world, "/d/a") == {b"old", b"new"}
    assert names(world, "/d") == {("a",), ("a", "a.tmp")}
    sync_directory(files, "/d")
    assert found(world, "/d/a") == {b"new"}
    assert names(world, "/d") == {("a",)}


def test_a_rename_of_unsynced_data_may_leave_an_empty_file(world: World) -> None:
    files = world.files
    files.place("/d/a", b"old")
    create(files, "/d/a.tmp", b"new")
    files.rename("/d/a.tmp", "/d/a")
    assert found(world, "/d/a") >= {b"old", b"new", b"", bytes(3)}


def test_a_rename_is_never_half_done(world: World) -> None:
    files = world.files
    files.place("/d/a", b"1")
    files.rename("/d/a", "/d/b")
    assert names(world, "/d") == {("a",), ("b",)}


def test_a_rename_between_directories_never_loses_both_names(world: World) -> None:
    files = world.files
    files.place("/d/x/a", b"1")
    files.place("/d/y/other", b"")
    files.rename("/d/x/a", "/d/y/a")

    def seen(base: World) -> set[tuple[bool, bool]]:
        after = [base.crash(outcome).files for outcome in outcomes(base.files.unpinned())]
        return {("a" in files.list("/d/x"), "a" in files.list("/d/y")) for files in after}

    assert seen(world) == {(True, False), (False, True)}
    through_new, through_old = world.copy(), world.copy()
    sync_directory(through_new.files, "/d/y")
    assert seen(through_new) == {(True, True), (False, True)}
    assert through_new.crash(NOTHING).files.path_status("/d/y/a").links == 2
    sync_directory(through_old.files, "/d/x")
    assert seen(through_old) == {(False, True)}


def test_what_builds_on_a_lost_change_is_lost_too(world: World) -> None:
    files = world.files
    create(files, "/d/a", b"", sync=True)
    files.rename("/d/a", "/d/b")
    files.rename("/d/b", "/d/c")
    assert names(world, "/d") == {(), ("a",), ("b",), ("c",)}
    changes = world.files.unpinned()
    assert world.crash(Only(len(changes) - 1)).files.list("/d") == ["c"]
    assert world.crash(AllBut(0)).files.list("/d") == []


def test_an_unlink_may_be_undone_until_the_directory_is_synced(world: World) -> None:
    files = world.files
    files.place("/d/a", b"1")
    files.unlink("/d/a")
    assert found(world, "/d/a") == {None, b"1"}
    sync_directory(files, "/d")
    assert found(world, "/d/a") == {None}


def test_a_synced_directory_is_gone_with_the_one_above_unsynced(world: World) -> None:
    files = world.files
    files.mkdir("/d/sub")
    create(files, "/d/sub/a", b"1", sync=True)
    sync_directory(files, "/d/sub")
    assert world.crash(NOTHING).files.list("/d") == []
    sync_directory(files, "/d")
    assert world.crash(NOTHING).files.contents("/d/sub/a") == b"1"


def test_fdatasync_of_a_directory_promises_nothing(world: World) -> None:
    create(world.files, "/d/a", b"", sync=True)
    world.files.fdatasync(world.files.open("/d", os.O_RDONLY | os.O_DIRECTORY))
    assert world.crash(NOTHING).files.list("/d") == []
