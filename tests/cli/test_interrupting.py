"""Ctrl-C on a terminal, with the real daemon: nothing is left behind, and what goes on is named."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from types import FrameType

import pytest

from tests.cli.fake_daemon import FakeDaemon, Peer
from tests.cli.terminal import ZSTOR, Terminal
from tests.cli.test_end_to_end import done, zstor
from tests.daemon.client import Client
from zstor_local.cli import main, rebuilding
from zstor_local.cli.private_daemon import PrivateDaemon
from zstor_local.node.client import Node
from zstor_local.store.rebuild import gathering

MEBIBYTE = 1024 * 1024


def screen(daemon: PrivateDaemon, *arguments: str, stdin: int | None = None, stdout: int | None = None) -> Terminal:
    return Terminal([*ZSTOR, *arguments], home=daemon.home, environment=daemon.environment, stdin=stdin, stdout=stdout)


def nothing_is_left(daemon: PrivateDaemon) -> None:
    """No share and no temporary file of a broken-off write, no job that runs."""
    shards = daemon.home / "data" / "zstor" / "shards"
    assert list(shards.glob("*/tmp/*")) == []
    with Client(str(daemon.socket)) as wire:
        assert [job for job in wire.result("job.list")["items"] if job["state"] == "running"] == []
        found = wire.result("health.collect")  # which frees what waits for it, and nothing else that no record names
        assert (found["waiting"], found["kept"]) == (0, 0)
    assert not [path for path in shards.rglob("*") if path.is_file() and path.stat().st_size > MEBIBYTE and "log" not in path.parts]


@pytest.mark.parametrize("arguments", [["put", "-", "endless"], ["cas", "put", "-"]])
def test_a_put_from_a_pipe_leaves_no_object(daemon: PrivateDaemon, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    with screen(daemon, *arguments, stdin=reader) as terminal:
        feeding = threading.Thread(target=_feed, args=(writer, 24 * MEBIBYTE))
        feeding.start()
        feeding.join()  # the daemon has taken nearly all of it, and waits for more
        terminal.interrupt()
        assert terminal.end() == 130
        assert terminal.text.endswith("\nzstor: error: interrupted; the running call changed nothing\n")
        assert terminal.is_as_before()
    os.close(reader)
    os.close(writer)
    assert done(zstor(daemon, "ls")) + done(zstor(daemon, "cas", "ls")) == b""
    nothing_is_left(daemon)


def _feed(writer: int, count: int) -> None:
    piece = os.urandom(MEBIBYTE)
    for _ in range(count // MEBIBYTE):
        view = memoryview(piece)
        while view:
            view = view[os.write(writer, view) :]


@pytest.mark.parametrize("arguments", [["get", "old", "out"], ["log", "export", "out"]])
def test_a_get_leaves_no_file_even_where_the_daemon_hangs(private_daemon: PrivateDaemon, arguments: list[str]) -> None:
    home = private_daemon.home
    asked, cancelled = threading.Event(), threading.Event()

    def serve(peer: Peer) -> None:
        for received in (asked, cancelled):
            peer.receive()
            received.set()
        while peer.receive() is not None:
            pass

    private_daemon.environment["ZSTOR_SOCKET"] = str(home / "hangs.sock")
    with FakeDaemon(home / "hangs.sock", serve):
        before = set(home.iterdir())
        with screen(private_daemon, *arguments) as terminal:
            assert asked.wait(60)
            assert [path for path in home.iterdir() if path.name.endswith(".part")]
            terminal.interrupt()
            assert cancelled.wait(60)
            terminal.interrupt()
            assert terminal.end() == 130
            assert "Traceback" not in terminal.text
            assert terminal.is_as_before()
        assert set(home.iterdir()) == before


def test_a_get_into_a_pipe_that_nobody_reads_ends(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "large", stdin=os.urandom(8 * MEBIBYTE)))
    reader, writer = os.pipe()
    with screen(daemon, "get", "large", "-", stdout=writer) as terminal:
        assert os.read(reader, 1) != b""
        terminal.interrupt()
        assert terminal.end() == 130
        assert terminal.is_as_before()
    os.close(reader)
    os.close(writer)
    assert b"optimal" in done(zstor(daemon, "check", "large"))


@pytest.mark.parametrize(
    ("arguments", "waits_for", "shown"),
    [
        (["log", "follow", "--since", "0"], "entries of the log default", "entry"),
        (["ns", "watch", "name"], "changes of name", "value"),
        (["node", "receive", "--follow"], "messages in the log default", "entry"),
    ],
)
def test_following_says_what_it_waits_for_and_ends_without_an_error(
    daemon: PrivateDaemon, arguments: list[str], waits_for: str, shown: str
) -> None:
    done(zstor(daemon, "log", "append", "entry"))
    done(zstor(daemon, "ns", "set", "name", "value"))
    with screen(daemon, *arguments) as terminal:
        terminal.read_until(f"{shown}\n")
        terminal.interrupt()
        assert terminal.end() == 130
        assert terminal.text.startswith(f"waiting for {waits_for}; Ctrl-C ends it\n")
        assert terminal.text.endswith(f"{shown}\n^C\n")


@pytest.mark.parametrize("follows", [True, False])
def test_ctrl_c_while_a_reply_is_taken_ends_as_at_any_other_time(
    daemon: PrivateDaemon, follows: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then it is another task that it comes to. A traceback of a group was shown."""
    monkeypatch.setattr(Node, "_take", lambda node, line: signal.raise_signal(signal.SIGINT))
    arguments = ["node", "receive", "--socket", str(daemon.socket), *(["--follow"] if follows else [])]
    assert main(arguments) == 130
    assert capsys.readouterr().err == ("" if follows else "zstor: error: interrupted\n")


