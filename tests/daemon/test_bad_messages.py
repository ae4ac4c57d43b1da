"""What is no request, a wrong request, too large, too many, half or never read: a typed answer each, and nobody else is harmed."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from tests.daemon.client import Client, close, error_type, message, pipe
from tests.daemon.process import Daemon
from zstor_local import limits

PING = message("rpc.ping", identity="after")
SAMPLES: list[Any] = [None, True, 1, -1, 1.5, 2**53, "text", "", [], ["text"], [1], [[]], {}, {"member": 1}]


@pytest.fixture
def kept(client: Client) -> Iterator[None]:
    """An object that no bad message may change."""
    version = client.write("kept", b"kept")["version"]
    yield
    assert client.result("object.stat", key="kept")["metadata"]["version"] == version


# --- No JSON, or JSON that is refused ---


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"\x00\x01\x02\xff\xfe",
        b'{"jsonrpc": "2.0", "method"',
        b"}{",
        b"[1, 2",
        b"\xff\xfe" + message("rpc.ping").encode("utf-16-le").rstrip(b"\n\0"),
        message("rpc.ping").encode("utf-16-be").rstrip(b"\n\0"),
        b'{"jsonrpc":"2.0","id":1,"method":"rpc.ping","params":{"x":NaN}}',
        b'{"jsonrpc":"2.0","id":1,"method":"rpc.ping","params":{"x":-Infinity}}',
        b'{"jsonrpc":"2.0","id":1e999,"method":"rpc.ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"rpc.ping","method":"object.delete"}',
        b'{"jsonrpc":"2.0","id":1,"method":"object.read","params":{"key":"kept","key":"other"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"object.read","params":{"key":"\\ud800"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"object.read","params":{"key":"\xc3\x28"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"object.read","params":{"key":"\xed\xa0\x80"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"object.read","params":{"key":"k","offset":' + b"9" * 5_000 + b"}}",
        b'{"jsonrpc":"2.0","id":1,"method":"rpc.check","params":{"method":"rpc.ping","params":' + b"[" * 100 + b"]" * 100 + b"}}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 200_000 + b"]" * 200_000,
        b'{"jsonrpc":"2.0","id":1,"method":"rpc.ping","params":[' + b"0," * 100_000 + b"0]}",
        b'{"jsonrpc":"2.0","id":1,"method":"rpc.ping","params":[' + b"[]," * 100_000 + b"[]]}",
    ],
    ids=lambda line: line[:24].decode("ascii", "replace"),
)
def test_one_parse_error_and_the_next_line_is_served(kept: None, client: Client, line: bytes) -> None:
    client.send(line + b"\n" + PING.encode())
    fault, pong = client.reply(), client.reply()
    assert (fault["error"]["code"], fault["error"]["data"]["type"], fault["id"]) == (-32700, "parse_error", None)
    assert (pong["result"], pong["id"]) == ("pong", "after")


def test_a_message_over_the_limit_is_too_large_and_the_next_line_is_served(client: Client) -> None:
    client.send(b'{"jsonrpc":"2.0","id":1,"method":"object.write","params":{"key":"large","value":"')
    for _ in range(17):
        client.send(b"x" * limits.MIB)
    client.send(b'"}}\n' + PING.encode())
    fault, pong = client.reply(), client.reply()
    assert (error_type(fault), fault["id"], fault["error"]["data"]["limit"]) == ("too_large", None, limits.MESSAGE_BYTES)
    assert pong["id"] == "after"
    assert "large" not in client.stored()


def test_a_value_over_the_limit_is_too_large(client: Client) -> None:
    value = base64.b64encode(bytes(limits.INLINE_VALUE_BYTES + 1)).decode()
    assert client.refusal("object.write", key="large", value_b64=value) == "too_large"
    assert "large" not in client.stored()


def test_sixteen_bad_messages_in_a_row_end_the_connection(daemon: Daemon, client: Client) -> None:
    client.send(b"garbage\n" * 40 + PING.encode())
    assert [error_type(reply) for reply in client.rest()] == ["parse_error"] * limits.BAD_MESSAGES_IN_A_ROW


def test_a_good_message_in_between_makes_the_count_begin_anew(client: Client) -> None:
    client.send((b"garbage\n" * 15 + PING.encode()) * 3)
    replies = [client.reply() for _ in range(48)]
    assert [reply["id"] for reply in replies].count("after") == 3
    assert client.result("rpc.ping") == "pong"


def test_a_message_that_is_cut_anywhere_by_a_disconnect_does_nothing(daemon: Daemon, client: Client) -> None:
    with ExitStack() as opened:
        reader, _ = pipe(opened)
        whole = message("object.write_stream", {"key": "cut", "fd": 0}).encode()
        for length in range(1, len(whole) - 1):
            with daemon.client() as peer:
                peer.send(whole[:length], [reader])
    assert "cut" not in client.stored()


def test_bytes_that_come_one_by_one_make_a_message(client: Client) -> None:
    for byte in PING.encode():
        client.send(bytes([byte]))
    assert client.reply()["id"] == "after"


# --- JSON, but no request, or not one that a method takes ---


@pytest.mark.parametrize(
    "request_",
    [
        [],
        1,
        "rpc.ping",
        {},
        {"jsonrpc": "1.0", "method": "rpc.ping", "id": 1},
        {"jsonrpc": "2.0", "method": 1, "id": 1},
        {"jsonrpc": "2.0", "method": "rpc.ping", "params": "x", "id": 1},
        {"jsonrpc": "2.0", "method": "rpc.ping", "params": None, "id": 1},
        {"jsonrpc": "2.0", "method": "rpc.ping", "id": {}},
        {"jsonrpc": "2.0", "method": "rpc.ping", "id": True},
        {"jsonrpc": "2.0", "method": "rpc.ping", "id": 1, "other": 1},
    ],
    ids=json.dumps,
)
def test_what_is_no_request_is_an_invalid_one(client: Client, request_: object) -> None:
    client.send(json.dumps(request_) + "\n" + PING)
    fault = client.reply()
    assert (fault["error"]["code"], fault["error"]["data"]["type"], fault["id"]) == (-32600, "invalid_request", None)
    assert client.reply()["id"] == "after"


def test_every_parameter_of_every_method_refuses_every_wrong_type(kept: None, client: Client) -> None:
    document = client.result("rpc.discover")
    tried = 0
    for method in document["methods"]:
        required = {
            parameter["name"]: _fitting(parameter["schema"], document) for parameter in method["params"] if parameter.get("required")
        }
        for parameter in method["params"]:
            for value in SAMPLES:
                if _fits(value, parameter["schema"], document):
                    continue
                reply = client.call(method["name"], {**required, parameter["name"]: value})
                assert (reply["error"]["code"], reply["error"]["data"]["type"]) == (-32602, "invalid_params"), (method["name"], value)
                assert reply["error"]["data"]["parameter"] == parameter["name"]
                tried += 1
    assert tried > 500
    assert client.stored() == {"bystander", "kept"}


def _fits(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> bool:
    return bool(jsonschema.Draft7Validator({**schema, "components": document["components"]}).is_valid(value))


def _fitting(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    return next(value for value in [*schema.get("enum", ()), *SAMPLES] if _fits(value, schema, document))


@pytest.mark.parametrize("name", ["object.raed", "object.writ", "rpc.pong", "Object.read"])
def test_a_method_that_is_nearly_one_is_unknown_with_a_hint(client: Client, name: str) -> None:
    reply = client.call(name, {})
    assert (reply["error"]["code"], error_type(reply)) == (-32601, "method_not_found")
    assert "did you mean" in reply["error"]["data"]["hint"]


@pytest.mark.parametrize("name", ["", "x" * 100_000, "__init__", "rpc.__class__", "\0"])
def test_a_method_that_is_like_none_is_unknown(client: Client, name: str) -> None:
    reply = client.call(name, {})
    assert error_type(reply) == "method_not_found"
    assert len(json.dumps(reply)) < 1_000


@pytest.mark.parametrize(("name", "near"), [("kye", "key"), ("lenght", "length"), ("name_space", "namespace")])
def test_a_parameter_that_is_nearly_one_is_refused_with_a_hint(client: Client, name: str, near: str) -> None:
    reply = client.call("object.read", {name: "x"})
    assert (reply["error"]["code"], reply["error"]["data"]["parameter"]) == (-32602, name)
    assert f'did you mean "{near}"?' in reply["error"]["data"]["hint"]


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("", "invalid_params"),
        ("a\0b", "invalid_params"),
        ("k" * 1_025, "too_large"),
        ("ü" * 513, "too_large"),
        ("x" * 100_000, "too_large"),
    ],
    ids=["empty", "NUL", "1025", "1026 in 513 characters", "100000"],
)
def test_a_key_out_of_its_bounds_is_refused(client: Client, key: str, error: str) -> None:
    assert client.refusal("object.write", key=key, value="") == error
    assert client.refusal("object.write_file", key=key, path="/x") == error
    assert client.refusal("object.read_file", key=key, path="/x") == error
    for method in ("object.read", "object.delete", "object.stat"):
        assert client.refusal(method, key=key) == error


@pytest.mark.parametrize("key", ["k" * 1_024, "ü" * 512, "..", "/etc/passwd", "a\nb", "%00", "\u202e", "'; DROP TABLE records; --"])
def test_a_key_within_them_is_only_a_name(client: Client, key: str) -> None:
    client.write(key, b"value")
    assert client.read(key) == b"value"
    client.result("object.delete", key=key)


@pytest.mark.parametrize("namespace", ["", "A", "a.b", "-a", "a-", "a" * 64, "a_0stor_b", "..", "a/b", "ä", "a\n", "a\0"])
def test_a_namespace_that_is_no_name_is_refused(client: Client, namespace: str) -> None:
    assert client.refusal("object.list", namespace=namespace) == "invalid_params"
    assert client.refusal("object.write", namespace=namespace, key="k", value="") == "invalid_params"
    for method in ("object.read", "object.delete", "object.stat"):
        assert client.refusal(method, namespace=namespace, key="k") == "invalid_params"


@pytest.mark.parametrize(
    "params",
    [
        {"key": "k"},
        {"key": "k", "value": "a", "value_b64": "YQ=="},
        {"key": "k", "value": "a", "fd": 0},
        {"value": "a"},
        {"key": "k", "value_b64": "not base64"},
        {"key": "k", "value_b64": "YQ"},
        {"key": "k", "value": "a", "if_version": "1"},
        {"key": "k", "value": "a", "expected_digest": "md5:00"},
        {"key": "k", "value": "a", "references": [""]},
        {"key": "k", "value": "a", "references": ["x" * 256]},
        {"key": "k", "value": "a", "metadata": {}},
        {"key": "k", "value": "a", "_meta": []},
        {"key": "k", "value": "a", "_meta": {"timeoutSeconds": 0}},
        {"key": "k", "value": "a", "_meta": {"timeoutSeconds": "1"}},
        {"key": "k", "value": "a", "_meta": {"progressToken": []}},
    ],
    ids=json.dumps,
)
def test_a_write_that_contradicts_itself_writes_nothing(client: Client, params: dict[str, Any]) -> None:
    assert client.refusal("object.write", **params) == "invalid_params"
    assert "k" not in client.stored()


def test_lists_over_their_limits_are_too_large(client: Client) -> None:
    many = [f"reference {number}" for number in range(limits.REFERENCES + 1)]
    assert client.refusal("object.write", key="k", value="a", references=many) == "too_large"
    assert client.refusal("object.write", key="k", value="a", user={"note": "x" * limits.USER_METADATA_BYTES}) == "too_large"
    assert "k" not in client.stored()


@pytest.mark.parametrize("seal", ["", "AAAA", "not base64", "A" * 100_000])
def test_metadata_with_another_seal_is_corrupt(client: Client, seal: str) -> None:
    metadata = client.write("sealed", b"value")
    for method in ("object.read", "object.stat", "object.delete"):
        assert client.refusal(method, metadata={**metadata, "seal": seal}) in ("corrupt_record", "invalid_params")
    assert client.read("sealed") == b"value"
    client.result("object.delete", key="sealed")


def test_every_bit_of_a_seal_counts(client: Client) -> None:
    metadata = client.write("sealed", b"value")
    seal = base64.b64decode(metadata["seal"])
    for position in range(len(seal)):
        changed = bytearray(seal)
        changed[position] ^= 1 << position % 8
        other = {**metadata, "seal": base64.b64encode(changed).decode()}
        assert client.refusal("object.read", metadata=other) in ("corrupt_record", "invalid_params"), position
    client.result("object.delete", key="sealed")


# --- Batches and notifications ---


def test_a_batch_of_a_thousand_is_answered_and_one_more_is_not(client: Client) -> None:
    members = [json.loads(message("rpc.ping", identity=number)) for number in range(limits.BATCH_ITEMS)]
    client.send(json.dumps(members) + "\n")
    replies = client.reply()
    assert sorted(reply["id"] for reply in replies) == list(range(limits.BATCH_ITEMS))
    client.send(json.dumps([*members, members[0]]) + "\n" + PING)
    assert error_type(client.reply()) == "too_large"
    assert client.reply()["id"] == "after"


def test_a_batch_of_bad_members_answers_each(client: Client) -> None:
    client.send(json.dumps([1, [], {}, json.loads(PING), json.loads(message("no.such"))]) + "\n")
    assert sorted(str(reply.get("result", reply.get("error", {}).get("code"))) for reply in client.reply()) == [
        "-32600",
        "-32600",
        "-32600",
        "-32601",
        "pong",
    ]


def test_notifications_that_fail_are_answered_with_nothing(kept: None, client: Client) -> None:
    for method, params in [
        ("no.such", {}),
        ("object.read", {"key": "missing"}),
        ("object.write", {"key": 1}),
        ("object.write", {}),
        ("object.write_stream", {"key": "kept", "fd": 0}),
        ("$/cancelRequest", {}),
        ("notifications/cancelled", {"requestId": []}),
        ("notifications/cancelled", {"requestId": 12345}),
    ]:
        client.send(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}) + "\n")
    client.send(PING)
    assert client.reply()["id"] == "after"


# --- Too many, too slow, too early gone ---


def test_further_calls_wait_their_turn_while_as_many_run_as_may(client: Client) -> None:
    with ExitStack() as opened:
        pipes = [pipe(opened) for _ in range(limits.CALLS_PER_CONNECTION)]
        running = [
            client.request("object.write_stream", {"key": f"held {number}", "fd": 0}, fds=[reader])
            for number, (reader, _) in enumerate(pipes)
        ]
        pings = [client.request("rpc.ping") for _ in range(100)]
        close(pipes[7][0])
        close(pipes[7][1])
        assert client.reply()["id"] == running[7]  # before any of the pings, which now run
        assert [client.reply()["id"] for _ in pings] == pings
        for number in (1, 2):  # cancels do not wait
            client.send(json.dumps({"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": running[number]}}) + "\n")
            assert (reply := client.reply())["id"] == running[number]
            assert error_type(reply) == "cancelled"
    for _ in range(limits.CALLS_PER_CONNECTION - 3):
        assert "result" in client.reply()
    for number in range(limits.CALLS_PER_CONNECTION):
        if number not in (1, 2):
            client.result("object.delete", key=f"held {number}")


def test_a_client_that_reads_nothing_harms_only_itself(daemon: Daemon, client: Client) -> None:
    client.write("large", bytes(limits.INLINE_VALUE_BYTES))
    client.read("large")
    memory = daemon.peak_memory()
    with daemon.client() as deaf:
        deaf.socket.setblocking(False)
        request = message("object.read", {"key": "large"}).encode()
        sent = 0
        try:
            while sent < 100_000:
                sent += deaf.socket.send(request)
        except BlockingIOError:
            pass  # the daemon has stopped reading it
        assert client.result("rpc.ping") == "pong"
        assert len(client.read("large")) == limits.INLINE_VALUE_BYTES
        assert daemon.peak_memory() - memory < 150 * limits.MIB  # and not what all those replies take
    client.result("object.delete", key="large")


def test_a_client_that_reads_no_list_fills_no_memory(daemon: Daemon, client: Client) -> None:
    keys = [f"referring {number}" for number in range(100)]
    references = [f"{number:08}" for number in range(1_000)]
    for key in keys:
        client.result("object.write", key=key, value="", references=references)
    client.result("object.list")
    memory = daemon.peak_memory()
    with daemon.client() as deaf:
        for _ in range(limits.CALLS_PER_CONNECTION):
            deaf.request("object.list")
        client.result("object.list")  # it comes behind those, as far as they get
        assert daemon.peak_memory() - memory < 100 * limits.MIB
    for key in keys:
        client.result("object.delete", key=key)


def test_a_hundred_and_twenty_eight_clients_and_no_more(daemon: Daemon, client: Client) -> None:
    with ExitStack() as opened:
        clients = [opened.enter_context(daemon.client()) for _ in range(limits.CONNECTIONS)]
        served: list[Any] = []
        refused: list[Any] = []
        for other in clients:
            with suppress(BrokenPipeError):  # it was refused, and that is to be read
                other.send(PING)
            reply = other.reply()
            (refused if "error" in reply else served).append(reply)
        assert {error_type(reply) for reply in refused} == {"busy"}
        assert len(served) == limits.CONNECTIONS - 2  # the bystander and `client` are there
    assert client.result("rpc.ping") == "pong"


@pytest.mark.parametrize("method", ["write", "write_file", "write_stream", "read_file", "read_stream"])
def test_a_client_that_goes_while_its_call_runs_leaves_nothing(daemon: Daemon, client: Client, method: str) -> None:
    client.write("large", os.urandom(2 * limits.MIB))
    with ExitStack() as opened:
        reader, writer = pipe(opened)
        with daemon.client() as peer:
            if method in ("write", "write_stream"):
                peer.request(f"object.{method}", {"key": "half", "fd": 0}, fds=[reader])
                os.write(writer, bytes(limits.MIB))  # more than a pipe holds: it is being read
            elif method == "read_stream":
                peer.request(f"object.{method}", {"key": "large", "fd": 0}, fds=[writer])
                assert os.read(reader, 1)
            else:
                path = daemon.home / "file"
                path.write_bytes(os.urandom(2 * limits.MIB))
                peer.request(f"object.{method}", {"key": "large", "path": str(path)})
    with daemon.client() as probe:
        assert probe.result("rpc.ping") == "pong"
    assert "half" not in client.stored()
    client.result("object.delete", key="large")
    (daemon.home / "file").unlink(missing_ok=True)


CANCELS: dict[str, Callable[[int], dict[str, object]]] = {
    "$/cancelRequest": lambda identity: {"id": identity},
    "notifications/cancelled": lambda identity: {"requestId": identity, "reason": "changed my mind"},
}


@pytest.mark.parametrize("spelling", CANCELS)
def test_a_cancelled_write_stream_leaves_the_old_value(client: Client, spelling: str) -> None:
    client.write("cancelled", b"old")
    with ExitStack() as opened:
        reader, writer = pipe(opened)
        running = client.request("object.write_stream", {"key": "cancelled", "fd": 0}, fds=[reader])
        os.write(writer, bytes(limits.MIB))
        client.send(json.dumps({"jsonrpc": "2.0", "method": spelling, "params": CANCELS[spelling](running)}) + "\n")
        reply = client.reply()
    assert (reply["id"], reply["error"]["code"], error_type(reply)) == (running, -32800, "cancelled")
    assert client.read("cancelled") == b"old"
    client.result("object.delete", key="cancelled")


@pytest.mark.parametrize("spelling", CANCELS)
def test_a_cancelled_read_stream_stops(client: Client, spelling: str) -> None:
    client.write("cancelled", os.urandom(2 * limits.MIB))
    with ExitStack() as opened:
        reader, writer = pipe(opened)
        running = client.request("object.read_stream", {"key": "cancelled", "fd": 0}, fds=[writer])
        close(writer)
        os.read(reader, 1)
        client.send(json.dumps({"jsonrpc": "2.0", "method": spelling, "params": CANCELS[spelling](running)}) + "\n")
        reply = client.reply()
        while os.read(reader, limits.MIB):
            pass  # to its end: the daemon has closed its own
    assert (reply["id"], error_type(reply)) == (running, "cancelled")
    client.result("object.delete", key="cancelled")


def test_a_deadline_that_passes_before_the_end_of_a_pipe_leaves_the_old_value(client: Client) -> None:
    client.write("late", b"old")
    with ExitStack() as opened:
        reader, writer = pipe(opened)
        late = {"key": "late", "fd": 0, "_meta": {"timeoutSeconds": 0.05}}
        client.request("object.write_stream", late, fds=[reader])
        close(reader)
        with suppress(BrokenPipeError):  # the deadline may pass at any byte
            os.write(writer, bytes(limits.MIB))
        assert error_type(client.reply()) == "timed_out"
    assert client.read("late") == b"old"
    client.result("object.delete", key="late")


def test_a_deadline_for_a_reader_that_does_not_read(client: Client) -> None:
    client.write("late", os.urandom(2 * limits.MIB))
    with ExitStack() as opened:
        _, writer = pipe(opened)
        client.request("object.read_stream", {"key": "late", "fd": 0, "_meta": {"timeoutSeconds": 0.05}}, fds=[writer])
        assert error_type(client.reply()) == "timed_out"
    client.result("object.delete", key="late")
