"""A rebuild that is broken off: whatever moment the world stops in, another one brings back the same, and the store goes on."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from tests.simulation.account import Client
from tests.simulation.engines import SimulatedEngines
from tests.simulation.house import House
from tests.simulation.mutants import without
from tests.simulation.oracle import BadState
from tests.simulation.outcomes import NOTHING, outcomes
from tests.simulation.points import PowerLoss
from tests.simulation.programs import (
    APART,
    FOUR,
    LARGE,
    SMALL,
    TOGETHER,
    link,
    put_large,
    put_large_2,
    put_list,
    put_small,
    put_small_2,
    rotate,
    unlink,
    value,
)
from tests.simulation.sweep import Moment, Mutate, Program, Run, base, examine, intact, live, rehearse
from tests.simulation.world import World
from zstor_local import limits
from zstor_local.errors import ZstorError
from zstor_local.metastore.base import CommitUnknown
from zstor_local.store.faults import StoreFault
from zstor_local.store.rebuild import Report, rebuild

BATCHES = 3
DRAWS = 10


async def some(client: Client) -> None:
    """Objects enough for several transactions, small and large, some overwritten and some deleted."""
    for number in range(8):
        await client.put(f"key {number}", value(100 + number, number))
    await client.put("key 1", LARGE)
    await client.put("key 2", SMALL)
    for number in (3, 4):
        await client.delete(f"key {number}")


PROGRAMS = [
    Program("rebuild, disks apart", APART, before=(some,)),
    Program("rebuild, one disk", TOGETHER, before=(put_list, unlink)),
    Program("rebuild of what was rotated", FOUR, before=(put_list, rotate, some)),
]


@pytest.fixture(autouse=True, scope="module")
def small_world() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SEGMENT_BYTES", 1 << 14)
        patch.setattr("zstor_local.store.rebuild.BATCH", BATCHES)
        yield


def rebuilt(world: World, house: House, *, accept_loss: bool = False) -> Report:
    return rebuild(world.runtime, SimulatedEngines(world), house.config(), accept_loss=accept_loss, progress=lambda what, count: None)


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_crash_of_a_rebuild_is_made_up_for_by_another(program: Program) -> None:
    start = base(program)
    whole = rebuilt(start.copy().world, program.house)
    assert whole.loss == []
    tried, number, lost = 0, 0, True
    while lost:
        number += 1
        trial = start.copy()
        begin = trial.world.files.points
        trial.world.files.crash_at(begin + number)
        try:
            rebuilt(trial.world, program.house)
            lost = False
        except PowerLoss:
            pass
        for outcome in [NOTHING, *list(outcomes(trial.world.files.unpinned(), subsets=2, singles=2, seed=number))[1:4]]:
            after = Run(trial.world.crash(outcome), trial.account.copy())
            report = rebuilt(after.world, program.house)
            if (report.objects, report.deleted, report.loss) != (whole.objects, whole.deleted, []):
                raise BadState(f"stopped at {number}: {report}")
            examine(after, program.house, thoroughly=tried % 5 == 0)
            tried += 1
    assert number > 3


def rebuild_after_every_kill(program: Program, mutate: Mutate = intact) -> int:
    """Kill the program at each crash point, rebuild, and then cut the power: what was brought back stays. Returns how often."""
    moments: list[Moment] = []
    begin, _ = rehearse(program, mutate, moments)
    points = [moment for moment in moments if moment.number > begin and not moment.torn]
    for moment in points:
        killed = moment.run.copy()
        rebuilt(killed.world, program.house, accept_loss=True)
        examine(Run(killed.world.crash(NOTHING), killed.account), program.house, thoroughly=False, tidy=False)
    return len(points)


KILLED_IN = [
    Program("small for small, apart", APART, put_small, (put_small_2,)),
    Program("small for small, together", TOGETHER, put_small, (put_small_2,)),
    Program("large for large", APART, put_large, (put_large_2,)),
    Program("link to a list", TOGETHER, link, (put_list,)),
]


@pytest.mark.parametrize("program", KILLED_IN, ids=str)
def test_what_a_rebuild_after_a_kill_brings_back_stays(program: Program) -> None:
    assert rebuild_after_every_kill(program) > 5


def test_a_log_that_is_not_flushed_as_it_is_opened_is_noticed() -> None:
    with pytest.raises(BadState):
        rebuild_after_every_kill(KILLED_IN[0], without("zstor_local.shards.recovery.flush_the_end:fsync"))


@pytest.mark.parametrize("house", [APART, TOGETHER], ids=["apart", "together"])
@pytest.mark.parametrize("overwrite", [SMALL, LARGE], ids=["small", "large"])
def test_what_a_failed_flush_left_is_not_taken_for_durable(house: House, overwrite: bytes) -> None:
    start = base(Program("a value", house, before=(put_small_2,))).copy()

    async def overwrite_in_vain(client: Client) -> None:
        for sync in ("fdatasync", "syncfs"):
            start.world.files.fail(sync, lambda path: True, errno.EIO, times=None)
        answer = await client.put("a", overwrite)
        assert isinstance(answer, ZstorError)

    live(start, house, overwrite_in_vain)
    for draw in range(DRAWS):
        killed = start.copy()
        for _ in range(draw):
            killed.world.files.list("/")  # what is drawn of a file whose cache is dropped goes by all calls before
        rebuilt(killed.world, house, accept_loss=True)
        killed.world = killed.world.crash(NOTHING)
        # Where no log kept the refused write's record, its large shares have none: `collect` tells of them (no_record) and keeps them.
        examine(killed, house, thoroughly=True, tidy=False, faulty=True)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_every_fault_in_a_rebuild_leaves_what_another_one_needs(code: int) -> None:
    program = PROGRAMS[0]
    failed, number = True, 0
    while failed:
        number += 1
        trial = base(program).copy()
        trial.world.files.fail_at(trial.world.files.points + number, code, and_after=True)
        try:
            rebuilt(trial.world, program.house)
            failed = False
        except (OSError, StoreFault, CommitUnknown):
            pass
        trial.world.files.heal()
        assert rebuilt(trial.world, program.house).loss == []
        examine(trial, program.house, thoroughly=False)
    assert number > 3
