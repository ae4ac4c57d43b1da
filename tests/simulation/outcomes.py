"""What a power loss leaves of the changes that were not pinned yet.

An `Outcome` looks at the list of changes (in the order of `SimulatedFiles.unpinned`) and says what is left of each: nothing, the
change itself, or, for a write, pieces of it. `outcomes` lists those that a sweep should try (after ALICE, OSDI 2014).
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from tests.simulation.content import SECTOR, Grow, Mutation, Reserve, Truncate, Write

Place = tuple[int, str]  # an entry of a directory: the directory's inode and the name


@dataclass(frozen=True, slots=True)
class Entry:
    """A change of directories: the inode gets a new name, loses its old name, or both in one (a rename)."""

    device: int
    inode: int
    gained: Place | None = None
    lost: Place | None = None

    @property
    def places(self) -> list[Place]:
        """The names involved: a later change that shares one of them builds on this one."""
        return [place for place in (self.gained, self.lost) if place is not None]

    @property
    def directories(self) -> set[int]:
        """The directories changed, by inode."""
        return {directory for directory, _ in self.places}

    def without(self, places: Sequence[Place]) -> Entry | None:
        """The change but for what it does to those names; None if that is all of it."""
        gained, lost = (None if place in places else place for place in (self.gained, self.lost))
        return replace(self, gained=gained, lost=lost) if gained or lost else None


Change = Mutation | Entry
Left = tuple[Change, ...]


class Fate(enum.Enum):
    """What may become of one change. For anything but a write, whatever is not KEEP means DROP."""

    DROP = "drop"
    KEEP = "keep"
    ZEROS = "zeros"  # the new size without the data
    HALF = "half"  # the first half of the bytes
    PREFIX = "prefix"  # the first bytes, any number
    SECTORS = "sectors"  # some sectors and not others


class Outcome(Protocol):
    """A choice of what survives; equal outcomes on equal worlds leave equal disks."""

    def left(self, changes: Sequence[Change]) -> list[Left]:
        """What is left of each change, in the same order."""
        ...


@dataclass(frozen=True, slots=True)
class Every:
    """The same fate for all changes."""

    fate: Fate

    def left(self, changes: Sequence[Change]) -> list[Left]:
        return [_left(change, self.fate, random.Random(0)) for change in changes]


NOTHING: Final = Every(Fate.DROP)
ALL: Final = Every(Fate.KEEP)


@dataclass(frozen=True, slots=True)
class AllBut:
    """Everything survives but one change (and what builds on it)."""

    position: int

    def left(self, changes: Sequence[Change]) -> list[Left]:
        return [() if position == self.position else (change,) for position, change in enumerate(changes)]


@dataclass(frozen=True, slots=True)
class Only:
    """Nothing survives but one change (and what it builds on)."""

    position: int

    def left(self, changes: Sequence[Change]) -> list[Left]:
        chosen = changes[self.position]
        kept: list[Left] = [(chosen,) if position == self.position else () for position in range(len(changes))]
        if isinstance(chosen, Entry):
            needed = set(chosen.places)
            for position in range(self.position - 1, -1, -1):
                earlier = changes[position]
                if isinstance(earlier, Entry) and earlier.device == chosen.device and not needed.isdisjoint(earlier.places):
                    kept[position] = (earlier,)
                    needed.update(earlier.places)
        return kept


@dataclass(frozen=True, slots=True)
class Torn:
    """Everything survives, but of one write only the first half."""

    position: int

    def left(self, changes: Sequence[Change]) -> list[Left]:
        half = random.Random(0)
        return [_left(change, Fate.HALF if position == self.position else Fate.KEEP, half) for position, change in enumerate(changes)]


@dataclass(frozen=True, slots=True)
class Subset:
    """Each change has a fate of its own, drawn from the seed."""

    seed: int

    def left(self, changes: Sequence[Change]) -> list[Left]:
        draw = random.Random(self.seed)
        fates = list(Fate)
        return [
            _left(change, draw.choice(fates) if isinstance(change, Write) else draw.choice((Fate.DROP, Fate.KEEP)), draw)
            for change in changes
        ]


def outcomes(changes: Sequence[Change], *, subsets: int = 30, singles: int = 100, seed: int = 0) -> Iterator[Outcome]:
    """The outcomes worth trying: nothing, all, sizes without data, all but each, only each, each write torn, random subsets.

    Of more than `singles` changes, only so many (drawn from the seed) are taken out, left alone or torn.
    """
    yield NOTHING
    if not changes:
        return
    yield ALL
    yield Every(Fate.ZEROS)
    positions = range(len(changes))
    for position in positions if len(changes) <= singles else sorted(random.Random(seed).sample(positions, singles)):
        yield Only(position)
        yield AllBut(position)
        if isinstance(changes[position], Write):
            yield Torn(position)
    for number in range(subsets):
        yield Subset(seed * subsets + number)


def _left(change: Change, fate: Fate, draw: random.Random) -> Left:
    if fate is Fate.KEEP:
        return (change,)
    if fate is Fate.DROP or isinstance(change, Grow | Truncate | Reserve | Entry):
        return ()
    size = len(change.data)
    if fate is Fate.ZEROS:
        return (Grow(change.offset + size),)
    if fate is Fate.HALF:
        return (change.part(0, size // 2),)
    if fate is Fate.PREFIX:
        return (change.part(0, draw.randrange(size)),)
    return tuple(change.part(start, stop) for start, stop in _sectors(change) if draw.random() < 0.5)


def _sectors(write: Write) -> Iterator[tuple[int, int]]:
    """The write cut at the borders of the disk's sectors, as ranges of its own bytes."""
    start = 0
    while start < len(write.data):
        stop = min(start + SECTOR - (write.offset + start) % SECTOR, len(write.data))
        yield start, stop
        start = stop
