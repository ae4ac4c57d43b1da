"""Fixtures that several directories share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from zstor_local.cli.private_daemon import PrivateDaemon

# Hundreds of processes are started: where nothing may be kept, each would compile the whole program again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.pop("PYTHONUNBUFFERED", None)  # with it no output is left for a command's end
sys.dont_write_bytecode = False


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for disks, networks and what takes seconds by its nature."""
    return len(os.sched_getaffinity(0)) + 1


# Whole files are shared out to the cores: the long ones go first, or one core has the last of them for itself while the others wait.
LONG = [
    "tests/test_documents.py",
    "tests/simulation/test_crash.py",
    "tests/simulation/test_losses.py",
    "tests/simulation/test_server_crash.py",
    "tests/simulation/test_histories.py",
    "tests/clients/test_shell_trouble.py",
    "tests/daemon/test_lifecycle.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(file) if (file := item.nodeid.partition("::")[0]) in LONG else len(LONG))


# A machine that does other things meanwhile fails no right test: nothing here is timed.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches the tests and the processes that they start also where a shell ignores it for them, as in `make test &`.

    A hangup that `nohup make test` ignores reaches the processes, and the tests go on: what handles a signal stays behind at an exec.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hangup = signal.getsignal(signal.SIGHUP)
    if hangup is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hangup)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """That of most people, whoever runs the tests: the daemon's own, set by a command that ran in this process, is no other test's."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def private_daemon(tmp_path: Path) -> Iterator[PrivateDaemon]:
    """A daemon process with an empty home, not yet started."""
    home = tmp_path / "home"
    home.mkdir()
    with PrivateDaemon(home) as daemon:
        yield daemon


@pytest.fixture
def daemon(private_daemon: PrivateDaemon) -> PrivateDaemon:
    """A daemon process that listens, on a new store."""
    private_daemon.start()
    return private_daemon


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateDaemon]:
    """One for the tests of a file that leave it as it was."""
    home = tmp_path_factory.mktemp("shared") / "home"
    home.mkdir()
    with PrivateDaemon(home) as daemon:
        daemon.start()
        yield daemon
