"""Faults of the daemon that it lived on with: it logged them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tests.simulation.oracle import BadState


class _Faults(logging.Handler):
    """Takes note of exceptions that are logged: they are faults of the daemon that it lives on with."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(record.exc_info[1])


@contextmanager
def no_swallowed_faults() -> Iterator[None]:
    """BadState in the end if the daemon logged a fault of its own."""
    log, handler = logging.getLogger("zstor"), _Faults()
    level, propagates = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.ERROR)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
    if handler.found:
        raise BadState(f"a fault was swallowed: {handler.found[0]!r}") from handler.found[0]
