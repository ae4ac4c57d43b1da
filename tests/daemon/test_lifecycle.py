"""Starting, stopping, dying: one daemon for a socket and a store, its owner alone connects, and what it acknowledged is there."""

from __future__ import annotations

import base64
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemon.client import Client, close, error_type, message, pipe
from tests.daemon.conftest import unharmed
from tests.daemon.process import Daemon, Ended
from zstor_local import limits

IN_USE = 75
AT_FAULT = 78

NOBODY = 65_534
# Another user, already in the socket's directory: whoever let it in, the daemon does not serve it.
AS_NOBODY = f"""
import os, socket, sys
os.chdir(sys.argv[1])
os.setgroups([]); os.setgid({NOBODY - 1}); os.setuid({NOBODY - 1})
peer = socket.socket(socket.AF_UNIX)
peer.settimeout(60)
peer.connect(sys.argv[2])
try:
    peer.sendall(b'{{"jsonrpc":"2.0","id":1,"method":"rpc.ping"}}\\n')
    while data := peer.recv(65536):
        sys.stdout.buffer.write(data)
except (BrokenPipeError, ConnectionResetError):
    sys.stdout.buffer.write(peer.recv(65536))  # what was said before it was closed
"""

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to be two users")


def as_nobody(directory: Path, name: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", AS_NOBODY, str(directory), name], capture_output=True, check=False)


# --- The socket ---


def test_the_socket_is_its_owners_alone(daemon: Daemon) -> None:
    place = Path(daemon.socket)
    assert stat.filemode(place.stat().st_mode) == "srw-------"
    assert stat.filemode(place.parent.stat().st_mode) == "drwx------"
    assert {path.name for path in place.parent.iterdir()} == {"zstor.sock", "zstor.sock.lock"}


@only_root
def test_another_user_cannot_connect(daemon: Daemon) -> None:
    tried = as_nobody(Path(daemon.socket).parent, "zstor.sock")
    assert (tried.returncode, tried.stdout) == (1, b"")
    assert b"PermissionError" in tried.stderr


@only_root
def test_another_user_who_could_is_refused_all_the_same(new_daemon: Daemon) -> None:
    new_daemon.start()
    with unharmed(new_daemon):
        Path(new_daemon.socket).chmod(0o666)
        Path(new_daemon.socket).parent.chmod(0o711)
        tried = as_nobody(Path(new_daemon.socket).parent, "zstor.sock")
        assert tried.returncode == 0, tried.stderr
        assert tried.stdout.count(b"\n") == 1
        assert b'"permission_denied"' in tried.stdout
        assert b"pong" not in tried.stdout


@pytest.mark.parametrize("mode", [0o755, 0o710])
def test_a_socket_directory_that_others_can_enter_is_refused(new_daemon: Daemon, mode: int) -> None:
    directory = Path(new_daemon.socket).parent
    directory.mkdir()
    directory.chmod(mode)
    ended = new_daemon.refuses_to_start()
    assert ended.status == AT_FAULT
    assert f"chmod 700 {directory}" in ended.said
    assert not new_daemon.store.exists()


@pytest.mark.parametrize("suffix", ["", ".new"])
def test_a_file_where_the_socket_is_to_be_stays(new_daemon: Daemon, suffix: str) -> None:
    file = Path(new_daemon.socket + suffix)
    file.parent.mkdir(mode=0o700)
    file.write_bytes(b"notes")
    ended = new_daemon.refuses_to_start()
    assert ended.status == AT_FAULT
    assert f"{file} is there already and no socket" in ended.said
    assert file.read_bytes() == b"notes"


def test_a_lock_that_cannot_be_had_is_named_as_people_know_it(new_daemon: Daemon) -> None:
    lock = Path(f"{new_daemon.socket}.lock")
    lock.parent.mkdir(mode=0o700)
    lock.mkdir()
    ended = new_daemon.refuses_to_start()
    assert ended.status == AT_FAULT
    assert f"{lock}: Is a directory" in ended.said


def test_a_socket_directory_that_is_a_link_is_refused(new_daemon: Daemon, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    Path(new_daemon.socket).parent.symlink_to(elsewhere)
    assert new_daemon.refuses_to_start().status == AT_FAULT
    assert not list(elsewhere.iterdir())


def test_a_socket_path_longer_than_the_kernel_takes(new_daemon: Daemon) -> None:
    directory = new_daemon.home / ("d" * 120)
    directory.mkdir(mode=0o700)
    new_daemon.socket = new_daemon.environment["ZSTOR_SOCKET"] = str(directory / ("s" * 80))
    new_daemon.start()
    with unharmed(new_daemon), new_daemon.client() as client:
        assert client.result("daemon.info")["socket"] == new_daemon.socket
    assert new_daemon.stop() == 0
    assert not os.path.lexists(new_daemon.socket)


def test_a_socket_name_longer_than_any_client_could_reach_is_refused(new_daemon: Daemon) -> None:
    new_daemon.environment["ZSTOR_SOCKET"] = str(new_daemon.home / "run" / ("s" * 81))
    ended = new_daemon.refuses_to_start()
    assert ended.status == AT_FAULT
    assert "at most 80 bytes" in ended.said
    assert not new_daemon.store.exists()


def test_without_a_runtime_directory_the_socket_is_in_the_state_directory(new_daemon: Daemon) -> None:
    del new_daemon.environment["XDG_RUNTIME_DIR"]
    new_daemon.socket = str(new_daemon.home / "state/zstor/run/zstor.sock")
    new_daemon.start()
    with unharmed(new_daemon):
        assert stat.S_IMODE(Path(new_daemon.socket).parent.stat().st_mode) == 0o700


# --- One daemon ---


def another(daemon: Daemon, **environment: str) -> Daemon:
    """A daemon for the same home, not started."""
    return Daemon(daemon.home, environment=daemon.environment | environment)


def test_a_second_daemon_on_the_socket_says_so_and_changes_nothing(daemon: Daemon) -> None:
    with another(daemon) as second:
        ended = second.refuses_to_start()
    hint = "use that one: `zstor status` tells how it is"
    assert (ended.status, ended.said) == (IN_USE, f"zstor: error: another daemon serves {daemon.socket}\n  hint: {hint}\n")


def test_a_second_daemon_on_the_store_says_so_and_changes_nothing(daemon: Daemon, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with another(daemon, ZSTOR_SOCKET=str(tmp_path / "other.sock")) as second:
        ended = second.refuses_to_start()
    assert ended.status == IN_USE
    assert ended.said.startswith(f"zstor: error: another daemon uses the store {daemon.store}\n  hint: stop that one first: ")
    assert not (tmp_path / "other.sock").exists()


def test_the_socket_of_a_dead_daemon_is_taken_over(new_daemon: Daemon) -> None:
    new_daemon.start()
    with new_daemon.client() as client:
        client.write("key", b"value")
    new_daemon.kill()
    assert Path(new_daemon.socket).is_socket()
    with pytest.raises(ConnectionRefusedError):
        new_daemon.client()
    new_daemon.start()
    with unharmed(new_daemon), new_daemon.client() as client:
        assert client.read("key") == b"value"


def test_a_stranger_who_forges_the_kernels_list_of_sockets_keeps_nobody_away(new_daemon: Daemon) -> None:
    """Anybody may have a socket whose name is of any bytes, a line of that list among them."""
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as stranger:
        new_daemon.socket = new_daemon.environment["ZSTOR_SOCKET"] = f"{short}/s"
        new_daemon.start()
        new_daemon.kill()
        stranger.bind(b"\0\xff\n0: 2 0 00010000 1 1 1 " + os.fsencode(new_daemon.socket))
        new_daemon.start()
        with new_daemon.client() as client:
            assert client.result("rpc.ping") == "pong"
        new_daemon.kill()


def test_a_socket_that_a_service_manager_has_is_left_to_it(new_daemon: Daemon) -> None:
    Path(new_daemon.socket).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as manager:
        manager.bind(new_daemon.socket)
        manager.listen()
        manager.setblocking(False)
        ended = new_daemon.refuses_to_start()
        assert (ended.status, "a service manager listens" in ended.said) == (75, True)
        with pytest.raises(BlockingIOError):
            manager.accept()  # nobody has connected, which would start the service
        assert Path(new_daemon.socket).is_socket()


@pytest.mark.parametrize(
    ("store", "sockets", "count"),
    [("a new store", "one socket", 20), ("a new store", "a socket each", 4), ("an old store", "a socket each", 4)],
)
def test_of_many_that_start_at_once_just_one_serves(new_daemon: Daemon, store: str, sockets: str, count: int) -> None:
    if store == "an old store":
        new_daemon.start()
        with new_daemon.client() as client:
            client.write("key", b"value")
        new_daemon.kill()
    with ExitStack() as running:
        racers = [running.enter_context(another(new_daemon)) for _ in range(count)]
        for number, racer in enumerate(racers):
            if sockets == "a socket each":
                racer.socket = racer.environment["ZSTOR_SOCKET"] = str(new_daemon.home / f"run/{number}.sock")
            racer.launch()
        with ThreadPoolExecutor(count) as pool:
            outcomes = list(pool.map(outcome, racers))
        assert [ended.status for ended in outcomes if ended is not None] == [IN_USE] * (count - 1), outcomes
        winner = racers[outcomes.index(None)]
        with unharmed(winner), winner.client() as client:
            assert client.result("daemon.status")["state"] == "ok"
            if store == "an old store":
                assert client.read("key") == b"value"


@pytest.mark.parametrize("method", ["object.stat", "object.read", "object.write", "object.list", "rpc.ping", "no.such"])
def test_a_half_close_ends_the_connection_after_the_reply(daemon: Daemon, client: Client, method: str) -> None:
    client.write("half-close", b"value")
    with daemon.client() as shell:  # as socat does it; a wait for more would last an hour
        params = {} if method in ("object.list", "rpc.ping") else {"key": "half-close"}
        shell.send(message(method, params | ({"value": "new"} if method == "object.write" else {})) + "\n")
        shell.socket.shutdown(socket.SHUT_WR)
        assert len(shell.rest()) == 1


def outcome(racer: Daemon) -> Ended | None:
    """None for the one that serves."""
    try:
        racer.wait_until_it_listens()
    except Ended as ended:
        return ended
    return None


def test_only_the_first_start_makes_a_store(new_daemon: Daemon) -> None:
    new_daemon.start()
    key = new_daemon.key_file.read_bytes()
    assert "created the master key" in new_daemon.said
    assert stat.S_IMODE(new_daemon.key_file.stat().st_mode) == 0o600
    assert new_daemon.stop() == 0
    assert not os.path.lexists(new_daemon.socket)
    new_daemon.start()
    assert "created" not in new_daemon.said
    assert new_daemon.key_file.read_bytes() == key


# --- Stopping ---


def a_running_stream(client: Client, opened: ExitStack, key: str) -> tuple[int, int]:
    """The id of a write_stream of which the daemon has read a megabyte, and the pipe's end for the rest."""
    reader, writer = pipe(opened)
    identity = client.request("object.write_stream", {"key": key, "fd": 0}, fds=[reader])
    close(reader)
    os.write(writer, bytes(limits.MIB))
    return identity, writer


def test_a_stop_waits_for_what_runs(new_daemon: Daemon) -> None:
    new_daemon.start()
    with ExitStack() as opened, new_daemon.client() as client, new_daemon.client() as idle:
        identity, writer = a_running_stream(client, opened, "late")
        new_daemon.signal(signal.SIGTERM)
        new_daemon.wait_until_it_says("stopping")
        assert idle.rest() == []  # it had nothing running
        client.request("rpc.ping")
        assert error_type(client.reply()) == "shutting_down"
        os.write(writer, b"the end")
        close(writer)
        reply = client.reply()
        assert (reply["id"], reply["result"]["metadata"]["size"]) == (identity, limits.MIB + 7)
        assert client.rest() == []
    assert new_daemon.wait() == 0
    new_daemon.start()
    with new_daemon.client() as client:
        assert client.read("late") == bytes(limits.MIB) + b"the end"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(new_daemon: Daemon, number: int) -> None:
    new_daemon.start()
    with ExitStack() as opened, new_daemon.client() as client:
        client.write("cut", b"old")
        a_running_stream(client, opened, "cut")
        new_daemon.signal(signal.SIGTERM)
        new_daemon.wait_until_it_says("stopping")
        new_daemon.signal(number)
        assert new_daemon.wait() == 0
        assert not os.path.lexists(new_daemon.socket)
    new_daemon.start()
    with unharmed(new_daemon), new_daemon.client() as client:
        assert client.read("cut") == b"old"


# --- Dying ---


def test_what_was_acknowledged_before_a_kill_is_there_after_it(new_daemon: Daemon) -> None:
    """Kills after some number of replies, with writes, overwrites and deletes of small and large objects under way.

    Of requests for one key that are under way together any may come last: nothing tells but what is there.
    """
    dice = random.Random(2)
    new_daemon.start()
    told: dict[str, bytes | None] = {}
    for round_number in range(15):
        asked: dict[str, set[bytes | None]] = {}
        with new_daemon.client() as client:
            waiting: dict[int, str] = {}
            for number in range(12):
                key = f"{number % 9}"
                size = dice.choice([0, 100, 5_000, 300_000, 1_500_000])
                value = None if dice.random() < 0.2 else dice.randbytes(size)
                method = "object.delete" if value is None else "object.write"
                params = {"key": key} if value is None else {"key": key, "value_b64": base64.b64encode(value).decode()}
                waiting[client.request(method, params)] = key
                asked.setdefault(key, set()).add(value)
            answered: set[str] = set()
            for _ in range(dice.randrange(12)):
                reply = client.reply()
                answered.add(waiting.pop(reply["id"]))
                assert "result" in reply or error_type(reply) == "not_found"
            new_daemon.kill()
        new_daemon.start()
        with new_daemon.client() as client:
            for key in {*told, *asked}:
                found = client.read(key) if key in client.stored() else None
                possible = asked.get(key, set()) | (set() if key in answered else {told.get(key)})
                assert found in possible, (round_number, key)
                told[key] = found
    with unharmed(new_daemon):
        pass


# --- A store at fault ---


def lose_the_key(daemon: Daemon) -> None:
    daemon.key_file.unlink()


def lose_the_store(daemon: Daemon) -> None:
    shutil.rmtree(daemon.store)


def lose_key_and_metastore(daemon: Daemon) -> None:
    daemon.key_file.unlink()
    for path in daemon.store.glob("*.sqlite*"):
        path.unlink()


def let_others_read_the_key(daemon: Daemon) -> None:
    daemon.key_file.chmod(0o644)


def let_the_group_write_the_key(daemon: Daemon) -> None:
    daemon.key_file.chmod(0o620)


def garble_the_key(daemon: Daemon) -> None:
    daemon.key_file.write_bytes(os.urandom(200))


def empty_the_key(daemon: Daemon) -> None:
    daemon.key_file.write_bytes(b"")


def change_a_letter_of_the_key(daemon: Daemon) -> None:
    text = daemon.key_file.read_text()
    place = len(text) * 2 // 3
    daemon.key_file.write_text(text[:place] + ("a" if text[place] != "a" else "b") + text[place + 1 :])


def make_the_key_a_fifo(daemon: Daemon) -> None:
    daemon.key_file.unlink()
    os.mkfifo(daemon.key_file, 0o600)


def take_the_key_of_another_store(daemon: Daemon) -> None:
    home = daemon.home / "another"
    with Daemon(home) as other:
        other.start()
        assert other.stop() == 0
        daemon.key_file.write_bytes(other.key_file.read_bytes())
    shutil.rmtree(home)


def garble_the_metastore(daemon: Daemon) -> None:
    (daemon.store / "metastore.sqlite").write_bytes(os.urandom(8_192))


def empty_the_metastore(daemon: Daemon) -> None:
    (daemon.store / "metastore.sqlite").write_bytes(b"")


def truncate_the_metastore(daemon: Daemon) -> None:
    os.truncate(daemon.store / "metastore.sqlite", 5_000)


def zero_the_pages_of_the_metastore(daemon: Daemon) -> None:
    path = daemon.store / "metastore.sqlite"
    data = path.read_bytes()
    path.write_bytes(data[:4_096] + bytes(len(data) - 4_096))


def write_an_unknown_setting(daemon: Daemon) -> None:
    daemon.config_file.write_text("# mine\nallowed_root = ['/']\n")


def write_no_toml(daemon: Daemon) -> None:
    daemon.config_file.write_text("store = \n")


@pytest.fixture(scope="module")
def stopped_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a daemon that stored something and was stopped."""
    home = tmp_path_factory.mktemp("stopped") / "home"
    with Daemon(home) as daemon:
        daemon.start()
        with daemon.client() as client:
            client.write("small", b"value")
            client.write("large", bytes(500_000))
        assert daemon.stop() == 0
    return home


FAULTS: dict[Callable[[Daemon], None], str] = {
    lose_the_key: "no master key",
    lose_the_store: "if only the metastore is lost: `zstor rebuild`",
    lose_key_and_metastore: "neither its key nor its metastore",
    let_others_read_the_key: "chmod 600",
    let_the_group_write_the_key: "chmod 600",
    garble_the_key: "is not a master key",
    empty_the_key: "is not a master key",
    change_a_letter_of_the_key: "master key",
    make_the_key_a_fifo: "is not a regular file",
    take_the_key_of_another_store: "belongs to store",
    garble_the_metastore: "metastore",
    empty_the_metastore: "metastore",
    truncate_the_metastore: "metastore",
    zero_the_pages_of_the_metastore: "metastore",
    write_an_unknown_setting: "config.toml:2: unknown key allowed_root; did you mean allowed_roots?",
    write_no_toml: "config.toml:1: ",
}


@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
def test_a_fault_of_key_store_or_configuration_is_told_and_nothing_is_touched(
    stopped_home: Path, tmp_path: Path, damage: Callable[[Daemon], None]
) -> None:
    home = tmp_path / "home"
    shutil.copytree(stopped_home, home)
    with Daemon(home) as daemon:
        damage(daemon)
        before = contents(home)
        ended = daemon.refuses_to_start()
        assert ended.status == AT_FAULT, ended.said
        assert FAULTS[damage] in ended.said
        assert "Traceback" not in ended.said
        assert contents(home) == before
        assert not os.path.lexists(daemon.socket)


def test_what_the_system_refuses_is_no_damage(stopped_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(stopped_home, home)
    with Daemon(home) as daemon:
        (daemon.store / "metastore.sqlite-wal").unlink(missing_ok=True)
        (daemon.store / "metastore.sqlite-wal").mkdir()
        ended = daemon.refuses_to_start()
        assert ended.status == AT_FAULT
        assert "the metastore cannot be opened: unable to open database file" in ended.said
        assert "rebuild" not in ended.said


def test_a_place_that_cannot_be_made_is_named(new_daemon: Daemon) -> None:
    new_daemon.config_file.parent.mkdir(parents=True)
    new_daemon.config_file.write_text("store = '/proc/nowhere'\n")
    ended = new_daemon.refuses_to_start()
    assert ended.status == AT_FAULT
    assert ended.said.startswith("zstor: error: /proc/nowhere: No such file or directory\n  hint: set `store`")


def contents(home: Path) -> dict[str, bytes]:
    """Every file that is data, and what is in it. What SQLite and locks need beside them does not count."""
    files = (path for path in home.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal", "lock")))
    return {str(path): path.read_bytes() for path in files if path.name != "index.sqlite"}


def test_a_root_that_is_not_there_is_told(new_daemon: Daemon) -> None:
    new_daemon.config_file.parent.mkdir(parents=True)
    new_daemon.config_file.write_text("allowed_roots = ['/nowhere/at/all']\n")
    ended = new_daemon.refuses_to_start()
    assert ended.status == AT_FAULT
    assert ended.said == (
        "zstor: error: allowed_roots: /nowhere/at/all cannot be opened: No such file or directory\n"
        "  hint: make or mount it, or take it out of `allowed_roots` in the configuration\n"
    )
    assert contents(new_daemon.home).keys() == {str(new_daemon.config_file)}


def test_an_authority_that_cannot_be_used_is_told_before_anything_is_made(new_daemon: Daemon) -> None:
    new_daemon.config_file.parent.mkdir(parents=True)
    settings = "kind = 'itsyouonline'\nurl = 'https://itsyou.online'\ncredentials_file = '/no/such/file'\n"
    for what, said in (("organization = 'a b'\n", "organization"), (settings, "/no/such/file cannot be read")):
        new_daemon.config_file.write_text(f"[authority]\n{what}")
        ended = new_daemon.refuses_to_start()
        assert ended.status == AT_FAULT
        assert said in ended.said
        assert "created" not in ended.said
        assert contents(new_daemon.home).keys() == {str(new_daemon.config_file)}


def test_a_stop_while_clients_wait_in_the_backlog(new_daemon: Daemon) -> None:
    new_daemon.start()
    with ExitStack() as opened:
        for _ in range(limits.CONNECTIONS + 50):
            peer = opened.enter_context(socket.socket(socket.AF_UNIX))
            peer.connect(new_daemon.socket)
        assert new_daemon.stop() == 0
