"""What a reader knows of records that its owner took back, and of those that they stood before."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zstor_local import limits
from zstor_local.model.record import Envelope

BEFORE_BYTES: Final = 8 * limits.MIB  # of records that newer ones stand before
_COST_BYTES: Final = 500  # of each, and of a key, beside the sealed bytes


class Voids:
    """Sequences that never came to be. A log that was compacted may tell of a void before what it is about, and another server may."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def __len__(self) -> int:
        """How many stretches they are."""
        return len(self._firsts)

    def add(self, first: int, last: int) -> None:
        begin, end = bisect_left(self._lasts, first - 1), bisect_right(self._firsts, last + 1)
        if begin < end:
            first, last = min(first, self._firsts[begin]), max(last, self._lasts[end - 1])
        self._firsts[begin:end], self._lasts[begin:end] = [first], [last]

    def cover(self, sequence: int) -> bool:
        place = bisect_right(self._firsts, sequence) - 1
        return place >= 0 and sequence <= self._lasts[place]


@dataclass(frozen=True, slots=True)
class Older:
    """Records of a key below the one that is shown, the newest first. `whole`: nothing else was heard of it."""

    records: Sequence[Envelope] = ()
    whole: bool = True

    @property
    def size(self) -> int:
        return _COST_BYTES + sum(_COST_BYTES + len(each.sealed) for each in self.records)


class Before:
    """The older records of the keys that changed last, as many as there is room for."""

    def __init__(self) -> None:
        self._of: dict[str, Older] = {}
        self._size = 0

    def get(self, key: str) -> Older | None:
        """None where nothing is known any more."""
        return self._of.get(key)

    def put(self, key: str, older: Older) -> None:
        if (before := self._of.pop(key, None)) is not None:
            self._size -= before.size
        if len(older.records) > limits.GROUP_CHANGES:
            older = Older(older.records[: limits.GROUP_CHANGES], whole=False)  # as many as can be taken back together
        self._of[key] = older
        self._size += older.size
        while self._size > BEFORE_BYTES:
            self._size -= self._of.pop(next(iter(self._of))).size
