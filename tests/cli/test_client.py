"""The command's client: whom it trusts, what it sends, how it waits, and how it gives up."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake_daemon import FakeDaemon, Message, Peer
from zstor_local.cli import client as client_module
from zstor_local.cli.client import Client, NoDaemon
from zstor_local.errors import Cancelled, Conflict, CorruptRecord, TooLarge, typed_error


def pong(peer: Peer) -> None:
    peer.answer(peer.receive(), "pong")


def test_a_call_sends_one_line_and_gives_the_result(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path / "s", pong) as daemon, Client.connect(str(daemon.path)) as client:
        assert client.call("rpc.ping", {"a": "ü"}) == "pong"
    assert daemon.peers[0].received == [{"jsonrpc": "2.0", "id": 1, "method": "rpc.ping", "params": {"a": "ü"}}]


def test_descriptors_go_with_the_first_byte_and_nothing_else(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with FakeDaemon(tmp_path / "s", pong) as daemon, Client.connect(str(daemon.path)) as client:
        client.call("object.write_stream", {"key": "a", "fd": 0}, fds=[reader])
    peer = daemon.peers[0]
    assert peer.sends == [b"{"]
    assert os.fstat(peer.fds[0]).st_ino == os.fstat(reader).st_ino
    for fd in (reader, writer, *peer.fds):
        os.close(fd)


def test_it_works_with_however_many_descriptors_open(tmp_path: Path) -> None:
    """As those that whoever started it has left open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 2_048), before[1]))
    left_open = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    try:
        with FakeDaemon(tmp_path / "s", pong) as daemon, Client.connect(str(daemon.path)) as client:
            assert client.call("rpc.ping", {}) == "pong"
    finally:
        for fd in left_open:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_blank_lines_other_notifications_and_other_answers_are_passed_over(tmp_path: Path) -> None:
    def serve(peer: Peer) -> None:
        request = peer.receive()
        peer.connected.sendall(b"\n\n")
        peer.send({"method": "notifications/other", "params": {}})
        peer.send({"id": 99, "result": "another's"})
        peer.answer(request, "ours")

    with FakeDaemon(tmp_path / "s", serve) as daemon, Client.connect(str(daemon.path)) as client:
        assert client.call("rpc.ping", {}) == "ours"


def test_a_list_goes_on_past_what_does_not_open_and_fails_at_its_end(tmp_path: Path) -> None:
    def damaged(request: Message | None, **data: str) -> Message:
        assert request is not None
        error: Message = {
            "code": CorruptRecord.code,
            "message": "bad",
            "data": {"type": CorruptRecord.type, "retryable": False, **data},
        }
        return {"id": request["id"], "error": error}

    def serve(peer: Peer) -> None:
        peer.answer(peer.receive(), {"items": ["a"], "cursor": "at a"})
        peer.send(damaged(peer.receive(), cursor="at b"))
        peer.answer(peer.receive(), {"items": ["c"], "cursor": None})
        peer.send(damaged(peer.receive()))

    with FakeDaemon(tmp_path / "s", serve) as daemon, Client.connect(str(daemon.path)) as client:
        found: list[object] = []
        with pytest.raises(CorruptRecord):
            found.extend(client.items("object.list", {"prefix": "p"}))
        assert found == ["a", "c"]
        with pytest.raises(CorruptRecord):  # which does not say where it goes on
            next(client.items("object.list", {}))
    asked = [message["params"] for message in daemon.peers[0].received]
    assert asked == [{"prefix": "p"}, {"prefix": "p", "cursor": "at a"}, {"prefix": "p", "cursor": "at b"}, {}]


def test_progress_is_asked_for_and_shown(tmp_path: Path) -> None:
    def serve(peer: Peer) -> None:
        request = peer.receive()
        assert request is not None
        peer.send({"method": "notifications/progress", "params": {"progressToken": 1, "progress": 5, "total": 9, "message": "m"}})
        peer.send({"method": "notifications/progress", "params": {"progressToken": 1, "progress": 9}})
        peer.answer(request, request["params"])

    shown: list[tuple[int, int | None, str]] = []
    with FakeDaemon(tmp_path / "s", serve) as daemon, Client.connect(str(daemon.path)) as client:
        result = client.call("object.write_file", {"key": "a"}, progress=lambda *news: shown.append(news))
    assert result == {"key": "a", "_meta": {"progressToken": 1}}
    assert shown == [(5, 9, "m"), (9, None, "")]


