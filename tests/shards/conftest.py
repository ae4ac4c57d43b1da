"""The ground that shards are tested on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from tests.shards.ground import Ground
from tests.simulation.world import Mount, World
from tests.troubled_files import TroubledFiles, troubled_runtime
from zstor_local import limits


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Ground]:
    """Real directories. When everything is closed no descriptor may be left."""
    before = open_descriptors()
    files = TroubledFiles()
    ground = Ground(troubled_runtime(files), str(tmp_path), files)
    yield ground
    ground.close()
    assert open_descriptors() == before


@pytest.fixture
def simulated() -> Iterator[Ground]:
    """A disk of a simulated world, with the same promise."""
    world = World(1, [Mount("/disk")])
    ground = Ground(world.runtime, "/disk", world.files)
    yield ground
    ground.close()
    assert world.files.open_descriptors() == []


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    """Segments of 4 KiB, so that few entries fill many."""
    monkeypatch.setattr(limits, "SEGMENT_BYTES", 4_096)
    return 4_096
