"""A directory shard's log as compaction sees it: sealed segments, what lies in them, and copying what counts to the log's end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from zstor_local.model.ids import ShareId
from zstor_local.shards.base import ScannedEntry, ShardError
from zstor_local.shards.log import Log
from zstor_local.shards.log_index import Extent, IndexDamaged, LogIndex
from zstor_local.shards.segment import Freed, Located


class LogSegments:
    """See shards.base.Segments."""

    def __init__(self, shard: int, log: Log, index: LogIndex, failing: Callable[[], AbstractContextManager[None]]) -> None:
        """`failing` turns the system's errors into the shard's."""
        self._shard = shard
        self._log = log
        self._index = index
        self._failing = failing

    def sealed(self) -> list[int]:
        with self._failing():
            return self._log.sealed()

    def read(self, number: int) -> Sequence[Located] | None:
        with self._failing():
            return self._log.read_whole(number)

    def all_but(self, number: int) -> Iterator[tuple[ScannedEntry | Freed, int]]:
        with self._failing():
            for located in self._log.scan_all_but(number):
                yield located.item, located.end - located.offset

    def lies_at(self, number: int, located: Located) -> bool:
        if isinstance(located.item, Freed) or located.item.entry.share_index is None:
            return False
        share = ShareId(located.item.entry.envelope.version, located.item.entry.share_index)
        return self._find(share) == Extent(number, located.share_offset, located.share_length)

    def holds(self, share: ShareId) -> bool:
        return self._find(share) is not None

    def _find(self, share: ShareId) -> Extent | None:
        try:
            return self._index.find(self._shard, share)
        except IndexDamaged as error:
            raise ShardError("failed", str(error)) from error

    def copy(self, items: Sequence[ScannedEntry | Freed]) -> None:
        with self._failing():
            self._log.copy(items)

    def unread(self) -> int:
        return self._log.unread

    def flush(self) -> None:
        with self._failing():
            self._log.flush()

    def remove(self, number: int, dropped: Sequence[ShareId] = ()) -> None:
        there = ((share, self._find(share)) for share in dropped)
        gone = [(share, None) for share, extent in there if extent is not None and extent.segment == number]
        with self._failing():
            # Before the segment goes, which writes the index: until they are freed only the metastore knows of it, which may be lost.
            self._index.record(self._shard, gone, self._index.progress(self._shard))
            self._log.remove(number)
