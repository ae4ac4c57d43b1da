"""What says that a share was freed goes from a log once nothing of the share lies there. Before that the share would be here again
where the index is made anew.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Set
from typing import Final

from zstor_local import limits
from zstor_local.model.ids import ShareId
from zstor_local.shards.log import Log
from zstor_local.shards.segment import Freed, entry_size

PIECE: Final = limits.MIB  # bytes that are read in one turn
LOOKED_FOR_MAX: Final = 2**17  # shares that one walk looks for, some 250 bytes each

_NOWHERE: Final = 0  # no segment has these numbers
_SEVERAL: Final = -1


class Forgettable:
    """Of the shares that some segments of a log say were freed, those that lie in no other one: known once all of `pieces` are read."""

    def __init__(self, log: Log, numbers: Iterable[int]) -> None:
        self._log = log
        self._freed: dict[int, list[ShareId]] = {}  # by the segment that says so
        self._lies: dict[ShareId, int] = {}  # the one segment that holds it
        self.pieces = self._read(numbers)

    def of(self, number: int) -> Set[ShareId]:
        """Of what a segment says."""
        return {share for share in self._freed.get(number, ()) if self._lies[share] in (_NOWHERE, number)}

    def _read(self, numbers: Iterable[int]) -> Generator[int]:
        """First these segments, then all. Yields the bytes of each piece."""
        unread = self._log.unread
        for number in numbers:
            entries = self._log.read_whole(number) or ()
            freed = [each.item.share for each in entries if isinstance(each.item, Freed)]
            self._freed[number] = freed[: LOOKED_FOR_MAX - len(self._lies)]
            self._lies.update(dict.fromkeys(self._freed[number], _NOWHERE))
            yield sum(each.end - each.offset for each in entries)
        if self._lies:
            yield from self._walk()
        if self._log.unread != unread:  # something of them may lie where the disk cannot read
            self._freed.clear()

    def _walk(self) -> Generator[int]:
        size = 0
        for scanned, position in self._log.scan_after(0, 0):
            if scanned.entry.share_index is not None:
                self._found(ShareId(scanned.entry.envelope.version, scanned.entry.share_index), position.segment)
            size += entry_size(scanned.entry)
            if size >= PIECE:
                yield size
                size = 0

    def _found(self, share: ShareId, number: int) -> None:
        known = self._lies.get(share)
        if known is not None:
            self._lies[share] = number if known in (_NOWHERE, number) else _SEVERAL