def test_ctrl_c_while_another_one_is_told_of_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.cli.stdio.settle", lambda: signal.raise_signal(signal.SIGINT))
    assert main(["ls"]) == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_watching_the_status_gives_the_screen_back(daemon: PrivateDaemon, number: signal.Signals) -> None:
    with screen(daemon, "status", "--watch") as terminal:
        terminal.read_until("SHARD")
        assert "\x1b[?1049h" in terminal.drawn
        terminal.process.send_signal(number)
        assert terminal.end() == 128 + number
        assert terminal.is_as_before()
        assert "error" not in terminal.text


# Ctrl-C comes when the screen is there, and what is drawn on it is not.
IN_THE_START = """
import os, signal, sys
from rich.console import Console
from zstor_local.cli import main

def interrupted(*given, push=Console.push_render_hook):
    os.kill(os.getpid(), signal.SIGINT)
    push(*given)

Console.push_render_hook = interrupted
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_in_the_start_of_watching_gives_the_screen_back(daemon: PrivateDaemon) -> None:
    command = [sys.executable, "-c", IN_THE_START, "status", "--watch"]
    with Terminal(command, home=daemon.home, environment=daemon.environment) as terminal:
        assert terminal.end() == 130
        assert "\x1b[?1049h" in terminal.drawn
        assert terminal.is_as_before()
        assert "Traceback" not in terminal.text


def test_watching_the_status_without_a_screen_shows_one_picture_after_the_other(daemon: PrivateDaemon) -> None:
    for setting, stdout in (({"TERM": "dumb"}, None), ({}, os.pipe())):
        environment = daemon.environment | setting
        writer = None if stdout is None else stdout[1]
        with Terminal([*ZSTOR, "status", "--watch"], home=daemon.home, environment=environment, stdout=writer) as terminal:
            shown = b""
            if stdout is None:
                terminal.read_until("SHARD")
                assert "\x1b" not in terminal.drawn
            else:
                while shown.count(b"SHARD") < 2:
                    shown += os.read(stdout[0], 65_536)
            terminal.interrupt()
            assert terminal.end() == 130


def test_a_scrub_goes_on_and_says_so(private_daemon: PrivateDaemon) -> None:
    daemon = private_daemon
    (daemon.home / "config" / "zstor").mkdir(parents=True)
    (daemon.home / "config" / "zstor" / "config.toml").write_text("[scrub]\nrate = 1048576\n")
    daemon.start()
    done(zstor(daemon, "put", "-", "large", stdin=os.urandom(24 * MEBIBYTE)))
    done(zstor(daemon, "put", "-", "more", stdin=os.urandom(24 * MEBIBYTE)))
    with screen(daemon, "scrub") as terminal:
        terminal.read_until("scrub ")
        terminal.interrupt()
        assert terminal.end() == 130
        assert "zstor: error: interrupted; the scrub goes on\n  hint: " in terminal.text
        assert terminal.is_as_before()
    assert done(zstor(daemon, "scrub", "--status")).startswith(b"running")


@pytest.mark.parametrize(("arguments", "question"), [(["rm", "-r", "kept"], "[y/N]"), (["key", "restore"], "Ctrl-D")])
def test_a_question_that_is_not_answered_changes_nothing(daemon: PrivateDaemon, arguments: list[str], question: str) -> None:
    done(zstor(daemon, "put", "-", "kept", stdin=b"1"))
    with screen(daemon, *arguments) as terminal:
        terminal.read_until(question)
        terminal.wait_until_it_waits()
        terminal.interrupt()
        assert terminal.end() == 130
        assert terminal.text.endswith("^C\nzstor: error: interrupted\n")
    assert done(zstor(daemon, "ls")) == b"kept\n"


def test_an_interrupted_rebuild_changes_nothing(
    daemon: PrivateDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("a", "b"):
        done(zstor(daemon, "put", "-", key, stdin=b"1"))
    daemon.stop()
    for name, value in daemon.environment.items():
        monkeypatch.setenv(name, value)
    before = _store(daemon.home)
    monkeypatch.setattr(gathering, "PROGRESS_EVERY", 1)

    heard = threading.Event()

    class CtrlC(rebuilding.CtrlC):
        def __call__(self, number: int, frame: FrameType | None) -> None:
            super().__call__(number, frame)
            heard.set()

    def show(done: int, total: int | None, what: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert heard.wait(60)

    monkeypatch.setattr(rebuilding, "CtrlC", CtrlC)
    monkeypatch.setattr(rebuilding, "progress", lambda *given, **options: nullcontext(show))
    assert main(["rebuild"]) == 130
    assert "interrupted; nothing was changed" in capsys.readouterr().err
    assert _store(daemon.home) == before


def _store(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (home / "data" / "zstor").iterdir() if "metastore" in path.name}
