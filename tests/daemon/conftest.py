"""One daemon for each file of tests, watched in every test, and daemons of their own for tests that end them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import pytest

from tests.daemon.client import SAFETY_NET_SECONDS, Client
from tests.daemon.process import Daemon

BYSTANDER = b"what a client that nobody bothers has stored" * 10_000  # large: its shares are files


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon") / "home") as daemon:
        yield daemon.start()


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon that listens. After the test it must be as it was before."""
    with unharmed(shared_daemon):
        yield shared_daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    """A connection to that daemon."""
    with daemon.client() as connected:
        yield connected


@pytest.fixture
def new_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with an empty home, not started; the test may do with it what it likes."""
    with Daemon(tmp_path / "home") as daemon:
        yield daemon


@contextmanager
def unharmed(daemon: Daemon) -> Iterator[None]:
    """Whatever happens in the block, afterwards the same process serves, a client connected all along has noticed nothing, no
    descriptor is open that was not open before, and no file lies about."""
    with daemon.client() as bystander:
        first = daemon.at_rest is None
        if first:
            bystander.write("bystander", BYSTANDER)
        before = settle(daemon, bystander)
        if first:
            daemon.at_rest = before.descriptors
        yield
        assert bystander.silent
        assert bystander.result("rpc.ping") == "pong"
        assert bystander.result("daemon.info")["pid"] == daemon.pid == before.pid
        assert bystander.read("bystander") == BYSTANDER
        assert settle(daemon, bystander) == Traces(daemon.pid, daemon.at_rest or before.descriptors)


@dataclass(frozen=True)
class Traces:
    """What a daemon has about it. At rest it has no strange files, no shares of no object, and nothing left to free."""

    pid: int
    descriptors: Counter[str]
    strange_files: list[str] = field(default_factory=list)
    orphans: set[str] = field(default_factory=set)
    to_free: int = 0


def settle(daemon: Daemon, client: Client) -> Traces:
    """Look, as often as it takes, until the daemon has put everything away (or, at the end of the safety net, has not)."""
    deadline = monotonic() + SAFETY_NET_SECONDS
    while True:
        to_free = client.result("daemon.status")["queues"]["collect"]
        versions = {item["metadata"]["version"] for item in client.result("object.list")["items"]}
        traces = Traces(daemon.pid, daemon.descriptors(), daemon.strange_files(), daemon.share_versions() - versions, to_free)
        if traces == Traces(daemon.pid, daemon.at_rest or traces.descriptors) or monotonic() > deadline:
            return traces
