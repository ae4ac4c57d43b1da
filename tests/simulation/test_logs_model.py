"""Any history of a log against a Python list: appends one by one and at once, again and in conflict, scrubs, restarts, exports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.content.logs.ground import Ground
from tests.simulation.house import House, policy
from tests.simulation.logs import grounded
from tests.simulation.world import run
from zstor_local.content.logs.exporting import Exporting
from zstor_local.content.logs.paging import grow
from zstor_local.errors import Conflict
from zstor_local.formats import unixfs
from zstor_local.formats.remotelog import ENCODINGS
from zstor_local.store.caller import Nobody
from zstor_local.store.sinks import MemorySink

HOUSE: Final = House(policy(2, 3), 3)


@dataclass(frozen=True)
class Append:
    """Entries at once, each a local hash and a content by their numbers."""

    entries: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Scrub:
    """A stretch of the log, as fractions of its length."""

    first: float
    length: int


@dataclass(frozen=True)
class Restart:
    """The daemon stops and starts, without its index."""


Step = Append | Scrub | Restart
PAIRS: Final = st.tuples(st.integers(0, 40), st.integers(0, 8))
STEPS: Final[st.SearchStrategy[list[Step]]] = st.lists(
    st.one_of(
        st.builds(Append, st.lists(PAIRS, min_size=1, max_size=6).map(tuple)),
        st.builds(Append, st.lists(PAIRS, min_size=1, max_size=6).map(tuple)),
        st.builds(Scrub, st.floats(0, 1), st.integers(1, 5)),
        st.builds(Restart),
    ),
    min_size=4,
    max_size=15,
)


@dataclass
class Model:
    """The log as a list of (local hash, content); None for content that was scrubbed."""

    entries: list[tuple[bytes, bytes | None]] = field(default_factory=list)

    def find(self, local_hash: bytes) -> int | None:
        return next((number for number, entry in enumerate(self.entries, 1) if entry[0] == local_hash), None)


@settings(max_examples=12)
@given(STEPS, st.integers(1, 5), st.integers(0, 5), st.sampled_from(ENCODINGS))
def test_any_history_of_a_log_is_what_a_list_says(steps: list[Step], page_size: int, embed_last: int, encoding: str) -> None:
    world, model, todo = HOUSE.world(), Model(), list(steps)

    async def life() -> None:
        async with grounded(world, HOUSE) as ground:
            if not list(ground.logs.list(None, 1)):
                await ground.create(page_size=page_size, embed_last=min(embed_last, page_size), encoding=encoding)
            await agree(ground, model)
            while todo and not isinstance(step := todo.pop(0), Restart):
                if isinstance(step, Append):
                    await append(ground, model, step)
                else:
                    await scrub(ground, model, step)
                await agree(ground, model)
            await Exporting(ground.logs, ground.cas).export("default", MemorySink(), Nobody())

    while todo:
        run(world, life)
    run(world, life)


async def append(ground: Ground, model: Model, step: Append) -> None:
    """All at once; the log decides the order, and the model is told."""
    numbers: dict[int, int] = {}  # of those that are there, by their place in the step

    async def one(place: int, local_hash: bytes, content: bytes) -> None:
        try:
            numbers[place] = (await ground.append(content, local_hash=local_hash)).seq
        except Conflict:
            numbers[place] = 0

    given_pairs = [(b"hash %d" % local_hash, b"content %d" % content) for local_hash, content in step.entries]
    async with trio.open_nursery() as nursery:
        for place, (local_hash, content) in enumerate(given_pairs):
            nursery.start_soon(one, place, local_hash, content)
    for place in sorted(numbers, key=numbers.__getitem__):
        local_hash, content = given_pairs[place]
        known = model.find(local_hash)
        if numbers[place] == len(model.entries) + 1 and known is None:
            model.entries.append((local_hash, content))
            known = numbers[place]
        if numbers[place]:
            assert (known, model.entries[numbers[place] - 1]) == (numbers[place], (local_hash, content))
    for place, (local_hash, content) in enumerate(given_pairs):
        if not numbers[place]:  # refused: another content, or none, stands under this hash
            known = model.find(local_hash)
            assert known is not None
            assert model.entries[known - 1][1] != content


async def scrub(ground: Ground, model: Model, step: Scrub) -> None:
    if not model.entries:
        return
    first = 1 + int(step.first * (len(model.entries) - 1))
    last = min(len(model.entries), first + step.length - 1)
    before = [content for _, content in model.entries]
    found = await ground.scrub(first, last)
    for seq in range(first, last + 1):
        model.entries[seq - 1] = (model.entries[seq - 1][0], None)
    after = {content for _, content in model.entries}
    scrubbed = {content for content in before[first - 1 : last] if content is not None}
    assert found.entries == sum(content is not None for content in before[first - 1 : last])
    assert set(found.gone) == {unixfs.content_id(content) for content in scrubbed - after}
    assert {kept.cid for kept in found.kept} == {unixfs.content_id(content) for content in scrubbed & after}


async def agree(ground: Ground, model: Model) -> None:
    assert await ground.contents() == [content for _, content in model.entries]
    assert [entry.local_hash for entry in await ground.entries()] == [local_hash for local_hash, _ in model.entries]
    await ground.whole()
    for number, (local_hash, _) in enumerate(model.entries, 1):
        assert await ground.reading.number_of("default", local_hash) == number
    have = [local_hash for local_hash, _ in model.entries[::2]]
    missing = await ground.reading.missing("default", have, 0, 1_000)
    expected = [number for number, (_, content) in enumerate(model.entries, 1) if number % 2 == 0 and content is not None]
    assert [entry.seq for entry in missing.need] == expected


def test_the_model_notices_a_lost_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.content.logs.appending.grow", lambda head, new, policy: grow(head, new[:1], policy))
    with pytest.raises((AssertionError, ExceptionGroup)):
        test_any_history_of_a_log_is_what_a_list_says.hypothesis.inner_test([Append(((1, 1), (2, 2), (3, 3)))], 3, 0, "protobuf")  # type: ignore[attr-defined]
