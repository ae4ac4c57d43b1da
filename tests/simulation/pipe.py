"""A pipe of the simulated world: what a client hands over to send or receive bytes. It never waits."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import Final

from tests.simulation.disk import failure

PIPE_DEVICE: Final = 13
_CAPACITY: Final = 65_536  # pipe(7)


@dataclass(slots=True)
class Pipe:
    """Bytes on their way, and how many descriptors lead to each end."""

    readers: int
    writers: int
    data: bytearray = field(default_factory=bytearray)

    def open(self, flags: int) -> None:
        if flags & os.O_ACCMODE == os.O_RDONLY:
            self.readers += 1
        else:
            self.writers += 1

    def close(self, flags: int) -> None:
        if flags & os.O_ACCMODE == os.O_RDONLY:
            self.readers -= 1
        else:
            self.writers -= 1

    def read(self, flags: int, length: int) -> bytes:
        """What is there, b"" at the end, EAGAIN if more may come."""
        if flags & os.O_ACCMODE == os.O_WRONLY:
            raise failure(errno.EBADF)
        if not self.data and self.writers:
            raise failure(errno.EAGAIN)
        taken = bytes(self.data[:length])
        del self.data[:length]
        return taken

    def write(self, flags: int, data: bytes) -> int:
        """As much as there is room for, EAGAIN if there is none, EPIPE if nobody reads."""
        if flags & os.O_ACCMODE == os.O_RDONLY:
            raise failure(errno.EBADF)
        if not self.readers:
            raise failure(errno.EPIPE)
        room = _CAPACITY - len(self.data)
        if not room:
            raise failure(errno.EAGAIN)
        self.data += data[:room]
        return min(room, len(data))
