"""`object.rename`, `object.copy` and `object.changes` over the wire."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.daemon.client import Client
from tests.daemon.process import Daemon

LARGE = b"a value whose shares are files " * 10_000


def test_renamed_and_copied_objects_are_read_by_their_new_keys(client: Client) -> None:
    metadata = client.write("a", LARGE)
    renamed = client.result("object.rename", key="a", new_key="b")["metadata"]
    assert (renamed["key"], renamed["version"]) == ("b", metadata["version"])
    assert client.read("b") == LARGE
    assert client.refusal("object.read", key="a") == "not_found"
    copied = client.result("object.copy", metadata=renamed, new_key="c")["metadata"]
    assert (copied["key"], copied["version"]) == ("c", metadata["version"])
    client.result("object.delete", key="b")
    assert client.read("c") == LARGE
    client.result("object.delete", key="c")


@pytest.mark.parametrize("method", ["object.rename", "object.copy"])
@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"key": "nowhere", "new_key": "x"}, "not_found"),
        ({"key": "one"}, "invalid_params"),
        ({"new_key": "x"}, "invalid_params"),
        ({"key": "one", "new_key": ""}, "invalid_params"),
        ({"key": "one", "new_key": "x" * 1_025}, "too_large"),
        ({"key": "one", "new_key": "two", "exclusive": True}, "already_exists"),
    ],
)
def test_what_cannot_be_is_refused(client: Client, method: str, params: dict[str, Any], error: str) -> None:
    client.write("one", b"1")
    client.write("two", b"2")
    assert client.refusal(method, **params) == error
    assert (client.read("one"), client.read("two")) == (b"1", b"2")


def test_metadata_of_a_version_that_was_left_behind_renames_nothing(client: Client) -> None:
    old = client.write("again", b"1")
    client.write("again", b"2")
    assert client.refusal("object.rename", metadata=old, new_key="other") == "conflict"
    assert client.refusal("object.copy", metadata=old, new_key="other") == "conflict"


# --- Changes ---


def shown(page: dict[str, Any]) -> list[tuple[str, bool]]:
    for item in page["items"]:
        assert ("metadata" in item) is not item["deleted"]
    return [(item["key"], item["deleted"]) for item in page["items"]]


def test_changes_show_each_key_once_where_it_changed_last(client: Client) -> None:
    space: dict[str, Any] = {"namespace": "changes"}
    assert client.result("object.changes", **space) == {"items": [], "cursor": 0, "more": False}
    for key in ("a", "b", "c"):
        client.write(key, b"1", **space)
    first = client.result("object.changes", **space)
    assert shown(first) == [("a", False), ("b", False), ("c", False)]
    client.write("a", b"2", **space)
    client.result("object.delete", key="b", **space)
    client.result("object.rename", key="c", new_key="d", **space)
    client.result("reference.append", key="a", references=["x"], **space)
    second = client.result("object.changes", since=first["cursor"], **space)
    assert sorted(shown(second)) == [("a", False), ("b", True), ("c", True), ("d", False)]
    assert [item["sequence"] for item in second["items"]] == sorted(item["sequence"] for item in second["items"])
    assert shown(second)[-1] == ("a", False)
    assert client.result("object.changes", since=second["cursor"], **space) == {"items": [], "cursor": second["cursor"], "more": False}


def test_changes_come_in_pages(client: Client) -> None:
    space: dict[str, Any] = {"namespace": "pages"}
    for number in range(7):
        client.write(str(number), b"", **space)
    found: list[tuple[str, bool]] = []
    cursor, more = 0, True
    while more:
        page = client.result("object.changes", since=cursor, limit=3, **space)
        assert len(page["items"]) <= 3
        found += shown(page)
        cursor, more = page["cursor"], page["more"]
    assert found == [(str(number), False) for number in range(7)]


def test_a_cursor_ahead_of_the_store_is_refused(client: Client) -> None:
    assert client.refusal("object.changes", since=2**52) == "invalid_params"


def test_who_waits_hears_of_the_next_change_and_of_no_other_namespaces(client: Client, daemon: Daemon) -> None:
    space: dict[str, Any] = {"namespace": "waited-for"}
    with daemon.client() as waiting:
        cursor = client.result("object.changes", **space)["cursor"]
        waiting.request("object.changes", {"since": cursor, "wait_seconds": 300, **space})
        client.write("elsewhere", b"")
        client.write("here", b"", **space)
        assert shown(waiting.reply()["result"]) == [("here", False)]
        page = client.result("object.changes", wait_seconds=0.01, since=client.result("object.changes", **space)["cursor"], **space)
        assert page["items"] == []


def test_who_waits_does_not_hold_up_the_stop(new_daemon: Daemon) -> None:
    new_daemon.start()
    with new_daemon.client() as waiting:
        waiting.request("object.changes", {"wait_seconds": 300})
        waiting.request("rpc.ping")
        assert waiting.reply()["result"] == "pong"
        new_daemon.signal(signal.SIGTERM)
        assert waiting.reply()["error"]["data"]["type"] == "shutting_down"
