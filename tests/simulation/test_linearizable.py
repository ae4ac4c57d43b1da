"""The judge of the histories: what it must accept, and what it must not."""

from __future__ import annotations

import random
from itertools import permutations

from tests.simulation.linearizable import ABSENT, Kind, Operation, Row, Rows, line, step


def operation(
    kind: Kind, begin: float, end: float, value: int = ABSENT, *, expected: int = ABSENT, done: bool | None = True
) -> Operation:
    return Operation(1, "a", kind, begin, value, expected, end, done)


def test_operations_one_after_another() -> None:
    assert line([operation("put", 1, 2, 7), operation("get", 3, 4, 7), operation("delete", 5, 6), operation("get", 7, 8)])


def test_a_stale_read_is_found() -> None:
    assert line([operation("put", 1, 2, 7), operation("put", 3, 4, 8), operation("get", 5, 6, 7)]) is None


def test_a_lost_write_is_found() -> None:
    assert line([operation("put", 1, 2, 7), operation("get", 3, 4)]) is None


def test_together_any_order_may_be() -> None:
    together = [operation("put", 1, 9, 7), operation("put", 1, 9, 8)]
    for seen in (7, 8):
        assert line([*together, operation("get", 10, 11, seen)])
    assert line([*together, operation("get", 10, 11, 7), operation("get", 12, 13, 8)]) is None


def test_a_read_during_a_write_sees_old_or_new_and_then_stays() -> None:
    write = operation("put", 1, 9, 7)
    assert line([write, operation("get", 2, 3), operation("get", 4, 5, 7)])
    assert line([write, operation("get", 2, 3, 7), operation("get", 4, 5)]) is None


def test_what_nobody_was_told_of_happened_or_not_but_not_later() -> None:
    doubtful = operation("put", 1, 5, 7, done=None)
    assert line([doubtful, operation("get", 6, 7, 7)])
    assert line([doubtful, operation("get", 6, 7)])
    assert line([doubtful, operation("get", 6, 7), operation("get", 8, 9, 7)]) is None


def test_conditions_are_held_to_their_word() -> None:
    put = operation("put", 1, 2, 7)
    assert line([put, operation("swap", 3, 4, 8, expected=7), operation("get", 5, 6, 8)])
    assert line([put, operation("swap", 3, 4, 8, expected=6)]) is None
    assert line([put, operation("swap", 3, 4, 8, expected=7, done=False)]) is None
    assert line([put, operation("create", 3, 4, 8)]) is None
    assert line([put, operation("delete", 3, 4, done=False)]) is None
    assert line([operation("delete if", 3, 4, expected=ABSENT)]) is None


def test_two_of_the_same_condition_cannot_both_hold() -> None:
    one, other = operation("swap", 3, 9, 8, expected=7), operation("swap", 3, 9, 9, expected=7)
    assert line([operation("put", 1, 2, 7), one, other]) is None


def test_a_rename_moves_all_that_a_key_has() -> None:
    first, second = operation("put", 1, 2, 7), Operation(2, "b", "link", 3, 8, end=4, done=True, other="a", references=("x",))
    renamed = Operation(3, "b", "rename", 5, end=6, done=True, other="c")

    def seen(key: str, row: Row | None) -> Operation:
        return Operation(4, key, "get", 7, ABSENT if row is None else row.value, end=8, done=True, seen=row)

    assert line([first, second, renamed, seen("c", Row(8, 0, ("x",), "a", None)), seen("a", Row(7, 0, (), None, "c")), seen("b", None)])
    assert line([first, second, renamed, seen("c", Row(8, 0, (), "a", None))]) is None
    assert line([first, second, renamed, seen("a", Row(7, 0, (), None, "b"))]) is None
    assert line([first, second, renamed, seen("b", Row(8, 0, ("x",), "a", None))]) is None


def test_it_agrees_with_trying_every_order() -> None:
    draw = random.Random(1)
    simple: list[Kind] = ["get", "put", "create", "swap", "delete", "delete if"]
    kinds: list[Kind] = [*simple, "keep", "link", "rename", "copy", "refer", "unrefer", "clear"]
    verdicts = set()
    for turn in range(3_000):
        operations = []
        for number in range(1, draw.randrange(2, 6)):
            begin = draw.randrange(8)
            kind = draw.choice(simple if turn % 2 else kinds)
            writes = kind in ("put", "create", "swap", "keep", "link")
            value = number if writes else draw.randrange(3) if kind == "get" else ABSENT
            done = True if kind in ("get", "put", "keep", "clear") else draw.random() < 0.7
            key, other = draw.sample("ab", 2) if turn % 2 == 0 else "ab"
            end = begin + draw.randrange(1, 6)
            operations.append(Operation(number, key, kind, begin, value, draw.randrange(3), end, done, other, references=("x",)))
        verdict = line(operations) is not None
        assert verdict == any(map(_makes_sense, permutations(operations)))
        verdicts.add((turn % 2, verdict))
    assert len(verdicts) == 4


def _makes_sense(order: tuple[Operation, ...]) -> bool:
    state: Rows = {}
    for at, one in enumerate(order):
        after = None if any(later.end < one.begin for later in order[at + 1 :]) else step(state, one)
        if after is None:
            return False
        state = after
    return True
