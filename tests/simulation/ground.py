"""The world in which a history takes place: its disks, and what one of them may do to what lies on it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tests.simulation.clients import History
from tests.simulation.content import PAGE
from tests.simulation.house import House
from tests.simulation.indexes import indexes
from tests.simulation.points import under
from tests.simulation.world import World
from zstor_local.metastore.base import Owed
from zstor_local.shards.directory import LOG
from zstor_local.shards.marker import NAME
from zstor_local.shards.share_files import SHARES, TEMPORARY
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored

ONE_DISK: Final = "/disks"  # where that of a house with a single one is mounted
SPARES: Final = 3  # disks beside those of the first shards, for shards that are added or replaced


@dataclass(slots=True)
class Ground:
    """The world in which a history takes place, and its disks by mount point."""

    world: World
    house: House
    draw: random.Random
    history: History
    disks: Sequence[str]
    rotten: str | None  # the one disk on which bits flip, or of which an older copy is put back
    weak: str  # the one disk on which a sync of a directory may fail, which no later one makes up for
    flipped: bool = False  # a bit has flipped
    copy: Mapping[str, bytes] = field(default_factory=dict)  # the shard on the rotten disk as it once was, by path
    copied_log: Mapping[str, bytes] = field(default_factory=dict)  # the first part of another copy
    older: bool = False  # that copy was put back, and what it lacked was not made anew yet
    failed_sync: bool = False  # a sync of a directory has failed
    exchanged: tuple[str, str] | None = None  # disks that are mounted where the other one was
    unread: set[str] = field(default_factory=set)  # disks of which reads may fail in this life
    can_spare: int = 0  # how many shards might have been away with every object still readable, when the store was last at rest

    @property
    def apart(self) -> bool:
        """Whether each shard has a disk of its own, which may go and come."""
        return self.house.kind is not None and not self.house.kind.startswith("one:")

    @property
    def rotted(self) -> bool:
        """Whether something on the rotten disk is not what was written there."""
        return self.flipped or self.older

    @property
    def mounts(self) -> Sequence[str]:
        return self.disks if self.apart else [ONE_DISK]

    def put_back(self) -> None:
        """Every disk is there, where it belongs, and takes what is written to it."""
        files = self.world.files
        if self.exchanged is not None:
            files.exchange(*self.exchanged)
            self.exchanged = None
        for disk in self.mounts:
            files.put_back(disk)
            files.set_read_only(disk, False)
            files.set_capacity(disk, None)
        files.answer()

    def exchange(self) -> None:
        """Two disks are mounted where the other one was, as after a restart that named them anew."""
        if self.apart and self.exchanged is None:
            one, other = self.draw.sample(self.disks[: self.house.shards], 2)
            self.exchanged = one, other
            self.world.files.exchange(one, other)
            self.history.note(f"exchanged: {one} and {other}")

    def move(self, disk: str, place: str) -> None:
        """A disk is mounted elsewhere from now on, where an unused one was."""
        self.world.files.exchange(disk, place)
        other = {disk: place, place: disk}
        self.rotten, self.weak = other.get(self.rotten or "", self.rotten), other.get(self.weak, self.weak)
        self.forget_copies()
        self.history.note(f"moved: {disk} to {place}")

    def forget_copies(self) -> None:
        """None is put back: its shard lies elsewhere, or the metastore was made anew, without what no log had any more."""
        self.copy, self.copied_log = {}, {}

    def copy_shard(self) -> None:
        """A copy of the shard on the rotten disk is made while the daemon writes: of its log, and some time later of its shares."""
        tree = {} if self.rotten is None else self._shard(self.rotten)
        shares = {path: data for path, data in tree.items() if f"/{SHARES}/" in path}
        log = {path: data for path, data in tree.items() if path not in shares}
        if not self.copied_log or not log or self._marker(log) != self._marker(self.copied_log):
            self.copied_log = log
        else:
            self.copy, self.copied_log = {**self.copied_log, **shares}, {}
            self.history.note(f"copied: {self.rotten}")

    def put_older_back(self) -> None:
        """The copy takes the shard's place, if that shard is still there."""
        if self.rotten is not None and self.copy and self._marker(self._shard(self.rotten)) == self._marker(self.copy):
            self.world.files.put_back_tree(self.rotten, self.copy)
            self.older = True
            self.history.note(f"an older copy was put back: {self.rotten}")
            self.history.counts["an older copy of a shard put back"] += 1

    def _marker(self, tree: Mapping[str, bytes]) -> bytes | None:
        return tree.get(f"{self.rotten}/{NAME}")

    def _shard(self, root: str) -> Mapping[str, bytes]:
        """What a copy of it has; nothing if there is none."""
        with suppress(OSError):
            tree = self.world.files.tree(root)
            if f"{root}/{NAME}" in tree:
                return {path: data for path, data in tree.items() if not under(f"{root}/{TEMPORARY}")(path)}
        return {}

    def lose_index(self) -> None:
        """Files of the index of the logs are lost: it is older then, or begun anew."""
        self.history.note("the index of the logs is lost")
        self.history.counts["the index of the logs is lost"] += 1
        indexes(self.world).put_back(self.draw.randrange(1 << 20))

    def hide_pages(self, part: float) -> None:
        """That part of the pages of one log cannot be read until all is healed."""
        files = self.world.files
        logs = {disk: log for disk in self.disks if (log := self._log(disk))}
        if not logs:
            return
        disk, segments = self.draw.choice([*logs.items()])
        self.unread.add(disk)
        self.history.note(f"pages of the log cannot be read for a while: {disk}")
        for path, data in segments.items():
            for offset in range(0, len(data), PAGE):
                if self.draw.random() < part:
                    files.spoil(path, offset, lasting=False)

    def _log(self, disk: str) -> Mapping[str, bytes]:
        with suppress(OSError):
            return self.world.files.tree(f"{disk}/{LOG}")
        return {}

    def heal(self, *, all_disks: bool) -> None:
        """Nothing fails any more. With `all_disks` every disk is there too, and what could not be read can be."""
        self.world.files.heal()
        if all_disks or self.draw.random() < 0.5:
            self.world.files.read_again()
            self.unread.clear()
        if all_disks:
            self.put_back()

    def excuse(self, store: Store, stored: Stored) -> bool:
        """Whether a version may be unreadable: a share more than it can spare is bad, or it was replaced meanwhile, and compaction
        passes over what a slow reader of it still wants.
        """
        if not store.metastore.named(stored.version):
            return True
        owed = {debt.shard for debt in store.metastore.debts_of(stored.version) if debt.kind is Owed.SHARE}
        bad = [number for number in stored.record.placement if number in owed or not self._reads(store, number)]
        return len(bad) > stored.record.policy.m - stored.record.policy.k

    def _reads(self, store: Store, number: int) -> bool:
        entry = store.pool.entry(number)
        if entry is None or store.pool.state(number) != "ok":
            return False
        place = store.places.place(entry)
        return not any(under(disk)(place) for disk in [*self.unread, *([self.rotten] if self.rotted and self.rotten else [])])

    def crash_soon(self) -> None:
        files = self.world.files
        files.crash_at(files.points + self.draw.choice([1, 5, 20, 60]) + self.draw.randrange(20), torn=self.draw.random() < 0.5)
