"""Sequences that were never committed, as voids say: such may lie in a log before what they are about, or in another one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Voids:
    """Stretches that touch are one."""

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
