"""Who is at the other end of a Unix socket. (That long paths work is tested with those who connect.)"""

from __future__ import annotations

import os
import socket
import struct

from zstor_local.unix_socket import other_end


def test_a_process_meets_itself() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert other_end(ours) == (os.getpid(), os.geteuid())


def test_a_user_id_may_be_any_of_32_bits() -> None:
    """Directories of whole companies number their users so."""

    class Directory:
        def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes:
            return struct.pack("=iII", 1, 3_000_000_000, 0)

    assert other_end(Directory()) == (1, 3_000_000_000)
