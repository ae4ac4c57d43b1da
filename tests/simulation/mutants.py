"""Mutants: the program with one of its safeguards taken out. A sweep that does not notice has no teeth.

Those of single calls (each sync, each rename) come from the simulation: the call at a site does nothing and says that it worked. Those
of whole steps are written down here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import pytest

from tests.simulation.faults import everything, sweep_faults
from tests.simulation.oracle import BadState
from tests.simulation.points import SKIPPABLE
from tests.simulation.programs import PROGRAMS
from tests.simulation.sweep import SHALLOW, Depth, Mutate, Program, intact, sites_of, sweep
from tests.simulation.world import World
from zstor_local.metastore.base import Transaction
from zstor_local.model.record import STORE_WIDE
from zstor_local.runtime import Buffer, Files, FileStatus, sync_directory
from zstor_local.shards.base import ShardError
from zstor_local.shards.directory import DirectoryShard
from zstor_local.shards.share_files import FileShareWriter, ShareFiles
from zstor_local.store import presence, publishing, voided
from zstor_local.store.coding import LargeWrite
from zstor_local.store.draining import Drain, Drained
from zstor_local.store.placing import Placing
from zstor_local.store.presence import Presence, Untold
from zstor_local.store.publishing import Publisher

Patch = Callable[[pytest.MonkeyPatch], None]


def reached() -> list[str]:
    """The sites of all syncs and renames that the programs come to, sorted."""
    return sorted(
        site for site in frozenset().union(*map(sites_of, PROGRAMS)) if site.rpartition(":")[2].partition("#")[0] in SKIPPABLE
    )


def without(site: str) -> Mutate:
    """The call at this site taken out."""

    def mutate(world: World) -> None:
        world.files.skip(site)

    return mutate


def programs_at(site: str) -> list[Program]:
    return [program for program in PROGRAMS if site in sites_of(program)]


def caught_by_crash(programs: Sequence[Program], mutate: Mutate = intact) -> str | None:
    """What the first sweep that notices says. Shallow ones first: most mutants are that easy to see."""
    for depth in (SHALLOW, Depth(0), Depth(4)):
        for program in programs:
            try:
                sweep(program, depth, mutate)
            except BadState as error:
                return str(error)
    return None


def caught_by_fault(programs: Sequence[Program]) -> str | None:
    """What the first sweep of faults that notices says."""
    for program in programs:
        try:
            sweep_faults(program, everything)
        except BadState as error:
            return str(error)
    return None


# --- Whole steps ---


def no_quorum_in_groups(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Publisher, "_apply_quorum", lambda self, items, failed: None)


def no_quorum_of_large_shares(patch: pytest.MonkeyPatch) -> None:
    """Neither when they are written nor where the change is decided."""
    patch.setattr(LargeWrite, "_check_quorum", lambda self: None)
    patch.setattr(Placing, "must_be_there", lambda *_: None)


def metastore_before_logs(patch: pytest.MonkeyPatch) -> None:
    def publish(self: Publisher, items: list[object]) -> dict[int, ShardError]:
        self._to_metastore(items, {})  # type: ignore[arg-type]
        return self._to_logs(items)  # type: ignore[arg-type]

    patch.setattr(Publisher, "publish", publish)


def metastore_before_large_shares(patch: pytest.MonkeyPatch) -> None:
    """The shares' files are finished when the metastore has the record."""
    finish, to_metastore = FileShareWriter.finish, Publisher._to_metastore
    waiting: list[tuple[Files, Callable[[], None]]] = []

    def later(self: FileShareWriter, *args: Buffer) -> None:
        waiting.append((self._files, partial(finish, self, *args)))  # type: ignore[arg-type]

    def then_finish(self: Publisher, *args: object) -> None:
        to_metastore(self, *args)  # type: ignore[arg-type]
        ours = [shard._files for shard in self._pool.opened() if isinstance(shard, DirectoryShard)]
        due = [work for files, work in waiting if files in ours]  # those of worlds that ended are none of ours
        waiting.clear()
        for work in due:
            work()

    patch.setattr(FileShareWriter, "finish", later)
    patch.setattr(Publisher, "_to_metastore", then_finish)


