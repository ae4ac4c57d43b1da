"""Remote logs in a simulated world."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.content.logs.ground import Ground
from tests.simulation.house import House
from tests.simulation.sweep import opened
from tests.simulation.world import World
from zstor_local.content.cas import Cas
from zstor_local.content.logs.page_index import PageIndex
from zstor_local.content.names import Names


@asynccontextmanager
async def grounded(world: World, house: House) -> AsyncIterator[Ground]:
    """The logs of a store; each life begins without an index."""
    async with opened(world, house) as store:
        ground = Ground(store, Cas(store), Names(store.rows), PageIndex(":memory:"))
        try:
            yield ground
        finally:
            ground.index.close()
