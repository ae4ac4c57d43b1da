"""What a file holds: sparse pages of 4 KiB, and the changes to them that a power loss may undo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PAGE: Final = 4096
SECTOR: Final = 512  # the smallest piece a disk writes in one go
_ZEROS: Final = bytes(PAGE)


class Content:
    """The bytes of a file: pages that were written, room that was reserved, everything else zeros. Copies share their pages."""

    __slots__ = ("pages", "room", "size")

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.room: list[tuple[int, int]] = []  # ranges of pages (first, end) that take up space, apart from each other
        self.size = 0

    def copy(self) -> Content:
        other = Content()
        other.pages = self.pages.copy()
        other.room = self.room.copy()
        other.size = self.size
        return other

    @property
    def used(self) -> int:
        """Pages that take up space."""
        return sum(end - first for first, end in self.room)

    def lacking(self, offset: int, length: int) -> int:
        """Pages that writing this range would take up anew."""
        start, stop = offset // PAGE, -(-(offset + length) // PAGE)
        return stop - start - sum(max(0, min(end, stop) - max(first, start)) for first, end in self.room)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of the range as far as the file reaches."""
        stop = min(offset + length, self.size)
        if offset >= stop:
            return b""
        first, last = offset // PAGE, (stop - 1) // PAGE
        pages = self.pages
        if first == last:
            return pages.get(first, _ZEROS)[offset - first * PAGE : stop - first * PAGE]
        joined = b"".join(pages.get(page, _ZEROS) for page in range(first, last + 1))
        return joined[offset - first * PAGE : stop - first * PAGE]

    def write(self, offset: int, data: bytes) -> None:
        """Put the bytes there; the file grows if it must."""
        if not data:
            return
        stop = offset + len(data)
        self._take(offset // PAGE, -(-stop // PAGE))
        pages = self.pages
        done = 0
        while done < len(data):
            page, within = divmod(offset + done, PAGE)
            piece = data[done : done + PAGE - within]
            if len(piece) < PAGE:
                old = pages.get(page, _ZEROS)
                pages[page] = old[:within] + piece + old[within + len(piece) :]
            else:
                pages[page] = piece
            done += len(piece)
        self.size = max(self.size, stop)

    def reserve(self, offset: int, length: int) -> None:
        """Take up space for the range; the file grows to its end."""
        self._take(offset // PAGE, -(-(offset + length) // PAGE))
        self.size = max(self.size, offset + length)

    def truncate(self, length: int) -> None:
        """Cut off or extend with zeros."""
        if length < self.size:
            end, within = -(-length // PAGE), length % PAGE
            if any(last > end for _, last in self.room):
                self.room = [(first, min(last, end)) for first, last in self.room if first < end]
                self.pages = {page: data for page, data in self.pages.items() if page < end}
            if within and end - 1 in self.pages:
                self.pages[end - 1] = self.pages[end - 1][:within] + _ZEROS[within:]
        self.size = length

    def _take(self, start: int, stop: int) -> None:
        for first, end in self.room:
            if first <= start and stop <= end:
                return
        kept = []
        for first, end in self.room:
            if end < start or first > stop:
                kept.append((first, end))
            else:
                start, stop = min(first, start), max(end, stop)
        kept.append((start, stop))
        self.room = kept


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes put at an offset."""

    offset: int
    data: bytes

    def apply(self, content: Content) -> None:
        content.write(self.offset, self.data)

    def part(self, start: int, stop: int) -> Write:
        """The write, had it only reached the bytes start to stop of it."""
        return Write(self.offset + start, self.data[start:stop])


@dataclass(frozen=True, slots=True)
class Grow:
    """A write of which only the new size of the file arrived: the bytes read as zeros."""

    length: int

    def apply(self, content: Content) -> None:
        content.size = max(content.size, self.length)


@dataclass(frozen=True, slots=True)
class Truncate:
    """The file's length set."""

    length: int

    def apply(self, content: Content) -> None:
        content.truncate(self.length)


@dataclass(frozen=True, slots=True)
class Reserve:
    """Room taken up in advance."""

    offset: int
    length: int

    def apply(self, content: Content) -> None:
        content.reserve(self.offset, self.length)


Mutation = Write | Grow | Truncate | Reserve
