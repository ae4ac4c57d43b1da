"""Whose a Unix socket is, and who is at its other end. (That long paths work is tested with those who connect.)"""

from __future__ import annotations

import os
import socket
import stat
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest

from zstor_local.listener import listening
from zstor_local.shardserver import serve
from zstor_local.system import RealFiles
from zstor_local.unix_socket import other_end


def test_a_process_meets_itself() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert other_end(ours) == (os.getpid(), os.geteuid())


@pytest.mark.parametrize("server", ["daemon", "shard server"])
def test_a_socket_is_its_users_alone_and_the_process_keeps_its_umask(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that another thread makes meanwhile is to be one that can be entered."""
    made = tmp_path / "made meanwhile"
    bind = socket.socket.bind

    def watched(self: socket.socket, address: str) -> None:
        made.mkdir(0o700)
        bind(self, address)
        assert stat.filemode(os.stat(address).st_mode) == "srw-------"

    monkeypatch.setattr(socket.socket, "bind", watched)
    with ExitStack() as opened:
        opened.callback(os.umask, os.umask(0o022))
        if server == "daemon":
            opened.enter_context(listening(RealFiles(), str(tmp_path / "run/s")))
        else:
            opened.enter_context(serve._bind(f"unix:{tmp_path}/s"))
    assert stat.filemode(made.stat().st_mode) == "drwx------"


def test_a_user_id_may_be_any_of_32_bits() -> None:
    """Directories of whole companies number their users so."""

    class Directory:
        def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes:
            return struct.pack("=iII", 1, 3_000_000_000, 0)

    assert other_end(Directory()) == (1, 3_000_000_000)
