"""Output that cannot be written, streams that are closed, terminals without colors, and narrow ones."""

from __future__ import annotations

import json
import os
import subprocess
import tty
from pathlib import Path

import pytest

from tests.cli.terminal import ZSTOR, Terminal
from tests.cli.test_end_to_end import done, zstor
from zstor_local.cli.private_daemon import PrivateDaemon


@pytest.fixture(scope="module")
def filled(shared_daemon: PrivateDaemon) -> PrivateDaemon:
    """A daemon with one of everything that can be listed; nothing is to be changed there."""
    daemon = shared_daemon
    (daemon.home / "f").write_bytes(b"bytes")
    for arguments in (
        ["put", "f", "--reference", "r"],
        ["cas", "put", "f"],
        ["ns", "set", "name", "value"],
        ["log", "append", "entry"],
        ["perm", "give", "default", "ann", "read"],
    ):
        done(zstor(daemon, *arguments))
    return daemon


PRINTING = [
    ["ls"],
    ["ls", "-l"],
    ["ls", "--json"],
    ["stat", "f"],
    ["walk", "f"],
    ["ref", "ls", "f"],
    ["ref", "find", "r"],
    ["cas", "ls"],
    ["ns", "ls"],
    ["ns", "get", "name"],
    ["log", "ls"],
    ["log", "read"],
    ["log", "head"],
    ["log", "export", "-"],
    ["node", "receive"],
    ["check", "f"],
    ["namespace", "ls"],
    ["namespace", "get", "default"],
    ["perm", "ls", "default"],
    ["token", "keys"],
    ["status"],
    ["status", "--json"],
    ["shard", "ls"],
    ["call", "rpc.discover"],
    ["key", "backup", "--yes"],
    ["get", "f", "-"],
    ["complete", "bash"],
    ["--help"],
    ["ls", "--help"],
    ["--version"],
]


def test_a_full_disk_is_an_error_of_every_command_that_prints(filled: PrivateDaemon) -> None:
    for arguments in PRINTING:
        with open("/dev/full", "wb", buffering=0) as full:
            ended = zstor(filled, *arguments, stdout=full)
        assert ended.returncode == 1, arguments
        [line] = [line for line in ended.stderr.decode().splitlines() if not line.startswith(("zstor: warning: ", "  hint: "))]
        message = json.loads(line)["error"]["message"] if "--json" in arguments else line.removeprefix("zstor: error: ")
        assert message in ("the output: No space left on device", "standard output: No space left on device"), arguments


def test_a_full_disk_is_json_for_programs(filled: PrivateDaemon) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        ended = zstor(filled, "ls", "--json", stdout=full)
    error = json.loads(ended.stderr)["error"]
    assert (error["code"], error["data"]["type"], error["data"]["errno"]) == (502, "io_error", "ENOSPC")
    assert error["data"]["hint"] == "free some room there, or name another place"


def test_a_reader_that_has_enough_hears_nothing_from_any_command(filled: PrivateDaemon) -> None:
    for arguments in PRINTING:
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb", buffering=0) as unread:
            ended = zstor(filled, *arguments, stdout=unread)
        assert (ended.returncode, [line for line in ended.stderr.splitlines() if b"warning" not in line]) == (141, []), arguments


def test_a_reader_of_both_outputs_that_has_enough_hears_nothing_either(filled: PrivateDaemon) -> None:
    for arguments in (["ls"], ["stat", "missing"], ["nonsense"], ["--help"], ["status"]):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb", buffering=0) as unread:
            ended = subprocess.run(
                [*ZSTOR, *arguments], stdout=unread, stderr=unread, cwd=filled.home, env=filled.environment, check=False
            )
        assert ended.returncode == 141, arguments


def test_a_follower_whose_reader_has_enough_ends(filled: PrivateDaemon) -> None:
    for arguments in (["log", "follow", "--since", "0"], ["ns", "watch", "name"], ["node", "receive", "--follow"]):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb", buffering=0) as unread:
            assert zstor(filled, *arguments, stdout=unread).returncode == 141, arguments


def test_a_closed_standard_output_is_an_error_and_never_somebody_elses_socket(filled: PrivateDaemon) -> None:
    for arguments in [*PRINTING, ["cas", "put", "f"]]:
        ended = _closed(filled, 1, *arguments)
        assert ended.returncode == 1, arguments
        assert b"Bad file descriptor" in ended.stderr, arguments
        assert b"Traceback" not in ended.stderr


