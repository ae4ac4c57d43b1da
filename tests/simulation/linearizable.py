"""Whether what clients saw of one key can be put in a line: each operation at one moment between its call and its answer.

After Wing and Gong (1993), with the states that were tried remembered (Lowe 2017). The model is a register that holds the number of the
write that gave it its value, 0 if the key is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

ABSENT = 0

Kind = Literal["get", "put", "create", "swap", "delete", "delete if"]


@dataclass(slots=True)
class Operation:
    """What a client asked and was told. Times are those of any clock that only goes on.

    `value` is what a write wrote or what a get saw; `expected` what a conditional one (`swap`, `delete if`) wanted to find. `done`:
    True it happened, False its condition was refused, None nobody was told, so that it may have happened up to `end` or never.
    """

    number: int
    key: str
    kind: Kind
    begin: float
    value: int = ABSENT
    expected: int = ABSENT
    end: float = inf
    done: bool | None = None

    def __str__(self) -> str:
        what = {"get": f"→ {self.value}", "swap": f"{self.expected} → {self.value}", "delete if": f"{self.expected}"}
        told = {True: "", False: "refused", None: "nobody knows"}[self.done]
        return f"#{self.number:<4} {self.begin:>6}–{self.end:<6} {self.key} {self.kind} {what.get(self.kind, self.value)} {told}"


def step(state: int, operation: Operation) -> int | None:
    """What the key holds after the operation, if at this moment it could have been answered as it was; None if not."""
    value, kind = operation.value, operation.kind
    if kind == "get":
        return state if state == value else None
    if kind == "put":
        return value
    fits = {"create": state == ABSENT, "delete": state != ABSENT}.get(kind, state == operation.expected and state != ABSENT)
    if operation.done is False:
        return None if fits else state
    if not fits:
        return None if operation.done else state
    return value if kind in ("create", "swap") else ABSENT


def line(operations: Sequence[Operation], start: int = ABSENT) -> list[Operation] | None:
    """An order in which all of it makes sense; None if there is none. Operations nobody was told of are left out where they did not
    happen.
    """
    ordered = sorted(operations, key=lambda operation: operation.begin)
    everything = (1 << len(ordered)) - 1
    needed = sum(1 << at for at, operation in enumerate(ordered) if operation.done is not None)
    tried: set[tuple[int, int]] = set()
    path: list[tuple[int, int, list[int]]] = []  # what is left, the state, the candidates not tried yet
    chosen: list[int] = []

    def candidates(left: int) -> list[int]:
        first_end = min((ordered[at].end for at in _bits(left & needed)), default=inf)
        return [at for at in _bits(left) if ordered[at].begin <= first_end]

    path.append((everything, start, candidates(everything)))
    while path:
        left, state, options = path[-1]
        if not left & needed:
            return [ordered[at] for at in chosen]
        if not options:
            path.pop()
            if chosen:
                chosen.pop()
            continue
        at = options.pop(0)
        after = step(state, ordered[at])
        if after is None:
            continue
        rest = left & ~(1 << at)
        for other in _bits(rest & ~needed):  # nobody was told of it, and its time is over: it never happened
            if ordered[other].end < ordered[at].begin:
                rest &= ~(1 << other)
        if (rest, after) not in tried:
            tried.add((rest, after))
            chosen.append(at)
            path.append((rest, after, candidates(rest)))
    return None


def _bits(number: int) -> list[int]:
    found = []
    while number:
        low = number & -number
        found.append(low.bit_length() - 1)
        number ^= low
    return found
