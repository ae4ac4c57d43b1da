"""clients/shell where things go wrong: strict shells, odd words and places, daemons that die or stop, and who sees what."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import CLIENTS, LARGE, Place
from tests.clients.test_shell_client import bash, tools
from tests.daemon.process import Daemon

__all__ = ["tools"]

KEYS = [
    "a b",
    'it\'s "quoted"',
    "two\nlines\n",
    "-rf",
    "--help",
    "$(touch hit)`touch hit`",
    "*",
    "\\",
    "Grüße/日本/🗝",
    "{a=b",
    "a=b:=c",
]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Place]:
    """A daemon that a test may stop and kill."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "large").write_bytes(LARGE)
    with Daemon(tmp_path / "home") as daemon:
        yield Place(daemon.start(), tmp_path / "files")


# --- Shells and words ---


@pytest.mark.parametrize("options", ["set -euo pipefail", "set +eu", "set -euf; set -o noclobber; IFS=e; shopt -s failglob"])
def test_all_kinds_of_shells_will_do(place: Place, options: str) -> None:
    script = f"""{options}
    zstor_call object.write key=strict value=x >/dev/null
    zstor_put large strict-file | jq -r .key
    zstor_get strict-file strict-copy
    cmp large strict-copy
    zstor_write strict-stream <large | jq .size
    zstor_read strict-stream | cmp - large
    zstor_call object.stat key=none 2>/dev/null || echo "status $?"
    zstor_read none 2>/dev/null || echo "status $?"
    zstor_write x exclusive:=7 </dev/null 2>/dev/null || echo "status $?"
    zstor_open
    zstor_call rpc.ping
    zstor_close
    echo end
    """
    assert bash(place, script).stdout.split("\n")[:-1] == ["strict-file", str(len(LARGE)), *["status 1"] * 3, '"pong"', "end"]


def test_an_error_ends_a_strict_shell(place: Place) -> None:
    done = bash(place, "set -e\nzstor_call object.stat key=none\necho never", status=1)
    assert done.stdout == ""


@pytest.mark.parametrize("key", KEYS)
def test_words_are_taken_as_they_are(place: Place, key: str) -> None:
    script = """
    printf %s "$KEY" >source
    zstor_call object.write key="$KEY" value="$KEY" >/dev/null
    zstor_call object.read "key=$KEY" encoding=utf-8 | jq -j .value | cmp - source
    zstor_write "$KEY" <source >/dev/null && zstor_read "$KEY" | cmp - source
    zstor_put ./source "$KEY" >/dev/null && zstor_get "$KEY" ./taken && cmp source taken
    """
    done = bash(place, script, KEY=key)
    assert (done.stdout, done.stderr) == ("", "")
    assert not (place.files / "hit").exists()


@pytest.mark.parametrize("call", ["zstor_call object.write value=x key=", "zstor_call object.write key=x value=", "zstor_put large x"])
def test_what_is_no_utf8_is_refused_and_not_taken_for_something_else(place: Place, call: str) -> None:
    script = f"""{call}$'\\xe9' 2>/dev/null || {{ status=$?; echo "$ZSTOR_ERROR" | jq -r .data.type; exit $status; }}"""
    assert bash(place, script, status=1).stdout == "usage\n"


@pytest.mark.parametrize("name", ["-n", "two\nlines\n", "a b", "ü:,!"])
def test_files_of_any_name_are_put_and_got(place: Place, name: str) -> None:
    (place.files / name).write_text("odd")
    bash(place, 'zstor_put "$NAME" odd >/dev/null && rm -- "$NAME" && zstor_get odd "$NAME"', NAME=name)
    assert (place.files / name).read_text() == "odd"


def test_a_link_at_the_destination_is_replaced_and_not_followed(place: Place) -> None:
    (place.files / "behind").write_text("untouched")
    (place.files / "link").symlink_to("behind")
    bash(place, "zstor_call object.write key=linked value=new >/dev/null; zstor_get linked link")
    assert ((place.files / "behind").read_text(), (place.files / "link").read_text()) == ("untouched", "new")


@pytest.mark.parametrize("words", ["key", "key:=", "key:=nonsense", "'{\"key\": '", "'[1]'", "7"])
def test_words_that_are_no_parameters_are_told(place: Place, words: str) -> None:
    script = f'zstor_call object.stat {words} || {{ status=$?; echo "$ZSTOR_ERROR" | jq -r .data.type; exit $status; }}'
    done = bash(place, script, status=1)
    assert done.stdout == "usage\n"
    assert "NAME=TEXT" in done.stderr


def test_a_value_may_be_longer_than_an_argument(place: Place) -> None:
    script = """value=$(head -c 3000000 /dev/zero | tr '\\0' x)
    zstor_call object.write key=long value="$value" >/dev/null
    zstor_call object.read key=long encoding=utf-8 | jq '.value | length'
    """
    assert bash(place, script).stdout == "3000000\n"


