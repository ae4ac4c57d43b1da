"""clients/python: one file against the real daemon, with real files and pipes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstor_client
from zstor_client import AlreadyExists, Client, InvalidParams, NotFound, TimedOut

from tests.clients.conftest import CLIENTS, LARGE, Place
from zstor_local import errors


@pytest.fixture
def client(place: Place) -> Iterator[Client]:
    with Client(zstor_client.default_socket(place.environment)) as connected:
        yield connected


@pytest.mark.parametrize("value", [b"", b"some bytes", os.urandom(3_000_000)], ids=["nothing", "small", "large"])
def test_bytes_go_in_and_come_back(client: Client, value: bytes) -> None:
    assert client.put("bytes", value)["size"] == len(value)
    assert client.get("bytes") == value
    assert client.get("bytes", offset=2, length=3) == value[2:5]


def test_files_go_by_their_paths_and_as_open_files(client: Client, place: Place) -> None:
    client.put("by-path", place.files / "large")
    assert client.get("by-path", str(place.files / "copy"))["size"] == len(LARGE)
    assert (place.files / "copy").read_bytes() == LARGE
    with open(place.files / "large", "rb") as file:
        file.read(10)  # reads ahead: the object begins where the reader is
        client.put("from-the-tenth", file)
    with open(place.files / "both", "wb") as file:
        file.write(b"before ")
        client.get("from-the-tenth", file)
    assert (place.files / "both").read_bytes() == b"before " + LARGE[10:]


def test_a_file_is_replaced_whole_or_not_at_all(client: Client, place: Place) -> None:
    (place.files / "kept").write_text("old")
    with pytest.raises(NotFound):
        client.get("no such key", place.files / "kept")
    assert (place.files / "kept").read_text() == "old"
    assert not list(place.files.glob("*.part"))


def test_pipes_and_sockets_go_over_as_they_are(client: Client) -> None:
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(LARGE[:100_000])

    feeding = threading.Thread(target=feed)
    feeding.start()
    assert client.put("pipe", reader)["size"] == 100_000
    feeding.join()
    os.close(reader)
    ours, theirs = socket.socketpair()
    ours.sendall(b"through a socket")
    ours.shutdown(socket.SHUT_WR)
    client.put("socket", theirs)
    client.get("socket", theirs)
    theirs.close()
    assert ours.recv(100) == b"through a socket"
    ours.close()


def test_errors_are_of_the_class_that_their_type_names(client: Client) -> None:
    with pytest.raises(NotFound) as found:
        client.call("object.stat", key="no such key")
    assert (found.value.type, found.value.code, found.value.retryable) == ("not_found", 100, False)
    client.put("there", b"")
    with pytest.raises(AlreadyExists):
        client.put("there", b"", exclusive=True)
    with pytest.raises(InvalidParams, match="no parameter"):
        client.call("object.stat", kei="there")
    with pytest.raises(TimedOut):
        client.call("object.changes", since=client.call("object.changes")["cursor"], wait_seconds=60, timeout=0.01)
    assert client.call("rpc.ping") == "pong"


def test_every_error_of_the_daemon_has_a_class() -> None:
    def types(base: type[errors.ZstorError]) -> Iterator[str]:
        for known in base.__subclasses__():
            if "type" in vars(known) and known.__module__ == "zstor_local.errors":
                yield known.type
            yield from types(known)

    assert set(types(errors.ZstorError)) == set(zstor_client._CLASSES)
    with pytest.raises(AttributeError):
        _ = zstor_client.NoSuchError


def test_lists_and_walks_go_on_over_all_pages(client: Client) -> None:
    for number in range(7):
        client.put(f"page/{number}", b"", **({"previous_key": f"page/{number - 1}"} if number else {}))
    keys = [f"page/{number}" for number in range(7)]
    assert [item["key"] for item in client.list("page/", limit=3)] == keys
    assert [item["key"] for item in client.walk("page/0", limit=2)] == keys
    assert [item["key"] for item in client.walk("page/6", direction="backward")] == keys[::-1]


def test_progress_is_told(client: Client, place: Place) -> None:
    told: list[tuple[float, float | None]] = []
    with open(place.files / "large", "rb") as file:
        client.call("object.write_file", fds=[file], key="told", fd=0, progress=lambda done, total, message: told.append((done, total)))
    assert told
    assert all(total == len(LARGE) for _, total in told)


def test_where_no_daemon_is_it_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="zstor daemon"):
        Client(str(tmp_path / "nobody"))


def test_a_socket_path_of_any_length_will_do(place: Place, tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100)
    directory.symlink_to(Path(place.daemon.socket).parent)
    with Client(str(directory / "zstor.sock")) as connected:
        assert connected.call("rpc.ping") == "pong"


def test_the_socket_is_found_as_the_command_finds_it() -> None:
    assert zstor_client.default_socket({"ZSTOR_SOCKET": "/s", "XDG_RUNTIME_DIR": "/r"}) == "/s"
    assert zstor_client.default_socket({"XDG_RUNTIME_DIR": "/r"}) == "/r/zstor/zstor.sock"
    assert zstor_client.default_socket({"XDG_STATE_HOME": "/st"}) == "/st/zstor/run/zstor.sock"


INTERRUPTED = """
import os, sys
from zstor_client import Client
reader, writer = os.pipe()
with Client() as client:
    print("running", flush=True)
    client.put("interrupted", reader)
"""


def test_ctrl_c_leaves_nothing_behind(place: Place, client: Client) -> None:
    environment = place.environment | {"PYTHONPATH": str(CLIENTS / "python")}
    running = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "running\n"
    running.send_signal(signal.SIGINT)
    assert running.wait(60) != 0
    running.stdout.close()
    with pytest.raises(NotFound):
        client.call("object.stat", key="interrupted")


def test_it_needs_nothing_but_the_standard_library_and_300_lines() -> None:
    text = (CLIENTS / "python" / "zstor_client.py").read_text()
    assert len(text.splitlines()) <= 300
    imported = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= sys.stdlib_module_names


def test_it_is_installed_as_a_wheel(place: Place, tmp_path: Path) -> None:
    folder = shutil.copytree(CLIENTS / "python", tmp_path / "folder", ignore=shutil.ignore_patterns("__pycache__"))
    offline = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    build = [sys.executable, "-m", "pip", "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(tmp_path), str(folder)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("zstor_client-*-py3-none-any.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "fresh")], check=True)
    subprocess.run([str(tmp_path / "fresh/bin/pip"), "install", *offline, str(wheel)], check=True)
    ping = "import zstor_client; print(zstor_client.Client().call('rpc.ping'))"
    command = [str(tmp_path / "fresh/bin/python"), "-I", "-c", ping]
    assert subprocess.run(command, env=place.environment, check=True, stdout=subprocess.PIPE, text=True).stdout == "pong\n"
