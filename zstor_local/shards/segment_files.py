"""The files of a log's segments: the one that is written, and those that are open for reading."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

from zstor_local import limits
from zstor_local.runtime import Files, close_anyhow, write_all
from zstor_local.shards.segment import HEADER_BYTES, SegmentHeader

OPEN_SEGMENTS: Final = 256  # older segments kept open for reading, per shard: 2 GiB, as of a million small objects on six shards
OPEN_PART: Final = 64  # and no more than this part of the descriptors that the process may have


def first_step() -> int:
    """The bytes that a new segment has room for."""
    return min(limits.SEGMENT_STEP_BYTES, limits.SEGMENT_BYTES)


class SegmentWriter:
    """The end of one segment: entries gather until `write_out` hands them to the kernel in one call."""

    def __init__(self, files: Files, fd: int, number: int, header: SegmentHeader) -> None:
        self._files = files
        self.fd = fd
        self.number = number
        self.header = header
        self.key = header.checksum_key
        self.end = HEADER_BYTES
        self._written = HEADER_BYTES
        self._allocated = first_step()
        self._gathered: list[bytes] = []

    def put(self, buffers: list[bytes], size: int) -> None:
        """Take an entry's buffers, `size` bytes together."""
        self._gathered.extend(buffers)
        self.end += size

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more are allocated, and are not too many for a segment."""
        return self.end + size <= self._allocated and self.end + size <= limits.SEGMENT_BYTES

    def allocate(self, size: int) -> None:
        """Room for that many bytes more, a step at a time: a log that is hardly used takes little."""
        if self.end + size > self._allocated:
            length = max(first_step(), self.end + size - self._allocated)
            self._files.allocate(self.fd, self._allocated, length)
            self._allocated += length

    def discard(self) -> None:
        """Forget what gathered and was not written."""
        self._gathered.clear()
        self.end = self._written

    def write_out(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._written += write_all(self._files, self.fd, [b"".join(gathered)], self._written)


class _Slot:
    """A segment that is open, and how many are using it."""

    __slots__ = ("fd", "forgotten", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0
        self.forgotten = False  # closed by its last user


class OpenSegments:
    """Segments open for reading: at most OPEN_SEGMENTS that nobody is using, fewer where descriptors are scarce."""

    def __init__(self, files: Files, path: Callable[[int], str]) -> None:
        self._files = files
        self._path = path
        self._lock = threading.Lock()
        self._open: dict[int, _Slot] = {}  # by number; least recently used first
        self._forgotten = 0  # how often one was: what was being opened meanwhile may be that
        self._keep = min(OPEN_SEGMENTS, files.descriptors() // OPEN_PART)

    def using(self, number: int) -> _Using:
        """Its descriptor, open while this is entered."""
        return _Using(self, number)

    def peek(self, number: int, buffer: bytearray, offset: int) -> bool:
        """Fill the buffer, if the segment is open and nothing has to be waited for: no disk, and nobody who opens another segment."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            slot = self._open.get(number)
            return slot is not None and self._files.preadv_nowait(slot.fd, [buffer], offset) == len(buffer)
        except OSError:
            return False
        finally:
            self._lock.release()

    def take(self, number: int) -> _Slot:
        opened, forgotten = None, 0
        while True:
            with self._lock:
                slot = self._open.pop(number, opened if forgotten == self._forgotten else None)
                forgotten = self._forgotten
                if slot is not None:
                    self._open[number] = slot
                    slot.users += 1
            if opened is not None and slot is not opened:
                close_anyhow(self._files, opened.fd)
            if slot is not None:
                return slot
            opened = _Slot(self._files.open(self._path(number), os.O_RDONLY))  # nobody waits for it who wants another: a disk may hang

    def give(self, slot: _Slot) -> None:
        with self._lock:
            slot.users -= 1
            if slot.forgotten:
                if not slot.users:
                    close_anyhow(self._files, slot.fd)
            elif len(self._open) > self._keep:
                self._evict()

    def _evict(self) -> None:
        for number in list(self._open)[: len(self._open) - self._keep]:
            if not self._open[number].users:
                close_anyhow(self._files, self._open.pop(number).fd)

    def forget(self, number: int) -> None:
        """The file of this number was removed: another one may bear it some day. Those who are using it go on with theirs."""
        with self._lock:
            self._forget(number)

    def _forget(self, number: int) -> None:
        self._forgotten += 1
        slot = self._open.pop(number, None)
        if slot is None:
            return
        slot.forgotten = True
        if not slot.users:
            close_anyhow(self._files, slot.fd)

    def close_idle(self) -> None:
        """Close those that nobody is using."""
        with self._lock:
            for number in [number for number, slot in self._open.items() if not slot.users]:
                self._forget(number)

    def close(self) -> None:
        """Those in use, and what is opened from now on, are closed when their users are done."""
        with self._lock:
            self._keep = 0
            for number in list(self._open):
                self._forget(number)


class _Using:
    """One use of an open segment."""

    __slots__ = ("_number", "_open", "_slot")

    def __init__(self, segments: OpenSegments, number: int) -> None:
        self._open = segments
        self._number = number

    def __enter__(self) -> int:
        self._slot = self._open.take(self._number)
        return self._slot.fd

    def __exit__(self, *_: object) -> None:
        self._open.give(self._slot)
