"""The actors of a remote log as processes: Alice sends and goes away, Bob receives, is killed, and goes on."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from tests.cli.test_end_to_end import ZSTOR, done, zstor
from zstor_local.cli.private_daemon import PrivateDaemon


@pytest.fixture
def log(daemon: PrivateDaemon, request: pytest.FixtureRequest) -> str:
    """A log of the test's own, with short pages."""
    name = str(request.node.name).replace("_", "-")[-60:].strip("-")
    done(zstor(daemon, "log", "create", name, "--page-size", "3"))
    return name


def send(daemon: PrivateDaemon, log: str, *messages: str) -> None:
    done(zstor(daemon, "node", "send", "--log", log, "-", stdin="".join(f"{message}\n" for message in messages).encode()))


def received(file: Path) -> list[int]:
    """Of the whole lines: a kill may have cut off the last one."""
    return [json.loads(line)["seq"] for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_bob_reads_what_alice_sent_while_he_was_away(daemon: PrivateDaemon, log: str) -> None:
    assert done(zstor(daemon, "node", "send", "--log", log, "hello", "are you there?")) == b"sent as entry 1\nsent as entry 2\n"
    send(daemon, log, "third", "fourth", "fifth")
    expected = ["hello", "are you there?", "third", "fourth", "fifth"]
    lines = done(zstor(daemon, "node", "receive", "--log", log)).decode().splitlines()
    assert lines == [f"{number:>6}  {message}" for number, message in enumerate(expected, 1)]
    assert done(zstor(daemon, "node", "receive", "--log", log, "--since", "4")).decode() == "     5  fifth\n"
    assert done(zstor(daemon, "log", "verify", "--log", log)).startswith(b"log ")


def test_a_follower_gets_each_message_as_it_is_sent(daemon: PrivateDaemon, log: str) -> None:
    command = [*ZSTOR, "node", "receive", "--follow", "--log", log, "--count", "8", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=daemon.home, env=daemon.environment, text=True) as bob:
        assert bob.stdout is not None
        for number in range(1, 9):
            send(daemon, log, f"message {number}")
            assert json.loads(bob.stdout.readline())["seq"] == number
        assert bob.wait(60) == 0


def test_a_receiver_killed_at_any_point_goes_on_without_gap_or_repeat(daemon: PrivateDaemon, log: str, tmp_path: Path) -> None:
    file = tmp_path / "received"
    send(daemon, log, *(f"message {number}" for number in range(40)))
    command = [*ZSTOR, "node", "receive", "--log", log, "--into", str(file)]
    for lines in (1, 4, 9):  # killed while it prints so many
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=daemon.home, env=daemon.environment) as bob:
            assert bob.stdout is not None
            for _ in range(lines):
                bob.stdout.readline()
            bob.kill()
        assert received(file)[:1] == [1]
    with file.open("ab") as broken:  # and in the middle of a line
        broken.write(b'{"seq": 41, "local_ha')
    done(zstor(daemon, "node", "receive", "--log", log, "--into", str(file)))
    assert received(file) == list(range(1, 41))
    assert done(zstor(daemon, "node", "receive", "--log", log, "--into", str(file))) == b""


def test_ten_senders_and_a_follower_lose_nothing(daemon: PrivateDaemon, log: str) -> None:
    command = [*ZSTOR, "node", "receive", "--follow", "--log", log, "--count", "50", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=daemon.home, env=daemon.environment) as bob:
        with ThreadPoolExecutor(10) as threads:
            sending = [threads.submit(send, daemon, log, *(f"{sender}/{number}" for number in range(5))) for sender in range(10)]
            for each in sending:
                each.result()
        assert [entry["seq"] for entry in _lines(bob.stdout)] == list(range(1, 51))
        assert bob.wait(60) == 0
    bodies = [line.split()[1] for line in done(zstor(daemon, "node", "receive", "--log", log)).decode().splitlines()]
    assert sorted(bodies) == sorted(f"{sender}/{number}" for sender in range(10) for number in range(5))
    for sender in range(10):  # each sender's own messages keep their order
        assert [body for body in bodies if body.startswith(f"{sender}/")] == [f"{sender}/{number}" for number in range(5)]


def _lines(stream: IO[bytes] | None) -> Iterator[dict[str, int]]:
    assert stream is not None
    for line in stream:
        yield json.loads(line)


def test_a_scrubbed_message_is_received_as_such(daemon: PrivateDaemon, log: str, tmp_path: Path) -> None:
    send(daemon, log, "one", "two", "three", "four")
    done(zstor(daemon, "node", "receive", "--log", log, "--into", str(tmp_path / "received"), "--count", "2"))
    done(zstor(daemon, "log", "scrub", "--log", log, "3"))
    rest = done(zstor(daemon, "node", "receive", "--log", log, "--into", str(tmp_path / "received"))).decode()
    assert rest.splitlines() == ["     3  (scrubbed)", "     4  four"]


