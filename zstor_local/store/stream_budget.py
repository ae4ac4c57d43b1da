"""How many streams may run at once, by the memory that they take; who keeps others from running loses its place.

A stream goes as fast as whoever is at its other end, which may be for ever. So its room is for it while nobody else needs that; when
somebody does, the streams that have waited too long for their other end are ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import Busy
from zstor_local.model.policy import Policy
from zstor_local.runtime import Buffer
from zstor_local.store.caller import Caller, Nobody
from zstor_local.store.sinks import OrderedSink

STREAM_BUFFERS: Final = 3  # chunks of a stream in memory: one filling, two in the workers
STREAM_BUDGET_BYTES: Final = 64 * limits.MIB  # that all streams together may hold
BEGINNING_BYTES: Final = 512 * limits.KIB  # of a stream of which nobody knows yet whether it is small

NOBODY: Final = Nobody()


@dataclass(slots=True, eq=False)
class Turn:
    """A stream's place."""

    _budget: StreamBudget
    _policy: Policy
    _kept_bytes: int
    caller: Caller
    size: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    since: float | None = None  # when it began to wait for its other end to take or give a chunk
    lost: bool = False

    @property
    def stalls(self) -> bool:
        """Its other end has taken longer for a chunk than it may when others want its place."""
        patience = limits.CROWDED_SECONDS + self._policy.chunk_size / limits.CROWDED_BYTES_PER_SECOND
        return self.since is not None and trio.current_time() - self.since > patience

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for the other end to take or give a chunk, or the little that a stream begins with."""
        self.since = trio.current_time()
        try:
            yield
        finally:
            self.since = None

    def grow(self, *, beginning: bool = False) -> None:
        """Room for its chunks from now on, or for the little it begins with; or Busy."""
        self._budget.resize(self, self._kept_bytes + (BEGINNING_BYTES if beginning else STREAM_BUFFERS * self._policy.chunk_size))


class WatchedSink:
    """A stream's sink, whose waits are its turn's."""

    def __init__(self, sink: OrderedSink, turn: Turn) -> None:
        self._sink = sink
        self._turn = turn

    async def write(self, parts: Sequence[Buffer]) -> None:
        with self._turn.waiting():
            await self._sink.write(parts)


class StreamBudget:
    """One for a store. Files need none of it: the workers read them into buffers of their own."""

    def __init__(self) -> None:
        self._turns: dict[Turn, None] = {}

    @contextmanager
    def take(self, policy: Policy, caller: Caller = NOBODY, *, beginning: bool = False, kept_bytes: int = 0) -> Iterator[Turn]:
        """A place for one stream while the block runs, or Busy: at once, or when it lost it to others.

        At its `beginning` it takes little, and has to `grow`. `kept_bytes`: what else is in memory for it.
        """
        turn = Turn(self, policy, kept_bytes, caller)
        turn.grow(beginning=beginning)
        try:
            with turn.scope:
                yield turn
        finally:
            self._turns.pop(turn, None)
        if turn.scope.cancelled_caught:
            raise Busy(
                f"less than {limits.CROWDED_BYTES_PER_SECOND} bytes a second went through the stream, and others wanted its place",
                hint="begin again, and keep the other end moving",
            )

    def resize(self, turn: Turn, size: int) -> None:
        """Have a stream hold so many bytes. Who stalls makes room; Busy if that is not enough."""
        if turn.lost:
            return  # it is being ended
        missing = sum(other.size for other in self._turns if other is not turn) + size - STREAM_BUDGET_BYTES
        stalled = [other for other in self._turns if other.stalls] if missing > 0 else []
        if missing > sum(other.size for other in stalled):
            raise Busy(
                "too many streams are running",
                hint=f"try again when one of them has ended, or in {limits.CROWDED_SECONDS:.0f} s: those that stall lose their place",
                limit=STREAM_BUDGET_BYTES,
            )
        for other in stalled:
            if missing > 0:
                missing -= other.size
                self._end(other)
        turn.size = size
        self._turns[turn] = None

    def make_way(self) -> None:
        """Others wait for room for their replies: end the streams that stall and whose callers hold some."""
        for turn in [*self._turns]:
            if turn.stalls and turn.caller.has_reply_room:
                self._end(turn)

    def _end(self, turn: Turn) -> None:
        turn.lost = True
        turn.scope.cancel()
        del self._turns[turn]
