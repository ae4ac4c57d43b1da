"""clients/shell: functions over socat and jq against the real daemon."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.clients.conftest import CLIENTS, LARGE, Place
from tests.lacking import lacking


@pytest.fixture(autouse=True)
def tools() -> None:
    for tool in ("bash", "socat", "jq"):
        if shutil.which(tool) is None:
            lacking(tool)


def bash(place: Place, script: str, *, status: int = 0, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", "-uc", f'. "$CLIENTS/shell/zstor.sh"\n{script}'],
        env=place.environment | environment,
        cwd=place.files,
        input=given,
        capture_output=True,
        check=False,
    )
    assert done.returncode == status, done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode())


def test_calls_take_json_or_words(place: Place) -> None:
    assert bash(place, "zstor_call rpc.ping").stdout == '"pong"\n'
    words = """zstor_call object.write key='a "key"' value='it'"'"'s = text' user:='{"n": "1"}' >/dev/null"""
    bash(place, words)
    reply = bash(place, """zstor_call object.read '{"key": "a \\"key\\"", "encoding": "utf-8"}'""")
    assert json.loads(reply.stdout)["value"] == "it's = text"


def test_files_go_by_path(place: Place) -> None:
    done = bash(place, "zstor_put large big >/dev/null && zstor_get big 'a copy' && cmp large 'a copy' && zstor_put large | jq -r .key")
    assert done.stdout == "large\n"


@pytest.mark.parametrize("size", [0, 1, 524_288, len(LARGE)])
def test_pipes_go_in_and_come_back_as_they_were(place: Place, size: int) -> None:
    (place.files / "piece").write_bytes(LARGE[:size])
    done = bash(place, "cat piece | zstor_write piped | jq .size; zstor_read piped | cmp - piece && echo same")
    assert done.stdout == f"{size}\nsame\n"


def test_a_slow_reply_is_waited_for(place: Place) -> None:
    script = """
    cursor=$(zstor_call object.changes | jq .cursor)
    zstor_call object.changes since:="$cursor" wait_seconds:=60 >late &
    until [ "$(zstor_call daemon.info | jq 'has("pid")')" = true ]; do :; done
    zstor_call object.write key=news value=x >/dev/null
    wait $! && jq -r '.. | .key? // empty' late | grep -xm 1 news
    """
    assert bash(place, script).stdout == "news\n"


def test_a_deadline_is_the_daemons(place: Place) -> None:
    script = """
    cursor=$(zstor_call object.changes | jq .cursor)
    ZSTOR_TIMEOUT=0.1
    zstor_call object.changes since:="$cursor" wait_seconds:=60
    """
    assert "deadline" in bash(place, script, status=1).stderr


@pytest.mark.parametrize(
    "call", ["zstor_call object.stat key=none", "zstor_read none", "zstor_get none x", "zstor_put none x", "zstor_write x no:=1"]
)
def test_errors_are_told_and_seen(place: Place, call: str) -> None:
    done = bash(place, call, status=1)
    assert done.stderr.startswith(("zstor: ", "realpath: "))


def test_the_error_is_there_as_json(place: Place) -> None:
    done = bash(place, 'zstor_call object.stat key=none 2>/dev/null || echo "$ZSTOR_ERROR" | jq -r .data.type')
    assert done.stdout == "not_found\n"


def test_without_a_daemon_it_says_so(place: Place) -> None:
    for call in ("zstor_call rpc.ping", "zstor_write x"):
        assert "no daemon" in bash(place, call, status=2, ZSTOR_SOCKET="/no/such/socket").stderr


def test_it_has_300_lines_at_most() -> None:
    assert len((CLIENTS / "shell" / "zstor.sh").read_text().splitlines()) <= 300
