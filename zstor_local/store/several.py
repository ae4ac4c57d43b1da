"""Work that is done for many things, several at once: their changes are committed in groups, and a group is one flush."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, TypeVar

import trio

from zstor_local.store.errorgroups import alone

SEVERAL: Final = 32  # looked at in one thread call and committed in one group, if they are small (batches.py); large ones take turns

T = TypeVar("T")


async def for_each(things: Sequence[T], work: Callable[[T], Awaitable[object]]) -> None:
    """Do it for each, begun in their order, SEVERAL at a time. An error ends the others and is raised bare."""
    await alone(_for_each(iter(things), min(SEVERAL, len(things)), work))


async def _for_each(things: Iterator[T], at_once: int, work: Callable[[T], Awaitable[object]]) -> None:
    async def worker() -> None:
        for thing in things:
            await work(thing)

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(worker)
