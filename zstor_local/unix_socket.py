"""Unix sockets from either end: names that fit into an address, however long the path is; whose they are; who is at the other end."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

_ADDRESS_BYTES: Final = 107  # sockaddr_un, less its NUL
_UNMAPPED_UID: Final = 65534  # user_namespaces(7)
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid


class Connected(Protocol):
    """A socket of the standard library, or of trio."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


@contextmanager
def connectable(path: str) -> Iterator[str]:
    """What to connect to while the block runs, for the socket at a path. OSError where a long path's directory cannot be opened."""
    if len(os.fsencode(path)) <= _ADDRESS_BYTES:
        yield path
        return
    directory, name = os.path.split(path)
    opened = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{opened}/{name}"
    finally:
        os.close(opened)


def bind_own(listener: socket.socket, path: str) -> None:
    """Bind a Unix socket to a path, 0600 from its first moment. OSError.

    The mode is the socket's own, and no umask: that is the whole process's, and a directory that another thread made meanwhile could
    not be entered any more.
    """
    os.fchmod(listener.fileno(), 0o600)
    listener.bind(path)


def other_end(connected: Connected) -> tuple[int, int]:
    """Process id and user id at the other end, as they were when it connected or began to listen: SO_PEERCRED of unix(7)."""
    pid, uid, _ = _CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def is_user(uid: int, wanted: int) -> bool:
    """Whether another process is of that user. All who are outside our user namespace show as one, which proves nothing."""
    return uid == wanted != _UNMAPPED_UID