def no_void_at_start(patch: pytest.MonkeyPatch) -> None:
    """Neither of the sequences that an earlier life reserved, nor of what the end of each log holds."""

    def void_earlier_life(self: Publisher, sequences: range, k: int) -> None:
        state = replace(self.state, sequence=self._next - 1)
        self._metastore.commit(Transaction(state))
        self.state = state

    patch.setattr(Publisher, "void_earlier_life", void_earlier_life)
    no_look_at_the_ends_of_logs(patch)


def no_void_of_what_failed(patch: pytest.MonkeyPatch) -> None:
    """Neither when it failed nor at the next start."""
    patch.setattr(Publisher, "_void", lambda self, items, failed: None)
    no_look_at_the_ends_of_logs(patch)


def no_look_at_the_ends_of_logs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Presence, "never_committed", lambda self, shard: Untold())


def read_by_others(patch: pytest.MonkeyPatch) -> None:
    """No mutant: every shard is one whose namespaces other users may read."""
    patch.setattr(voided, "has_readers", lambda shard: True)
    patch.setattr(presence, "has_readers", lambda shard: True)


def readers_are_told_of_nothing(patch: pytest.MonkeyPatch) -> None:
    read_by_others(patch)
    patch.setattr(publishing, "told_on", lambda shard, lost: {STORE_WIDE: lost[STORE_WIDE]} if lost else {})


def no_intent(patch: pytest.MonkeyPatch) -> None:
    whole = Publisher._transaction

    def transaction(self: Publisher, *args: object) -> Transaction:
        made = whole(self, *args)  # type: ignore[arg-type]
        made.intents.clear()
        return made

    patch.setattr(Publisher, "_transaction", transaction)


def directory_synced_by_its_maker_only(patch: pytest.MonkeyPatch) -> None:
    def make_durable(self: ShareFiles, directory: str, *, anew: bool = False) -> None:
        with suppress(FileExistsError):
            self._files.mkdir(directory)
            sync_directory(self._files, directory.rpartition("/")[0])

    patch.setattr(ShareFiles, "make_durable", make_durable)


def shards_told_apart_by_their_places(patch: pytest.MonkeyPatch) -> None:
    def verify(self: DirectoryShard, *_: object) -> FileStatus:
        self._files.lock(self._lock_fd)
        return self._files.status(self._lock_fd)

    patch.setattr(DirectoryShard, "_verify", verify)


def no_look_before_a_shard_goes_by_force(patch: pytest.MonkeyPatch) -> None:
    async def check_force(self: Drain, number: int, job: object) -> Drained:
        """Nothing is lost, whatever is."""
        return Drained(0, self._committer.state.sequence)

    patch.setattr(Drain, "check_force", check_force)


@dataclass(frozen=True, slots=True)
class Step:
    """A mutant, the sweep that is made to notice it, and the program to do so in."""

    patch: Patch
    sweep: Callable[[Sequence[Program]], str | None]
    program: str

    def caught(self) -> str | None:
        return self.sweep([program for program in PROGRAMS if program.name == self.program])


STEPS: Final[Mapping[str, Step]] = {
    "the write quorum of a group": Step(no_quorum_in_groups, caught_by_fault, "new small"),
    "the write quorum of large shares": Step(no_quorum_of_large_shares, caught_by_fault, "new large"),
    "the order of logs before metastore": Step(metastore_before_logs, caught_by_crash, "new small"),
    "the order of large shares before metastore": Step(metastore_before_large_shares, caught_by_crash, "new large"),
    "the void at a start": Step(no_void_at_start, caught_by_crash, "small for small"),
    "the void of what failed": Step(no_void_of_what_failed, caught_by_fault, "two keys in a group"),
    "the intent of a large write": Step(no_intent, caught_by_crash, "new large"),
    "the sync of a directory that somebody else made": Step(directory_synced_by_its_maker_only, caught_by_crash, "new large"),
}
