"""Whether what clients saw of a namespace can be put in a line: each operation at one moment between its call and its answer.

After Wing and Gong (1993), with the states that were tried remembered (Lowe 2017). The model holds what each key has: the number of the
write that gave it its value, its references, its user member, and its neighbours in its list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Literal, NamedTuple

ABSENT: Final = 0

Kind = Literal[
    "get", "put", "create", "swap", "keep", "link", "delete", "delete if", "rename", "copy", "refer", "unrefer", "clear"
]  # fmt: skip


class Row(NamedTuple):
    """What a key has. `value` and `user` are the numbers of the operations that wrote them (0: no user member)."""

    value: int
    user: int = 0
    references: tuple[str, ...] = ()
    previous: str | None = None
    following: str | None = None


Rows = Mapping[str, Row]


@dataclass(slots=True)
class Operation:
    """What a client asked and was told. Times are those of any clock that only goes on.

    `value` is what a write wrote or what a get saw, `seen` the whole row that it saw; `expected` what a conditional one (`swap`,
    `delete if`) wanted to find; `other` the new key of a rename or copy, or the key that a link follows. `done`: True it happened,
    False its condition was refused, None nobody was told, so that it may have happened up to `end` or never.
    """

    number: int
    key: str
    kind: Kind
    begin: float
    value: int = ABSENT
    expected: int = ABSENT
    end: float = inf
    done: bool | None = None
    other: str = ""
    user: int = 0
    references: tuple[str, ...] = ()
    seen: Row | None = None

    def __str__(self) -> str:
        what = {
            "get": f"→ {self.value} {'' if self.seen is None else tuple(self.seen[1:])}",
            "swap": f"{self.expected} → {self.value}",
            "delete if": f"{self.expected}",
            "rename": f"→ {self.other}",
            "copy": f"→ {self.other}",
            "link": f"{self.value} behind {self.other}",
        }
        told = {True: "", False: "refused", None: "nobody knows"}[self.done]
        rest = " ".join([*self.references, *([f"user {self.user}"] if self.user else [])])
        return f"#{self.number:<4} {self.begin:>6}–{self.end:<6} {self.key} {self.kind} {what.get(self.kind, self.value)} {rest} {told}"


def step(rows: Rows, operation: Operation) -> Rows | None:
    """What the namespace holds after the operation, if at this moment it could have been answered as it was; None if not."""
    row = rows.get(operation.key)
    if operation.kind == "get":
        fits = (ABSENT if row is None else row.value) == operation.value and operation.seen in (None, row)
        return rows if fits else None
    fits = _fits(rows, row, operation)
    if operation.done is False:
        refused = rows.get(operation.other) is None if operation.kind == "link" else not fits
        return rows if refused else None
    if not fits:
        return None if operation.done else rows
    return _EFFECTS[operation.kind](dict(rows), operation)


def _fits(rows: Rows, row: Row | None, operation: Operation) -> bool:
    """Whether its condition holds."""
    kind = operation.kind
    if kind in ("put", "keep", "clear"):
        return True
    if kind == "create":
        return row is None
    if kind == "link":
        before = rows.get(operation.other)
        free = before is not None and before.following in (None, operation.key)
        return free and (row is None or row.previous in (None, operation.other))
    if kind in ("swap", "delete if"):
        return row is not None and row.value == operation.expected
    return row is not None


def _put(rows: dict[str, Row], operation: Operation) -> Rows:
    old = rows.get(operation.key, Row(ABSENT))
    references = old.references if operation.kind == "keep" else operation.references
    rows[operation.key] = Row(operation.value, operation.user, references, old.previous, old.following)
    return rows


def _link(rows: dict[str, Row], operation: Operation) -> Rows:
    rows[operation.other] = rows[operation.other]._replace(following=operation.key)
    _put(rows, operation)
    rows[operation.key] = rows[operation.key]._replace(previous=operation.other)
    return rows


def _delete(rows: dict[str, Row], operation: Operation) -> Rows:
    _unlink(rows, operation.key)
    return rows


def _rename(rows: dict[str, Row], operation: Operation) -> Rows:
    key, other = operation.key, operation.other
    if other in rows:
        _unlink(rows, other)
    row = rows.pop(key)
    if row.previous in rows:
        rows[row.previous] = rows[row.previous]._replace(following=other)
    if row.following in rows:
        rows[row.following] = rows[row.following]._replace(previous=other)
    rows[other] = row
    return rows


def _copy(rows: dict[str, Row], operation: Operation) -> Rows:
    old = rows.get(operation.other, Row(ABSENT))
    rows[operation.other] = rows[operation.key]._replace(previous=old.previous, following=old.following)
    return rows


def _refer(rows: dict[str, Row], operation: Operation) -> Rows:
    row = rows[operation.key]
    rows[operation.key] = row._replace(references=tuple(dict.fromkeys((*row.references, *operation.references))))
    return rows


def _unrefer(rows: dict[str, Row], operation: Operation) -> Rows:
    row = rows[operation.key]
    rows[operation.key] = row._replace(references=tuple(each for each in row.references if each not in operation.references))
    return rows


def _clear(rows: dict[str, Row], operation: Operation) -> Rows:
    return {}


def _unlink(rows: dict[str, Row], key: str) -> None:
    """Take the key away; its neighbours become each other's."""
    row = rows.pop(key)
    if row.previous in rows:
        rows[row.previous] = rows[row.previous]._replace(following=row.following)
    if row.following in rows:
        rows[row.following] = rows[row.following]._replace(previous=row.previous)


_EFFECTS: Final[Mapping[Kind, Callable[[dict[str, Row], Operation], Rows]]] = {
    "put": _put,
    "create": _put,
    "swap": _put,
    "keep": _put,
    "link": _link,
    "delete": _delete,
    "delete if": _delete,
    "rename": _rename,
    "copy": _copy,
    "refer": _refer,
    "unrefer": _unrefer,
    "clear": _clear,
}


def line(operations: Sequence[Operation]) -> list[Operation] | None:
    """An order in which all of it makes sense, beginning with nothing; None if there is none. Operations nobody was told of are
    left out where they did not happen.
    """
    ordered = sorted(operations, key=lambda operation: operation.begin)
    everything = (1 << len(ordered)) - 1
    needed = sum(1 << at for at, operation in enumerate(ordered) if operation.done is not None)
    tried: set[tuple[int, tuple[tuple[str, Row], ...]]] = set()
    path: list[tuple[int, Rows, list[int]]] = []  # what is left, the state, the candidates not tried yet
    chosen: list[int] = []

    def candidates(left: int) -> list[int]:
        first_end = min((ordered[at].end for at in _bits(left & needed)), default=inf)
        return [at for at in _bits(left) if ordered[at].begin <= first_end]

    path.append((everything, {}, candidates(everything)))
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
        if (tried_now := (rest, tuple(sorted(after.items())))) not in tried:
            tried.add(tried_now)
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
