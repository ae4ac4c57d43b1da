"""A rebuild that is broken off: whatever moment the world stops in, another one brings back the same, and the store goes on."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from tests.simulation.account import Client
from tests.simulation.engines import SimulatedEngines
from tests.simulation.house import House
from tests.simulation.oracle import BadState
from tests.simulation.outcomes import NOTHING, outcomes
from tests.simulation.points import PowerLoss
from tests.simulation.programs import APART, FOUR, LARGE, SMALL, TOGETHER, put_list, rotate, unlink, value
from tests.simulation.sweep import Program, Run, base, examine
from tests.simulation.world import World
from zstor_local import limits
from zstor_local.metastore.base import CommitUnknown
from zstor_local.store.faults import StoreFault
from zstor_local.store.rebuild import Report, rebuild

BATCHES = 3


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


def rebuilt(world: World, house: House) -> Report:
    return rebuild(world.runtime, SimulatedEngines(world), house.config(), accept_loss=False, progress=lambda what, count: None)


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
