"""The signals that end a process: the daemon stops gently and then at once, a command cleans up first. On SIGHUP the daemon reads its
configuration again."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def heard() -> Iterator[AsyncIterator[int]]:
    """SIGTERM, SIGINT and SIGHUP, heard from here on instead of ending the process."""
    import trio  # here: commands that only want the other one start sooner without it

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


@contextmanager
def termination_raises() -> Iterator[None]:
    """While it lasts, SIGTERM and SIGHUP leave by an exception, so that temporary files and processes go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deadly = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]  # not under nohup
    for number in deadly:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in deadly:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
