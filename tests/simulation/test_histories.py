"""Whatever several clients, disks and power cuts do together: every answer fits on a line, and in the end everything is there.

The same seeds each time, so that a failure is the change's; `python -m tests.simulation.histories SEED` tells one again, `make soak`
tries new ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from tests.simulation.histories import Found, history, intact
from tests.simulation.house import HOUSES, House
from tests.simulation.mutants import (
    Patch,
    metastore_before_large_shares,
    metastore_before_logs,
    no_intent,
    no_look_before_a_shard_goes_by_force,
    no_quorum_in_groups,
    read_by_others,
    readers_are_told_of_nothing,
    shards_told_apart_by_their_places,
    without,
)

SEEDS = 30
FIRST = 1_000
ENOUGH = 100  # seeds in which each mutant shows itself, many times over
MORE_THAN_SHARES = next(house for house in HOUSES if house.shards > house.policy.m)
ONE_DISK = next(house for house in HOUSES if house.kind == "one:ext4")


def test_histories_fit_on_a_line() -> None:
    operations = sum(len(history(seed).operations) for seed in range(FIRST, FIRST + SEEDS))
    assert operations > 20 * SEEDS


def test_whoever_reads_a_namespace_is_told_of_all_that_never_came_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    read_by_others(monkeypatch)
    for seed in range(FIRST, FIRST + SEEDS):
        history(seed)


@pytest.mark.parametrize("seed", [11, 198901738024726])  # in the second an object with two keys is rewritten
def test_a_seed_has_one_history(seed: int) -> None:
    """In other processes too, whatever they make of hashes."""
    told = {
        subprocess.run(
            [sys.executable, "-m", "tests.simulation.histories", str(seed)],
            env={**os.environ, "PYTHONHASHSEED": str(hashes)},
            capture_output=True,
            check=True,
        ).stdout
        for hashes in (0, 2)
    }
    assert len(told) == 1


def test_two_seeds_have_two_histories() -> None:
    assert history(11).hash != history(12).hash


@dataclass(frozen=True, slots=True)
class Mutant:
    """A safeguard taken out, as a step or as the call at a site, and a house in which it counts. Most show themselves within a few
    seeds, from any on; `first` saves time where they do not.
    """

    patch: Patch | None = None
    site: str | None = None
    house: House | None = None
    first: int = 0

    def found(self, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Whether one of enough histories shows it."""
        if self.patch is not None:
            self.patch(monkeypatch)
        mutate = intact if self.site is None else without(self.site)
        for seed in range(self.first, self.first + ENOUGH):
            try:
                history(seed, mutate, self.house)
            except Found:
                return True
        return False


MUTANTS = {
    "no fdatasync of logs": Mutant(site="zstor_local.shards.directory.DirectoryShard.start_flush:fdatasync"),
    "no syncfs of logs": Mutant(site="zstor_local.shards.directory.DirectoryShard.flush_file_system:syncfs", house=ONE_DISK),
    "no fsync of share files": Mutant(site="zstor_local.shards.share_files.FileShareWriter.finish:fsync"),
    "no quorum": Mutant(no_quorum_in_groups, house=ONE_DISK),
    "no intents": Mutant(no_intent),
    "readers are told of nothing": Mutant(readers_are_told_of_nothing),
    "metastore before logs": Mutant(metastore_before_logs),
    "metastore before share files": Mutant(metastore_before_large_shares),
    "shards told apart by their places": Mutant(shards_told_apart_by_their_places, house=MORE_THAN_SHARES),
    "no look before a shard goes by force": Mutant(no_look_before_a_shard_goes_by_force, house=ONE_DISK, first=29),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MUTANTS[name].found(monkeypatch)
