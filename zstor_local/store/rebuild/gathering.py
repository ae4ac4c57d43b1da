"""The records of all logs, each of them once: the copies of a record are the same bytes on every shard that holds it.

The committer appends a group to all logs, so copies lie at about the same place of each. The logs are read side by side, the one that
is behind first, and what was read last is kept in memory: there a copy meets the others. One that comes too late for that is put into
the scratch file once more; what counts is the same then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from zstor_local.limits import MIB
from zstor_local.model.record import Envelope, Kind
from zstor_local.shards.base import Shard, ShardError
from zstor_local.store.rebuild.scratch import Scratch, sequence_of

PROGRESS_EVERY: Final = 10_000
_IN_TURN: Final = 256  # records that are read from one log before another one may have its turn
_KEPT_BYTES: Final = 4 * MIB  # of records in a generation; there are two
_COST_BYTES: Final = 128  # what a record takes in memory beside its own bytes


@dataclass(slots=True)
class Gathered:
    """What the logs said, beside the records themselves. `highest` is the highest sequence in the logs on this machine's disks,
    `writer` the highest number of a writer of any log.

    `failed` are the shards, by number, that could not be read to their end: where there are some the rest is not whole.
    """

    records: int = 0
    highest: int = 0
    writer: int = 0
    failed: dict[int, ShardError] = field(default_factory=dict)
    voids: list[Envelope] = field(default_factory=list)
    keys: list[Envelope] = field(default_factory=list)


def gather(shards: Sequence[Shard], scratch: Scratch, progress: Callable[[str, int], None]) -> Gathered:
    """Put every record of these shards' logs into the scratch tables, voids aside. Bit n of its holders is the n-th shard."""
    gathered = Gathered()
    for shard in shards:
        try:
            gathered.writer = max(gathered.writer, shard.newest_writer())
        except ShardError as error:
            gathered.failed[shard.number] = error
    if gathered.failed:
        return gathered
    window = _Window(shards, scratch, gathered)
    reading = [_Log(bit, shard.records()) for bit, shard in enumerate(shards)]
    told = 0
    while reading:
        behind = min(reading, key=lambda log: log.newest)
        try:
            count, last = window.take(islice(behind.records, _IN_TURN), 1 << behind.bit)
        except ShardError as error:
            gathered.failed[shards[behind.bit].number] = error
            last = None
        if last is None:
            reading.remove(behind)
            continue
        behind.newest = sequence_of(last)
        gathered.records += count
        while gathered.records - told >= PROGRESS_EVERY:
            told += PROGRESS_EVERY
            progress("records read", told)
    window.end()
    return gathered


@dataclass(slots=True)
class _Log:
    bit: int
    records: Iterator[bytes]
    newest: bytes = b""  # the sequence that was read last


class _Window:
    """Records that were read last, and who holds them, in two generations; the older one goes to the scratch file."""

    def __init__(self, shards: Sequence[Shard], scratch: Scratch, gathered: Gathered) -> None:
        self._scratch = scratch
        self._gathered = gathered
        self._width = len(shards) // 8 + 1
        # A directory's word for a sequence is taken. A server's is not: what it makes up must not use up the numbers.
        self._disks = sum(1 << bit for bit, shard in enumerate(shards) if shard.on_disk is not None)
        self._fresh: dict[bytes, int] = {}
        self._before: dict[bytes, int] = {}
        self._room = _KEPT_BYTES

    def take(self, records: Iterable[bytes], holder: int) -> tuple[int, bytes | None]:
        """Take records of one log. How many there were, and the last."""
        count, record = 0, None
        fresh, before = self._fresh, self._before
        for record in records:
            count += 1
            if record in fresh:
                fresh[record] |= holder
            elif record in before:
                before[record] |= holder
            else:
                fresh[record] = holder
                self._room -= len(record) + _COST_BYTES
                if self._room < 0:
                    self._age()
                    fresh, before = self._fresh, self._before
        return count, record

    def end(self) -> None:
        self._age()
        self._age()

    def _age(self) -> None:
        """The older generation has met all the copies it will."""
        done, self._before, self._fresh, self._room = self._before, self._fresh, {}, _KEPT_BYTES
        gathered = self._gathered
        voids = [record for record in done if record[0] == Kind.VOID]
        gathered.voids += map(Envelope.parse, voids)
        gathered.keys += [Envelope.parse(record) for record in done if record[0] == Kind.KEYS]
        sequences = [sequence_of(record) for record, holders in done.items() if holders & self._disks]
        gathered.highest = max(gathered.highest, int.from_bytes(max(sequences, default=b""), "big"))
        for record in voids:
            del done[record]
        self._scratch.put(done, self._width)