def test_what_else_is_asked_of_a_call_stays_beside_its_progress(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path / "s", pong) as daemon, Client.connect(str(daemon.path)) as client:
        client.call("object.check", {"key": "a", "_meta": {"detach": True}}, progress=lambda *_: None)
    assert daemon.peers[0].received[0]["params"] == {"key": "a", "_meta": {"detach": True, "progressToken": 1}}


@pytest.mark.parametrize("place", ["missing", "file/s", "stale"])
def test_without_a_daemon_the_error_says_how_to_start_one(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with FakeDaemon(tmp_path / "stale", pong):
        pass
    with pytest.raises(NoDaemon, match="no daemon is running at") as caught:
        Client.connect(str(tmp_path / place), start="start it:  zstor --socket here daemon")
    assert caught.value.hint == "start it:  zstor --socket here daemon"


def test_what_is_no_socket_of_a_daemon_is_not_to_be_started_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NoDaemon, match="file is no socket") as caught:
        Client.connect(str(tmp_path / "file"))
    assert caught.value.hint == "name the daemon's socket with --socket or ZSTOR_SOCKET"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "other"))
        with pytest.raises(NoDaemon, match="Protocol wrong type") as caught:
            Client.connect(str(tmp_path / "other"))
    assert "is it of another user?" in str(caught.value.hint)


def test_a_socket_of_another_user_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_242)
    with FakeDaemon(tmp_path / "s", lambda peer: None) as daemon, pytest.raises(NoDaemon, match="not of yours"):
        Client.connect(str(daemon.path))


def test_a_socket_path_too_long_for_the_kernel_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.chdir(deep)
    with FakeDaemon(Path("s"), pong), Client.connect(str(deep / "s")) as client:
        assert client.call("rpc.ping", {}) == "pong"


@pytest.mark.parametrize("answer", [b"", b'{"id": 1, "resu'])
def test_a_connection_that_breaks_is_not_an_answer(tmp_path: Path, answer: bytes) -> None:
    def serve(peer: Peer) -> None:
        peer.receive()
        peer.connected.sendall(answer)

    broken = pytest.raises(NoDaemon, match="closed the connection before it answered")
    with FakeDaemon(tmp_path / "s", serve) as daemon, Client.connect(str(daemon.path)) as client, broken:
        client.call("rpc.ping", {})


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n", b"[]\n", b"\xff\n"])
def test_something_else_at_the_socket_is_called_so(tmp_path: Path, answer: bytes) -> None:
    def serve(peer: Peer) -> None:
        peer.receive()
        peer.connected.sendall(answer)

    foreign = pytest.raises(NoDaemon, match="no zstor daemon")
    with FakeDaemon(tmp_path / "s", serve) as daemon, Client.connect(str(daemon.path)) as client, foreign:
        client.call("rpc.ping", {})


def interrupted(request: Message | None) -> Message | None:
    """Ctrl-C, as a terminal sends it, once the request is there."""
    os.kill(os.getpid(), signal.SIGINT)
    return request


