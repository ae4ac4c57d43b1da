"""Each command by itself, against a daemon that answers as told: what is sent, what is shown, how it ends."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from tests.cli.fake_daemon import FakeDaemon, Message, Peer
from zstor_local.cli import main, units
from zstor_local.cli.backup_words import from_words
from zstor_local.cli.client import Client, Json
from zstor_local.cli.options import FILE, OUTPUT
from zstor_local.cli.root import COMMANDS, zstor
from zstor_local.config import load_config
from zstor_local.model.ids import StoreId
from zstor_local.model.masterkey import MasterKey

METADATA: dict[str, Json] = {
    "namespace": "default",
    "key": "notes.txt",
    "version": "0f" * 16,
    "size": 5_000,
    "stored_size": 3_000,
    "digest": "blake3:00",
    "created_epoch": 1_700_000_000_000_000,
    "modified_epoch": 1_700_000_000_000_000,
    "chunk_size": 1_048_576,
    "chunks": 1,
    "policy": {"k": 4, "m": 6, "chunk_size": 1_048_576, "compression": "zstd", "padding": "none"},
    "shards": [{"shard": str(index), "index": index} for index in range(6)],
    "previous_key": None,
    "next_key": None,
    "references": [],
    "user": {"author": "ann"},
    "health": "optimal",
    "owed": 0,
    "seal": "AA==",
}

Serve = Callable[[Callable[[Message], Json]], FakeDaemon]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and no setting of the one who runs the tests."""
    for name in [name for name in os.environ if name.startswith(("XDG_", "ZSTOR_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZSTOR_SOCKET", str(tmp_path / "s"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def serve(home: Path) -> Iterator[Serve]:
    """Start a daemon that gives each request to a function; what it raises or returns is the answer."""
    running: list[FakeDaemon] = []

    def start(answer: Callable[[Message], Json]) -> FakeDaemon:
        def run(peer: Peer) -> None:
            while request := peer.receive():
                try:
                    peer.answer(request, answer(request))
                except Refusal as refusal:
                    peer.send({"id": request["id"], "error": refusal.error})

        running.append(FakeDaemon(home / "s", run).__enter__())
        return running[-1]

    yield start
    for daemon in running:
        daemon.__exit__()


class Refusal(Exception):
    """An error answer."""

    def __init__(self, code: int, kind: str, message: str, hint: str | None = None) -> None:
        data: dict[str, Json] = {"type": kind, "retryable": False}
        self.error: dict[str, Json] = {"code": code, "message": message, "data": data | ({"hint": hint} if hint else {})}


def refuse(request: Message) -> Json:
    raise Refusal(100, "not_found", "there is no object “notes.txt”", "zstor ls")


def requests(daemon: FakeDaemon) -> list[tuple[Json, Json]]:
    return [(request["method"], request["params"]) for peer in daemon.peers for request in peer.received]


def output(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err


# --- How commands end ---


def test_no_daemon_is_exit_code_2_with_the_line_that_starts_it(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert main(["status"]) == 2
    assert output(capsys) == (
        "",
        f"zstor: error: no daemon is running at {home}/s\n  hint: start it in another terminal:  zstor daemon\n",
    )


def test_the_line_that_starts_it_has_the_flags_that_were_given(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert main(["ls", "--socket", "my sock"]) == 2
    assert f"hint: start it in another terminal:  zstor --socket '{home}/my sock' daemon\n" in output(capsys)[1]


def test_where_the_service_is_installed_that_is_what_starts_it(
    capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the socket that it was installed for; a daemon somewhere else is started as ever."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    usual = f"{home}/run/zstor/zstor.sock"
    for socket in (usual, f"{home}/a %h socket"):
        config = load_config(text=None, file="", environment=os.environ, socket=socket)
        directory = units.unit_directory(os.environ)
        for unit, text in units.drop_ins(config, os.environ, flags=(), strict=False).items():
            (directory / f"{unit}.d").mkdir(parents=True, exist_ok=True)
            (directory / f"{unit}.d" / units.DROP_IN).write_text(text)
        (directory / units.SOCKET).write_text(units.unit_text(units.SOCKET))
        assert main(["ls", "--socket", socket]) == 2
        assert "\n  hint: start its service:  systemctl --user start zstor.socket" in output(capsys)[1]
    assert main(["ls", "--socket", usual]) == 2
    assert f"hint: start it in another terminal:  zstor --socket {usual} daemon\n" in output(capsys)[1]
    drop_in = directory / f"{units.SOCKET}.d" / units.DROP_IN
    for text, place in ((drop_in.read_text() + "SocketMode=0600\n", socket), ("", usual)):
        drop_in.write_text(text)
        assert main(["ls", "--socket", place]) == 2
        assert "\n  hint: start its service:  systemctl --user start zstor.socket" in output(capsys)[1]


def test_an_error_answer_is_exit_code_1_with_its_hint(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(refuse)
    assert main(["stat", "notes.txt"]) == 1
    assert output(capsys) == ("", "zstor: error: there is no object “notes.txt”\n  hint: zstor ls\n")


def test_with_json_errors_are_json_on_stderr(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(refuse)
    assert main(["stat", "notes.txt", "--json"]) == 1
    out, err = output(capsys)
    assert out == ""
    data = {"type": "not_found", "retryable": False, "hint": "zstor ls"}
    assert json.loads(err) == {"error": {"code": 100, "message": "there is no object “notes.txt”", "data": data}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ptu", "f"], "no such command 'ptu'. Did you mean 'put'?"),
        (["xyzzy"], "no such command 'xyzzy'"),
        (["cas", "ptu", "f"], "no such command 'ptu'. Did you mean 'put'?"),
        (["put"], "missing argument"),
        (["put", "f", "--exlusive"], "--exclusive"),
        (["put", "-"], "- has no name of its own: give a KEY"),
        (["put", "-r", ".", "/"], "'/' is no KEY for a directory"),
        (["put", "-r", ".", ""], "'' is no KEY for a directory"),
        (["put", "f", "--user", "author"], "'author' is not NAME=TEXT"),
        (["get", "a/..", "."], "'a/..' has no last name: give a FILE"),
        (["get", "a", "--json"], "--json needs a FILE"),
        (["call", "rpc.ping", "a"], "'a' is not NAME=TEXT"),
        (["call", "rpc.ping", "a:=tru"], "for text write a=tru"),
        (["call", "rpc.ping", 'a:="\\ud800"'], "a:= is followed by JSON"),
        (["call", "rpc.ping", "a:=" + "[" * 20_000], "a:= is followed by JSON"),
        (["namespace", "set", "default", "--quota", "much"], "invalid value for '--quota': 'much' is no size"),
        (["namespace", "set", "default", "--quota", "9" * 5_000], "is no size"),
        (["get", "a", "--offset", "1k"], "invalid value for '--offset': '1k' is not a whole number"),
        (["shard", "serve", "--listen", "unix:s", "--data", "d", "--trust", "f", "--quota", "much"], "'much' is no size"),
        (["namespace", "join", "zstor1pAABAVCV"], "that is an invitation, not a file with one"),
        (["call", "rpc.ping", "a=1", "a=2"], "a is given twice"),
        (["ls", "--namespace", "No.Dots"], "--namespace: that is not a namespace name"),
        (["ls", "--config", "missing.toml"], "missing.toml: there is no such configuration file; --config names it"),
        (["key", "backup"], "--yes"),
        (["get", "a", ""], "an empty name is no file or directory"),
        (["put", "", "a"], "an empty name is no file or directory"),
        (["rm", "-r", "--yes", "a", "--namespace", ""], "--namespace has an empty name behind it"),
        (["ls", "--socket", ""], "an empty name is no file or directory"),
        (["shard", "add", ""], "an empty name is no file or directory"),
        (["shard", "replace", "0", ""], "an empty name is no file or directory"),
        (["shard", "add", "localhost:7000"], "'localhost:7000' is no URL"),
        (["shard", "replace", "0", "http+unix:shards.sock"], "of a directory with such a name write ./http+unix:shards.sock"),
        (["shard", "serve", "--listen", "127.0.0.1:x", "--trust", "f", "--data", ""], "an empty name is no directory"),
    ],
)
def test_usage_is_exit_code_3(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 3
    out, err = output(capsys)
    assert out == ""
    assert message in err


@pytest.mark.parametrize("kind", [FILE, OUTPUT])
def test_the_name_of_a_file_is_not_looked_at(kind: click.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon gives a disk up that hangs; a command that asks it would wait for good, and for nothing."""
    looked_at: list[object] = []
    monkeypatch.setattr(os, "stat", looked_at.append)
    assert kind.convert("/disk/zstor", None, None) == "/disk/zstor"
    assert looked_at == []


@pytest.mark.parametrize("command", [(), ("put",), ("shard",), ("shard", "add")])
def test_help_is_a_word_too(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    shown = output(capsys)
    assert shown[0].startswith(" ".join(["Usage: zstor", *command, "["]))
    assert main(["help", *command]) == 0
    assert output(capsys) == shown


def test_a_wrong_configuration_is_named_with_file_and_line(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "c.toml").write_text("\nstroe = 1\n")
    assert main(["--config", "c.toml", "ls"]) == 3
    assert output(capsys)[1] == f"zstor: error: {home}/c.toml:2: unknown key stroe; did you mean store?\n"
    assert main(["--config", "c.toml", "daemon"]) == 78


def test_a_configuration_that_is_not_there_is_told_with_who_named_it(
    capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZSTOR_CONFIG", f"{home}/gone.toml")
    assert main(["ls"]) == 3
    assert output(capsys)[1] == f"zstor: error: {home}/gone.toml: there is no such configuration file; ZSTOR_CONFIG names it\n"


def test_interrupted_is_exit_code_130(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    def cancelled(request: Message) -> Json:
        raise Refusal(-32800, "cancelled", "cancelled")

    serve(cancelled)
    assert main(["rm", "a", "b"]) == 130
    assert "interrupted" in output(capsys)[1]


def test_an_interrupted_replacement_says_how_to_wait_for_it(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    def cancelled(request: Message) -> Json:
        raise Refusal(-32800, "cancelled", "cancelled")

    serve(cancelled)
    assert main(["shard", "replace", "5"]) == 130
    assert "goes on without this command\n  hint: `zstor shard ls` shows the old one" in output(capsys)[1]


def test_a_reader_that_has_enough_gets_no_error_text(serve: Serve) -> None:
    serve(lambda request: {"items": [{"key": "k", "metadata": METADATA}] * 9, "cursor": None})
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as closed:
        command = [sys.executable, "-m", "zstor_local", "ls"]
        assert subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, check=False).stderr == b""


# --- What they send and show ---


def test_put_opens_the_file_itself_and_hands_it_over(serve: Serve, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "notes.txt").write_bytes(b"hello")
    daemon = serve(lambda request: {"metadata": METADATA})
    assert main(["put", "notes.txt"]) == 0
    assert requests(daemon) == [("object.write_file", {"key": "notes.txt", "fd": 0})]
    fd = daemon.peers[0].fds[0]
    assert os.pread(fd, 9, 0) == b"hello"
    os.close(fd)
    assert output(capsys) == ("stored notes.txt: 4.9 KiB in 6 shares, any 4 give it back\n", "")


def test_put_sends_every_option(serve: Serve, home: Path) -> None:
    (home / "f").touch()
    daemon = serve(lambda request: {"metadata": METADATA})
    options = ["--exclusive", "--user", "a=b=c", "--reference", "r", "--reference", "q", "--size", "0", "--digest", "blake3:00"]
    assert main(["put", "f", "k", "-n", "photos", "--json", "--if-version", "v", *options]) == 0
    assert requests(daemon)[0][1] == {
        "key": "k",
        "fd": 0,
        "namespace": "photos",
        "if_version": "v",
        "exclusive": True,
        "user": {"a": "b=c"},
        "references": ["r", "q"],
        "expected_size": 0,
        "expected_digest": "blake3:00",
    }
    os.close(daemon.peers[0].fds[0])


def test_put_warns_when_shares_are_owed(serve: Serve, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "f").touch()
    daemon = serve(lambda request: {"metadata": METADATA | {"owed": 1, "health": "valid"}})
    assert main(["put", "f"]) == 0
    assert output(capsys)[1] == "zstor: warning: it is done, but 1 shard was away; what was missed there follows when it is back\n"
    os.close(daemon.peers[0].fds[0])


def test_put_warns_when_there_are_fewer_shards_than_shares(serve: Serve, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "f").touch()
    daemon = serve(lambda request: {"metadata": METADATA | {"health": "valid"}})
    assert main(["put", "f"]) == 0
    assert output(capsys)[1].startswith("zstor: warning: there is no shard for some of its shares: `zstor shard add`")
    os.close(daemon.peers[0].fds[0])


def test_an_empty_key_is_not_taken_for_none(serve: Serve, home: Path) -> None:
    (home / "f").touch()
    daemon = serve(refuse)
    assert main(["put", "f", ""]) == 1
    assert requests(daemon) == [("object.write_file", {"key": "", "fd": 0})]
    os.close(daemon.peers[0].fds[0])


def test_a_missing_file_is_said_before_anything_is_sent(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = serve(refuse)
    assert main(["put", "missing"]) == 1
    assert output(capsys)[1] == "zstor: error: there is no file or directory missing\n"
    assert daemon.peers == []


def test_get_fills_a_file_through_a_descriptor(serve: Serve, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    daemon = serve(lambda request: {"metadata": METADATA, "bytes": 5_000})
    assert main(["get", "a/notes.txt", ".", "--offset", "1", "--length", "2"]) == 0
    assert requests(daemon) == [("object.read_file", {"key": "a/notes.txt", "fd": 0, "offset": 1, "length": 2})]
    assert os.readlink(f"/proc/self/fd/{daemon.peers[0].fds[0]}").startswith(f"{home}/.notes.txt.")
    os.close(daemon.peers[0].fds[0])
    assert (home / "notes.txt").is_file()
    assert output(capsys)[0] == "wrote notes.txt: 4.9 KiB\n"
    assert main(["get", "a/notes.txt", "."]) == 1
    assert "notes.txt is there already\n  hint: -f replaces it" in output(capsys)[1]


def test_rm_goes_on_after_a_missing_key(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = serve(lambda request: refuse(request) if request["params"] == {"key": "a"} else {"deleted": True, "owed": 2})
    assert main(["rm", "a", "b"]) == 1
    assert [params for _, params in requests(daemon)] == [{"key": "a"}, {"key": "b"}]
    out, err = output(capsys)
    assert out == "deleted b\n"
    assert "there is no object" in err
    assert "it is done, but 2 shards were away" in err


def test_ls_asks_for_page_after_page(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(request: Message) -> Json:
        params = request["params"]
        assert isinstance(params, dict)
        second = "cursor" in params
        return {"items": [{"key": "b" if second else "a", "metadata": METADATA}], "cursor": None if second else "next"}

    daemon = serve(answer)
    assert main(["ls", "p", "-n", "photos"]) == 0
    assert [params for _, params in requests(daemon)] == [
        {"prefix": "p", "namespace": "photos"},
        {"prefix": "p", "namespace": "photos", "cursor": "next"},
    ]
    assert output(capsys)[0] == "a\nb\n"
    assert main(["ls", "--json"]) == 0
    assert [json.loads(line)["key"] for line in output(capsys)[0].splitlines()] == ["a", "b"]


def test_ls_long_shows_size_time_and_health(serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.cli.text.time.localtime", __import__("time").gmtime)
    serve(lambda request: {"items": [{"key": "notes.txt", "metadata": METADATA}], "cursor": None})
    assert main(["ls", "-l"]) == 0
    assert output(capsys)[0] == "   4.9 KiB  2023-11-14 22:13:20  optimal  notes.txt\n"


class Terminal(io.StringIO):
    """Standard output as a terminal is."""

    def isatty(self) -> bool:
        return True


def test_control_characters_of_a_key_never_reach_a_terminal(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    serve(lambda request: {"items": [{"key": "a\x1b]0;x\x07\nb ü", "metadata": METADATA}], "cursor": None})
    assert main(["ls"]) == 0
    assert terminal.getvalue() == "a\\x1b]0;x\\x07\\nb ü\n"


def test_nor_do_those_of_who_keeps_a_content(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    serve(lambda request: {"entries": 1, "gone": [], "kept": [{"id": "bafy", "owners": ["\x1b[2J", "b"]}], "remains": "its hash"})
    assert main(["log", "scrub", "1"]) == 0
    assert "kept: bafy, for \\x1b[2J, b\n" in terminal.getvalue()


def test_stat_shows_the_object(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(lambda request: {"metadata": METADATA})
    assert main(["stat", "notes.txt"]) == 0
    lines = dict(line.split(None, 1) for line in output(capsys)[0].splitlines())
    assert lines["size"] == "4.9 KiB (5,000 bytes)"
    assert lines["policy"] == "any 4 of 6 shares, chunks of 1.0 MiB, zstd"
    assert lines["shards"] == "0:0  1:1  2:2  3:3  4:4  5:5"
    assert lines["user"] == "author=ann"
    assert main(["stat", "notes.txt", "--json"]) == 0
    assert json.loads(output(capsys)[0]) == {"metadata": METADATA}


STATUS: dict[str, Json] = {
    "state": "degraded",
    "shards": [
        {
            "id": "0",
            "url": "/srv/0",
            "group": "ab",
            "state": "ok",
            "used": 10,
            "free": 2_048,
            "latency_ms": 1.0,
            "last_error": None,
        },
        {
            "id": "1",
            "url": "/srv/1",
            "group": "ab",
            "state": "missing",
            "used": None,
            "free": None,
            "latency_ms": None,
            "last_error": "no marker",
        },
    ],
    "metastore": {"kind": "sqlite", "writable": True},
    "objects": 3,
    "bytes": 5_000,
    "queues": {"repair": 2, "owed": 0, "collect": 0},
    "scrub": {
        "state": "running",
        "cursor_percent": 12.5,
        "started_epoch": 1,
        "last_ended_epoch": None,
        "eta_seconds": 7_300,
        "overdue": False,
        "found": {"objects": 1, "bytes": 2, "bad_shares": 3, "unreadable": 0, "strays_kept": 0, "unknown_keys": 0},
    },
    "warnings": ["shard 1 is missing"],
}


def test_status_draws_shards_and_warnings(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(lambda request: STATUS)
    assert main(["status"]) == 0
    out, err = output(capsys)
    lines = [line.split() for line in out.splitlines()]
    assert ["state", "degraded"] in lines
    assert ["repair", "2", "waiting", "(versions", "to", "repair)"] in lines
    assert ["scrub", "running,", "12.5", "%;", "2", "h", "to", "go;", "3", "bad", "shares"] in lines
    assert ["0", "ok", "░░░░░░░░░░░░", "10", "B", "2.0", "KiB", "ab", "/srv/0"] in lines
    assert ["1", "missing", "············", "–", "–", "ab", "/srv/1"] in lines
    assert err == "zstor: warning: shard 1 is missing\n"


def test_status_check_tells_by_its_exit_code(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    state = "ok"
    serve(lambda request: STATUS | {"state": state})
    assert main(["status", "--check"]) == 0
    state = "degraded"
    assert main(["status", "--check", "--json"]) == 1
    assert json.loads(output(capsys)[0].splitlines()[-1])["state"] == "degraded"


def test_status_check_tells_of_an_overdue_scrub(serve: Serve) -> None:
    serve(lambda request: STATUS | {"state": "ok", "scrub": {"state": "idle", "overdue": True}})
    assert main(["status", "--check"]) == 1


def test_status_watch_looks_again_until_it_is_interrupted(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = serve(lambda request: STATUS)
    rests = iter([None, None])

    def rest(client: Client, seconds: float) -> None:
        if next(rests, "over") == "over":
            raise KeyboardInterrupt

    monkeypatch.setattr("zstor_local.cli.client.Client.rest", rest)
    assert main(["status", "--watch", "--json"]) == 130
    out, err = output(capsys)
    assert len(out.splitlines()) == len(requests(daemon)) == 3
    assert err == ""  # Ctrl-C is how it ends
    rests = iter([None])
    assert main(["status", "--watch"]) == 130
    assert output(capsys)[0].count("shard 1 is missing") == 2


def test_scrub_collect_and_repair_all_tell_what_they_did(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    answers: dict[str, Json] = {
        "health.scrub": STATUS["scrub"],
        "health.collect": {
            "dry_run": True,
            "looked_at": 1_200,
            "freed": 0,
            "waiting": 5,
            "kept": 1,
            "found": [{"shard": "2", "version": "ab" * 16, "index": 1, "reason": "unknown", "namespace": "default", "key": "lost"}],
            "unseen": ["3"],
        },
        "health.repair_all": {
            "objects": 7,
            "repaired": 2,
            "failed": 1,
            "lacking": 3,
            "owed": 0,
            "found": [{"namespace": "default", "key": "gone", "error": "unreadable", "message": "only 1 of the 4"}],
        },
    }
    daemon = serve(lambda request: answers[str(request["method"])])
    assert main(["scrub"]) == 0
    assert "3 bad shares" in output(capsys)[0]
    assert main(["scrub", "--pause"]) == 0
    assert main(["scrub", "--resume", "--pause"]) == 3  # which of them is meant is not guessed
    assert "--pause, --resume and --status stand for each other" in output(capsys)[1]
    assert main(["collect", "--dry-run"]) == 0
    out, err = output(capsys)
    assert "1,200 shares looked at, 0 freed, 5 to be freed, 1 kept" in out
    assert "unknown    abababab.1 on shard 2  default/lost" in out
    assert "shard 3" in err
    assert main(["repair", "--all"]) == 1
    assert "7 objects: 2 repaired, 1 not, 3 still lack a share that no shard can take" in output(capsys)[0]
    assert [params for _, params in requests(daemon)] == [
        {"action": "start", "wait": True},
        {"action": "pause", "wait": False},
        {"dry_run": True, "accept_loss": False},
        {},
    ]
    assert main(["repair"]) == main(["repair", "a", "--all"]) == 3


def test_call_takes_text_json_and_files(serve: Serve, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "f").write_bytes(b"x")
    daemon = serve(lambda request: {"ok": True})
    assert main(["call", "object.write_file", "key=true", "exclusive:=true", 'user:={"a": "b"}', "fd:@f", "n=a=b"]) == 0
    params = {"key": "true", "exclusive": True, "user": {"a": "b"}, "fd": 0, "n": "a=b"}
    assert requests(daemon) == [("object.write_file", params)]
    assert json.loads(output(capsys)[0]) == {"ok": True}
    os.close(daemon.peers[0].fds[0])


def test_call_shows_text_as_text_on_a_terminal_only(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(lambda request: "one\ntwo")
    assert main(["call", "help"]) == 0
    assert output(capsys)[0] == '"one\\ntwo"\n'
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main(["call", "help"]) == 0
    assert terminal.getvalue() == "one\ntwo\n"


# --- What needs no daemon ---


def test_key_backup_prints_words_that_read_back(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    key = MasterKey(StoreId(bytes(16)), bytes(range(32)))
    path = home / ".config" / "zstor" / "master.key"
    path.parent.mkdir(parents=True)
    path.write_text(key.to_text())
    path.chmod(0o600)
    assert main(["key", "backup", "--yes"]) == 0
    out, err = output(capsys)
    assert from_words("".join(line for line in out.splitlines(True) if line[:2].strip().isdigit())) == key
    assert err == ""
    path.chmod(0o644)
    assert main(["key", "backup", "--yes"]) == 0
    assert "others may read" in output(capsys)[1]


def test_key_backup_says_what_is_wrong_with_the_key_file(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert main(["key", "backup", "--yes"]) == 1
    assert "there is no master key at" in output(capsys)[1]
    path = home / ".config" / "zstor" / "master.key"
    path.parent.mkdir(parents=True)
    path.write_text("zstor master key 1\nstore 00\nkey   c2VjcmV0\n")
    path.chmod(0o600)
    assert main(["key", "backup", "--yes"]) == 1
    err = output(capsys)[1]
    assert "is no master key" in err
    assert "c2VjcmV0" not in err


def test_methods_are_completed_from_the_daemon(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_ZSTOR_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "zstor call object.r")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit):
        main([])
    assert output(capsys) == ("\n", "")
    names = ["object.read", "object.read_file", "object.stat"]
    serve(lambda request: {"methods": [{"name": name} for name in names]})
    with pytest.raises(SystemExit):
        main([])
    assert output(capsys)[0].split() == ["plain,object.read", "plain,object.read_file"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_complete_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", shell]) == 0
    assert "_ZSTOR_COMPLETE" in output(capsys)[0]


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert main([command, "--help"]) == 0, command
        assert output(capsys)[0].startswith(f"Usage: zstor {command}")


@pytest.mark.parametrize("arguments", [[], ["shard"]])
def test_a_group_alone_shows_its_help_and_is_no_success(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 3
    out, err = output(capsys)
    assert out == ""
    assert err.lstrip().startswith("Usage: zstor ")


def test_no_summary_of_a_command_is_cut() -> None:
    context = click.Context(zstor, info_name="zstor", terminal_width=80)
    groups = [command for name in COMMANDS if isinstance(command := zstor.get_command(context, name), click.Group)]
    for group in [zstor, *groups]:
        shown = group.get_help(click.Context(group, info_name=group.name, terminal_width=80))
        assert not [line for line in shown.partition("Commands:")[2].splitlines() if line.endswith("...")], group.name


def test_rm_r_looks_at_the_key_and_what_is_below_it_and_at_no_neighbour(serve: Serve) -> None:
    """There may be a million keys that begin with the same letters."""

    def answer(request: Message) -> Json:
        if request["method"] == "object.stat":
            return {"metadata": METADATA}
        return {"items": [], "cursor": None} if request["method"] == "object.list" else {"deleted": True, "owed": 0}

    daemon = serve(answer)
    assert main(["rm", "-r", "--yes", "a"]) == 0
    listed = {str(params["prefix"]) for method, params in requests(daemon) if method == "object.list" and isinstance(params, dict)}
    assert listed == {"a/"}
    assert [params for method, params in requests(daemon) if method == "object.delete"] == [{"key": "a"}]


@pytest.mark.parametrize("new", [True, False])
def test_a_rotation_tells_programs_whether_the_key_is_new(
    serve: Serve, capsys: pytest.CaptureFixture[str], home: Path, new: bool
) -> None:
    key = MasterKey(StoreId(bytes(16)), bytes(32))
    (home / "key").write_text(key.to_text())
    (home / "key").chmod(0o600)
    serve(lambda request: {"new": new, "key_file": str(home / "key")} if request["method"] == "key.rotate" else {"shards": []})
    assert main(["key", "rotate", "--yes", "--json"]) == 0
    out, err = output(capsys)
    told = json.loads(out)
    assert (told["new"], told["store_id"], err) == (new, "00" * 16, "")
