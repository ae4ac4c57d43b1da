"""Crash recovery: whatever moment the world stops in, a restart finds old or new, and never old once the reply was sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.programs import PROGRAMS
from tests.simulation.sweep import Program, sweep
from zstor_local import limits


@pytest.fixture(autouse=True, scope="module")
def short_segments() -> Iterator[None]:
    """Logs whose segments are soon full, so that new ones are begun on the way; and soon scanned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SEGMENT_BYTES", 1 << 14)
        yield


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_crash_leaves_old_or_new(program: Program) -> None:
    assert sweep(program) > 100
