"""Foreign JSON-RPC clients, unchanged, against the real daemon. What a client needs to know is in docs/wire.md."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonrpcclient import Error, Ok, notification, notification_json, parse_json, request, request_json

from tests.daemon.process import Daemon
from tests.lacking import lacking

HERE = Path(__file__).parent
CONTENT = bytes(range(256)) * 8_192  # two chunks
PING = '{"jsonrpc": "2.0", "id": 1, "method": "rpc.ping"}'
PONG = {"jsonrpc": "2.0", "result": "pong", "id": 1}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("interop") / "home") as running:
        (running.home / "file").write_bytes(CONTENT)
        yield running.start()


def run(daemon: Daemon, *command: str, given: str = "") -> str:
    if shutil.which(command[0]) is None:
        lacking(command[0])
    done = subprocess.run(command, input=given, env=daemon.environment, cwd=daemon.home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(method: str, **params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})


def note(method: str, **params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params})


def outcome(reply: dict[str, Any]) -> str:
    """What a reply comes to: the value that was read, or the error's type."""
    if "error" in reply:
        return str(reply["error"]["data"]["type"])
    return str(reply["result"].get("value", reply["result"].get("value_b64")))


# --- Shells ---

SHELLS = [["socat", "-t", "60", "-", "UNIX-CONNECT:{}"], ["nc", "-N", "-U", "{}"]]


@pytest.mark.parametrize("command", SHELLS, ids=["socat", "nc"])
@pytest.mark.parametrize("after", ["\n", "", "\r\n", "\n\n"], ids=["newline", "nothing", "crlf", "empty line"])
def test_shells_get_their_reply_and_end(daemon: Daemon, command: list[str], after: str) -> None:
    command = [word.format(daemon.socket) for word in command]
    assert json.loads(run(daemon, *command, given=PING + after)) == PONG
    pretty = json.dumps(json.loads(call("object.write_file", key="shell", path=f"{daemon.home}/file")), indent=4)
    assert json.loads(run(daemon, *command, given=pretty + after))["result"]["metadata"]["size"] == len(CONTENT)


@pytest.mark.parametrize("command", SHELLS, ids=["socat", "nc"])
def test_shells_get_all_replies_to_all_requests(daemon: Daemon, command: list[str]) -> None:
    command = [word.format(daemon.socket) for word in command]
    lines = "".join(json.dumps({"jsonrpc": "2.0", "id": number, "method": "rpc.ping"}) + "\n" for number in range(50))
    replies = [json.loads(line) for line in run(daemon, *command, given=lines).splitlines()]
    assert sorted(reply["id"] for reply in replies) == list(range(50))


@pytest.mark.parametrize("command", SHELLS, ids=["socat", "nc"])
def test_shells_write_read_fail_and_notify_singly_and_in_batches(daemon: Daemon, command: list[str]) -> None:
    command = [word.format(daemon.socket) for word in command]
    key = f"by {command[0]}"
    writes = [call("object.write", key=key, value="grüße"), note("object.write", key=f"{key}, untold", value="x")]
    (written,) = run(daemon, *command, given="\n".join(writes)).splitlines()
    assert json.loads(written)["result"]["metadata"]["size"] == 7
    reads = [
        call("object.read", key=key, encoding="utf-8"),
        note("rpc.ping"),
        call("object.read", key=f"{key}, untold"),
        call("no.such"),
        "7",
    ]
    replies = json.loads(run(daemon, *command, given=f"[{', '.join(reads)}]"))
    assert sorted(outcome(reply) for reply in replies) == ["eA==", "grüße", "invalid_request", "method_not_found"]


# --- curl ---


def curl(daemon: Daemon, body: str, *options: str) -> str:
    return run(daemon, "curl", "--silent", "--show-error", "--unix-socket", daemon.socket, "http://zstor/", "-d", body, *options)


def test_curl_posts_calls_and_batches(daemon: Daemon) -> None:
    assert json.loads(curl(daemon, PING)) == PONG
    assert json.loads(curl(daemon, f"[{PING}, {PING}]")) == [PONG, PONG]
    assert json.loads(curl(daemon, call("object.stat", key="none")))["error"]["data"]["type"] == "not_found"
    assert curl(daemon, '{"jsonrpc": "2.0", "method": "rpc.ping"}', "--write-out", "%{http_code}") == "204"


def test_curl_moves_large_data_by_path_and_what_http_cannot_carry_is_said(daemon: Daemon) -> None:
    curl(daemon, call("object.write_file", key="curl", path=f"{daemon.home}/file"))
    curl(daemon, call("object.read_file", key="curl", path=f"{daemon.home}/curled"))
    assert (daemon.home / "curled").read_bytes() == CONTENT
    for refused in (call("object.read_stream", key="curl"), call("object.write_file", key="x", fd=0)):
        assert json.loads(curl(daemon, refused))["error"]["data"]["type"] == "not_supported"


def test_curl_sends_a_large_value_in_one_go(daemon: Daemon) -> None:
    (daemon.home / "body").write_text(call("object.write", key="large", value="x" * 3_000_000))
    assert json.loads(curl(daemon, "@body"))["result"]["metadata"]["size"] == 3_000_000
    value = json.loads(curl(daemon, call("object.read", key="large", encoding="utf-8")))["result"]["value"]
    assert value == "x" * 3_000_000