def test_another_log_under_the_same_name_is_noticed(daemon: PrivateDaemon, log: str, tmp_path: Path) -> None:
    file = tmp_path / "received"
    send(daemon, log, "one", "two")
    done(zstor(daemon, "node", "receive", "--log", log, "--into", str(file)))
    lines = file.read_text().splitlines()
    file.write_text(lines[0] + "\n" + lines[1].replace(json.loads(lines[1])["local_hash_b64"], "AAAA") + "\n")
    finished = zstor(daemon, "node", "receive", "--log", log, "--into", str(file))
    assert (finished.returncode, b"another log than before" in finished.stderr) == (1, True)
    file.write_text(lines[0].replace('"seq": 1', '"seq": 9') + "\n")
    assert zstor(daemon, "node", "receive", "--log", log, "--into", str(file)).returncode == 1


def test_a_file_of_something_else_is_not_touched(daemon: PrivateDaemon, log: str, tmp_path: Path) -> None:
    send(daemon, log, "one")
    for content in ("my diary\n", "no line at all", '{"seq": "x"}\n'):
        (tmp_path / "file").write_text(content)
        finished = zstor(daemon, "node", "receive", "--log", log, "--into", str(tmp_path / "file"))
        assert finished.returncode == 1, finished
        assert (tmp_path / "file").read_text() == content


def test_a_line_that_is_no_entry_is_named_and_without_it_nothing_is_lost(daemon: PrivateDaemon, log: str, tmp_path: Path) -> None:
    file = tmp_path / "received"
    send(daemon, log, "one", "two", "three")
    done(zstor(daemon, "node", "receive", "--log", log, "--into", str(file), "--count", "2"))
    before = file.read_text()
    for damage in ("no JSON\n", "\n", "[1]\n", '{"seq": 1e999}\n', "[" * 100_000 + "\n", "half a line"):
        file.write_text(before + damage)
        finished = zstor(daemon, "node", "receive", "--log", log, "--into", str(file))
        assert (finished.returncode, f"{file}: line 3, the last".encode() in finished.stderr) == (1, True), finished.stderr
        assert file.read_text() == before + damage
    file.write_text(before)
    done(zstor(daemon, "node", "receive", "--log", log, "--into", str(file)))
    assert received(file) == [1, 2, 3]


def test_what_a_power_cut_leaves_of_a_line_is_dropped(daemon: PrivateDaemon, log: str, tmp_path: Path) -> None:
    """The file may be as long as it was, with zeros in place of what had not reached the disk."""
    file = tmp_path / "received"
    send(daemon, log, "one", "two", "three")
    for left in (bytes(300), b'{"seq": 2, "loc' + bytes(90), bytes(5_000)):
        done(zstor(daemon, "node", "receive", "--log", log, "--into", str(file), "--count", "1"))
        with file.open("ab") as broken:
            broken.write(left)
    done(zstor(daemon, "node", "receive", "--log", log, "--into", str(file)))
    assert received(file) == [1, 2, 3]


def test_a_file_that_somebody_receives_into_is_left_to_him(daemon: PrivateDaemon, log: str, tmp_path: Path) -> None:
    file = tmp_path / "received"
    send(daemon, log, "one")
    command = [*ZSTOR, "node", "receive", "--follow", "--log", log, "--into", str(file), "--count", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=daemon.home, env=daemon.environment) as bob:
        assert bob.stdout is not None
        assert bob.stdout.readline() == b"     1  one\n"
        refused = zstor(daemon, "node", "receive", "--log", log, "--into", str(file), "--json")
        assert (refused.returncode, json.loads(refused.stderr)["error"]["data"]["type"]) == (1, "busy")
        send(daemon, log, "two")
        assert bob.wait(60) == 0
    assert received(file) == [1, 2]


def test_without_a_daemon_it_says_so(tmp_path: Path) -> None:
    finished = subprocess.run(
        [*ZSTOR, "node", "send", "--socket", str(tmp_path / "none"), "x"], capture_output=True, cwd=tmp_path, check=False
    )
    assert (finished.returncode, b"no daemon answers" in finished.stderr) == (2, True)


def test_equal_messages_are_messages_of_their_own(daemon: PrivateDaemon, log: str) -> None:
    send(daemon, log, *["again"] * random.Random(1).randrange(5, 9))
    assert len(set(done(zstor(daemon, "log", "read", "--log", log)).splitlines())) >= 5


def test_a_log_that_nobody_has_made_is_an_error_and_for_a_follower_one_that_may_come_yet(daemon: PrivateDaemon, log: str) -> None:
    assert done(zstor(daemon, "node", "receive", "--log", log)) == b""  # made, and empty
    refused = zstor(daemon, "node", "receive", "--log", "typo", "--json")
    assert (refused.returncode, json.loads(refused.stderr)["error"]["data"]["type"]) == (1, "not_found")
    command = [*ZSTOR, "node", "receive", "--follow", "--log", "later", "--count", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=daemon.home, env=daemon.environment) as bob:
        assert bob.stdout is not None
        assert bob.stderr is not None
        assert bob.stderr.readline() == b"zstor: warning: there is no log 'later' yet; it is waited for\n"
        done(zstor(daemon, "log", "create", "later"))
        send(daemon, "later", "here it is")
        assert bob.stdout.readline() == b"     1  here it is\n"
        assert bob.wait(60) == 0
