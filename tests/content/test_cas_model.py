"""Any history of uploads, pins, collections, passing days and restarts: every content is there, or gone, as a model says."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.content.ground import DAY, Chunks, ContentHome
from zstor_local import limits
from zstor_local.content.cas import Cas, Owner
from zstor_local.errors import NotFound
from zstor_local.formats import unixfs
from zstor_local.store.sources import BytesSource

WEEK = limits.UNPINNED_KEPT_SECONDS
CONTENTS = (b"", b"a", b"b" * 300_000)  # the last one in files
OWNERS = ("alice", "bob")
CONTENT = st.integers(0, len(CONTENTS) - 1)


@dataclass(frozen=True)
class Upload:
    content: int
    owner: str | None
    stream: bool


@dataclass(frozen=True)
class Pin:
    content: int
    owner: str


@dataclass(frozen=True)
class Unpin:
    content: int
    owner: str
    forget: bool


@dataclass(frozen=True)
class Collect:
    dry_run: bool


@dataclass(frozen=True)
class Wait:
    days: int


@dataclass(frozen=True)
class Restart:
    """The daemon stops and starts."""


Step = Upload | Pin | Unpin | Collect | Wait | Restart
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.builds(Upload, CONTENT, st.sampled_from((*OWNERS, None)), st.booleans()),
        st.builds(Pin, CONTENT, st.sampled_from(OWNERS)),
        st.builds(Unpin, CONTENT, st.sampled_from(OWNERS), st.booleans()),
        st.builds(Collect, st.booleans()),
        st.builds(Wait, st.sampled_from((1, 6, 7))),
        st.builds(Restart),
    ),
    min_size=4,
    max_size=25,
)


@dataclass
class Kept:
    """A content in the model. Epochs in seconds."""

    owners: set[str] = field(default_factory=set)
    promised: int = 0
    left: int = 0

    def kept(self, now: int) -> bool:
        return bool(self.owners) or max(self.promised, self.left) > now


@dataclass
class Model:
    """What is stored, by the content's number."""

    stored: dict[int, Kept] = field(default_factory=dict)

    def upload(self, step: Upload, now: int) -> bool:
        new = step.content not in self.stored
        content = self.stored.setdefault(step.content, Kept())
        if step.owner is None:
            content.promised = max(content.promised, now + WEEK)
        else:
            content.owners.add(step.owner)
        return new

    def unpin(self, step: Unpin, now: int) -> bool:
        """Whether it is deleted."""
        content = self.stored[step.content]
        if step.owner in content.owners:
            content.owners.remove(step.owner)
            if not content.owners:
                content.left = now + WEEK
        gone = step.forget and not content.owners and content.promised <= now
        if gone:
            del self.stored[step.content]
        return gone

    def collect(self, now: int, *, dry_run: bool) -> int:
        gone = [number for number, content in self.stored.items() if not content.kept(now)]
        if not dry_run:
            for number in gone:
                del self.stored[number]
        return len(gone)


@settings(max_examples=25)
@given(STEPS)
def test_any_history_of_contents_is_what_the_model_says(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(live, ContentHome(Path(directory)), steps)


async def live(home: ContentHome, steps: list[Step]) -> None:
    model, todo = Model(), list(steps)
    while todo:
        async with home.cas() as (_, cas):
            await agree(cas, model)
            while todo and not isinstance(step := todo.pop(0), Restart):
                await do(home, cas, model, step)
                await agree(cas, model)
    async with home.cas() as (store, cas):
        await agree(cas, model)
        assert store.committer.state.objects == len(model.stored)


async def do(home: ContentHome, cas: Cas, model: Model, step: Upload | Pin | Unpin | Collect | Wait) -> None:
    now = home.clock.seconds
    if isinstance(step, Wait):
        home.clock.skip(step.days * DAY)
    elif isinstance(step, Collect):
        found = await cas.keeping.collect(dry_run=step.dry_run)
        assert (found.looked_at, found.contents) == (len(model.stored), model.collect(now, dry_run=step.dry_run))
    elif isinstance(step, Upload):
        data = CONTENTS[step.content]
        uploaded = await cas.upload(
            Chunks(data) if step.stream else BytesSource(data), None if step.owner is None else Owner(step.owner)
        )
        assert uploaded.new == model.upload(step, now)
    elif step.content not in model.stored:
        with pytest.raises(NotFound):
            await change(cas, step)
    elif isinstance(step, Pin):
        await change(cas, step)
        model.stored[step.content].owners.add(step.owner)
    else:
        assert await change(cas, step) == model.unpin(step, now)


async def change(cas: Cas, step: Pin | Unpin) -> bool:
    """Whether the content is deleted."""
    cid = unixfs.content_id(CONTENTS[step.content])
    if isinstance(step, Pin):
        await cas.keeping.pin(cid, Owner(step.owner))
        return False
    return await cas.keeping.unpin(cid, step.owner, forget=step.forget) is None


async def agree(cas: Cas, model: Model) -> None:
    expected = {str(unixfs.content_id(CONTENTS[number])): kept.owners for number, kept in model.stored.items()}
    assert {str(each.id): {pin.owner for pin in each.pins} async for each in cas.contents.list(None, None, 100)} == expected
    for owner in OWNERS:
        found = {str(each.id) async for each in cas.contents.list(owner, None, 100)}
        assert found == {cid for cid, owners in expected.items() if owner in owners}
    for number in model.stored:
        content = cas.contents.find(unixfs.content_id(CONTENTS[number]))
        assert await cas.read(content) == CONTENTS[number]
