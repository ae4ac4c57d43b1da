"""Files on the disks of a simulated world, and all that may be left of them after a power loss."""

from __future__ import annotations

import os

from tests.simulation.files import SimulatedFiles
from tests.simulation.outcomes import outcomes
from tests.simulation.world import World

NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR


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
