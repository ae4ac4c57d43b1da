"""The shards of a store together: who is there, where shares go, and how a group reaches every log."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Final

from zstor_local.model.ids import Version
from zstor_local.model.storewide import ShardEntry
from zstor_local.shards.base import Capacity, Entry, Flushable, ReadableShard, Shard, ShardError, ShardState
from zstor_local.shards.placement import Candidate, spread

# File systems whose syncfs(2) returns only when everything is on the disk, and reports errors (Linux 5.8).
SYNCFS_KINDS: Final = frozenset({"ext4", "xfs", "btrfs"})


@dataclass(frozen=True, slots=True)
class Absent:
    """A shard of the store that could not be opened, and why."""

    entry: ShardEntry
    state: ShardState
    reason: str

    def recent_state(self) -> ShardState:
        return self.state


class ShardPool:
    """All shards of a store by number; which of them are usable may change from call to call. Any thread may ask."""

    def __init__(self, shards: Iterable[Shard], absent: Iterable[Absent]) -> None:
        # Never changed in place: whoever looks sees all of one state.
        self._slots: Mapping[int, Shard | Absent] = {
            **{shard.number: shard for shard in shards},
            **{slot.entry.number: slot for slot in absent},
        }
        self.joined: dict[int, ReadableShard] = {}  # of other users' stores, only to read from; no placement of ours names them
        self._draining = frozenset(slot.entry.number for slot in self._slots.values() if slot.entry.draining)
        self._capacities: dict[int, Capacity] = {}
        self._large_writes = 0

    @property
    def numbers(self) -> list[int]:
        """The numbers of all shards, absent ones included."""
        return sorted(self._slots)

    @property
    def majority(self) -> int:
        """How many are more than half of all shards."""
        return len(self._slots) // 2 + 1

    def get(self, number: int) -> Shard | None:
        """An opened shard, whatever its state now; None if it is absent."""
        slot = self._slots.get(number)
        return None if isinstance(slot, Absent) else slot

    def readable(self, number: int) -> ReadableShard | None:
        """The same, for reading alone: another user's too."""
        slot = self._slots.get(number)
        return self.joined.get(number) if slot is None else None if isinstance(slot, Absent) else slot

    def entry(self, number: int) -> ShardEntry | None:
        """The shard as it is listed; None if there is none of that number."""
        slot = self._slots.get(number)
        return None if slot is None else slot.entry

    def knows(self, number: int) -> bool:
        """Whether there is a shard of that number, here or away."""
        return number in self._slots or number in self.joined

    def opened(self) -> list[Shard]:
        return [slot for _, slot in sorted(self._slots.items()) if not isinstance(slot, Absent)]

    def absent(self) -> list[Absent]:
        return [slot for _, slot in sorted(self._slots.items()) if isinstance(slot, Absent)]

    def put(self, shard: Shard | Absent) -> None:
        """A shard is there or away from now on; what was opened under its number is closed. For the thread that appends."""
        number = shard.entry.number if isinstance(shard, Absent) else shard.number
        before = self.get(number)
        self._slots = {**self._slots, number: shard}
        if before is not None and before is not shard:
            before.close()

    def usable(self) -> list[int]:
        """The numbers of the shards that can be written now."""
        return [shard.number for shard in self.opened() if shard.check() == "ok"]

    def name(self, number: int) -> str:
        """The shard's id for people."""
        slot = self._slots.get(number)
        if slot is None:
            return self.joined[number].id if number in self.joined else str(number)
        return slot.entry.id

    def group(self, number: int) -> str:
        """The name of those that fail together with it."""
        slot = self._slots.get(number)
        return "" if slot is None else slot.entry.group if isinstance(slot, Absent) else slot.group

    def states(self) -> dict[str, ShardState]:
        """Every shard's id and state."""
        return {self.name(number): self.state(number) for number in self.numbers}

    def state(self, number: int) -> ShardState:
        slot = self._slots.get(number)
        if slot is None:
            return "missing"
        return slot.state if isinstance(slot, Absent) else slot.check()

    def recent_states(self) -> dict[int, ShardState]:
        """Every shard's state by number; of good ones what the last look said."""
        slots = sorted(self._slots.items())
        return {number: slot.recent_state() for number, slot in slots}

    def reason(self, number: int) -> str:
        """Why a shard is not usable, for people."""
        slot = self._slots.get(number)
        if slot is None:
            return "no shard of this store has that number"
        return slot.reason if isinstance(slot, Absent) else slot.last_error() or slot.check()

    def place_well(self, version: Version, m: int) -> tuple[int, ...] | None:
        """What `place` answers for just m shards that are all good, none of them being drained; None where there is more to it."""
        if self._draining or len(self._slots) != m or not all(slot.recent_state() == "ok" for slot in self._slots.values()):
            return None
        numbers = tuple(sorted(self._slots))
        turn = version[-1] % m
        return numbers[turn:] + numbers[:turn]

    def place(self, version: Version, m: int, states: Mapping[int, ShardState] | None = None) -> tuple[int, ...]:
        """m different numbers for the shares of a version: of usable shards, spread over groups; those that are being drained or away
        last. Where there are fewer than m shards numbers that none of them has stand for the others: those shares are missing.

        `states` are those of the shards to choose from, by a caller that has just looked.
        """
        numbers = self.numbers if states is None else sorted(states)
        usable = self.usable() if states is None else [number for number in numbers if states[number] == "ok"]
        wanted = [number for number in usable if number not in self._draining] if self._draining else usable
        if len(wanted) > m and len(placed := spread(version, self._candidates(wanted), m)) == m:  # else some went away just now
            return placed
        turn = version[-1] % max(1, len(wanted))
        drained = [number for number in usable if number in self._draining]
        away = sorted((number for number in numbers if number not in usable), key=lambda number: number in self._draining)
        ordered = [*wanted[turn:], *wanted[:turn], *drained, *away][:m]
        nobodys = (number for number in count() if not self.knows(number))
        return (*ordered, *islice(nobodys, m - len(ordered)))

    def spares(self, version: Version, placement: Sequence[int], leaving: Sequence[int], usable: Collection[int]) -> list[int]:
        """Those of the usable shards that hold no share of a version, the best place first. Those of `leaving` will not stay."""
        free = [number for number in sorted(usable) if number not in placement and number not in self._draining]
        staying = [shard.group for number in placement if number not in leaving and (shard := self.get(number)) is not None]
        return list(spread(version, self._candidates(free), len(free), staying)) if free else []

    def _candidates(self, numbers: Sequence[int]) -> list[Candidate]:
        shards = [shard for number in numbers if (shard := self.get(number)) is not None]
        return [
            Candidate(shard.number, shard.group, 1 if (seen := self.capacity(shard.number)) is None else seen.free) for shard in shards
        ]

    def note_capacity(self, number: int, capacity: Capacity) -> None:
        """What a shard had when it was last looked at: fuller ones get fewer shares."""
        self._capacities[number] = capacity

    def capacity(self, number: int) -> Capacity | None:
        """What a shard had when it was last looked at; None if it never was."""
        return self._capacities.get(number)

    @property
    def draining(self) -> frozenset[int]:
        """The shards that get no new shares, as theirs are being moved elsewhere."""
        return self._draining

    def drain(self, numbers: Iterable[int]) -> None:
        """These and no others are being drained from now on."""
        self._draining = frozenset(numbers)

    def drop(self, number: int) -> None:
        """The store has no such shard any more. For the thread that appends."""
        shard = self.get(number)
        self._slots = {other: slot for other, slot in self._slots.items() if other != number}
        if shard is not None:
            shard.close()

    @contextmanager
    def large_write(self) -> Iterator[None]:
        """While a large write runs, groups flush file by file: syncfs would wait for its dirty pages."""
        self._large_writes += 1
        try:
            yield
        finally:
            self._large_writes -= 1

    def append(self, entries: Mapping[int, Sequence[Entry]], committed: int) -> dict[int, ShardError]:
        """Append to several logs. Returns the shards that failed."""
        failed: dict[int, ShardError] = {}
        for number, batch in entries.items():
            shard = self.get(number)
            try:
                if shard is None:
                    raise ShardError("missing", "the shard is not there", untouched=True)
                shard.append(batch, committed)
            except ShardError as error:
                failed[number] = error
        return failed

    def flush(self, numbers: Iterable[int]) -> dict[int, ShardError]:
        """Make what was appended to these logs durable. Returns the shards for which it failed."""
        shards = [shard for number in numbers if (shard := self.get(number)) is not None]
        together = self._flushed_together([disk for shard in shards if (disk := shard.on_disk) is not None])
        done = {disk.number for disk in together}
        alone = [shard for shard in shards if shard.number not in done]
        for shard in alone:
            shard.start_flush()
        failed = self._flush_file_system(together) if together else {}
        for shard in alone:
            try:
                shard.flush()
            except ShardError as error:
                failed[shard.number] = error
        return failed

    def _flushed_together(self, disks: Sequence[Flushable]) -> Sequence[Flushable]:
        """The logs that one syncfs is to flush: all on this machine, or none."""
        if len(disks) < 2 or self._large_writes:
            return []
        systems = {disk.file_system_key for disk in disks}
        return disks if len(systems) == 1 and systems.pop()[1] in SYNCFS_KINDS else []

    def _flush_file_system(self, shards: Sequence[Flushable]) -> dict[int, ShardError]:
        try:
            shards[0].flush_file_system()
        except ShardError as error:
            for shard in shards:
                shard.close_for_good(f"a flush of its file system failed ({error})")
            return {shard.number: error for shard in shards}
        for shard in shards:
            shard.flushed_by_file_system()
        return {}

    def close(self) -> None:
        for shard in self.opened():
            shard.close()
