"""clients/python where things go wrong: daemons that die or stop, descriptors that are closed, threads, text files, odd places."""

from __future__ import annotations

import ast
import copy
import gzip
import http.client
import io
import os
import queue
import signal
import socket
import stat
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstor_client
from zstor_client import Client, CorruptRecord, NotFound, ParseError, ZstorError

from tests.clients.conftest import CLIENTS, LARGE, Place
from tests.daemon.process import Daemon
from tests.daemon.test_damaged_rows import spoil

BOUNDARIES = [1, 512 * 1024, 512 * 1024 + 1, 1024 * 1024 - 1, 1024 * 1024, 1024 * 1024 + 1]


@pytest.fixture
def client(place: Place) -> Iterator[Client]:
    with Client(place.daemon.socket) as connected:
        connected.call("rpc.ping")  # the daemon has accepted it: from here on it counts among the descriptors held
        yield connected


def test_a_daemon_of_a_user_with_a_large_id_is_ones_own(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = struct.pack("=iII", 1, 3_000_000_000, 0)
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: credentials)
    monkeypatch.setattr(os, "getuid", lambda: 3_000_000_000)
    with Client(place.daemon.socket) as connected:
        assert connected.call("rpc.ping") == "pong"


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """One that a test may kill."""
    with Daemon(tmp_path / "home") as daemon:
        yield daemon.start()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- The daemon ---


def test_a_daemon_that_is_killed_in_a_call_ends_it(own_daemon: Daemon) -> None:
    with Client(own_daemon.socket) as client:
        reader, writer = os.pipe()
        outcome: queue.Queue[BaseException] = queue.Queue()

        def store() -> None:
            try:
                client.put("endless", reader)
            except ConnectionError as error:
                outcome.put(error)

        running = threading.Thread(target=store)
        running.start()
        os.write(writer, b"x" * 60_000)
        os.write(writer, b"x" * 60_000)  # it fits when the daemon has begun to read
        own_daemon.kill()
        running.join()
        assert "closed the connection" in str(outcome.get_nowait())
        os.close(reader)
        os.close(writer)
        with pytest.raises(ConnectionError, match="make a new client"):
            client.call("rpc.ping")
    own_daemon.start()
    with Client(own_daemon.socket) as client, pytest.raises(NotFound):
        client.call("object.stat", key="endless")


def test_a_list_gives_what_lies_behind_records_that_do_not_open_then_says_so(own_daemon: Daemon) -> None:
    with Client(own_daemon.socket) as client:
        for number in range(6):
            client.put(f"key {number}", b"")
    own_daemon.stop()
    for number in (1, 2, 5):  # no log has a copy of that sequence
        assert spoil(own_daemon, f"name = cast('key {number}' as blob)", "sequence = sequence + 1000") == 1
    with Client(own_daemon.start().socket) as client:
        for limit in (1, 2, 1_000):
            found: list[str] = []
            with pytest.raises(CorruptRecord) as caught:
                found.extend(item["key"] for item in client.list(limit=limit))
            assert (found, caught.value.data["key"]) == ([f"key {number}" for number in (0, 3, 4)], "key 5")


def test_a_list_ends_with_an_error_that_names_no_way_on(client: Client) -> None:
    with pytest.raises(NotFound):
        next(client.list(namespace="none"))


@pytest.mark.parametrize("size", [10, 500_000], ids=["no answer", "not even read"])
def test_a_stopped_daemon_holds_no_call_that_has_a_timeout(own_daemon: Daemon, size: int) -> None:
    client = Client(own_daemon.socket, grace=0.2)
    assert client.call("rpc.ping", timeout=60) == "pong"
    own_daemon.signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError, match=r"object\.write"):
        client.call("object.write", key="stopped", value="x" * size, timeout=0.1)
    own_daemon.signal(signal.SIGCONT)
    with pytest.raises(ConnectionError, match="make a new client"):
        client.call("rpc.ping")


def test_an_answer_that_comes_in_crumbs_is_put_together(tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "crumbs"))
    server.listen()
    reply = '{"jsonrpc": "2.0", "result": "grüße", "id": 1}\n'.encode()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            for byte in reply[:-3]:
                connection.sendall(bytes([byte]))
            connection.sendall(reply[-3:] + reply.replace(b'"id": 1', b'"id": 2')[:5])
            connection.sendall(reply.replace(b'"id": 1', b'"id": 2')[5:])
            connection.recv(1000)

    serving = threading.Thread(target=serve)
    serving.start()
    with Client(tmp_path / "crumbs") as client:
        assert [client.call("x"), client.call("x")] == ["grüße", "grüße"]
    serving.join()
    server.close()


