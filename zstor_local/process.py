"""What a serving process asks of itself and of its system: lines in a log, memory, descriptors."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import sys
from typing import Final

from zstor_local import limits

_PRIORITIES: Final = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.NOTSET: 7}  # syslog(3)
_PR_SET_DUMPABLE: Final = 4  # prctl(2)
_M_TRIM_THRESHOLD: Final = -1  # mallopt(3)
_M_MMAP_THRESHOLD: Final = -3


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


def keep_memory_private() -> None:
    """No core dumps and no tracing: keys are in memory."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def allow_descriptors() -> None:
    """As many as this process may give itself: what systems give at first is meant for select(2), which is not used here."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
