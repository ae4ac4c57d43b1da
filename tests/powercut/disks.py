"""The disks: files of a FUSE file system. Every write and every flush is appended to a journal, in order.

python -m tests.powercut.disks MOUNT_POINT JOURNAL BYTES COUNT
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RECORD = struct.Struct("<BQI")  # disk, offset, length; a flush has none
_SECTOR_RUN = 4096  # bytes that a disk writes as a whole


@dataclass(frozen=True, slots=True)
class Written:
    """A write, or a flush if there are no data; `position` is the journal's length behind it."""

    position: int
    disk: int
    offset: int
    data: bytes


def read_journal(journal: Path) -> Iterator[Written]:
    """All of it, in order."""
    position = 0
    with journal.open("rb") as file:
        while header := file.read(_RECORD.size):
            disk, offset, length = _RECORD.unpack(header)
            position += _RECORD.size + length
            yield Written(position, disk, offset, file.read(length))


def pieces(written: Written) -> Iterator[tuple[int, bytes]]:
    """What of a write is on the disk or is not, each for itself: offset and data."""
    for start in range(0, len(written.data), _SECTOR_RUN):
        yield written.offset + start, written.data[start : start + _SECTOR_RUN]


def serve(mount_point: str, journal: str, size: int, count: int) -> None:
    """Until it is unmounted."""
    from fuse import FUSE, FuseOSError, Operations

    names = [f"disk{number}" for number in range(count)]
    disks = [os.memfd_create(name) for name in names]
    for disk in disks:
        os.truncate(disk, size)
    log = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(number: int, offset: int = 0, data: bytes = b"") -> None:
        whole = _RECORD.pack(number, offset, len(data)) + data
        if os.write(log, whole) != len(whole):
            raise FuseOSError(errno.EIO)

    class Disks(Operations):  # type: ignore[misc]
        def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path[1:] in names:
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}
            raise FuseOSError(errno.ENOENT)

        def readdir(self, path: str, fh: Any) -> list[str]:
            return [".", "..", *names]

        def open(self, path: str, flags: int) -> int:
            return names.index(path[1:])

        def read(self, path: str, length: int, offset: int, fh: int) -> bytes:
            return os.pread(disks[fh], length, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            os.pwrite(disks[fh], data, offset)
            note(fh, offset, data)
            return len(data)

        def fsync(self, path: str, datasync: int, fh: int) -> None:
            note(fh)

    # One request after the other, and none kept back by the kernel: the journal's order is that of the disk.
    FUSE(Disks(), mount_point, foreground=True, nothreads=True, direct_io=True, big_writes=True, max_write=1 << 17)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
