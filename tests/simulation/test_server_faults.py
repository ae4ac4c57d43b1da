"""Faults of a shard server's disk: whatever fails, once or for good, nothing is acknowledged that a power loss then takes away."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import pytest

from tests.simulation.oracle import BadState
from tests.simulation.outcomes import NOTHING
from tests.simulation.server_sweep import PROGRAMS, Program, State, base, examine_once, live, small_segments
from tests.simulation.servers import Life, living
from tests.simulation.world import run
from zstor_local.shardserver.disk import Directories
from zstor_local.shardserver.refusal import Refusal

FAULTS: Final = [(errno.EIO, False), (errno.ENOSPC, False), (errno.EIO, True), (errno.ENOSPC, True)]  # once, or from then on


class Persistent:
    """A daemon that asks each thing once more where it is refused, and goes on."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._life, name)

        def call(*args: Any, **options: Any) -> Any:
            for _ in range(2):
                try:
                    return method(*args, **options)
                except (Refusal, OSError):
                    pass
            return None

        return call

    async def compact(self) -> int:
        """Whether anything could be compacted or not."""
        await self._life.compact()
        return 1


@pytest.fixture(autouse=True, scope="module")
def small_world() -> Iterator[None]:
    with small_segments():
        yield


def sweep_faults(program: Program) -> int:
    """Let each change of the disk fail. Returns how many trials there were; raises the first BadState."""
    rehearsal = base(program).copy()
    live(rehearsal, program.work)
    sites = rehearsal.world.files.sites
    trials = 0
    for number in range(1, len(sites) + 1):
        for code, lasting in FAULTS:
            trials += 1
            try:
                for state in _states(program, number, code, lasting=lasting):
                    examine_once(state)
            except BadState as error:
                how = f"{errno.errorcode[code]} {'from then on' if lasting else 'once'}"
                raise BadState(f"{program}, {how} at {number} ({sites[number - 1].name}): {error}") from error
    return trials


def _states(program: Program, number: int, code: int, *, lasting: bool) -> Iterator[State]:
    """What a power loss leaves at the end of the work, and what a stop does."""
    trial = base(program).copy()
    lost: list[State] = []

    async def server() -> None:
        with living(trial.world, trial.promises, patient=True) as life:
            await program.work(Persistent(life))  # type: ignore[arg-type]
            lost.append(State(trial.world.crash(NOTHING), trial.promises.copy()))

    trial.world.files.fail_at(number, code, and_after=lasting)
    with suppress(Refusal, OSError):  # where it could not be started at all
        run(trial.world, server)
    trial.world.files.heal()
    yield from lost
    yield trial.copy()


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_fault_leaves_what_was_acknowledged(program: Program) -> None:
    assert sweep_faults(program) > 5


def test_a_server_that_believes_a_sync_after_one_that_failed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Directories, "check", lambda self: None)
    for name in ("first start", "append to new namespaces", "put the first large shares"):
        with pytest.raises(BadState):
            sweep_faults(next(program for program in PROGRAMS if program.name == name))
