"""`zstor log` beside a daemon."""

from __future__ import annotations

import json
import subprocess
from hashlib import sha256

from tests.cli.test_end_to_end import ZSTOR, done, zstor
from zstor_local.cli.private_daemon import PrivateDaemon


def test_a_log_is_made_appended_to_read_and_listed(daemon: PrivateDaemon) -> None:
    assert done(zstor(daemon, "log", "create", "diary", "--page-size", "2", "--embed-last", "1")) == b"made the log diary, pages of 2\n"
    assert done(zstor(daemon, "log", "append", "--log", "diary", "one")) == b"entry 1\n"
    assert done(zstor(daemon, "log", "append", "--log", "diary", "-", "--hash", "02", stdin=b"two")) == b"entry 2\n"
    assert done(zstor(daemon, "log", "append", "--log", "diary", "three")) == b"entry 3\n"
    assert done(zstor(daemon, "log", "append", "--log", "diary", "one")) == b"entry 1, which was there already\n"
    assert done(zstor(daemon, "log", "read", "--log", "diary")).decode().split() == ["1", "one", "2", "two", "3", "three"]
    assert done(zstor(daemon, "log", "read", "--log", "diary", "--newest", "1")).decode().split() == ["3", "three"]
    (line,) = done(zstor(daemon, "log", "read", "--log", "diary", "--since", "2", "--json")).splitlines()
    assert json.loads(line)["value_b64"] == "dGhyZWU="
    head = done(zstor(daemon, "log", "head", "--log", "diary")).decode()
    assert head.startswith("log diary: 3 entries, change 3\n")
    tail = head.split()[-1]
    page = done(zstor(daemon, "log", "page", "--log", "diary", tail)).decode()
    assert page.splitlines()[0].split()[0] == "02"
    assert page.endswith("next page: none, this is the first\n")
    assert page == done(zstor(daemon, "log", "page", "--log", "diary", "--seq", "1")).decode()
    (missing,) = done(
        zstor(daemon, "log", "missing", "--log", "diary", "-", stdin=b"02\n" + sha256(b"one").hexdigest().encode())
    ).splitlines()
    assert missing.split()[:2] == [b"3", sha256(b"three").hexdigest().encode()]
    assert b"diary" in done(zstor(daemon, "log", "ls"))
    verified = done(zstor(daemon, "log", "verify", "--log", "diary", "--contents"))
    assert verified == b"log diary is whole: 3 entries in 2 pages, 0 of them scrubbed\n"
    scrubbed = done(zstor(daemon, "log", "scrub", "--log", "diary", "1", "2")).decode()
    assert scrubbed.startswith("scrubbed 2 entries, 2 contents gone\nwhat remains: ")
    assert b"log 'diary' has no entry 4\n" in zstor(daemon, "log", "scrub", "--log", "diary", "4").stderr
    assert done(zstor(daemon, "log", "read", "--log", "diary")).decode().split() == ["1", "(scrubbed)", "2", "(scrubbed)", "3", "three"]


def test_a_log_that_is_named_without_its_option_is_led_there(daemon: PrivateDaemon) -> None:
    """`log create NAME` takes the name as it is; TEXT stands there in `log append`."""
    for words in (("read", "talk"), ("append", "talk", "text")):
        refused = zstor(daemon, "log", *words)
        assert (refused.returncode, b"hint: a log is named with --log: zstor log" in refused.stderr) == (3, True)
    assert b"hint: zstor ls --help" in zstor(daemon, "ls", "a", "b").stderr


def test_a_log_goes_into_a_file_and_comes_back(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "log", "append", "--log", "default", "kept"))
    assert b"exported" in done(zstor(daemon, "log", "export", "log.car"))
    assert zstor(daemon, "log", "export", "log.car").returncode == 1
    done(zstor(daemon, "log", "export", "-f", "log.car"))
    assert zstor(daemon, "log", "export", "-", "--json").returncode == 3  # where would the document go?
    assert done(zstor(daemon, "log", "export", "-")) == (daemon.home / "log.car").read_bytes()
    assert done(zstor(daemon, "log", "import", "log.car", "--log", "copy")).startswith(b"log copy: created")
    assert done(zstor(daemon, "log", "read", "--log", "copy")) == done(zstor(daemon, "log", "read"))


def test_a_follower_sees_what_another_terminal_appends(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "log", "create", "live"))
    command = [*ZSTOR, "log", "follow", "--log", "live", "--since", "0", "--count", "3", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=daemon.home, env=daemon.environment, text=True) as follower:
        assert follower.stdout is not None
        for number in range(1, 4):
            done(zstor(daemon, "log", "append", "--log", "live", f"number {number}"))
            assert json.loads(follower.stdout.readline())["seq"] == number
        assert follower.wait(60) == 0
