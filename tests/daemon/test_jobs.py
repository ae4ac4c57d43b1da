"""`_meta.detach` and `job.*`: calls that go on without their caller."""

from __future__ import annotations

import os
from base64 import b64encode
from contextlib import ExitStack
from typing import Any

import pytest

from tests.daemon.client import Client, pipe
from tests.daemon.process import Daemon
from zstor_local import limits

LARGE = b"a value whose shares are files " * 10_000


def detached(client: Client, method: str, params: dict[str, Any], *, fds: tuple[int, ...] = ()) -> str:
    answer = client.result(method, fds=fds, **params, _meta={"detach": True})
    assert list(answer) == ["job"]
    return str(answer["job"])


def waiting_write(client: Client, opened: ExitStack, key: str) -> tuple[str, int]:
    """A job that writes what comes from a pipe, and the end to write to."""
    reader, writer = pipe(opened)
    job = detached(client, "object.write_stream", {"key": key, "fd": 0}, fds=(reader,))
    os.close(reader)
    return job, writer


def test_a_detached_call_is_answered_at_once_and_keeps_its_result(client: Client) -> None:
    with ExitStack() as opened:
        job, writer = waiting_write(client, opened, "detached")
        running = client.result("job.status", job=job)
        assert (running["job"], running["method"], running["state"]) == (job, "object.write_stream", "running")
        assert "result" not in running
        assert "error" not in running
        os.write(writer, b"comes late")
        os.close(writer)
        ended = client.result("job.wait", job=job)
    assert (ended["state"], ended["result"]["metadata"]["size"]) == ("done", 10)
    assert client.result("job.status", job=job) == ended
    assert client.read("detached") == b"comes late"
    listed = next(item for item in client.result("job.list")["items"] if item["job"] == job)
    assert listed == {name: value for name, value in ended.items() if name != "result"}


def test_it_goes_on_when_its_caller_is_gone(daemon: Daemon, client: Client) -> None:
    with ExitStack() as opened:
        with daemon.client() as caller:
            job, writer = waiting_write(caller, opened, "orphan")
        os.write(writer, LARGE[:60_000])
        os.close(writer)
        assert client.result("job.wait", job=job)["state"] == "done"
    assert client.read("orphan") == LARGE[:60_000]


def test_a_cancelled_job_leaves_nothing_behind(client: Client) -> None:
    with ExitStack() as opened:
        job, writer = waiting_write(client, opened, "never")
        os.write(writer, LARGE[:60_000])
        client.result("job.cancel", job=job)
        ended = client.result("job.wait", job=job)
    assert (ended["state"], ended["error"]["data"]["type"]) == ("cancelled", "cancelled")
    assert client.refusal("object.stat", key="never") == "not_found"
    assert client.result("job.cancel", job=job)["state"] == "cancelled"  # again: nothing more happens


def test_a_failed_job_has_the_error_that_the_call_would_have_answered(client: Client) -> None:
    job = detached(client, "object.check", {"key": "nowhere"})
    answered = client.call("object.check", {"key": "nowhere"})["error"]
    assert client.result("job.wait", job=job)["error"] == answered


def test_waiting_ends_in_time_and_a_running_job_is_no_error(client: Client) -> None:
    with ExitStack() as opened:
        job, writer = waiting_write(client, opened, "slow")
        assert client.result("job.wait", job=job, timeout_seconds=0)["state"] == "running"
        assert client.result("job.wait", job=job, timeout_seconds=0.01)["state"] == "running"
        os.close(writer)
        assert client.result("job.wait", job=job)["state"] == "done"


def test_progress_is_passed_on_to_who_waits(client: Client) -> None:
    with ExitStack() as opened:
        job, writer = waiting_write(client, opened, "told")
        client.send(
            '{"jsonrpc":"2.0","id":"w","method":"job.wait","params":{"job":"%s","_meta":{"progressToken":"t"}}}\n' % job  # noqa: UP031
        )
        for start in range(0, len(LARGE), 60_000):
            os.write(writer, LARGE[start : start + 60_000])
        os.close(writer)
        seen = []
        while "method" in (message := client.reply()):
            seen.append(message["params"])
        assert message["id"] == "w"
        assert message["result"]["state"] == "done"
    assert seen
    assert {each["progressToken"] for each in seen} == {"t"}


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("rpc.ping", {"_meta": {"detach": True}}, "not_supported"),
        ("object.stat", {"key": "a", "_meta": {"detach": True}}, "not_supported"),
        ("object.check", {"key": "a", "_meta": {"detach": 1}}, "invalid_params"),
        ("object.check", {"key": 1, "_meta": {"detach": True}}, "invalid_params"),
        ("job.status", {"job": "no such job"}, "not_found"),
        ("job.wait", {"job": "no such job"}, "not_found"),
        ("job.cancel", {"job": "no such job"}, "not_found"),
        ("job.wait", {"job": "x", "timeout_seconds": 301}, "invalid_params"),
    ],
)
def test_what_is_no_job_is_refused(client: Client, method: str, params: dict[str, Any], error: str) -> None:
    assert client.refusal(method, **params) == error


def test_a_stream_of_messages_needs_its_connection(client: Client) -> None:
    job = detached(client, "object.write_stream", {"key": "x"})
    assert client.result("job.wait", job=job)["error"]["data"]["type"] == "not_supported"


def test_a_job_without_its_descriptor_says_so(client: Client) -> None:
    job = detached(client, "object.write_file", {"key": "x", "fd": 0})
    assert client.result("job.wait", job=job)["error"]["data"]["type"] == "invalid_params"


def test_the_manual_says_which_calls_may_be_detached(client: Client) -> None:
    methods = client.result("rpc.discover")["methods"]
    assert {"object.check", "object.repair", "object.write_file", "object.read_file"} <= {
        method["name"] for method in methods if method.get("x-detach")
    }
    assert "detach" in client.call("help", {"method": "object.repair"})["result"]
    assert "detach" not in client.call("help", {"method": "object.stat"})["result"]


def test_of_jobs_with_large_results_only_the_last_are_kept(client: Client) -> None:
    """A content of 8 MiB is 11 MiB as text, of which 16 MiB are kept."""
    content = client.result("cas.upload", value_b64=b64encode(bytes(8 * limits.MIB)).decode())["id"]
    first, second = (detached(client, "cas.fetch", {"id": content}) for _ in range(2))
    for job in (first, second):
        client.call("job.wait", {"job": job})
    states = [client.call("job.status", {"job": job}) for job in (first, second)]
    assert sorted("error" in state for state in states) == [False, True]
    kept = next(state["result"] for state in states if "error" not in state)
    assert len(kept["result"]["value_b64"]) > 8 * limits.MIB
    client.result("cas.unpin", id=content, forget=True)
