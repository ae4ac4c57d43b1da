"""The directory of a log's segments: which there are, and every entry of each. Any thread may read them.

What the disk cannot read of a segment hides no more than other damage does: the entries that lie there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import takewhile
from typing import Final, TypeVar

from zstor_local.runtime import Buffer, Files, read_exactly
from zstor_local.shards.segment import HEADER_BYTES, BadSegment, Located, SegmentHeader, scan_records, scan_segment
from zstor_local.shards.segment_files import OpenSegments

_SUFFIX: Final = ".log"
_PAGE: Final = 4_096
_BAD_PAGES: Final = 16  # of one stretch that is read: where there are more, it is not some sectors that are bad

T = TypeVar("T")
Scan = Callable[[bytes, Callable[[int, int], Buffer], int, int], Iterator[T]]  # what reads a segment, as scan_segment does


class SegmentDirectory:
    """One log's. `opened` has those that are open for reading; `unread` counts what the disk could not read, again each time."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory
        self.opened = OpenSegments(files, self.path)
        self.unread = 0

    def path(self, number: int) -> str:
        return f"{self._directory}/{number:010d}{_SUFFIX}"

    def numbers(self) -> list[int]:
        """The numbers of all segments, oldest first."""
        names = self._files.list(self._directory)
        return sorted(int(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX) and name[: -len(_SUFFIX)].isdigit())

    def header(self, number: int) -> SegmentHeader | None:
        """A damaged header hides a segment: its entries cannot be told from stale bytes."""
        try:
            return self._header(number)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.unread += 1
            return None

    def _header(self, number: int) -> SegmentHeader | None:
        try:
            with self.opened.using(number) as fd:
                return SegmentHeader.parse(read_exactly(self._files, fd, HEADER_BYTES, 0))
        except (BadSegment, FileNotFoundError):  # compaction may have removed it since it was listed
            return None

    def headers(self, first: int = 0) -> list[tuple[int, SegmentHeader]]:
        """The readable segments, from the first wanted on. The disk's error if it can read no segment at all."""
        numbers = self.numbers()
        found = [(number, header) for number in numbers if number >= first and (header := self.header(number)) is not None]
        if not found and not any(self.header(number) for number in numbers if number < first):
            for number in numbers:
                self._header(number)
        return found

    def entries(self, number: int, header: SegmentHeader, start: int = HEADER_BYTES) -> Iterator[Located]:
        """Every whole entry of a segment from `start` on."""
        return self._scanned(number, header, start, scan_segment)

    def has_end(self, number: int, header: SegmentHeader, end: int) -> bool:
        """Whether an entry ends there, or none has been written. Most are short: not more is read than it takes to find that one."""
        if end <= HEADER_BYTES:
            return True
        starts = (max(HEADER_BYTES, end - stretch) for stretch in (_PAGE, 16 * _PAGE, end))
        return any(located.end == end for start in starts for located in self._until(number, header, start, end))

    def _until(self, number: int, header: SegmentHeader, start: int, end: int) -> Iterator[Located]:
        return takewhile(lambda located: located.end <= end, self.entries(number, header, start))

    def records(self, number: int, header: SegmentHeader) -> Iterator[bytes]:
        """The records of its entries, as Envelope.pack gives them."""
        return self._scanned(number, header, HEADER_BYTES, scan_records)

    def _scanned(self, number: int, header: SegmentHeader, start: int, scan: Scan[T]) -> Iterator[T]:
        with ExitStack() as opened:
            try:
                fd = opened.enter_context(self.opened.using(number))
            except FileNotFoundError:
                return  # compaction removed it since it was listed: what counts of it lies in a later one
            length = self._files.status(fd).size
            yield from scan(header.checksum_key, lambda offset, size: self._read(fd, size, offset), start, length)

    def _read(self, fd: int, length: int, offset: int) -> bytes:
        """Bytes of a segment, with zeros for some pages that the disk cannot read."""
        try:
            return read_exactly(self._files, fd, length, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        first, bad = offset // _PAGE * _PAGE, 0
        pages = bytearray()
        for at in range(first, offset + length, _PAGE):
            try:
                pages += read_exactly(self._files, fd, _PAGE, at)
            except OSError as error:
                bad += 1
                if error.errno != errno.EIO or bad > _BAD_PAGES:
                    raise
                pages += bytes(_PAGE)
        self.unread += bad
        return bytes(pages[offset - first :][:length])

    def whole(self, number: int) -> list[Located] | None:
        """Every entry of a segment; None if anything else lies there, or the disk cannot read all of it."""
        try:
            return self._whole(number)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return None

    def _whole(self, number: int) -> list[Located] | None:
        with self.opened.using(number) as fd:
            size = self._files.status(fd).size
            try:
                header = SegmentHeader.parse(read_exactly(self._files, fd, HEADER_BYTES, 0))
            except BadSegment:
                return None
            found = list(self.entries(number, header))
            end = HEADER_BYTES
            for start, stop in [*((located.offset, located.end) for located in found), (size, size)]:
                gap = read_exactly(self._files, fd, max(0, start - end), end)
                if gap.count(0) != len(gap):
                    return None
                end = stop
        return found