def test_the_largest_values_fit_into_a_message(client: Client) -> None:
    value = os.urandom(6_000_000).hex()[: 8 * 1024 * 1024]
    client.call("object.write", key="8 MiB", value=value)
    assert client.call("object.read", key="8 MiB", encoding="utf-8")["value"] == value
    with pytest.raises(ZstorError) as refused:
        client.call("object.write", key="more", value="x" * (17 * 1024 * 1024))
    assert refused.value.type == "too_large"
    assert client.call("rpc.ping") == "pong"


# --- Values and keys ---


@pytest.mark.parametrize("size", BOUNDARIES)
def test_values_of_any_size_come_back_as_they_were(client: Client, size: int) -> None:
    value = LARGE[:size]
    client.put("boundary", value)
    assert client.get("boundary") == value
    assert client.get("boundary", offset=size - 1) == value[-1:]


@pytest.mark.parametrize("key", ["Grüße/日本/🗝", "a b\n'\"\\$(x)", "-rf", "\x01\x7f", "k" * 1_024])
def test_keys_are_any_text(client: Client, key: str) -> None:
    client.put(key, key.encode())
    assert client.get(key) == key.encode()
    assert key in {item["key"] for item in client.list(key[:1])}


def test_a_key_that_is_no_text_is_refused_and_the_connection_goes_on(client: Client) -> None:
    with pytest.raises(ParseError):
        client.put(os.fsdecode(b"\xff"), b"")
    assert client.call("rpc.ping") == "pong"


# --- Descriptors ---


def test_closed_and_useless_descriptors_cost_the_call_alone(client: Client, place: Place) -> None:
    before = descriptors()
    with open(place.files / "large", "rb") as closed:
        pass
    with pytest.raises(ValueError, match="closed"):
        client.put("closed", closed)
    number = os.dup(0)
    os.close(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        client.call("object.write_file", fds=[number], key="closed", fd=0)
    directory = os.open(place.files, os.O_RDONLY)
    with place.no_descriptor_is_left():
        with pytest.raises(ZstorError):
            client.put("directory", directory)
        with pytest.raises(ZstorError), open(place.files / "large", "rb") as reading:
            client.get("large", reading)
        with pytest.raises(ZstorError, match="descriptor"):
            client.call("rpc.ping", fds=[directory] * 3)
        client.call("rpc.ping", fds=[directory])
    os.close(directory)
    with pytest.raises(FileNotFoundError):
        client.put("none", place.files / "no such file")
    with pytest.raises(NotFound):
        client.get("no such key", place.files / "never")
    with pytest.raises(TypeError, match="JSON"):
        client.call("object.write", key="bytes", value=b"no text")
    assert client.call("rpc.ping") == "pong"
    assert descriptors() == before


def test_what_a_python_file_has_not_written_yet_is_stored_too(client: Client, place: Place) -> None:
    with open(place.files / "buffered", "w+b") as file:
        file.write(b"0123456789")
        file.seek(0)
        file.write(b"abc")  # still in python's memory
        client.put("buffered", file)
    assert client.get("buffered") == b"3456789"
    with tempfile.NamedTemporaryFile() as named:
        named.write(b"0123456789")
        named.seek(0)
        named.read(1)
        client.put("named", named)
    assert client.get("named") == b"123456789"


def test_text_files_are_refused_for_nobody_knows_where_they_are(client: Client, place: Place) -> None:
    with open(place.files / "large", encoding="latin-1") as file, pytest.raises(TypeError, match="binary"):
        client.put("text", file)


def test_what_has_other_bytes_than_its_descriptor_is_refused(client: Client, place: Place) -> None:
    """It was stored as the descriptor has it: compressed, or without what had been read ahead."""
    with gzip.open(place.files / "packed.gz", "wb") as packed:
        packed.write(b"text")
        with pytest.raises(TypeError, match="GzipFile has no descriptor of its bytes"):
            client.get("refused", packed)  # type: ignore[arg-type]
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ntext\r\n0\r\n\r\n")
        answer = http.client.HTTPResponse(here)
        answer.begin()
        with gzip.open(place.files / "packed.gz") as packed, tempfile.SpooledTemporaryFile() as spooled:
            for source in (packed, answer, io.BytesIO(b"text"), None, [b"text"]):
                with pytest.raises(TypeError, match="has no descriptor of its bytes"):
                    client.put("refused", source)  # type: ignore[arg-type]
            assert packed.read() == answer.read() == b"text"
            spooled.write(b"spooled")
            spooled.seek(2)
            assert client.put("spooled", spooled)["size"] == 5
    with pytest.raises(NotFound):
        client.get("refused")
    for written in (io.BytesIO(), io.StringIO()):
        with pytest.raises(TypeError, match="has no descriptor of its bytes"):
            client.get("spooled", written)
    with open(place.files / "text file", "w") as file:
        client.get("spooled", file)
    assert (place.files / "text file").read_text() == "ooled"


def test_what_is_written_around_a_get_stands_around_it(client: Client, place: Place) -> None:
    client.put("middle", b"middle")
    with open(place.files / "around", "wb") as file:
        file.write(b"before ")
        client.get("middle", file)
        file.write(b" after")
    assert (place.files / "around").read_bytes() == b"before middle after"


# --- Paths ---


def test_a_file_that_is_replaced_keeps_its_mode_and_a_new_one_has_the_usual(client: Client, place: Place) -> None:
    client.put("mode", b"new")
    path = place.files / "private"
    path.write_bytes(b"old")
    path.chmod(0o600)
    client.get("mode", path)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o600)
    fresh = place.files / "fresh"
    client.get("mode", fresh)
    (place.files / "usual").touch()
    assert fresh.stat().st_mode == (place.files / "usual").stat().st_mode