@pytest.mark.parametrize("call", ["zstor_call object.stat key=none", "zstor_put none x", "zstor_get none x", "zstor_read none"])
def test_the_error_reaches_the_caller_from_every_function(place: Place, call: str) -> None:
    done = bash(place, f'{call} 2>/dev/null; echo "$? $(jq -r .code <<<"$ZSTOR_ERROR")"')
    assert done.stdout in ("1 100\n", "1 502\n", "1 201\n")


# --- Who sees what ---


def test_no_command_is_given_a_value_as_an_argument(place: Place, tmp_path: Path) -> None:
    for tool in ("socat", "jq", "iconv", "base64", "head", "tr", "cat", "printf"):
        shim = tmp_path / tool
        shim.write_text(f'#!/bin/sh\necho "$0 $*" >>"$SEEN"\nexec {shutil.which(tool)} "$@"\n')
        shim.chmod(0o755)
    seen = tmp_path / "seen"
    script = """
    zstor_call object.write key=SECRET value=SECRET user:='{"a": "SECRET"}' >/dev/null
    zstor_call object.read '{"key": "SECRET"}' >/dev/null
    zstor_call namespace.join invitation=SECRET 2>/dev/null
    echo SECRET | zstor_write SECRET >/dev/null; zstor_read SECRET >/dev/null
    zstor_open; zstor_call object.write key=SECRET value=SECRET >/dev/null; zstor_close
    """
    bash(place, script, SEEN=str(seen), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert seen.read_text().count("jq ") > 10
    assert "SECRET" not in seen.read_text()


def test_a_socket_of_somebody_else_is_not_spoken_to(place: Place) -> None:
    script = """
    [() { if builtin [ "$1" = -O ]; then return 1; fi; builtin [ "$@"; }  # -O: it is mine
    zstor_call rpc.ping
    """
    assert "not yours" in bash(place, script, status=2).stderr


@pytest.mark.parametrize("name", ["with space", "colon:comma,", "long" * 40, "q'u\"o[t]e(s){!\\"])
def test_the_socket_may_lie_anywhere(place: Place, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / name[:50]).symlink_to(place.daemon.socket)
    assert bash(place, "zstor_call rpc.ping", ZSTOR_SOCKET=str(tmp_path / name / name[:50])).stdout == '"pong"\n'


# --- Time ---


def test_an_answer_that_takes_longer_than_socats_half_second_is_not_lost(place: Place) -> None:
    script = """
    wait='since:='$(zstor_call object.changes | jq .cursor)
    zstor_call object.changes "$wait" wait_seconds:=0.8 | jq -c .items
    request=$(_zstor_request object.changes 1 "$wait" wait_seconds:=60)
    echo "$request" | socat - "UNIX-CONNECT:$(zstor_socket)" | wc -l
    """
    assert bash(place, script).stdout == "[]\n0\n"  # socat alone says nothing, and calls it success


@pytest.mark.parametrize(
    "call",
    [
        "zstor_call rpc.ping",
        "zstor_call object.write key=x value=\"$(head -c 400000 /dev/zero | tr '\\0' x)\"",
        "zstor_put large x",
        "zstor_read large",
        "zstor_write x <large",
        "zstor_open; zstor_call rpc.ping",
        "zstor_open; zstor_next",
    ],
)
def test_a_stopped_daemon_holds_nobody_up(own: Place, call: str) -> None:
    bash(own, "zstor_put large >/dev/null")
    own.daemon.signal(signal.SIGSTOP)
    done = bash(own, call, status=2, ZSTOR_TIMEOUT="1", ZSTOR_GRACE="1")
    assert "no answer" in done.stderr
    own.daemon.signal(signal.SIGCONT)


def test_a_daemon_that_dies_in_a_call_or_a_stream_is_an_error(own: Place) -> None:
    script = """
    zstor_put large >/dev/null
    since=$(zstor_call object.changes | jq .cursor)
    zstor_call object.changes since:="$since" wait_seconds:=60 2>waited &
    waiting=$!
    { head -c 600000 large; kill -9 "$DAEMON"; cat large; } | zstor_write dying; echo "status $?"
    wait $waiting; echo "status $?"
    zstor_read large; echo "status $?"
    """
    done = bash(own, script, DAEMON=str(own.daemon.pid))
    assert done.stdout == "status 2\n" * 3
    assert "no answer" in done.stderr
    own.daemon.restart()
    assert "not_found" in bash(own, 'zstor_call object.stat key=dying || { echo "$ZSTOR_ERROR"; exit 1; }', status=1).stdout


@pytest.mark.parametrize("closed", ["2>/dev/full", "2>&-"])
def test_an_error_that_cannot_be_told_is_one_all_the_same(own: Place, closed: str) -> None:
    script = f"""
    zstor_call object.stat 7 {closed}; echo "status $?"
    zstor_next {closed}; echo "status $?"
    zstor_open
    kill -9 "$DAEMON"
    zstor_call rpc.ping {closed}; echo "status $?"
    zstor_next {closed}; echo "status $?"
    zstor_close
    zstor_call rpc.ping {closed}; echo "status $?"
    """
    assert bash(own, script, DAEMON=str(own.daemon.pid)).stdout == "status 1\nstatus 1\n" + "status 2\n" * 3
    own.daemon.restart()


def test_an_input_that_cannot_be_read_stores_nothing(place: Place) -> None:
    assert "cannot be read" in bash(place, "zstor_write broken </", status=1).stderr
    bash(place, "zstor_call object.stat key=broken", status=1)


def test_who_stops_reading_gets_what_he_wanted(place: Place) -> None:
    done = bash(place, "zstor_put large >/dev/null; zstor_read large 2>/dev/null | head -c 5 | od -An -tu1")
    assert done.stdout.split() == ["0", "1", "2", "3", "4"]


# --- One connection ---


def test_an_open_connection_is_used_and_carries_streams(place: Place) -> None:
    script = """
    zstor_call object.write key=streamed value=bytes >/dev/null
    zstor_open
    stream=$(zstor_call object.read_stream key=streamed | jq .stream)
    zstor_next | jq -r .params.value_b64 | base64 -d
    zstor_call stream.ack stream:="$stream" seq:=0 | jq -c .seq
    zstor_call object.stat key=none 2>/dev/null || echo "$ZSTOR_ERROR" | jq -r .data.type
    stream=$(zstor_call object.write_stream key=aborted | jq .stream)
    zstor_call stream.abort stream:="$stream" >/dev/null
    zstor_close
    zstor_call stream.abort stream:="$stream" 2>/dev/null || echo "$ZSTOR_ERROR" | jq -r .data.type
    """
    assert bash(place, script).stdout == "bytes0\nnot_found\nnot_found\n"


def test_what_the_daemon_tells_beside_the_result_is_no_part_of_it(place: Place) -> None:
    script = """
    zstor_call object.write key=streamed value=bytes >/dev/null
    zstor_call object.read_stream key=streamed | jq -r type
    zstor_call object.check key=streamed _meta:='{"progressToken": 1}' | jq -r type
    """
    assert bash(place, script).stdout == "object\n" * 2


def test_without_an_open_connection_there_is_nothing_to_come(place: Place) -> None:
    assert "zstor_open makes one" in bash(place, "zstor_next", status=1).stderr


@pytest.mark.parametrize("time", ["soon", "1e3", "-5", "1.2.3", "."])
@pytest.mark.parametrize("name", ["ZSTOR_TIMEOUT", "ZSTOR_GRACE"])
@pytest.mark.parametrize("call", ["zstor_call rpc.ping", "zstor_open"])
def test_a_time_that_is_no_number_is_told(place: Place, call: str, name: str, time: str) -> None:
    assert "ZSTOR_TIMEOUT and ZSTOR_GRACE are seconds" in bash(place, f"{name}={time}; {call}", status=1).stderr


@pytest.mark.parametrize("time", ["08", "0060", "60.5", "5.", "20.08"])
@pytest.mark.parametrize("name", ["ZSTOR_TIMEOUT", "ZSTOR_GRACE"])
def test_a_time_is_decimal_and_may_have_a_fraction(place: Place, name: str, time: str) -> None:
    script = f"{name}={time}; zstor_call rpc.ping && zstor_open && zstor_call rpc.ping"
    assert bash(place, script).stdout == '"pong"\n' * 2


def test_times_below_a_second_are_times(place: Place) -> None:
    script = "zstor_open && zstor_call rpc.ping"
    assert bash(place, script, ZSTOR_TIMEOUT="0.5", ZSTOR_GRACE=".5").stdout == '"pong"\n'


def test_connections_leave_no_descriptor_and_no_process(place: Place) -> None:
    script = """
    open() { ls "/proc/$$/fd" | wc -l; }
    head -c 600000 large >pieces
    zstor_write first <pieces >/dev/null; before=$(open)
    zstor_open
    for n in 1 2 3 4 5; do zstor_write "n$n" <pieces >/dev/null; zstor_write no exclusive:=7 </dev/null 2>/dev/null; done
    zstor_call rpc.ping
    zstor_open; zstor_close; zstor_close
    [ "$(open)" -le "$before" ] && jobs
    """
    assert bash(place, script).stdout == '"pong"\n'


def test_functions_run_side_by_side(place: Place) -> None:
    script = """
    zstor_put large >/dev/null
    for n in 1 2 3; do zstor_read large | zstor_write "side$n" >/dev/null & done; wait
    for n in 1 2 3; do zstor_read "side$n" | cmp - large; done
    """
    assert bash(place, script).stderr == ""


# --- Installed ---


def test_it_is_installed_as_its_readme_says(place: Place, tmp_path: Path) -> None:
    readme = (CLIENTS / "shell" / "README.md").read_text()
    (install,) = [line for line in readme.splitlines() if line.startswith("install -D")]
    subprocess.run(["bash", "-c", install], cwd=CLIENTS.parent, env=place.environment | {"HOME": str(tmp_path)}, check=True)
    environment = place.environment | {"PATH": f"{tmp_path}/.local/bin:{os.environ['PATH']}"}
    said = subprocess.check_output(["bash", "-c", ". zstor.sh && zstor_call rpc.ping"], env=environment, cwd=place.files)
    assert json.loads(said) == "pong"