def test_ctrl_c_cancels_the_call_and_waits_for_its_answer(tmp_path: Path) -> None:
    def serve(peer: Peer) -> None:
        request = interrupted(peer.receive())
        cancel = peer.receive()
        assert request is not None
        assert cancel == {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": request["id"]}}
        peer.send({"id": request["id"], "error": {"code": -32800, "message": "cancelled", "data": {"type": "cancelled"}}})

    with FakeDaemon(tmp_path / "s", serve) as daemon, Client.connect(str(daemon.path)) as client, pytest.raises(Cancelled):
        client.call("object.write_file", {})
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_just_as_the_call_begins_cancels_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(peer: Peer) -> None:
        request = peer.receive()
        assert request is not None
        assert peer.receive() == {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": request["id"]}}
        peer.send({"id": request["id"], "error": {"code": -32800, "message": "cancelled", "data": {"type": "cancelled"}}})

    set_handler = signal.signal

    def set_handler_and_press(number: int, handler: Any) -> Any:
        before = set_handler(number, handler)
        if handler is not before and before is signal.default_int_handler:
            os.kill(os.getpid(), signal.SIGINT)
        return before

    monkeypatch.setattr(signal, "signal", set_handler_and_press)
    monkeypatch.setattr(client_module, "_PATIENCE_SECONDS", 30.0)
    hangs = partial(pytest.fail, "the daemon was not told")
    with (
        FakeDaemon(tmp_path / "s", serve) as daemon,
        Client.connect(str(daemon.path), hanging=hangs) as client,
        pytest.raises(Cancelled),
    ):
        client.call("object.write", {"key": "a"})


def test_ctrl_c_after_the_commit_gives_the_true_result(tmp_path: Path) -> None:
    def serve(peer: Peer) -> None:
        request = interrupted(peer.receive())
        peer.receive()
        peer.answer(request, "done")

    with FakeDaemon(tmp_path / "s", serve) as daemon, Client.connect(str(daemon.path)) as client:
        assert client.call("object.write_file", {}) == "done"


def test_ctrl_c_as_the_answer_is_given_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(dict[str, Any]):
        def get(self, name: str, default: object = None) -> object:
            if name == "result":
                signal.raise_signal(signal.SIGINT)
            return super().get(name, default)

    monkeypatch.setattr(client_module, "_parse", lambda line: Interrupted(json.loads(line)))
    with FakeDaemon(tmp_path / "s", pong) as daemon, Client.connect(str(daemon.path)) as client:
        assert client.call("rpc.ping", {}) == "pong"
        with pytest.raises(KeyboardInterrupt):
            client.call("rpc.ping", {})


def test_who_waits_for_a_daemon_that_hangs_is_told_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_PATIENCE_SECONDS", 0.01)
    told: list[str] = []
    heard = threading.Event()

    def hanging() -> None:
        told.append("it hangs")
        heard.set()

    def serve(peer: Peer) -> None:
        request = interrupted(peer.receive())
        peer.receive()
        assert heard.wait(60)
        peer.answer(request, "stored")

    with FakeDaemon(tmp_path / "s", serve) as daemon, Client.connect(str(daemon.path), hanging=hanging) as client:
        assert client.call("object.write", {}) == "stored"
    assert told == ["it hangs"]


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    left = threading.Event()

    def serve(peer: Peer) -> None:
        interrupted(interrupted(peer.receive()) and peer.receive())
        left.wait()

    with FakeDaemon(tmp_path / "s", serve) as daemon, Client.connect(str(daemon.path)) as client:
        with pytest.raises(KeyboardInterrupt):
            client.call("object.write_file", {})
        left.set()


def test_ctrl_c_while_a_request_finds_no_room_leaves_at_once(tmp_path: Path) -> None:
    def serve(peer: Peer) -> None:
        peer.connected.recv(1)  # of a daemon that is stopped from then on
        os.kill(os.getpid(), signal.SIGINT)
        left.wait()

    left = threading.Event()
    with FakeDaemon(tmp_path / "s", serve) as daemon, Client.connect(str(daemon.path)) as client:
        try:
            with pytest.raises(KeyboardInterrupt):
                client.call("object.write", {"value": "x" * 4_000_000})
        finally:
            left.set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_background_job_that_ignores_ctrl_c_goes_on_ignoring_it(tmp_path: Path) -> None:
    def serve(peer: Peer) -> None:
        peer.answer(interrupted(peer.receive()), "done")

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with FakeDaemon(tmp_path / "s", serve) as daemon, Client.connect(str(daemon.path)) as client:
            assert client.call("object.write_file", {}) == "done"
    finally:
        signal.signal(signal.SIGINT, before)
    assert [request["method"] for request in daemon.peers[0].received] == ["object.write_file"]


def test_errors_come_back_as_their_classes() -> None:
    conflict = typed_error({"code": 102, "message": "stale", "data": {"type": "conflict", "retryable": False, "current": "v2"}})
    assert isinstance(conflict, Conflict)
    assert (conflict.message, conflict.data) == ("stale", {"current": "v2"})
    large = typed_error({"code": 501, "message": "big", "data": {"type": "too_large", "retryable": False, "hint": "h", "limit": 5}})
    assert isinstance(large, TooLarge)
    assert (large.hint, large.data) == ("h", {"limit": 5})


def test_an_error_of_a_newer_daemon_keeps_its_name() -> None:
    newer = typed_error({"code": 504, "message": "m", "data": {"type": "moved", "retryable": True}})
    assert (newer.code, newer.type, newer.retryable, newer.message) == (504, "moved", True, "m")
