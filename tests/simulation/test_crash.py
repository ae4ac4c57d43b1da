"""Crash recovery: whatever moment the world stops in, a restart finds old or new, and never old once the reply was sent.

The sweeps and what they look at are in sweep.py, faults.py and oracle.py, the programs in programs.py. The second half shows that they
have teeth: with any one of the safeguards taken out, by name, a sweep fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.simulation.faults import each_and_one_in_turn, sweep_faults
from tests.simulation.mutants import STEPS, caught_by_crash, programs_at, reached, without
from tests.simulation.programs import PROGRAMS
from tests.simulation.sweep import Depth, Program, sites_of, small_world, sweep

LONG: Final = (
    "first start, small",
    "first start, large, disks apart",
    "new file of three chunks",
    "new large, 4+2",
    "put and delete",
    "large beside small",
    "link to a list",
    "rename in a list",
    "copy and delete both",
    "rotation",
    "rotation beside writes",
    "restart in a rotation",
    "restart",
)

FAULTY: Final = (
    "new small",
    "new small, one disk",
    "new large",
    "middle for small, over a full segment",
    "large for large",
    "delete large",
    "if_version",
    "small for large, a shard missing",
    "two keys in a group",
    "one key twice in a group",
    "restart after a crash between shares",
)

# Every sync and rename on the way of the programs. A new one is entered here, and so proved to be needed.
NEEDED: Final = (
    "zstor_local.shards.share_files.ShareFiles.make_durable:fsync_directory",
    "zstor_local.shards.directory.DirectoryShard.flush_file_system:syncfs",
    "zstor_local.shards.share_files.ShareFiles.settle:fsync_directory#1",
    "zstor_local.shards.share_files.FileShareWriter._rename:fsync_directory",
    "zstor_local.shards.share_files.FileShareWriter._rename:rename",
    "zstor_local.shards.share_files.FileShareWriter.finish:fsync",
    "zstor_local.shards.directory.create_directory_shard:fsync",
    "zstor_local.shards.directory.create_directory_shard:fsync_directory#1",
    "zstor_local.shards.directory.create_directory_shard:fsync_directory#2",
    "zstor_local.shards.directory.create_directory_shard:rename",
    "zstor_local.shards.log.Log._sync_new:fsync_directory",
    "zstor_local.shards.log.Log._roll:fdatasync",
    "zstor_local.shards.directory.DirectoryShard.start_flush:fdatasync",
    "zstor_local.shards.log.Log.flush:fdatasync",
    "zstor_local.store.keyfile.finish_key:rename",
    "zstor_local.store.keyfile.make_directories:fsync_directory#1",
    "zstor_local.store.keyfile.make_directories:fsync_directory#2",
    "zstor_local.store.keyfile.settle_unfinished_key:fsync",
    "zstor_local.store.keyfile.settle_unfinished_key:fsync_directory",
)

# Syncs that nothing depends on, each with what makes up for it: no sweep can tell whether they are there.
NOT_NEEDED: Final = {
    "zstor_local.shards.share_files.ShareFiles.settle:fsync_directory#2": "a start clears the temporary directory",
    "zstor_local.shards.log.Log._sync_new:fsync": "the flush of the first entries makes the header durable with them",
    "zstor_local.shards.recovery.flush_the_end:fsync": "what was not committed is void; a rebuild needs it (test_rebuild_crash)",
    "zstor_local.store.keyfile.finish_key:fsync_directory": "a start that finds the unfinished key finishes it again",
}


@pytest.fixture(autouse=True, scope="module")
def in_a_small_world() -> Iterator[None]:
    with small_world():
        for program in PROGRAMS:
            sites_of(program)  # what the programs begin with is made before any mutant comes
        yield


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_crash_leaves_old_or_new(program: Program) -> None:
    assert sweep(program, Depth(extra=0 if program.name in LONG else 1)) > 20


@pytest.mark.parametrize("program", [program for program in PROGRAMS if program.name in FAULTY], ids=str)
def test_every_fault_gives_the_truth_or_a_typed_error(program: Program) -> None:
    assert sweep_faults(program, each_and_one_in_turn) > 15


def test_every_sync_and_rename_is_known() -> None:
    assert reached() == sorted([*NEEDED, *NOT_NEEDED])
    assert {program.name for program in PROGRAMS} > {*FAULTY, *LONG}


@pytest.mark.parametrize("site", NEEDED)
def test_a_missing_call_is_noticed(site: str) -> None:
    assert caught_by_crash(programs_at(site), without(site)) is not None


@pytest.mark.parametrize("name", STEPS)
def test_a_missing_step_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    STEPS[name].patch(monkeypatch)
    assert STEPS[name].caught() is not None
