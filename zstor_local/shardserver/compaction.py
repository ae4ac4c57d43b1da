"""Compaction of the logs of spaces while they are used: small shares that were freed take no room any more, nor count against a quota.

A segment of which enough is dead is copied to the end of its log without them, then it goes. Records stay, but for those that their
owner has named as superseded: which of them still count it alone can tell. What says that a share was freed goes once the share lies in
no other segment, or is here again; a log is read for that only when it may pay. A segment in which something is damaged stays as it is.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final

import trio

from zstor_local import limits
from zstor_local.model.ids import ShardUid, ShareId
from zstor_local.shards.base import Entry, ScannedEntry, Segments, ShardError
from zstor_local.shards.log import Log, LogClosed
from zstor_local.shards.log_index import IndexDamaged
from zstor_local.shards.segment import ENTRY_HEADER_BYTES, Freed, Located, entry_size
from zstor_local.shardserver.disk import answering
from zstor_local.shardserver.forgetting import Forgettable
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.rooms import Room
from zstor_local.shardserver.space import Space
from zstor_local.shardserver.volume import Volume
from zstor_local.store.pace import Pace, Spend

EVERY: Final = 600.0  # seconds between two looks
RATE: Final = 20 * limits.MIB  # bytes a second that are read
PART: Final = 10_000  # shares of the index that are looked at in one turn
LEAST_DEAD: Final = 0.25  # of a segment, for compacting it: the records stay, which may be most of it
WORTH: Final = 1 / 32  # of a log: when so much more of it says that shares were freed, it is read for what of that may go
log = logging.getLogger("zstor.shardserver")


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Sealed segments of a room's log that may hold so much that is dead, each with the bytes of shares that are alive there."""

    room: Room
    log: Log
    live: dict[int, int]
    forgettable: Forgettable

    @property
    def are_there(self) -> bool:
        """Not any more once their namespace was retired: what it holds after that is in another log."""
        return self.room.log is self.log


class Compaction:
    """One task for a server."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._threads = volume.runtime.threads
        self._pace = Pace(RATE)

    async def run(self) -> None:
        while True:
            await trio.sleep(EVERY)
            await self.compact(self._pace.spend)

    async def compact(self, spend: Spend, *, least: float = LEAST_DEAD) -> int:
        """Compact the segments of which at least that part is dead. Returns how many went."""
        gone = 0
        for uid, space in list(self._volume.spaces.items()):
            if space.freed and space.fence.writer:  # else nobody has taken it over yet
                space.freed = False
                with _going_on(space, f"of shard {uid.hex()}"):
                    for found in await self._threads.run(self._candidates, space, least):
                        with _going_on(space, f"of namespace {found.room.id.hex()}"):
                            gone += await self._compact_room(uid, space, found, spend, least)
        return gone

    async def _compact_room(self, uid: ShardUid, space: Space, found: _Candidates, spend: Spend, least: float) -> int:
        with closing(found.forgettable.pieces):
            while (read := await self._threads.run(self._read, space, found)) is not None:
                await spend(read)
        gone = 0
        for number, live in found.live.items():
            async with self._volume.lock(uid):
                if not found.are_there:
                    break
                size, went = await self._threads.run(self._compact_making_room, space, found, number, least)
            if went:
                gone += 1
            else:
                found.room.in_vain[number] = live
            await spend(size)
        return gone

    # --- In worker threads ---

    def _candidates(self, space: Space, least: float) -> Sequence[_Candidates]:
        """What is worth a closer look, as far as can be told without reading the logs."""
        alive: Counter[tuple[int, int]] = Counter()
        shares = space.rooms.alive()
        more = True
        while more:  # there may be millions: whoever wants to be alone, and all behind them, would wait for long
            with space.turns.using():
                more = False
                for room_number, segment, size in islice(shares, PART):
                    alive[room_number, segment] += size
                    more = True
        with space.turns.using(), answering():
            return [found for room in space.rooms if (found := self._of_room(space, room, alive, least)).live]

    def _of_room(self, space: Space, room: Room, alive: Counter[tuple[int, int]], least: float) -> _Candidates:
        sealed = space.rooms.sealed(room)
        forgetting = room.freed_bytes >= WORTH * sum(size for _, size in sealed)
        if forgetting:
            room.freed_bytes = 0
            room.in_vain.clear()
        found = {}
        for number, size in sealed:
            live = alive[room.number, number]
            if size - live >= least * size and live != room.in_vain.get(number):
                found[number] = live
        log = space.rooms.log(room)
        return _Candidates(room, log, found, Forgettable(log, found if forgetting else ()))

    def _read(self, space: Space, found: _Candidates) -> int | None:
        """The next piece of what tells what may go: how many bytes it had; None at the end."""
        with space.turns.using(), answering():
            return next(found.forgettable.pieces, None) if found.are_there else None

    def _compact_making_room(self, space: Space, found: _Candidates, number: int, least: float) -> tuple[int, bool]:
        """On a full disk with what is kept in reserve: it needs some room before it gives more back."""
        try:
            with answering():
                return self._compact(space, found, number, least)
        except Refusal as refusal:
            if refusal.type != "full" or not self._volume.make_room():
                raise
            with answering():
                return self._compact(space, found, number, least)
        finally:
            self._volume.keep_room()

    def _compact(self, space: Space, found: _Candidates, number: int, least: float) -> tuple[int, bool]:
        """Under the space's lock: nothing is appended meanwhile. Returns the bytes of its entries, and whether it went."""
        room = found.room
        with space.turns.using():
            segments = space.rooms.segments(room, space.fence.writer)
            entries = segments.read(number)
            if entries is None:
                return limits.SEGMENT_BYTES, False
            size = sum(each.end - each.offset for each in entries)
            forgotten = found.forgettable.of(number)
            kept = [item for each in entries if (item := _kept(segments, number, each, room.superseded, forgotten)) is not None]
            dead = size - sum(map(_size, kept))
            if dead < least * size:
                return size, False
            segments.copy(kept)
            segments.flush()
        with space.turns.alone():  # whoever has found a share there has read it then
            segments.remove(number)
        space.rooms.account(room, -dead)
        room.superseded -= _sequences(each.item for each in entries) - _sequences(kept)
        return size, True


@contextmanager
def _going_on(space: Space, what: str) -> Iterator[None]:
    """With the others, and with what failed the next time."""
    try:
        yield
    except (Refusal, ShardError, LogClosed, IndexDamaged) as error:
        space.freed = True
        log.warning("the log %s was not compacted: %s", what, error)


def _kept(
    segments: Segments, number: int, located: Located, superseded: Set[int], forgotten: Set[ShareId]
) -> ScannedEntry | Freed | None:
    """What is to be copied for an entry; None for nothing."""
    item = located.item
    if isinstance(item, Freed):
        return None if item.share in forgotten or segments.holds(item.share) else item
    if segments.lies_at(number, located):
        return item
    if item.entry.envelope.sequence in superseded:
        return None
    return ScannedEntry(Entry(item.entry.envelope), item.committed)


def _size(item: ScannedEntry | Freed) -> int:
    return ENTRY_HEADER_BYTES if isinstance(item, Freed) else entry_size(item.entry)


def _sequences(items: Iterable[ScannedEntry | Freed]) -> set[int]:
    return {item.entry.envelope.sequence for item in items if isinstance(item, ScannedEntry)}
