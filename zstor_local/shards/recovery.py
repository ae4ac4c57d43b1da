"""What an earlier life left of a log: it is made durable, then the index is brought up to its end."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from zstor_local.model.ids import ShareId
from zstor_local.runtime import Files, read_exactly, settle_file
from zstor_local.shards.log_index import FLUSH_AT, Extent, IndexDamaged, LogIndex, Progress
from zstor_local.shards.segment import HEADER_BYTES, Freed, SegmentHeader
from zstor_local.shards.segment_directory import SegmentDirectory

log = logging.getLogger("zstor.shards")


def flush_the_end(files: Files, segments: SegmentDirectory, known: Progress) -> None:
    """Settle the segments that may hold entries which were not flushed. `known` is what the index knows, which is nothing else than
    what was flushed.
    """
    for number in reversed(segments.numbers()):
        path, header = segments.path(number), segments.header(number)
        if header is not None and (header.id, files.path_status(path).size) == (known.segment_id, known.offset):
            return  # a clean end
        try:
            settle_file(files, path)
        except OSError as error:
            if error.errno != errno.EROFS:  # there nothing can be flushed any more, and nothing is told: it is only read
                raise
        if header is not None and any(True for _ in segments.entries(number, header)):
            return  # before it was written to, those before it were flushed


class CatchingUp:
    """The index with one shard's log. `ends` are the segments that were read for it, and where the last entry of each ends."""

    def __init__(self, segments: SegmentDirectory, index: LogIndex, shard: int) -> None:
        self._segments = segments
        self._index = index
        self._shard = shard
        self._unread = 0  # pages, when it began to look behind what is known
        self.ends: list[tuple[int, int]] = []

    def run(self) -> Progress:
        """Bring the index up to the log's end: only what was appended since its last flush is read, and what was not settled then, for
        a disk that could not read something may have hidden shares that are to be found now.
        """
        known = self._index.progress(self._shard)
        if known.segment and not self._holds(known):
            if known.segment >= max(self._segments.numbers(), default=0):  # else compaction took something after the index was written
                log.warning(
                    "%s does not hold what was written there: an older copy was put back, or it is damaged; what this shard lacks "
                    "`zstor repair --all` and `zstor scrub` make anew",
                    self._segments.path(known.segment),
                )
            self._index.forget(self._shard)
            known = Progress()
        self._unread = self._segments.unread
        behind = known.segment, known.offset
        segment, offset = min(known.settled, behind)
        for number, header in self._segments.headers(segment):
            start = max(HEADER_BYTES, offset) if number == segment else HEADER_BYTES
            known = self._index_segment(number, header, start, known, again=(number, start) < behind)
        return known

    def _holds(self, known: Progress) -> bool:
        """Whether the log still reaches as far as the index knows it, and has all that was written behind that. What compaction took
        there may have said of shares that they were freed: the index would lead to where they lay.
        """
        last = self._segments.header(known.segment)
        behind = [number for number in self._segments.numbers() if number > known.segment]
        return (
            last is not None
            and last.id == known.segment_id
            and behind == [*range(known.segment + 1, known.segment + 1 + len(behind))]
            and self._segments.has_end(known.segment, last, known.offset)
        )

    def _index_segment(self, number: int, header: SegmentHeader, start: int, known: Progress, *, again: bool) -> Progress:
        """What the log says from `start` on. Of a part that was come past before (`again`) the index knows most."""
        extents: dict[ShareId, Extent | None] = {}
        end = start
        for located in self._segments.entries(number, header, start):
            end = located.end
            if isinstance(located.item, Freed):
                extents[located.item.share] = None
                continue
            entry, committed = located.item.entry, located.item.committed
            if entry.envelope.sequence > known.sequence:
                settled = known.settled_behind(committed, number, located.offset)
                if self._segments.unread != self._unread:  # something may lie there that is above this: it is looked for as before
                    settled = min(settled, known.settled)
                known = Progress(known.segment, known.segment_id, known.offset, entry.envelope.sequence, committed, *settled)
            if entry.share_index is not None:
                extent = Extent(number, located.share_offset, located.share_length)
                extents[ShareId(entry.envelope.version, entry.share_index)] = extent
        known = replace(known, segment=number, segment_id=header.id, offset=end)
        self._index.record(self._shard, (self._unknown(number, extents) if again else extents).items(), known)
        if self._index.waiting >= FLUSH_AT:
            self._index.flush()
        self.ends.append((number, end))
        return known

    def _unknown(self, number: int, extents: Mapping[ShareId, Extent | None]) -> Mapping[ShareId, Extent | None]:
        """What the index neither says so nor knows better, from a later segment: were all of it written again, it would grow with each
        start.
        """
        unknown: dict[ShareId, Extent | None] = {}
        for share, extent in extents.items():
            with suppress(IndexDamaged):  # whoever looks for a share is told
                now = self._index.find(self._shard, share)
                if now == extent or (now is not None and now.segment > number):
                    continue
            unknown[share] = extent
        return unknown


def release_rest(files: Files, path: str, end: int) -> None:
    """Give back the empty rest of a segment that a crash left: only where nothing but zeros lies, so that nothing is ever cut."""
    fd = files.open(path, os.O_RDWR)
    try:
        size = files.status(fd).size
        rest = read_exactly(files, fd, max(0, size - end), end)  # none where the file has been cut since
        if rest.count(0) == len(rest) > 0:
            files.truncate(fd, end)
    except OSError as error:
        if error.errno != errno.EIO:  # a bad sector keeps nobody from beginning a segment elsewhere
            raise
    finally:
        files.close(fd)
