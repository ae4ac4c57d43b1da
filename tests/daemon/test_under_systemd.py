"""What a service manager and the daemon say to each other: sockets handed down, states told, life proved, a reload."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar, TypeVarTuple

import outcome
import pytest
import trio
import trio.testing

from tests.daemon.client import SAFETY_NET_SECONDS
from tests.daemon.process import Daemon
from tests.rpc.conftest import CountingRandomness
from zstor_local.rpc.call import Call
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.server import Server
from zstor_local.sd_notify import Notifier
from zstor_local.watchdog import keep_telling

T = TypeVar("T")
Args = TypeVarTuple("Args")

# Opens sockets as a manager does, and becomes the daemon.
ACTIVATE = """
import os, socket, sys
names, kind, path = sys.argv[1], sys.argv[2], sys.argv[3]
os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
for number, name in enumerate(names.split(":")):
    listener = socket.socket(socket.AF_UNIX, getattr(socket, kind))
    listener.bind(path + ("" if name == "rpc" or ":" not in names else "." + name))
    if kind == "SOCK_STREAM":
        listener.listen()
    if listener.fileno() == 3 + number:
        os.set_inheritable(listener.detach(), True)
    else:
        os.dup2(listener.fileno(), 3 + number)
count = str(names.count(":") + 1)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=count, LISTEN_FDNAMES=names)
os.execvp(sys.argv[4], sys.argv[4:])
"""

ACTIVATE_ABSTRACT = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(b"\\0zstor-test-%d" % os.getpid())
listener.listen()
if listener.fileno() == 3:
    os.set_inheritable(listener.detach(), True)
else:
    os.dup2(listener.fileno(), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="rpc")
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(SAFETY_NET_SECONDS)

    def close(self) -> None:
        self._socket.close()

    def hear(self) -> list[str]:
        return self._socket.recv(4096).decode().splitlines()

    def hear_until(self, line: str) -> list[str]:
        """The message that has the line; those before it are let go."""
        while line not in (message := self.hear()):
            pass
        return message


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(str(tmp_path / "notify"))
    yield found
    found.close()


def activated(daemon: Daemon, names: str = "rpc", kind: str = "SOCK_STREAM") -> None:
    daemon.wrapper = (sys.executable, "-c", ACTIVATE, names, kind, daemon.socket)


# --- Sockets handed down ---


def test_a_socket_that_was_handed_down_is_served_and_stays(new_daemon: Daemon) -> None:
    activated(new_daemon)
    new_daemon.start()
    inode = Path(new_daemon.socket).stat().st_ino
    with new_daemon.client() as client:
        assert client.result("daemon.info")["socket"] == new_daemon.socket
    assert new_daemon.stop() == 0
    assert Path(new_daemon.socket).stat().st_ino == inode


@pytest.mark.parametrize("names", ["zstor.socket", "other:rpc", "rpc:other"])
def test_it_is_the_one_named_rpc_or_the_only_one(new_daemon: Daemon, names: str) -> None:
    activated(new_daemon, names)
    new_daemon.start()
    with new_daemon.client() as client:
        assert client.result("rpc.ping") == "pong"


@pytest.mark.parametrize(("names", "kind", "said"), [("a:b", "SOCK_STREAM", "none or several"), ("rpc", "SOCK_DGRAM", "no listening")])
def test_anything_else_that_is_handed_down_is_refused(new_daemon: Daemon, names: str, kind: str, said: str) -> None:
    activated(new_daemon, names, kind)
    ended = new_daemon.refuses_to_start()
    assert ended.status == 78
    assert said in ended.said


def test_a_socket_without_a_path_is_refused(new_daemon: Daemon) -> None:
    """ListenStream=@name: nobody could keep other users from it."""
    new_daemon.wrapper = (sys.executable, "-c", ACTIVATE_ABSTRACT)
    ended = new_daemon.refuses_to_start()
    assert ended.status == 78
    assert "ListenStream= with a path" in ended.said


def test_what_was_handed_to_another_process_is_not_ours(new_daemon: Daemon) -> None:
    new_daemon.environment |= {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "rpc"}
    new_daemon.start()
    with new_daemon.client() as client:
        assert client.result("rpc.ping") == "pong"


def test_beside_a_manager_that_listens_no_daemon_starts_by_hand(new_daemon: Daemon) -> None:
    Path(new_daemon.socket).parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(new_daemon.socket)
        listener.listen()
        ended = new_daemon.refuses_to_start()
    assert ended.status == 75
    assert "systemctl --user start zstor.service" in ended.said


def test_one_that_listens_under_the_same_name_elsewhere_keeps_nobody_away(new_daemon: Daemon) -> None:
    """As in another mount namespace: nobody here can reach it."""
    Path(new_daemon.socket).parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(new_daemon.socket)
        listener.listen()
        Path(new_daemon.socket).unlink()
        new_daemon.start()
        with new_daemon.client() as client:
            assert client.result("rpc.ping") == "pong"


def test_a_daemon_started_by_hand_keeps_one_that_is_activated_away(new_daemon: Daemon) -> None:
    new_daemon.start()
    with Daemon(new_daemon.home, environment=new_daemon.environment) as second:
        Path(new_daemon.socket).rename(new_daemon.socket + ".moved")
        activated(second)
        ended = second.refuses_to_start()
    assert (ended.status, "another daemon serves" in ended.said) == (75, True)


# --- What is told ---


def test_a_life_is_told_from_ready_to_stopping(new_daemon: Daemon, manager: Manager, tmp_path: Path) -> None:
    new_daemon.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
    new_daemon.launch()
    assert manager.hear()[0].startswith("EXTEND_TIMEOUT_USEC=")
    assert manager.hear() == ["READY=1", "STATUS=store ok, 6 of 6 shards"]
    with new_daemon.client() as client:  # READY means that clients are served
        assert client.result("rpc.ping") == "pong"
    new_daemon.signal(signal.SIGTERM)
    assert "STATUS=stopping: running calls end first" in manager.hear_until("STOPPING=1")
    assert manager.hear()[0].startswith("EXTEND_TIMEOUT_USEC=")
    new_daemon.wait_until_it_listens()
    assert new_daemon.wait() == 0


def test_the_watchdog_is_fed(new_daemon: Daemon, manager: Manager, tmp_path: Path) -> None:
    new_daemon.environment |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
    new_daemon.start()
    for _ in range(3):
        manager.hear_until("WATCHDOG=1")


def test_a_reload_takes_the_new_roots_and_says_what_needs_a_restart(new_daemon: Daemon, manager: Manager, tmp_path: Path) -> None:
    new_daemon.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
    new_daemon.start()
    manager.hear_until("READY=1")
    (tmp_path / "allowed").mkdir()
    (tmp_path / "file").write_text("text")
    new_daemon.config_file.write_text(f'allowed_roots = ["{tmp_path}/allowed"]\nwrite_quorum = 6\ndefault_namespace = "other"\n')
    with new_daemon.client() as client:
        client.result("object.write_file", key="k", path=str(tmp_path / "file"))
        new_daemon.signal(signal.SIGHUP)
        assert manager.hear_until("RELOADING=1")[1].startswith("MONOTONIC_USEC=")
        assert "READY=1" in manager.hear()
        assert client.refusal("object.write_file", key="k", path=str(tmp_path / "file")) == "path_refused"
        new_daemon.wait_until_it_says("for write_quorum a restart is needed")
        assert client.refusal("object.stat", key="k") == "not_found"


@pytest.mark.parametrize("text", ["no such key = 1", "allowed_roots = ['/no/such/directory']"])
def test_a_faulty_configuration_is_not_taken(new_daemon: Daemon, text: str) -> None:
    new_daemon.start()
    new_daemon.config_file.write_text(text)
    new_daemon.signal(signal.SIGHUP)
    new_daemon.wait_until_it_says("is not taken")
    with new_daemon.client() as client:
        assert client.result("rpc.ping") == "pong"


def test_the_journal_gets_the_level_in_front(new_daemon: Daemon) -> None:
    new_daemon.environment["JOURNAL_STREAM"] = "8:1"
    new_daemon.start()
    new_daemon.config_file.write_text("no such key = 1")
    new_daemon.signal(signal.SIGHUP)
    new_daemon.wait_until_it_says("<3>zstor.daemon: the configuration was read again and is not taken")


# --- The parts ---


def test_an_abstract_address_is_told_too(tmp_path: Path) -> None:
    name = f"@zstor-test-{os.getpid()}"
    manager = Manager(name)
    Notifier(name).ready("well")
    assert manager.hear() == ["READY=1", "STATUS=well"]
    manager.close()


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    for notifier in (Notifier(None, 5), Notifier(str(tmp_path / "nobody"), 5)):
        notifier.ready("well")
        notifier.alive()
    assert not Notifier(None, 5).heard
    assert Notifier(None, 5).watchdog_seconds is None


def test_a_status_is_told_when_it_changes(tmp_path: Path, manager: Manager) -> None:
    notifier = Notifier(str(tmp_path / "notify"))
    for text in ("well", "well", "ill"):
        notifier.status(text)
    assert [manager.hear(), manager.hear()] == [["STATUS=well"], ["STATUS=ill"]]


def test_the_watchdog_of_another_process_is_not_fed() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}
    assert Notifier.from_environment(environment).watchdog_seconds is None
    assert environment == {}
    own = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_environment(own).watchdog_seconds == 2


class InPlace:
    """Threads that are none: the mock clock cannot see real ones at work."""

    workers = 1

    async def run(self, work: Callable[[*Args], T], *args: *Args) -> T:
        await trio.lowlevel.checkpoint()
        return work(*args)

    async def run_commit(self, work: Callable[[*Args], T], *args: *Args) -> T:
        return await self.run(work, *args)

    def start_commit(self, work: Callable[[], T], done: Callable[[outcome.Outcome[T]], object]) -> None:
        done(outcome.capture(work))


async def test_no_life_is_told_while_calls_are_not_answered(
    tmp_path: Path, manager: Manager, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry()
    stuck = trio.Event()

    @registry.method("rpc.ping")
    async def ping(call: Call, /) -> str:
        """An answer, sometimes."""
        await stuck.wait()
        return "pong"

    told: list[str] = []
    notifier = Notifier(str(tmp_path / "notify"), 2)
    monkeypatch.setattr(notifier, "alive", lambda: told.append("alive"))
    server = Server(registry, CountingRandomness())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_telling, notifier, server, InPlace(), lambda: "well")
        with trio.move_on_after(30):
            await trio.sleep_forever()
        assert told == []
        stuck.set()
        with trio.move_on_after(10):
            await trio.sleep_forever()
        assert len(told) >= 5
        nursery.cancel_scope.cancel()


async def test_without_a_descriptor_to_ask_with_there_is_no_proof_of_life_and_no_end(
    tmp_path: Path, manager: Manager, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pair() -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    told: list[str] = []
    notifier = Notifier(str(tmp_path / "notify"), 2)
    monkeypatch.setattr(notifier, "alive", lambda: told.append("alive"))
    server = Server(Registry(), CountingRandomness())
    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as patched:
            patched.setattr(trio.socket, "socketpair", no_pair)
            nursery.start_soon(keep_telling, notifier, server, InPlace(), lambda: "well")
            with trio.move_on_after(30):
                await trio.sleep_forever()
        assert told == []
        with trio.move_on_after(10):
            await trio.sleep_forever()
        assert len(told) >= 5
        nursery.cancel_scope.cancel()


async def test_a_server_that_stops_hangs_up_on_the_proof_of_life_and_nothing_breaks(
    tmp_path: Path, manager: Manager, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server(Registry(), CountingRandomness())
    server.stop()
    with trio.move_on_after(30) as told:
        await keep_telling(Notifier(str(tmp_path / "notify"), 2), server, InPlace(), lambda: "well")
    assert told.cancelled_caught
