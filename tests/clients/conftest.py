"""One daemon for the clients of each file, with a directory of real files."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon.client import SAFETY_NET_SECONDS
from tests.daemon.process import Daemon

CLIENTS = Path(__file__).parents[2] / "clients"
sys.path.insert(0, str(CLIENTS / "python"))
LARGE = bytes(range(251)) * 17_000  # five messages of a stream: one more than the daemon sends ahead


@dataclass(frozen=True)
class Place:
    """A daemon that listens, and a directory to work in."""

    daemon: Daemon
    files: Path

    @property
    def environment(self) -> dict[str, str]:
        return self.daemon.environment | {"CLIENTS": str(CLIENTS), "ZSTOR_TIMEOUT": "60"}

    @contextmanager
    def no_descriptor_is_left(self) -> Iterator[None]:
        """The daemon holds in the end what it held before; it may take a moment to see that clients are gone."""
        before = self.daemon.descriptors()
        yield
        end = time.monotonic() + SAFETY_NET_SECONDS
        while (left := self.daemon.descriptors() - before) and time.monotonic() < end:
            pass
        assert not left


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("client")
    files = base / "files"
    files.mkdir()
    (files / "large").write_bytes(LARGE)
    with Daemon(base / "home") as daemon:
        yield Place(daemon.start(), files)
