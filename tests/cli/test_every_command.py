"""What holds for every command, whichever comes: --json, errors as one JSON object on stderr, progress, Ctrl-C. A new one without an
example fails here."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import click
import pytest

from tests.cli.fake_daemon import FakeDaemon, Message, Peer
from tests.cli.terminal import ZSTOR
from tests.cli.terminal import Terminal as Screen
from tests.cli.test_commands import Terminal, output
from tests.documents import ROOT
from zstor_local.cli import main
from zstor_local.cli.root import zstor

ID = "bafkreidpgbkp3ucpegr6m5xlhnxnygz3mmjgmatitckjoxsh3ixhdoc3sm"

# One call of each command that asks a daemon. The directory they run in holds the file f and the directory d with a file in it.
ASKING = {
    "put": "put f",
    "put -r": "put -r d",
    "get": "get key out",
    "get -r": "get -r key out",
    "rm": "rm key other",
    "rm -r": "rm -r --yes key",
    "ls": "ls",
    "stat": "stat key",
    "mv": "mv key new",
    "cp": "cp key new",
    "walk": "walk key",
    "ref add": "ref add key r",
    "ref find": "ref find r",
    "ref ls": "ref ls key",
    "ref rm": "ref rm key r",
    "cas collect": "cas collect",
    "cas get": f"cas get {ID} out",
    "cas ls": "cas ls",
    "cas pin": f"cas pin {ID}",
    "cas put": "cas put f f",
    "cas stat": f"cas stat {ID}",
    "cas unpin": f"cas unpin {ID}",
    "cas verify": f"cas verify {ID}",
    "ns get": "ns get name",
    "ns ls": "ns ls",
    "ns rm": "ns rm name",
    "ns set": "ns set name value",
    "ns watch": "ns watch name",
    "log append": "log append text",
    "log create": "log create new",
    "log export": "log export out",
    "log follow": "log follow",
    "log head": "log head",
    "log import": "log import f",
    "log ls": "log ls",
    "log missing": "log missing",
    "log page": "log page",
    "log read": "log read",
    "log scrub": "log scrub 1",
    "log verify": "log verify",
    "node receive": "node receive",
    "node receive --follow": "node receive --follow",
    "node receive --into": "node receive --into out",
    "node send": "node send hello",
    "check": "check key other",
    "repair": "repair key other",
    "repair --all": "repair --all",
    "namespace create": "namespace create new",
    "namespace get": "namespace get other",
    "namespace invite": "namespace invite other ann KEY",
    "namespace join": "namespace join",
    "namespace ls": "namespace ls",
    "namespace rm": "namespace rm other",
    "namespace set": "namespace set other --quota 1G",
    "perm get": "perm get other ann",
    "perm give": "perm give other ann read",
    "perm ls": "perm ls other",
    "perm remove": "perm remove other ann read",
    "token create": "token create other read",
    "token keys": "token keys",
    "token revoke": "token revoke --all",
    "scrub": "scrub",
    "scrub --status": "scrub --status",
    "collect": "collect",
    "status": "status",
    "status --watch": "status --watch",
    "shard add": "shard add d",
    "shard ls": "shard ls",
    "shard replace": "shard replace 0",
    "shard rm": "shard rm 0",
    "call": "call rpc.ping",
    "key rotate": "key rotate --yes",
    "key retire": "key retire",
}

# Those that ask nobody, in a way that fails; the exit code.
ALONE = {
    "daemon": ("daemon --config missing.toml", 78),
    "init": ("init --config missing.toml", 3),
    "rebuild": ("rebuild --config missing.toml", 3),
    "key backup": ("key backup --yes", 1),
    "key restore": ("key restore --config missing.toml", 3),
    "shard serve": ("shard serve --listen 127.0.0.1:0 --data d --trust f", 78),
    "shard trust": ("shard trust --config missing.toml", 3),
    "systemd install": ("systemd install", 1),
    "systemd status": ("systemd status", 1),
    "systemd uninstall": ("systemd uninstall", 1),
    "bench": ("bench --dir missing", 3),
    "demo": ("demo --nothing", 3),
    "complete": ("complete csh", 3),
}


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Every command of the tree that does something itself, with its words."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", each) for below, each in commands(command, inner))
        else:
            yield name, command


TREE = dict(commands(zstor, click.Context(zstor)))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home with something to store; what a command changes of its process is as before in the end."""
    umask, handlers, level = os.umask(0o022), logging.root.handlers[:], logging.root.level
    os.umask(umask)
    for name in [name for name in os.environ if name.startswith(("XDG_", "ZSTOR_", "DBUS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZSTOR_SOCKET", str(tmp_path / "s"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_bytes(b"bytes")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_bytes(b"bytes")
    yield tmp_path
    os.umask(umask)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def asked(home: Path, what: str, serve: Callable[[Peer], None]) -> tuple[int, FakeDaemon]:
    """Run an example with --json beside a daemon that does as told; its exit code."""
    (home / "s").unlink(missing_ok=True)
    with FakeDaemon(home / "s", serve) as daemon:
        status = main([*ASKING[what].split(), "--json"])
    return status, daemon


def requests(daemon: FakeDaemon) -> list[Message]:
    return [message for peer in daemon.peers for message in peer.received]


def the_error(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one object on stderr."""
    _, err = output(capsys)
    [line] = err.splitlines()
    error: dict[str, Any] = json.loads(line)["error"]
    assert isinstance(error["code"], int)
    assert isinstance(error["message"], str)
    assert isinstance(error["data"]["type"], str)
    assert isinstance(error["data"]["retryable"], bool)
    return error


# --- The tree ---


def test_every_command_has_an_example() -> None:
    assert set(TREE) == {what.partition(" -")[0] for what in ASKING} | set(ALONE)


@pytest.mark.parametrize("words", TREE)
def test_help_tells_what_an_option_does_its_default_and_what_may_be_left_out(words: str) -> None:
    context = click.Context(TREE[words])
    for parameter in TREE[words].params:
        if isinstance(parameter, click.Argument):
            assert parameter.make_metavar(context).startswith("[") is not parameter.required
            continue
        assert isinstance(parameter, click.Option)
        assert parameter.help
        default = parameter.get_default(context)
        if default and isinstance(default, (str, int)) and not isinstance(default, bool):  # none, 0 and off need no words
            assert str(default) in parameter.help


@pytest.mark.parametrize("words", TREE)
def test_every_command_speaks_json_and_says_so(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert any("--json" in parameter.opts for parameter in TREE[words].params)
    assert main([*words.split(), "--no-such-option", "--json"]) == 3
    error = the_error(capsys)
    assert error["data"]["hint"] == f"zstor {words} --help"


# --- Errors ---


@pytest.mark.parametrize("what", ASKING)
def test_an_error_of_the_daemon_is_one_object(what: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: Message = {"code": 303, "message": "it is busy", "data": {"type": "busy", "retryable": True, "hint": "wait", "limit": 3}}

    def serve(peer: Peer) -> None:
        while request := peer.receive():
            if (what, request["method"]) == ("put -r", "daemon.status"):  # which directories are the daemon's own
                peer.answer(request, {"shards": []})
            else:
                peer.send({"id": request["id"], "error": told})

    status, _ = asked(home, what, serve)
    assert status == 1
    if what in ("rm", "check", "repair"):  # each key by itself
        assert [json.loads(line)["error"] for line in output(capsys)[1].splitlines()] == [told, told]
    elif what == "put -r":  # what became of each thing is its output
        lines = [json.loads(line) for line in output(capsys)[0].splitlines()]
        assert [line["error"] for line in lines[:-1]] == [{"type": "busy", "message": "it is busy", "hint": "wait"}] * 2
    else:
        assert the_error(capsys) == told


@pytest.mark.parametrize("what", ASKING)
def test_no_daemon_is_one_object(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKING[what].split(), "--json"]) == 2
    assert the_error(capsys)["data"]["type"] == "no_daemon"


@pytest.mark.parametrize("words", ALONE)
def test_an_error_without_a_daemon_is_one_object(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")  # no systemd answers there
    arguments, status = ALONE[words]
    assert main([*arguments.split(), "--json"]) == status
    the_error(capsys)
    assert output(capsys)[0] == ""


# --- Progress ---


def long_methods() -> set[str]:
    """The methods that may take long, as the page of the methods says, and one that goes on by itself."""
    sections = re.split(r"^### ", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)[1:]
    return {section.split("\n", 1)[0] for section in sections if "`_meta.detach: true`" in section} | {"namespace.delete"}


COUNTED = {"put -r", "get -r", "rm -r", "node send"}  # they show themselves how many are done


@pytest.mark.parametrize("what", ASKING)
def test_whatever_may_take_long_asks_for_progress_on_a_terminal_and_not_in_a_pipe(
    what: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(peer: Peer) -> None:
        while request := peer.receive():
            peer.send({"id": request["id"], "error": {"code": 100, "message": "no", "data": {"type": "not_found"}}})

    _, daemon = asked(home, what, serve)
    assert not [request for request in requests(daemon) if "_meta" in cast(Message, request.get("params", {}))]
    monkeypatch.setattr(sys, "stderr", Terminal())
    _, daemon = asked(home, what, serve)
    for request in requests(daemon):
        if request["method"] in long_methods() and what not in COUNTED:
            assert "progressToken" in cast(Message, cast(Message, request["params"])["_meta"]), request["method"]
            assert any("--no-progress" in parameter.opts for parameter in TREE[what.partition(" -")[0]].params)


def test_the_bar_is_drawn_on_stderr_and_gone_in_the_end(home: Path) -> None:
    def serve(peer: Peer) -> None:
        request = peer.receive()
        assert request is not None
        token = cast(Message, cast(Message, request["params"])["_meta"])["progressToken"]
        for done in (1, 30):
            news: Message = {"progressToken": token, "progress": done, "total": 60, "message": "objects"}
            peer.send({"method": "notifications/progress", "params": news})
        peer.answer(request, {"objects": 60, "repaired": 1, "failed": 0, "lacking": 0, "owed": 0, "found": []})
        peer.receive()

    reader, writer = os.pipe()
    with FakeDaemon(home / "s", serve), Screen([*ZSTOR, "repair", "--all"], home=home, environment=os.environ, stdout=writer) as screen:
        os.close(writer)
        assert screen.end() == 0
        assert "30/60" in screen.text
        assert screen.drawn.rstrip().endswith("\x1b[2K")  # the line is empty again
        assert screen.is_as_before()
    with open(reader) as piped:
        assert piped.read() == "60 objects: 1 repaired, 0 not\n"


# --- Ctrl-C ---

# What is not undone, or goes on without the command.
GOES_ON = {
    "scrub": "the scrub goes on",
    "shard rm": "goes on without this command",
    "shard replace": "goes on without this command",
    "namespace rm": "what has begun to be deleted goes on",
    "repair --all": "what was repaired by then is repaired",
    "collect": "what was freed by then is freed",
    "cas collect": "what was deleted by then is deleted",
    "put -r": "what was stored by then is stored",
    "get -r": "what was written by then is there",
    "rm -r": "what was deleted by then is deleted",
    "put": "the running call changed nothing",
}
QUIET = {"ns watch", "log follow", "node receive --follow", "status --watch"}  # Ctrl-C is how they end


class CtrlC:
    """A terminal's Ctrl-C, sent once, whichever of a command's connections asks for it: one too many would be the tests' own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = False

    def send(self) -> None:
        with self._lock:
            if not self._sent:
                self._sent = True
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("what", ASKING)
def test_ctrl_c_cancels_and_leaves_nothing(what: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, first = sorted(home.rglob("*")), CtrlC()

    def serve(peer: Peer) -> None:
        if (request := peer.receive()) is None:
            return
        first.send()
        while message := peer.receive():  # a connection that ends is a cancel, too
            if message["method"] == "$/cancelRequest":
                peer.send({"id": request["id"], "error": {"code": -32800, "message": "cancelled", "data": {"type": "cancelled"}}})

    status, _ = asked(home, what, serve)
    assert status == 130
    _none_but_whole(home, before, what)
    if what in QUIET:
        assert output(capsys) == ("", "")
    else:
        error = the_error(capsys)
        assert error["code"] == -32800
        assert error["data"]["type"] == "cancelled"
        assert error["message"].startswith("interrupted")
        assert GOES_ON.get(what, "") in error["message"]


@pytest.mark.parametrize("what", ASKING)
def test_a_second_ctrl_c_ends_what_a_hanging_daemon_holds_up(what: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, first, second = sorted(home.rglob("*")), CtrlC(), CtrlC()

    def serve(peer: Peer) -> None:
        if peer.receive() is not None:
            first.send()
        while message := peer.receive():
            if message["method"] == "$/cancelRequest":
                second.send()

    status, _ = asked(home, what, serve)
    assert status == 130
    _none_but_whole(home, before, what)


@pytest.mark.parametrize("what", ["rm", "check", "cas put", "status --watch"])
def test_a_ctrl_c_that_comes_too_late_ends_the_command_at_the_next_call(what: str, home: Path) -> None:
    """The call it came in was answered all the same; the next one is not made."""

    def serve(peer: Peer) -> None:
        while request := peer.receive():
            if "id" in request:
                os.kill(os.getpid(), signal.SIGINT)
                while (message := peer.receive()) is not None and message["method"] != "$/cancelRequest":
                    pass
                error: Message = {"code": 100, "message": "no", "data": {"type": "not_found", "retryable": False}}
                peer.send({"id": request["id"], **({"error": error} if what in ("rm", "check") else {"result": ANSWERS[what]})})

    status, daemon = asked(home, what, serve)
    assert status == 130
    assert len([request for request in requests(daemon) if "id" in request]) == 1


ANSWERS: dict[str, Message] = {
    "cas put": {"id": ID, "size": 5, "new": True},
    "status --watch": {"state": "ok"},
}


def _none_but_whole(home: Path, before: list[Path], what: str) -> None:
    """Nothing is new but the socket, and the file of a journal, which is there to be gone on with."""
    new = {path.name for path in home.rglob("*")} - {path.name for path in before} - {"s"}
    assert new <= ({"out"} if what == "node receive --into" else set())
