"""What a serving process asks of itself and of its system: lines in a log, memory, descriptors."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from zstor_local import limits

_PRIORITIES: Final = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.NOTSET: 7}  # syslog(3)
_PR_SET_DUMPABLE: Final = 4  # prctl(2)
_M_TRIM_THRESHOLD: Final = -1  # mallopt(3)
_M_MMAP_THRESHOLD: Final = -3
_LOOK_SECONDS: Final = 10.0  # between looks at how much memory is resident
_GROWTH_BYTES: Final = 32 * limits.MIB  # of resident memory, before it is worth some milliseconds to look for what is free in it
_BUSY_SECONDS: Final = 1.0  # of work between two looks: when there is less, little of what was in use is still
_SELDOM: Final = 1_000  # collections of younger garbage between two of old, each after some 7,000 more objects
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def log_to_stderr() -> None:
    """Lines on stderr, the level in words; where the journal reads them, as `<N>` in front (sd-daemon(3))."""
    handler = logging.StreamHandler(sys.stderr)
    journal = "JOURNAL_STREAM" in os.environ
    handler.setFormatter(_JournalFormatter() if journal else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        priority = next(priority for level, priority in _PRIORITIES.items() if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in f"{record.name}: {super().format(record)}".splitlines())


def keep_buffers() -> None:
    """Have glibc keep freed chunk buffers: mapping and zeroing them anew costs a tenth of a large read. See mallopt(3)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 16 * limits.MIB)
        mallopt(_M_TRIM_THRESHOLD, 64 * limits.MIB)


def collect_seldom() -> None:
    """Look for garbage among what is old once in millions of new objects, and when memory is given back.

    By itself Python looks whenever a quarter of it is new. With thousands of calls under way that took a fifth of all time, up to half
    a second at once, and found nothing.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _SELDOM)


async def give_back_memory(resident: Callable[[], int], worked: Callable[[], float], give_back: Callable[[], object]) -> None:
    """Have freed memory given back to the system whenever some more has become resident, and after a busy time; for ever.

    `worked` tells the seconds of work so far. Where `resident` raises OSError, for want of a descriptor say, it is asked another time.
    """
    least, before, busy = resident(), worked(), False
    while True:
        await trio.sleep(_LOOK_SECONDS)
        was_busy, busy, before = busy, worked() - before > _BUSY_SECONDS, worked()
        with suppress(OSError):
            if resident() > least + _GROWTH_BYTES or (was_busy and not busy):
                give_back()
                least = resident()
            least = min(least, resident())


def give_back() -> None:
    """Return to the system what lies free, however scattered: by itself glibc keeps what the busiest moment took. malloc_trim(3)."""
    gc.collect()  # calls that were cancelled refer to themselves through their tracebacks
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def resident_bytes() -> int:
    """What this process has in memory: proc_pid_statm(5)."""
    with open("/proc/self/statm", encoding="ascii") as numbers:
        return int(numbers.read().split()[1]) * _PAGE_BYTES


def cpu_seconds() -> float:
    """What this process has worked so far, in all threads."""
    return time.process_time()


def keep_secrets() -> None:
    """For whatever has keys or tokens in its memory: no core dumps, no tracing, and files that it makes are for this user alone."""
    os.umask(0o077)
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def allow_descriptors() -> None:
    """As many as this process may give itself: what systems give at first is meant for select(2), which is not used here."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def end_after(seconds: float) -> None:
    """End the process even then when it does not end by itself: nothing else ends a thread that waits for a disk that hangs."""

    def end() -> None:
        logging.getLogger("zstor.daemon").error("something does not end, as a disk does not answer perhaps: ending without it")
        logging.shutdown()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # the system lets us have no more threads: the kernel ends it, without a word
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
