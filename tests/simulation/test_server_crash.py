"""Crashes of a shard server's storage: whatever moment it ends in, what it acknowledged is there, and what it said was freed is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Final

import pytest

from tests.simulation.mutants import without
from tests.simulation.oracle import BadState
from tests.simulation.points import SKIPPABLE
from tests.simulation.server_sweep import PROGRAMS, Program, base, live, small_segments, sweep
from tests.simulation.sweep import Mutate, intact
from zstor_local.model.ids import ShareId
from zstor_local.shards.base import ScannedEntry, Segments
from zstor_local.shards.compacting import LogSegments
from zstor_local.shards.log_index import LogIndex, Progress
from zstor_local.shards.segment import Freed, Located
from zstor_local.shardserver import compaction
from zstor_local.shardserver.forgetting import Forgettable


@pytest.fixture(autouse=True, scope="module")
def small_world() -> Iterator[None]:
    with small_segments():
        yield


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_crash_keeps_what_was_acknowledged(program: Program) -> None:
    assert sweep(program) > 5


# --- The sweep has teeth ---

# Syncs that nothing depends on, each with what makes up for it.
NOT_NEEDED: Final = {
    "zstor_local.shards.log.Log._sync_new:fsync": "the flush of the first entries makes the header durable with them",
}

# Which program misses what most do not: it goes first, as a sweep that finds nothing goes on to its end.
MISSED_BY: Final = {
    "zstor_local.shardserver.large.LargeShares._publish:fsync_directory#1": "put the first large shares",
    "zstor_local.shards.log.Log.remove:fsync_directory": "compact what says of shares that they were freed",
}


def test_each_sync_and_rename_is_missed() -> None:
    reached: dict[str, list[Program]] = {}
    for program in PROGRAMS:
        trial = base(program).copy()
        live(trial, program.work)
        for site in sorted({site.name for site in trial.world.files.sites} - NOT_NEEDED.keys()):
            if site.rpartition(":")[2].partition("#")[0] in SKIPPABLE:
                reached.setdefault(site, []).append(program)
    assert len(reached) > 20
    assert reached.keys() >= MISSED_BY.keys()
    for site, programs in reached.items():
        in_turn = sorted(programs, key=lambda program: program.name != MISSED_BY.get(site))
        assert caught(in_turn, without(site)), site


def caught(programs: Sequence[Program], mutate: Mutate = intact) -> bool:
    """Whether one of the sweeps notices."""
    for program in programs:
        try:
            sweep(program, mutate)
        except BadState:
            return True
    return False


Patch = Callable[[pytest.MonkeyPatch], None]


def copies_that_are_not_flushed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LogSegments, "flush", lambda self: self._log.flushed())


def gone_before_it_is_copied(patch: pytest.MonkeyPatch) -> None:
    read, remove = LogSegments.read, LogSegments.remove

    def read_and_remove(self: LogSegments, number: int) -> Sequence[Located] | None:
        found = read(self, number)
        remove(self, number)
        return found

    patch.setattr(LogSegments, "read", read_and_remove)
    patch.setattr(LogSegments, "remove", lambda self, number: None)


def _keeping(kept: Callable[[ScannedEntry | Freed | None, Located], ScannedEntry | Freed | None]) -> Patch:
    """Another choice of what is copied, given the one that is made and the entry."""

    def mutant(patch: pytest.MonkeyPatch) -> None:
        choose = compaction._kept
        patch.setattr(compaction, "_kept", lambda segments, number, each, *known: kept(choose(segments, number, each, *known), each))

    return mutant


def superseded_with_their_shares(patch: pytest.MonkeyPatch) -> None:
    choose = compaction._kept

    def kept(segments: Segments, number: int, each: Located, gone: Set[int], forgotten: Set[ShareId]) -> ScannedEntry | Freed | None:
        named = isinstance(each.item, ScannedEntry) and each.item.entry.envelope.sequence in gone
        return None if named else choose(segments, number, each, gone, forgotten)

    patch.setattr(compaction, "_kept", kept)


def an_index_that_forgets_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LogIndex, "forget", lambda self, shard: self.record(shard, (), Progress()))


def forgotten_wherever_it_lies(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Forgettable, "of", lambda self, number: {*self._freed.get(number, ())})


STEPS: Final[Mapping[str, tuple[Patch, str]]] = {
    "the flush of the copies": (copies_that_are_not_flushed, "compact"),
    "the order of copying before removing": (gone_before_it_is_copied, "compact"),
    "what says that a share was freed": (
        _keeping(lambda item, _: None if isinstance(item, Freed) else item),
        "compact what is unevenly dead",
    ),
    "that a share which lies elsewhere was freed": (forgotten_wherever_it_lies, "compact what is unevenly dead"),
    "that a freed share is left out": (_keeping(lambda item, each: item and each.item), "compact"),
    "the records of freed shares": (
        _keeping(lambda item, each: item if isinstance(item, Freed) or item == each.item else None),
        "compact",
    ),
    "the shares of superseded records": (superseded_with_their_shares, "compact what was superseded"),
    "that an index forgets a log that is gone": (an_index_that_forgets_nothing, "retire a namespace"),
}


@pytest.mark.parametrize("step", STEPS)
def test_each_step_is_missed(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, name = STEPS[step]
    programs = [program for program in PROGRAMS if program.name == name]
    for program in programs:
        base(program)  # made before the mutant comes
    patch(monkeypatch)
    assert caught(programs)
