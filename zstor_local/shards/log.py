"""A directory shard's log: segments of small shares and record copies, appended by one committer, read by everybody."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

from zstor_local import limits
from zstor_local.model.ids import ID_BYTES, ShareId, StoreId
from zstor_local.model.record import Envelope, Kind
from zstor_local.runtime import Files, Randomness, close_anyhow, read_exactly, sync_directory, write_all
from zstor_local.shards.base import Entry, ScannedEntry
from zstor_local.shards.log_index import Extent, LogIndex, Progress
from zstor_local.shards.recovery import CatchingUp, flush_the_end, release_rest
from zstor_local.shards.segment import (
    ENTRY_HEADER_BYTES,
    HEADER_BYTES,
    Freed,
    Located,
    Position,
    SegmentHeader,
    entry_size,
    pack_entry,
    pack_freed,
)
from zstor_local.shards.segment_directory import SegmentDirectory
from zstor_local.shards.segment_files import SegmentWriter, first_step

_KEPT: Final = 512  # bytes behind what was appended, for the voids of it: so that they come here on a full disk
_NO_LIMIT: Final = 1 << 64  # above all sequences


class LogClosed(Exception):
    """A flush failed before: nothing may be acknowledged from this log again in this process."""


class NothingAppended(OSError):
    """There was no room for all of the entries: no byte of them was written."""


class Log:
    """The log in one directory. `append`, `free` and `flush` are the committer's alone; reading is anybody's."""

    def __init__(self, files: Files, directory: str, *, shard: int, store_id: StoreId, index: LogIndex) -> None:
        self._files = files
        self._directory = directory
        self._shard = shard
        self._store_id = store_id
        self._index = index
        self._segments = SegmentDirectory(files, directory)
        self._readers = self._segments.opened
        self._writer: SegmentWriter | None = None
        self._rolled = 0  # segments that became full
        self._closed = False
        self._strewn = False  # an append that broke off may have left entries that the index does not know
        self._at_most = _NO_LIMIT  # no entry says that more is committed
        self._start: tuple[int, Randomness] | None = None
        self._extents: list[tuple[ShareId, Extent | None]] = []  # what was appended and is not flushed: the index does not know it yet
        try:
            flush_the_end(files, self._segments, index.progress(shard))
            caught_up = CatchingUp(self._segments, index, shard)
            self._known = caught_up.run()  # how far the log reaches, flushed or not
        except BaseException:
            self._readers.close()
            raise
        self._ends = caught_up.ends

    def path(self, number: int) -> str:
        return self._segments.path(number)

    def segments(self) -> list[int]:
        """The numbers of all segments, oldest first."""
        return self._segments.numbers()

    def newest_writer(self) -> int:
        """The highest writer number that a segment bears."""
        return next((header.writer for number in reversed(self.segments()) if (header := self._segments.header(number)) is not None), 0)

    @property
    def unused(self) -> int:
        """Bytes behind the last entry of an earlier life, until `start` gives them back."""
        if not self._ends:
            return 0
        number, end = self._ends[-1]
        return max(0, self._files.path_status(self._segments.path(number)).size - end)

    def start(self, writer: int, randomness: Randomness) -> None:
        """Begin a segment of this process's own; before it nothing can be appended. On a full disk appending tries again."""
        self._start = writer, randomness
        while self._ends:
            number, end = self._ends.pop()
            release_rest(self._files, self._segments.path(number), end)
        self._current()

    def append(self, entries: Sequence[Entry], committed: int) -> None:
        """All of the entries, in order, or an error after which none of them is known here (the caller voids them elsewhere)."""
        extents: list[tuple[ShareId, Extent | None]] = []
        known, committed = self._known, min(committed, self._at_most)
        sequence, settled = known.sequence, None
        rolled = self._rolled
        for entry in entries:
            try:
                segment, offset = self._put(entry, committed, extents)
            except OSError as error:
                if self._closed or self._rolled > rolled:
                    self._strewn = True
                    raise
                raise NothingAppended(error.errno, error.strerror) from error
            if settled is None and not self._strewn:
                settled = known.settled_behind(committed, segment, offset)
            sequence = max(sequence, entry.envelope.sequence)
        self._write_out(extents, sequence, committed, settled or known.settled)

    def _put(self, entry: Entry, committed: int, extents: list[tuple[ShareId, Extent | None]]) -> tuple[int, int]:
        """Gather an entry, and where its share will lie. Returns its segment and offset."""
        size = entry_size(entry)
        segment, at = self._room(size, kept=0 if entry.envelope.kind is Kind.VOID else _KEPT)
        segment.put(pack_entry(segment.key, at, entry, committed), size)
        if entry.share_index is not None:
            offset = at + ENTRY_HEADER_BYTES + len(entry.envelope.sealed)
            extents.append((ShareId(entry.envelope.version, entry.share_index), Extent(segment.number, offset, len(entry.share))))
        return segment.number, at

    def free(self, shares: Sequence[ShareId]) -> None:
        """Say that shares are gone. It rides with the next flush; if a power loss forgets it, it is said again."""
        if shares:
            self.copy([Freed(share) for share in shares])

    def _write_out(self, extents: list[tuple[ShareId, Extent | None]], sequence: int, committed: int, settled: tuple[int, int]) -> None:
        segment = self._current()
        try:
            segment.write_out()
        except OSError:
            self._closed = True  # how much of it lies there is not known, so nothing may follow
            raise
        self._extents += extents
        self._known = Progress(segment.number, segment.header.id, segment.end, sequence, committed, *settled)

    def rest(self) -> None:
        """Flush, and give back what is allocated and not used: the next append begins a segment."""
        if self._writer is not None and not self._closed:
            self.flush()
            writer, self._writer = self._writer, None
            try:
                self._files.truncate(writer.fd, writer.end)
            finally:
                close_anyhow(self._files, writer.fd)

    def close_idle(self) -> None:
        """Give back the descriptors that nobody is reading from: they are opened again when they are needed."""
        self._readers.close_idle()

    def flush(self, wait: Callable[[], None] | None = None) -> None:
        """Everything appended is durable when this returns. After an error the log is closed for good. `wait` waits for an fdatasync of
        the current segment that began after the last append, if one did.
        """
        if self._closed:
            self._current()  # raises
        if self._writer is not None:
            try:
                if wait is None:
                    self._files.fdatasync(self._writer.fd)
                else:
                    wait()
            except OSError:
                self._closed = True
                raise
        self.flushed()

    def flushed(self) -> None:
        """A flush that began after the last append has returned, be it one of the whole file system."""
        extents, self._extents = self._extents, []
        self._index.record(self._shard, extents, self._known)

    def close_for_good(self) -> None:
        """A syncfs failed: nothing may be acknowledged from here any more."""
        self._closed = True

    @property
    def closed(self) -> bool:
        """Whether nothing can be appended any more in this process."""
        return self._closed

    @property
    def current_fd(self) -> int:
        return self._current().fd

    @property
    def written_fd(self) -> int | None:
        """The segment that was appended to last, if it may have to be flushed."""
        return None if self._closed or self._writer is None else self._writer.fd

    def read(self, extent: Extent, offset: int, length: int) -> bytes:
        """Bytes of a small share; FileNotFoundError if they lie elsewhere by now."""
        with self._readers.using(extent.segment) as fd:
            return read_exactly(self._files, fd, _within(extent, offset, length), extent.offset + offset)

    def peek(self, extent: Extent, offset: int, length: int) -> bytearray | None:
        """The same, if no disk has to be waited for."""
        buffer = bytearray(_within(extent, offset, length))
        return buffer if not buffer or self._readers.peek(extent.segment, buffer, extent.offset + offset) else None

    def scan(self) -> Iterator[ScannedEntry]:
        """Every whole entry, oldest segment first; FREED entries are told by the index alone."""
        for number, header in self._segments.headers():
            for located in self._segments.entries(number, header):
                if isinstance(located.item, ScannedEntry):
                    yield located.item

    def records(self) -> Iterator[bytes]:
        """The records of those entries, as Envelope.pack gives them."""
        for number, header in self._segments.headers():
            yield from self._segments.records(number, header)

    def unsettled(self) -> Iterator[Envelope]:
        """Records at the log's end that no entry behind them says were committed, in the order written."""
        known, unread = self._known, self.unread
        entries = (scanned.entry.envelope for scanned, _ in self.scan_after(*known.settled))
        yield from (envelope for envelope in entries if envelope.sequence > known.committed)
        self._at_most = _NO_LIMIT
        if self.unread != unread:  # no later entry says so of what could not be read: another start looks there again
            self._at_most, self._strewn = known.committed, True

    def scan_after(self, segment: int, offset: int) -> Iterator[tuple[ScannedEntry, Position]]:
        """Entries behind an offset in a segment (0, 0: the beginning), each with its end."""
        for number, header in self._segments.headers(segment):
            start = max(HEADER_BYTES, offset) if number == segment else HEADER_BYTES
            for located in self._segments.entries(number, header, start):
                if isinstance(located.item, ScannedEntry):
                    yield located.item, Position(number, located.end, header.id)

    def written_after(self, segment: int, offset: int) -> Iterator[tuple[ScannedEntry, Position]]:
        """The same, as far as they are written: of what is just being appended somebody may see the end before the beginning."""
        known = self._known
        for scanned, position in self.scan_after(segment, offset):
            if (position.segment, position.offset) > (known.segment, known.offset):
                return
            yield scanned, position

    def has_had(self, position: Position) -> bool:
        """Whether that was a place in this log: its segment reaches so far, or compaction took it. Where an older copy was put back it
        is shorter, or another one of its number."""
        if (header := self._segments.header(position.segment)) is None or header.id != position.segment_id:
            return header is None and position.segment < max(self.segments(), default=0)
        return position.offset <= self._files.path_status(self.path(position.segment)).size

    # --- Compaction (shards/compacting.py) ---

    def sealed(self) -> list[int]:
        """The segments that nothing is appended to any more, oldest first."""
        numbers = self.segments()
        # The last one may just have been begun, by another thread that has not said so yet.
        return [number for number in numbers[:-1] if number < self._first_written(numbers[-1])]

    def _first_written(self, last: int) -> int:
        """The segment that something may still be appended to, or has to be flushed."""
        writer = self._writer
        unflushed = (extent.segment for _, extent in self._extents if extent is not None)  # an append elsewhere failed, or a flush
        return min([last if writer is None else min(last, writer.number), *unflushed])

    def read_whole(self, number: int) -> list[Located] | None:
        """Every entry of a segment; None if anything else lies there: what is damaged stays where it is."""
        return self._segments.whole(number)

    def scan_all_but(self, number: int) -> Iterator[Located]:
        """The entries of all other segments."""
        for other, header in self._segments.headers():
            if other != number:
                yield from self._segments.entries(other, header)

    @property
    def unread(self) -> int:
        """How many pages the disk could not read so far, counted again each time."""
        return self._segments.unread

    def copy(self, items: Sequence[ScannedEntry | Freed]) -> None:
        """Append entries of an older segment again, sealed bytes and all, in order. They ride with the next flush."""
        known = self._known
        extents: list[tuple[ShareId, Extent | None]] = []
        sequence = known.sequence
        for item in items:
            if isinstance(item, ScannedEntry):
                self._put(item.entry, item.committed, extents)
                sequence = max(sequence, item.entry.envelope.sequence)
            else:
                segment, at = self._room(ENTRY_HEADER_BYTES)
                segment.put(pack_freed(segment.key, at, item.share, known.committed), ENTRY_HEADER_BYTES)
                extents.append((item.share, None))
        self._write_out(extents, sequence, known.committed, known.settled)

    def remove(self, number: int) -> None:
        """Take a sealed segment away, durably. All of it that counts lies elsewhere, flushed."""
        if self._closed:
            self._current()  # raises
        if number >= self._first_written(number + 1):
            raise LogClosed("a segment that is being written is not taken away")
        if self._known.segment == number:
            current = self._current()
            self._known = replace(self._known, segment=current.number, segment_id=current.header.id, offset=current.end)
            self.flushed()
        self._index.flush()  # one that is older than this is made anew at a start
        self._files.unlink(self._segments.path(number))
        self._readers.forget(number)
        with self._closing():
            sync_directory(self._files, self._directory)

    def close(self) -> None:
        self._readers.close()
        if self._writer is not None:
            with suppress(OSError):
                self._files.truncate(self._writer.fd, self._writer.end)
            close_anyhow(self._files, self._writer.fd)
        self._writer, self._closed = None, True

    def _current(self) -> SegmentWriter:
        if self._closed or self._start is None:
            raise LogClosed("a flush of this log failed, or it was never started; nothing can be appended")
        if self._writer is None:
            self._writer = self._new_segment(*self._start)
        return self._writer

    def _room(self, size: int, *, kept: int = _KEPT) -> tuple[SegmentWriter, int]:
        """The segment with room for that many bytes more and what is kept behind them, a new one if need be, and where they begin."""
        segment = self._current()
        if segment.has_room(size + kept):
            return segment, segment.end
        try:
            if segment.end + size + kept > limits.SEGMENT_BYTES:
                self._roll()
            self._current().allocate(size + kept)
        except OSError:
            segment.discard()
            raise
        segment = self._current()
        return segment, segment.end

    def _roll(self) -> None:
        """Go on in a new segment. The full one is flushed first, so that only the last one that holds entries may not be."""
        full = self._current()
        if self._start is None:
            raise LogClosed("the log was never started")
        fresh = self._new_segment(*self._start)
        try:
            full.write_out()
            self._files.fdatasync(full.fd)
        except OSError:
            self._closed = True
            close_anyhow(self._files, fresh.fd)
            raise
        close_anyhow(self._files, full.fd)
        self._writer = fresh
        self._rolled += 1

    def _new_segment(self, writer: int, randomness: Randomness) -> SegmentWriter:
        """A segment with its header, durable before its first entry."""
        number = max(self.segments(), default=0) + 1
        header = SegmentHeader(randomness.bytes(ID_BYTES), self._store_id, writer)
        path = self._segments.path(number)
        fd = self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            self._files.allocate(fd, 0, first_step())
            write_all(self._files, fd, [header.pack()], 0)
            self._sync_new(fd)
        except OSError:
            close_anyhow(self._files, fd)
            if not self._closed:
                self._files.unlink(path)
                self._readers.forget(number)  # a scan may have come upon it
            raise
        return SegmentWriter(self._files, fd, number, header)

    def _sync_new(self, fd: int) -> None:
        """Make a new segment durable, with its name. After an error another one of this name could not be trusted, not even in a later
        process: the file stays, so that the next one is called otherwise.
        """
        with self._closing():
            self._files.fsync(fd)
            sync_directory(self._files, self._directory)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Around syncs of the directory: after an error no later one is believed. A segment that was taken away may come back with a
        power loss, and compaction would have dropped what buries something in it.
        """
        try:
            yield
        except OSError as error:
            self._closed = self._closed or error.errno not in (errno.EMFILE, errno.ENFILE)
            raise


def _within(extent: Extent, offset: int, length: int) -> int:
    """So many of the bytes asked for lie in the share."""
    return max(0, min(length, extent.length - offset))
