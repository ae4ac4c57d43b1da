"""The power loss model: what may be gone, what may not, and that the worst does happen in some outcome."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulation.content import PAGE, Content, Reserve, Truncate, Write
from tests.simulation.files import SimulatedFiles
from tests.simulation.outcomes import ALL, NOTHING, AllBut, Every, Fate, Only, Subset, Torn, outcomes
from tests.simulation.world import Mount, World
from zstor_local.runtime import sync_directory

NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR


@pytest.fixture
def world() -> World:
    return World(mounts=[Mount("/d"), Mount("/e", kind="xfs")])


def create(files: SimulatedFiles, path: str, data: bytes, *, sync: bool = False) -> int:
    fd = files.open(path, NEW)
    files.pwritev(fd, [data], 0)
    if sync:
        files.fsync(fd)
    return fd


def found(world: World, path: str) -> set[bytes | None]:
    """What a file may hold after a power loss now; None: it is not there."""
    states: set[bytes | None] = set()
    for outcome in outcomes(world.files.unpinned(), subsets=100):
        files = world.crash(outcome).files
        try:
            states.add(files.contents(path))
        except FileNotFoundError:
            states.add(None)
    return states


def names(world: World, path: str) -> set[tuple[str, ...]]:
    """What a directory may list after a power loss now."""
    return {tuple(world.crash(outcome).files.list(path)) for outcome in outcomes(world.files.unpinned(), subsets=100)}


# Files


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


# Names


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


# Processes and copies


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


def test_sizes_may_survive_without_data(world: World) -> None:
    create(world.files, "/d/a", b"x" * 5_000)
    sync_directory(world.files, "/d")
    assert world.crash(Every(Fate.ZEROS)).files.contents("/d/a") == bytes(5_000)


# The content of files against the plainest model

mutations = st.one_of(
    st.builds(Write, st.integers(0, 20_000), st.binary(min_size=1, max_size=50).map(lambda piece: piece * 200)),
    st.builds(Truncate, st.integers(0, 30_000)),
    st.builds(Reserve, st.integers(0, 20_000), st.integers(1, 9_000)),
)


@given(st.lists(mutations, max_size=12), st.integers(0, 35_000), st.integers(0, 20_000))
def test_content_is_as_a_plain_array_of_bytes(changes: list[Write | Truncate | Reserve], offset: int, length: int) -> None:
    content, plain = Content(), bytearray()
    for change in changes:
        before = content.copy()
        old = bytes(plain)
        change.apply(content)
        if isinstance(change, Truncate):
            plain = (plain + bytes(change.length))[: change.length]
        else:
            size = len(change.data) if isinstance(change, Write) else change.length
            plain += bytes(max(0, change.offset + size - len(plain)))
            if isinstance(change, Write):
                plain[change.offset : change.offset + size] = change.data
            assert content.used - before.used == before.lacking(change.offset, size)
        assert content.read(0, 100_000) == plain
        assert before.read(0, 100_000) == old
    assert content.read(offset, length) == plain[offset : offset + length]
    assert content.lacking(0, max(content.size, 1)) + content.used >= -(-content.size // PAGE)
