"""SIGTERM and SIGINT stop the daemon, gently and then at once; SIGHUP has it read its configuration again."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import trio


@contextmanager
def heard() -> Iterator[AsyncIterator[int]]:
    """The signals, heard from here on instead of ending the process."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        yield signals


async def heed(
    signals: AsyncIterator[int], *, gently: Callable[[], None], at_once: Callable[[], None], reload: Callable[[], None] | None = None
) -> None:
    """Stop gently on the first of the deadly signals, at once on the second; reload on SIGHUP, where that is heard, until then."""
    stopping = False
    async for number in signals:
        if number == signal.SIGHUP:
            if reload is not None and not stopping:
                reload()
        elif not stopping:
            stopping = True
            gently()
        else:
            at_once()
            return