def test_curl_keeps_its_connection(daemon: Daemon) -> None:
    again = ["--next", "--silent", "--unix-socket", daemon.socket, "http://zstor/", "--output", "/dev/null"]
    again += ["--write-out", " %{num_connects} more", "--data"]
    said = curl(daemon, PING, *again, "no json", *again, PING, *again, note("rpc.ping"))
    assert json.loads(said.removesuffix(" 0 more" * 3)) == PONG


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["--request", "GET"], "405"),
        (["--head", "--data", ""], "405"),
        (["--request", "PUT"], "405"),
        (["--header", "Content-Type: text/plain"], "200"),
        (["--header", "Content-Type: application/json; charset=utf-8", "--header", "Accept: text/html"], "200"),
        (["--request-target", "/any/where?at=all"], "200"),
        (["--header", "Transfer-Encoding: chunked"], "200"),
        (["--header", "Expect: 100-continue"], "200"),
        (["--http1.0"], "200"),
        (["--http2"], "200"),  # an offer to upgrade, which is passed over
        (["--header", f"X-Long: {'x' * 120_000}"], "431"),
        (["--header", "Host:"], "400"),
    ],
)
def test_curl_is_answered_whatever_it_sends(daemon: Daemon, options: list[str], status: str) -> None:
    if "--head" in options:
        command = ["curl", "--silent", "--unix-socket", daemon.socket, "--head", "http://zstor/", "--write-out", "%{http_code}"]
        assert run(daemon, *command).endswith(status)
        return
    said = curl(daemon, PING, *options, "--write-out", "%{http_code}", "--max-time", "60")
    assert said.endswith(status)
    if status == "200":
        assert json.loads(said.removesuffix(status)) == PONG
    else:
        assert json.loads(said.removesuffix(status))["error"]["data"]["type"] in ("not_supported", "invalid_request")


@pytest.mark.parametrize("options", [[], ["--header", "Expect:"], ["--header", "Transfer-Encoding: chunked"]])
def test_curl_is_told_that_a_message_is_too_large(daemon: Daemon, options: list[str]) -> None:
    (daemon.home / "huge").write_bytes(b"x" * 17_000_000)
    said = curl(daemon, "@huge", *options, "--write-out", "%{http_code}", "--max-time", "60")
    assert json.loads(said.removesuffix("413"))["error"]["data"]["type"] == "too_large"


# --- Python ---


def test_pythons_standard_library(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(daemon.socket)
        with connection.makefile("rw") as lines:

            def ask(text: str) -> Any:
                print(text, file=lines, flush=True)
                return json.loads(lines.readline())

            for _ in range(3):
                assert ask(PING) == PONG
            assert ask(call("object.write", key="library", value="grüße"))["result"]["metadata"]["size"] == 7
            print(note("rpc.ping"), file=lines, flush=True)
            assert outcome(ask(call("object.read", key="library", encoding="utf-8"))) == "grüße"
            assert outcome(ask(call("object.stat", key="none"))) == "not_found"
            batch = f"[{call('no.such')}, {note('rpc.ping')}, {call('object.read', key='library', encoding='utf-8')}]"
            assert sorted(outcome(reply) for reply in ask(batch)) == ["grüße", "method_not_found"]


def test_jsonrpcclient(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(daemon.socket)
        with connection.makefile("rw") as lines:

            def ask(text: str) -> Any:
                print(text, file=lines, flush=True)
                return parse_json(lines.readline())

            assert isinstance(answer := ask(request_json("object.write", params={"key": "jsonrpcclient", "value": "grüße"})), Ok)
            assert answer.result["metadata"]["size"] == 7
            print(notification_json("rpc.ping"), file=lines, flush=True)
            assert isinstance(found := ask(request_json("object.read", params={"key": "jsonrpcclient", "encoding": "utf-8"})), Ok)
            assert found.result["value"] == "grüße"
            assert isinstance(refusal := ask(request_json("object.stat", params={"key": "none"})), Error)
            assert refusal.data["type"] == "not_found"
            batch = ask(json.dumps([request("rpc.ping"), notification("rpc.ping"), request("no.such")]))
            assert sorted(str(each.result if isinstance(each, Ok) else each.code) for each in batch) == ["-32601", "pong"]


# --- Node ---


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clients, as package-lock.json names them."""
    if shutil.which("npm") is None:
        lacking("npm")
    place = tmp_path_factory.mktemp("packages")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, place)
    done = subprocess.run(["npm", "ci", "--silent", "--ignore-scripts"], cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        lacking(f"the packages of tests/interop/package-lock.json: {done.stderr}")
    return place


EXPECTED = {"pong": "pong", "size": len(CONTENT), "text": "grüße", "noted": "heard", "error": [100, "not_found"]}


@pytest.mark.parametrize(
    ("client", "more"),
    [
        ("json-rpc-2.0", {"batch": ["pong", -32601]}),
        ("jayson", {"batch": ["pong", -32601]}),
        ("jayson-http", {"batch": ["pong", -32601]}),
        ("vscode-jsonrpc", {"cancelled": -32800, "told": True}),
    ],
)
def test_clients_of_node(daemon: Daemon, packages: Path, client: str, more: dict[str, Any]) -> None:
    command = ["node", str(HERE / "clients.mjs"), client, daemon.socket, str(daemon.home / "file")]
    done = subprocess.run(command, cwd=packages, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == EXPECTED | more
