"""Crashes of appends and scrubs: whatever moment the world stops in, the log is whole, as before or as after, and no answer is taken
back."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import pytest
import trio

from tests.content.logs.ground import Ground, text, texts
from tests.simulation.house import House, policy
from tests.simulation.logs import grounded
from tests.simulation.outcomes import NOTHING, outcomes
from tests.simulation.world import World, run, run_until_power_loss
from zstor_local import limits
from zstor_local.content.logs.leftovers import KEPT
from zstor_local.content.logs.opened import OpenLog
from zstor_local.content.logs.paging import Closed
from zstor_local.errors import NotFound
from zstor_local.formats.remotelog import Page

HOUSE: Final = House(policy(2, 3), 3, kind="xfs")


@dataclass
class Seen:
    """What a client was answered."""

    appended: dict[int, bytes] = field(default_factory=dict)
    scrubbed: bool = False


@dataclass(frozen=True)
class Program:
    """Work on a log of seven entries in pages of two, that may end with any of `after` once it has begun."""

    name: str
    work: Callable[[Ground, Seen], Awaitable[None]]
    after: tuple[list[bytes | None], ...]
    orphans: int = 0  # contents that may be pinned for nothing: those of appends that did not come to their end

    def __str__(self) -> str:
        return self.name


BEFORE: Final[list[bytes | None]] = [*texts(7)]


async def prepared(ground: Ground) -> None:
    await ground.create(page_size=2, embed_last=1)
    await ground.append_all(texts(7))


async def append(ground: Ground, seen: Seen) -> None:
    for number in (8, 9):  # the first fills the page, the second closes it
        seen.appended[(await ground.append(text(number))).seq] = text(number)


async def append_together(ground: Ground, seen: Seen) -> None:
    async def one(number: int) -> None:
        seen.appended[(await ground.append(text(number))).seq] = text(number)

    async with trio.open_nursery() as nursery:
        for number in (8, 9, 10):
            nursery.start_soon(one, number)


async def scrub_old(ground: Ground, seen: Seen) -> None:
    await ground.scrub(3)
    seen.scrubbed = True


async def scrub_new(ground: Ground, seen: Seen) -> None:
    await ground.scrub(7)
    seen.scrubbed = True


async def scrub_beside_append(ground: Ground, seen: Seen) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrub_old, ground, seen)
        nursery.start_soon(append, ground, seen)


def without(*numbers: int) -> list[bytes | None]:
    return [None if number in numbers else text(number) for number in range(1, 8)]


PROGRAMS: Final = (
    Program("append", append, (BEFORE, [*texts(8)], [*texts(9)]), orphans=2),
    Program("scrub an old entry", scrub_old, (BEFORE, without(3))),
    Program("scrub the newest", scrub_new, (BEFORE, without(7))),
    Program("scrub beside appends", scrub_beside_append, (), orphans=2),
    Program("three appends at once", append_together, (), orphans=4),
)


@pytest.fixture(autouse=True, scope="module")
def short_logs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SEGMENT_BYTES", 1 << 15)
        yield


@pytest.fixture(scope="module")
def base(short_logs: None) -> World:
    world = HOUSE.world()

    async def life() -> None:
        async with grounded(world, HOUSE) as ground:
            await prepared(ground)

    run(world, life)
    return world


def live(world: World, program: Program, seen: Seen) -> tuple[bool, int]:
    """A life with the program's work: whether the power went, and the last crash point before the work."""
    begin = 0

    async def life() -> None:
        nonlocal begin
        async with grounded(world, HOUSE) as ground:
            await ground.entries()
            begin = world.files.points
            await program.work(ground, seen)

    return run_until_power_loss(world, life), begin


def examine(world: World, program: Program, seen: Seen) -> None:
    """After a restart the log is whole and one that may be; then it goes on."""

    async def life() -> None:
        async with grounded(world, HOUSE) as ground:
            contents = await ground.contents()
            assert not program.after or contents in program.after
            assert len(contents) >= 7
            for seq, content in seen.appended.items():
                assert contents[seq - 1] == content
            if seen.scrubbed:
                assert None in contents
            assert (await ground.verify()).problems == []
            pinned, needed = await ground.pinned(), await ground.needed()
            assert needed <= pinned
            assert len(pinned - needed) <= program.orphans
            assert (await ground.append(b"probe")).seq == len(contents) + 1
            assert (await ground.append(text(8))).new == (text(8) not in contents)
            assert (await ground.verify()).problems == []
            before = await ground.contents()
            await ground.leftovers.let_go()
            assert len(await ground.pinned() - await ground.needed()) <= program.orphans  # what is young may be under way
            world.clock.advance(KEPT)
            await ground.leftovers.let_go()
            await ground.whole()
            assert await ground.contents() == before

    run(world, life)


def left(world: World, number: int) -> World:
    """What a power loss, or at every fourth point a kill, leaves: in turns nothing that was not pinned, and an outcome drawn by lot."""
    if number % 4 == 0:
        return world.copy()
    others = list(outcomes(world.files.unpinned(), singles=3, subsets=3, seed=number))[1:]
    return world.crash(random.Random(number).choice(others) if others and number % 2 else NOTHING)


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_crash_leaves_a_whole_log(base: World, program: Program) -> None:
    rehearsal = base.copy()
    lost, begin = live(rehearsal, program, Seen())
    assert not lost
    points = rehearsal.files.points
    for number in range(begin + 1, points + 1):
        trial, seen = base.copy(), Seen()
        trial.files.crash_at(number)
        lost, _ = live(trial, program, seen)
        assert lost
        examine(left(trial, number), program, seen)
    assert points - begin > 15


def test_the_sweep_notices_a_scrub_without_its_mark(base: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_mark(log: OpenLog, *, unsettled: bool) -> None:
        """Forgets that a scrub is under way."""

    monkeypatch.setattr(OpenLog, "mark", no_mark)
    with pytest.raises(ExceptionGroup) as caught:
        test_every_crash_leaves_a_whole_log(base, PROGRAMS[1])
    assert caught.group_contains(AssertionError)


def test_the_sweep_notices_a_name_that_is_set_before_its_page_is_stored(base: World, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = OpenLog.publish

    async def too_early(log: OpenLog, closed: Sequence[Closed], head: Page) -> None:
        await log._set_head(head)
        await publish(log, closed, head)

    monkeypatch.setattr(OpenLog, "publish", too_early)
    with pytest.raises(ExceptionGroup) as caught:
        test_every_crash_leaves_a_whole_log(base, PROGRAMS[0])
    assert caught.group_contains(NotFound)  # the page that the head names
