"""A request to a shard server, how long its answer may take, and the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from zstor_local import limits

LEAST_SENT: Final = limits.MIB  # bytes a second of a body that a server must come by at least
LEAST_SETTLED: Final = 8 * limits.MIB  # and that its disk must take: a share of gigabytes is flushed at its end


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `most` is how many bytes the answer may have; `safe` whether sending it twice does no more than once.

    `durable`: the server flushes before it answers; `settles`: so many bytes that came before.
    """

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] | None = None
    expect: tuple[int, ...] = (204,)
    most: int = 0
    durable: bool = False
    settles: int = 0
    safe: bool = True


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with an expected status, its body whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds after which a server is given up: a connection, a request to its last byte, one that is flushed first, a probe."""

    connect: float = 3.0
    request: float = 10.0
    durable: float = 10.0
    probe: float = 2.0

    def of(self, ask: Ask) -> float:
        """Those of a request: what is long takes longer."""
        seconds = self.durable if ask.durable else self.request
        return seconds + len(ask.body) / LEAST_SENT + ask.settles / LEAST_SETTLED
