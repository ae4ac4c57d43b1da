"""A world with two file systems, for what is tested of its disks."""

from __future__ import annotations

import pytest

from tests.simulation.world import Mount, World


@pytest.fixture
def world() -> World:
    return World(mounts=[Mount("/d"), Mount("/e", kind="xfs")])
