"""A first start on disks that fail: it says so, the next one makes the store, and no power loss takes that one back."""

from __future__ import annotations

import errno
from itertools import count

import pytest

from tests.simulation.account import Account
from tests.simulation.house import House
from tests.simulation.outcomes import NOTHING
from tests.simulation.programs import APART, TOGETHER, put_small
from tests.simulation.sweep import Run, examine, first_error, live, nothing
from zstor_local.store.faults import StoreFault


@pytest.mark.parametrize("house", [APART, TOGETHER], ids=["apart", "together"])
def test_a_start_after_one_that_failed_makes_a_store_that_lasts(house: House) -> None:
    failed = 0
    seen: set[str] = set()
    for number in count(1):
        for code in (errno.EIO, errno.ENOSPC):
            start = Run(house.world(), Account())
            start.world.files.fail_at(number, code)
            try:
                live(start, house, nothing)
            except Exception as error:
                if not isinstance(first_error(error), StoreFault | OSError):
                    raise
                failed += 1
            if start.world.files.points < number:
                assert failed > 20
                return
            if "fsync_directory" in start.world.files.sites[number - 1].name:
                continue  # no later one makes up for it
            history = start.world.files.history()
            if history in seen:
                continue  # the other error led to just the same calls
            seen.add(history)
            start.world.files.heal()
            again = start.copy()
            live(again, house, put_small)
            examine(Run(again.world.crash(NOTHING), again.account), house, thoroughly=False, faulty=True)
