"""Spaces as requests use them: found by their ids in the event loop, used in worker threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

from zstor_local.model.ids import ShardUid
from zstor_local.shardserver.space import Space
from zstor_local.shardserver.volume import Volume

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Spaces:
    """Those of one volume."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    async def find(self, uid: ShardUid) -> Space:
        """The space, opened if need be. Refusal `no_space_here`."""
        space = self.volume.spaces.get(uid)
        if space is None:
            async with self.lock(uid):
                space = await self.in_thread(self.volume.find, uid)
        return space

    def lock(self, uid: ShardUid) -> trio.Lock:
        """Held while a space is changed."""
        return self.volume.lock(uid)

    async def use(self, space: Space, work: Callable[[*Args], T], *args: *Args) -> T:
        """In a worker thread, while the space is there. Refusal `no_space_here`."""

        def done() -> T:
            with space.turns.using():
                return work(*args)

        return await self.in_thread(done)

    async def in_thread(self, work: Callable[[*Args], T], *args: *Args) -> T:
        return await self.volume.runtime.threads.run(work, *args)
