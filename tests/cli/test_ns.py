"""`zstor ns` beside a daemon."""

from __future__ import annotations

import json
import subprocess

from tests.cli.terminal import Terminal
from tests.cli.test_end_to_end import ZSTOR, done, zstor
from zstor_local.cli.private_daemon import PrivateDaemon


def test_a_name_is_set_read_listed_and_removed(daemon: PrivateDaemon) -> None:
    assert done(zstor(daemon, "ns", "set", "motd", "hello")) == b"set motd: change 1\n"
    assert done(zstor(daemon, "ns", "set", "motd", "-", stdin=b"\xff\0")) == b"set motd: change 2\n"
    assert done(zstor(daemon, "ns", "get", "motd")) == b"\xff\0"
    (line,) = done(zstor(daemon, "ns", "ls", "mo", "--json")).splitlines()
    assert json.loads(line)["name"] == "motd"
    assert done(zstor(daemon, "ns", "ls", "mo")).decode().split()[-3:] == ["B", "2", "motd"]
    stale = zstor(daemon, "ns", "set", "motd", "x", "--if-seq", "1")
    assert (stale.returncode, b"has the number 2" in stale.stderr) == (1, True)
    done(zstor(daemon, "ns", "set", "motd", "-", stdin=b"one\n\x1btwo\n"))
    with Terminal([*ZSTOR, "ns", "get", "motd"], home=daemon.home, environment=daemon.environment) as terminal:
        assert terminal.end() == 0
        assert terminal.drawn == "one\r\n\\x1btwo\r\n"
    assert done(zstor(daemon, "ns", "rm", "motd")) == b"deleted motd\n"
    assert zstor(daemon, "ns", "get", "motd").returncode == 1


def test_a_watcher_sees_what_another_terminal_sets(daemon: PrivateDaemon) -> None:
    command = [*ZSTOR, "ns", "watch", "news", "--count", "3", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=daemon.home, env=daemon.environment, text=True) as watcher:
        assert watcher.stdout is not None
        for number in range(1, 3):
            done(zstor(daemon, "ns", "set", "news", f"number {number}"))
            assert json.loads(watcher.stdout.readline())["seq"] == number
        done(zstor(daemon, "ns", "rm", "news"))
        last = json.loads(watcher.stdout.readline())
        assert (last["seq"], last["deleted"], watcher.wait(60)) == (3, True, 0)