def test_pipes_and_devices_are_written_to_and_not_replaced(client: Client, place: Place) -> None:
    client.put("to-pipe", b"through it")
    pipe = place.files / "pipe"
    os.mkfifo(pipe)
    found: queue.Queue[bytes] = queue.Queue()
    reading = threading.Thread(target=lambda: found.put(pipe.read_bytes()))
    reading.start()
    client.get("to-pipe", pipe)
    reading.join()
    assert found.get_nowait() == b"through it"
    assert pipe.is_fifo()
    with pytest.raises(IsADirectoryError):
        client.get("to-pipe", place.files)


def test_many_may_get_to_one_path(place: Place, client: Client) -> None:
    client.put("wanted", LARGE)
    target = place.files / "target"

    def get() -> None:
        with Client(place.daemon.socket) as own:
            own.get("wanted", target)

    in_threads([get] * 4)
    assert target.read_bytes() == LARGE
    assert not list(place.files.glob(".*.part"))


# --- Calls ---


def in_threads(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_that_share_a_client_wait_for_each_other(client: Client) -> None:
    wrong: list[object] = []

    def work(name: str) -> Callable[[], None]:
        def run() -> None:
            for number in range(20):
                client.put(f"{name}/{number}", f"{name} {number}".encode())
                if (found := client.get(f"{name}/{number}")) != f"{name} {number}".encode():
                    wrong.append(found)

        return run

    in_threads([work("one"), work("two"), work("three")])
    assert wrong == []
    assert len(list(client.list("two/"))) == 20


def test_a_call_inside_a_call_is_refused(client: Client, place: Place) -> None:
    with pytest.raises(RuntimeError, match="in the middle of a call"), open(place.files / "large", "rb") as file:
        client.call("object.write_file", fds=[file], key="in", fd=0, progress=lambda *told: client.call("rpc.ping"))


def test_parameters_may_have_any_name_and_meta_goes_on(client: Client) -> None:
    assert client.call("rpc.check", method="object.stat", params={"key": "x"})
    assert "rpc.ping" in client.call("help", method="rpc.ping")
    client.put("detached", b"x")
    job = client.call("object.check", key="detached", _meta={"detach": True}, timeout=60)["job"]
    assert client.call("job.wait", job=job)["state"] == "done"


def test_an_error_survives_being_passed_between_processes() -> None:
    error = zstor_client._CLASSES["not_found"](100, "gone", {"type": "not_found", "hint": "look elsewhere"})
    again = copy.copy(error)  # as pickle does it
    assert isinstance(again, NotFound)
    assert (again.code, again.hint, str(again)) == (100, "look elsewhere", "gone (look elsewhere)")


def test_it_is_written_in_the_python_that_it_names() -> None:
    text = (CLIENTS / "python" / "zstor_client.py").read_text()
    assert "Python 3.8 or newer" in text
    ast.parse(text, feature_version=(3, 8))