def test_a_closed_standard_input_is_an_error_and_stores_nothing(daemon: PrivateDaemon) -> None:
    for arguments in (
        ["put", "-", "k"],
        ["cas", "put", "-"],
        ["call", "object.write_stream", "key=k", "fd:@-"],
        ["ns", "set", "n", "-"],
        ["log", "append", "-"],
        ["log", "missing", "-"],
        ["node", "send", "-"],
        ["key", "restore"],
    ):
        ended = _closed(daemon, 0, *arguments)
        assert (ended.returncode, ended.stderr) == (1, b"zstor: error: standard input: Bad file descriptor\n"), arguments
    for listing in (["ls"], ["cas", "ls"], ["ns", "ls"], ["log", "read"]):
        assert done(zstor(daemon, *listing)) == b""


def test_a_closed_standard_error_keeps_the_exit_code(daemon: PrivateDaemon) -> None:
    assert _closed(daemon, 2, "stat", "missing").returncode == 1
    assert _closed(daemon, 2, "ls").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("stat missing", 1),
        ("stat missing --json", 1),
        ("no-such", 3),
        ("--socket /no/such ls", 2),
        ("daemon", 75),
        ("put f -n made-by-it", 0),
    ],
)
def test_a_full_standard_error_keeps_the_exit_code(arguments: str, status: int, daemon: PrivateDaemon) -> None:
    (daemon.home / "f").touch()
    with open("/dev/full", "wb") as full:
        command = [*ZSTOR, *arguments.split()]
        done = subprocess.run(command, cwd=daemon.home, env=daemon.environment, stdout=subprocess.DEVNULL, stderr=full, check=False)
    assert done.returncode == status


