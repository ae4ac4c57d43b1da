"""Clients that ask and do not read: they hold neither memory nor the server's end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.shardserver.inside import Inside
from tests.shardserver.server import LIMIT, Issuer, serving
from zstor_local.shardserver import connections
from zstor_local.system import real_runtime

ASK = b"GET /health HTTP/1.1\r\nHost: shard\r\n\r\n"
A_MOMENT = 1.0  # after which a server that takes nothing more is taken to wait


@contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        yield client


def ask_on_and_on(client: socket.socket, seconds: float) -> None:
    """Without a token, and without reading an answer. TimeoutError once the server has taken nothing for so long."""
    client.settimeout(seconds)
    while True:
        client.send(ASK * 1_000)


def still_accepts(path: str) -> bool:
    try:
        with connected(path):
            return True
    except ConnectionRefusedError:
        return False


def test_a_second_signal_ends_it_whoever_reads_nothing(tmp_path: Path) -> None:
    with serving(tmp_path / "data", Issuer()) as server:
        assert server.socket is not None
        with connected(server.socket) as client:
            with pytest.raises(TimeoutError):
                ask_on_and_on(client, A_MOMENT)
            server.signal(signal.SIGTERM)
            while still_accepts(server.socket):
                pass
            server.signal(signal.SIGTERM)
            assert server.process.wait(LIMIT) == 0


def test_who_reads_nothing_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SLOW_SECONDS", 0.1)
    server = Inside(real_runtime(), tmp_path / "data", Issuer())
    try:
        with connected(server.url.removeprefix("http+unix://")) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
            ask_on_and_on(client, LIMIT)
    finally:
        server.close()
