"""The signals that stop the daemon: the first one gently, the second at once."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import trio


@contextmanager
def stop_signals() -> Iterator[AsyncIterator[int]]:
    """SIGTERM and SIGINT, heard from here on instead of ending the process."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        yield signals


async def heed(signals: AsyncIterator[int], *, gently: Callable[[], None], at_once: Callable[[], None]) -> None:
    """Stop gently on the first signal, at once on the second."""
    await anext(signals)
    gently()
    await anext(signals)
    at_once()
