"""Any history of updates, deletes and restarts: every name is what a model says."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.home import Home
from zstor_local.content.names import Names
from zstor_local.errors import Conflict, NotFound

NAMES = ("a", "a/b", "ü")


@dataclass(frozen=True)
class Update:
    name: str
    value: bytes
    behind: int | None  # how stale the number is that it expects; None: it expects nothing


@dataclass(frozen=True)
class Delete:
    name: str
    behind: int | None


@dataclass(frozen=True)
class Restart:
    """The daemon stops and starts."""


Step = Update | Delete | Restart
BEHIND = st.one_of(st.none(), st.integers(0, 2))
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.builds(Update, st.sampled_from(NAMES), st.binary(max_size=3), BEHIND),
        st.builds(Delete, st.sampled_from(NAMES), BEHIND),
        st.builds(Restart),
    ),
    min_size=3,
    max_size=25,
)


@dataclass
class Model:
    """A dictionary, and a number for each name that ever was."""

    values: dict[str, bytes] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def expected(self, step: Update | Delete) -> int | None:
        """The number that the step gives as if_seq."""
        return None if step.behind is None else max(0, self.numbers.get(step.name, 0) - step.behind)

    def apply(self, step: Update | Delete) -> type[Exception] | None:
        """Do it; the error instead, if it must fail."""
        number, wanted = self.numbers.get(step.name, 0), self.expected(step)
        there = step.name in self.values
        if isinstance(step, Delete) and not there:
            return NotFound
        if wanted not in (None, number) and (wanted != 0 or there):
            return Conflict
        self.numbers[step.name] = number + 1
        if isinstance(step, Update):
            self.values[step.name] = step.value
        else:
            del self.values[step.name]
        return None


@settings(max_examples=20)
@given(STEPS)
def test_any_history_of_names_is_what_the_model_says(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(live, Home(Path(directory)), steps)


async def live(home: Home, steps: list[Step]) -> None:
    model, todo = Model(), list(steps)
    while todo:
        async with home.open() as store:
            names = Names(store.rows)
            await agree(names, model)
            while todo and not isinstance(step := todo.pop(0), Restart):
                await do(names, model, step)
                await agree(names, model)


async def do(names: Names, model: Model, step: Update | Delete) -> None:
    if_seq, before = model.expected(step), model.numbers.get(step.name, 0)
    error = model.apply(step)
    if error is None:
        assert await change(names, step, if_seq) == model.numbers[step.name]
        return
    with pytest.raises(error) as caught:
        await change(names, step, if_seq)
    if isinstance(caught.value, Conflict):
        assert caught.value.data["current"] == before


async def change(names: Names, step: Update | Delete, if_seq: int | None) -> int:
    if isinstance(step, Update):
        return (await names.update(step.name, step.value, if_seq=if_seq)).seq
    return await names.delete(step.name, if_seq=if_seq)


async def agree(names: Names, model: Model) -> None:
    assert {each.name: each.value async for each in names.list("", None, 100)} == model.values
    for name in NAMES:
        found = names.find(name)
        assert (0 if found is None else found.seq) == model.numbers.get(name, 0)
        assert (found is not None and not found.deleted) == (name in model.values)