def _closed(daemon: PrivateDaemon, fd: int, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command with one of its standard streams closed."""
    return subprocess.run(
        ["bash", "-c", f'exec "$@" {fd}>&-', "bash", *ZSTOR, *arguments],
        cwd=daemon.home,
        env=daemon.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def test_an_input_that_fails_is_not_taken_for_its_end(daemon: PrivateDaemon) -> None:
    controller, terminal = os.openpty()
    tty.setraw(terminal)
    os.write(terminal, b"the first half")
    os.close(terminal)  # after these bytes, reading from the controller fails with EIO
    with open(controller, "rb", buffering=0) as broken:
        ended = subprocess.run(
            [*ZSTOR, "put", "-", "whole"], stdin=broken, cwd=daemon.home, env=daemon.environment, capture_output=True, check=False
        )
    assert ended.stderr.startswith(b"zstor: error: standard input: Input/output error")
    assert ended.returncode == 1
    assert done(zstor(daemon, "ls")) == b""


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.parametrize("arguments", [["stat", "missing"], ["status"], ["lss"], ["put", "f", "other"], ["--help"]])
def test_without_colors_no_escape_sequence_is_drawn(filled: PrivateDaemon, arguments: list[str], setting: dict[str, str]) -> None:
    assert "\x1b" not in _drawn(filled, arguments, **setting)


@pytest.mark.parametrize("arguments", [["stat", "missing"], ["status"]])
def test_a_terminal_gets_colors(filled: PrivateDaemon, arguments: list[str]) -> None:
    assert "\x1b[" in _drawn(filled, arguments)
    assert "\x1b[" in _drawn(filled, arguments, NO_COLOR="")  # no-color.org: an empty one means nothing


def _drawn(daemon: PrivateDaemon, arguments: list[str], **setting: str) -> str:
    with Terminal([*ZSTOR, *arguments], home=daemon.home, environment=daemon.environment | setting) as terminal:
        terminal.end()
        return terminal.drawn


def test_a_pipe_gets_what_was_stored_byte_for_byte(daemon: PrivateDaemon) -> None:
    colored = "\x1b[31mred"
    done(zstor(daemon, "put", "-", colored, stdin=b"1"))
    done(zstor(daemon, "ns", "set", colored, "value"))
    done(zstor(daemon, "log", "append", colored))
    for arguments in (["ls"], ["ns", "ls"], ["log", "read"]):
        assert colored.encode() in done(zstor(daemon, *arguments)), arguments


def test_no_result_of_a_call_steers_the_terminal(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "red \x9b31m, rot, 赤", stdin=b"1"))  # JSON escapes only the control characters of ASCII
    drawn = _drawn(daemon, ["call", "object.list"])
    assert "\x9b" not in drawn
    assert "赤" in drawn
    assert "\r\n" in _drawn(daemon, ["call", "help"])


def test_no_label_of_a_progress_bar_steers_the_terminal_or_fills_it(daemon: PrivateDaemon) -> None:
    key = "\x1b]0;owned\x07\n" + "k" * 900
    done(zstor(daemon, "put", "-", key, stdin=b"some bytes"))
    with Terminal([*ZSTOR, "get", key, "f"], home=daemon.home, environment=daemon.environment) as terminal:
        assert terminal.end() == 0
        drawn = terminal.drawn
    assert "0;owned" in drawn
    assert "\x1b]0;owned" not in drawn
    assert "k" * 41 not in drawn


def test_what_is_not_utf_8_is_named_or_kept_as_it_is(daemon: PrivateDaemon) -> None:
    foreign = os.fsdecode(b"caf\xe9")
    (daemon.home / "f").write_bytes(b"1")
    users = [["put", "f", "--user", f"a={foreign}"], ["put", "f", "--user", f"{foreign}=a"]]
    logs = [["node", "send", "--log", foreign, "text"], ["node", "receive", "--log", foreign]]
    for arguments in (["put", "f", foreign], ["ref", "add", "f", foreign], ["ls", foreign], *users, *logs):
        refused = zstor(daemon, *arguments)
        assert refused.returncode == 1
        assert b"is not UTF-8" in refused.stderr
        assert b"caf\\xe9" in refused.stderr
    done(zstor(daemon, "ns", "set", "name", foreign))
    assert done(zstor(daemon, "ns", "get", "name")) == b"caf\xe9"
    done(zstor(daemon, "log", "append", foreign))
    assert b"caf\\xe9" in done(zstor(daemon, "log", "read"))
    done(zstor(daemon, "node", "send", foreign))
    daemon.environment["PYTHONUTF8"] = "1"  # where standard input is decoded strictly
    done(zstor(daemon, "node", "send", "-", stdin=b"th\xe9\n"))
    assert b"th\\xe9" in done(zstor(daemon, "node", "receive"))
    assert b"is not UTF-8" in zstor(daemon, "namespace", "join", "-", stdin=b"\xe9").stderr


def test_another_encoding_gets_escapes_and_no_traceback(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "“ü”", stdin=b"1"))
    environment = daemon.environment | {"PYTHONIOENCODING": "latin-1"}
    for arguments, wanted in ((["ls"], b"\\u201c\xfc\\u201d\n"), (["status"], b"0      ok     #"), (["--help"], b"Usage")):
        ended = subprocess.run([*ZSTOR, *arguments], env=environment, cwd=daemon.home, capture_output=True, check=False)
        assert ended.returncode == 0
        assert wanted in ended.stdout
        assert b"Traceback" not in ended.stderr


def test_on_forty_columns_every_shard_is_to_be_read(daemon: PrivateDaemon) -> None:
    with Terminal([*ZSTOR, "status"], home=daemon.home, environment=daemon.environment, columns=40) as terminal:
        assert terminal.end() == 0
        picture = terminal.text.partition("zstor: warning")[0]
    assert max(map(len, picture.splitlines())) <= 40
    table = picture[picture.index("SHARD") :].splitlines()
    assert table[0].split() == ["SHARD", "STATE", "FREE", "PLACE"]
    assert "…" not in picture
    places = "".join(line[table[0].index("PLACE") :].strip() for line in table[1:])
    assert str(daemon.home / "data" / "zstor" / "shards" / "5") in places


def test_on_forty_columns_every_command_has_help(tmp_path: Path) -> None:
    for arguments in ([], ["put"], ["log"], ["log", "create"], ["shard", "serve"]):
        with Terminal([*ZSTOR, *arguments, "--help"], home=tmp_path, environment=dict(os.environ), columns=40) as terminal:
            assert terminal.end() == 0
            assert max(map(len, terminal.text.splitlines())) <= 50, arguments  # click's least width
