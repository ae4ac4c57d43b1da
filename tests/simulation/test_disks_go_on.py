"""What a killed process, a copy of a world and files without a name leave of a disk."""

from __future__ import annotations

import errno
import os

import pytest

from tests.simulation.after_power_loss import create, found
from tests.simulation.content import PAGE
from tests.simulation.outcomes import NOTHING, outcomes
from tests.simulation.world import World
from zstor_local.runtime import sync_directory


def test_descriptors_and_locks_die_with_the_process(world: World) -> None:
    fd = create(world.files, "/d/a", b"1", sync=True)
    sync_directory(world.files, "/d")
    assert world.files.lock(fd)
    for after in (world.copy(), world.crash(NOTHING)):
        with pytest.raises(OSError) as caught:
            after.files.status(fd)
        assert caught.value.errno == errno.EBADF
        assert after.files.lock(after.files.open("/d/a", os.O_RDONLY))


def test_a_kill_loses_nothing_that_was_written(world: World) -> None:
    create(world.files, "/d/a", b"1")
    killed = world.copy()
    assert killed.files.contents("/d/a") == b"1"
    assert None in found(killed, "/d/a")


def test_copies_go_their_own_ways(world: World) -> None:
    files = world.files
    fd = create(files, "/d/a", b"old")
    before = files.digest()
    other = world.copy()
    assert other.files.digest() == before
    create(other.files, "/d/b", b"")
    other_fd = other.files.open("/d/a", os.O_RDWR)
    other.files.pwritev(other_fd, [b"new"], 0)
    assert files.digest() == before
    files.pwritev(fd, [b"xyz"], 0)
    assert (files.contents("/d/a"), other.files.contents("/d/a")) == (b"xyz", b"new")
    world.crash(NOTHING)
    assert files.contents("/d/a") == b"xyz"


def test_a_copy_of_a_directory_takes_its_place_for_good(world: World) -> None:
    files = world.files
    files.place("/d/x/a", b"1")
    files.place("/d/x/y/b", b"2")
    fd = create(files, "/d/x/c", b"3")
    copy = files.tree("/d/x")
    assert copy == {"/d/x/a": b"1", "/d/x/c": b"3", "/d/x/y/b": b"2"}
    files.unlink("/d/x/a")
    files.pwritev(fd, [b"longer"], 0)
    files.close(fd)
    create(files, "/d/x/y/d", b"4")
    files.place("/d/beside", b"5")
    files.put_back_tree("/d/x", copy)
    for outcome in outcomes(files.unpinned()):
        after = world.crash(outcome).files
        assert after.tree("/d") == {**copy, "/d/beside": b"5"}


def test_a_page_that_cannot_be_read_stays_so_as_long_as_its_file(world: World) -> None:
    files = world.files
    files.place("/d/a", b"x" * PAGE + b"y" * PAGE + b"z")
    files.spoil("/d/a", PAGE + 5)
    for after in (files, world.copy().files, world.crash(NOTHING).files):
        fd = after.open("/d/a", os.O_RDONLY)
        assert after.pread(fd, 3 * PAGE, 9) == b"x" * (PAGE - 9)  # as far as it can be read
        for at in (PAGE, 2 * PAGE - 1):
            with pytest.raises(OSError) as caught:
                after.pread(fd, 1, at)
            assert caught.value.errno == errno.EIO
        assert after.pread(fd, PAGE, 2 * PAGE) == b"z"
        assert after.pread(fd, PAGE, 3 * PAGE) == b""


def test_a_page_that_cannot_be_read_for_a_while_is_what_it_was(world: World) -> None:
    files = world.files
    files.place("/d/a", b"x" * PAGE + b"y" * PAGE)
    files.spoil("/d/a", 0)
    files.spoil("/d/a", PAGE, lasting=False)
    for after in (files, world.copy().files, world.crash(NOTHING).files):
        fd = after.open("/d/a", os.O_RDONLY)
        with pytest.raises(OSError, match="Input/output"):
            after.pread(fd, 1, PAGE)
        after.read_again()
        assert after.pread(fd, PAGE, PAGE) == b"y" * PAGE
        with pytest.raises(OSError, match="Input/output"):
            after.pread(fd, 1, 0)


def test_files_that_nothing_leads_to_leave_their_room(world: World) -> None:
    files = world.files
    files.set_capacity("/d", 4 * PAGE)
    fd = create(files, "/d/a", bytes(4 * PAGE), sync=True)
    sync_directory(files, "/d")
    files.unlink("/d/a")
    assert files.file_system(fd).free == 0
    top = files.open("/d", os.O_RDONLY)
    files.close(fd)
    assert files.file_system(top).free == 4 * PAGE
    revived = world.crash(NOTHING).files
    assert revived.file_system(revived.open("/d", os.O_RDONLY)).free == 0
