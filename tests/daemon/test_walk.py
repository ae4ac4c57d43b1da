"""`object.walk` over the wire: pages and streams, ranges in both notations, values, broken lists."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.client import Client
from tests.daemon.process import Daemon

KEYS = ["walk a", "walk b", "walk c", "walk d", "walk e"]


@pytest.fixture(scope="module")
def listed(shared_daemon: Daemon) -> dict[str, int]:
    """A list of five; its keys with their times of creation."""
    with shared_daemon.client() as client:
        for number, key in enumerate(KEYS):
            previous = {"previous_key": KEYS[number - 1]} if number else {}
            client.write(key, key.encode() * 1_000, references=[f"r{number}"], **previous)
        return {key: client.result("object.stat", key=key)["metadata"]["created_epoch"] for key in KEYS}


def walk(client: Client, start: str, **params: Any) -> list[dict[str, Any]]:
    """All items, page by page."""
    items: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    while True:
        page = client.result("object.walk", start_key=start, **params, **cursor)
        items += page["items"]
        if page["cursor"] is None:
            return items
        cursor = {"cursor": page["cursor"]}


def keys(items: list[dict[str, Any]]) -> list[str]:
    return [item["key"] for item in items]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 1_000])
def test_pages_of_any_size_make_the_whole_walk(client: Client, listed: dict[str, int], limit: int) -> None:
    assert keys(walk(client, KEYS[0], limit=limit)) == KEYS
    assert keys(walk(client, KEYS[-1], direction="backward", limit=limit)) == KEYS[::-1]


def test_items_say_all_of_an_object(client: Client, listed: dict[str, int]) -> None:
    [first, *_] = walk(client, KEYS[0])
    assert first == {"key": KEYS[0], "metadata": client.result("object.stat", key=KEYS[0])["metadata"], "references": ["r0"]}
    for item in walk(client, KEYS[0], values=True, limit=2):
        assert base64.b64decode(item["value_b64"]) == item["key"].encode() * 1_000


def text(epoch: int, zone: timedelta = timedelta()) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=epoch)
    return moment.astimezone(timezone(zone)).isoformat()


def test_ranges_are_integers_or_text(client: Client, listed: dict[str, int]) -> None:
    low, high = listed[KEYS[1]], listed[KEYS[3]]
    for start, end in [
        (low, high),
        (text(low), text(high, timedelta(hours=-3, minutes=-30))),
        (text(low).replace("+00:00", "Z"), high),
    ]:
        assert keys(walk(client, KEYS[0], start_epoch=start, end_epoch=end, limit=2)) == KEYS[1:4]
        assert keys(walk(client, KEYS[-1], start_epoch=start, end_epoch=end, direction="backward", limit=1)) == KEYS[3:0:-1]
    assert keys(walk(client, KEYS[0], start_epoch=low + 1)) == KEYS[2:]
    assert keys(walk(client, KEYS[0], end_epoch=high - 1)) == KEYS[:3]
    assert walk(client, KEYS[0], end_epoch="1999-12-31t23:59:59.123456789z") == []


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"start_key": "nowhere"}, "not_found"),
        ({"start_key": "nowhere", "stream": True}, "not_found"),
        ({"start_key": "walk a", "namespace": "never-written"}, "not_found"),
        ({"start_key": ""}, "invalid_params"),
        ({"start_key": "walk a", "start_epoch": 2, "end_epoch": 1}, "invalid_params"),
        ({"start_key": "walk a", "start_epoch": "yesterday"}, "invalid_params"),
        ({"start_key": "walk a", "start_epoch": "2026-01-31T12:00:00"}, "invalid_params"),
        ({"start_key": "walk a", "end_epoch": "2026-02-30T12:00:00Z"}, "invalid_params"),
        ({"start_key": "walk a", "direction": "sideways"}, "invalid_params"),
        ({"start_key": "walk a", "limit": 0}, "invalid_params"),
        ({"start_key": "walk a", "cursor": "?"}, "invalid_params"),
        ({"start_key": "walk a", "cursor": "W10="}, "invalid_params"),
        ({"start_key": "walk a", "cursor": base64.b64encode(100_000 * b"[").decode()}, "invalid_params"),
    ],
)
def test_what_cannot_be_is_refused(client: Client, listed: dict[str, int], params: dict[str, Any], error: str) -> None:
    assert client.refusal("object.walk", **params) == error


def test_a_cursor_is_of_one_direction(client: Client, listed: dict[str, int]) -> None:
    cursor = client.result("object.walk", start_key=KEYS[0], limit=1)["cursor"]
    assert client.refusal("object.walk", start_key=KEYS[0], cursor=cursor, direction="backward") == "invalid_params"


def test_large_values_come_by_themselves_or_not_at_all(client: Client, tmp_path: Path) -> None:
    sizes = [10, 7_000_000, 7_000_000, 9_000_000, 10]
    for number, size in enumerate(sizes):
        file = tmp_path / str(number)
        file.write_bytes(bytes(size))
        previous: dict[str, Any] = {"previous_key": f"large {number - 1}"} if number else {}
        client.result("object.write_file", key=f"large {number}", path=str(file), **previous)
    pages: list[list[int | None]] = []
    cursor: dict[str, Any] = {}
    while not pages or cursor["cursor"] is not None:
        page = client.result("object.walk", start_key="large 0", values=True, **cursor)
        pages.append([len(base64.b64decode(item["value_b64"])) if "value_b64" in item else None for item in page["items"]])
        cursor = {"cursor": page["cursor"]}
    assert pages == [[10], [7_000_000], [7_000_000], [None, 10]]


def test_a_walk_as_a_stream_sends_four_items_ahead_at_most(client: Client, listed: dict[str, int]) -> None:
    stream = client.result("object.walk", start_key=KEYS[0], stream=True, values=True)["stream"]
    sent = [client.reply()["params"] for _ in range(4)]
    client.request("rpc.ping")
    assert client.reply()["result"] == "pong"
    client.request("stream.ack", {"stream": stream, "seq": 0})
    end = None
    while end is None:
        message = client.reply()
        if message.get("method") == "stream.data":
            sent.append(message["params"])
        elif message.get("method") == "stream.end":
            end = message["params"]
    assert end == {"stream": stream, "result": {"items": 5}}
    assert [each["seq"] for each in sent] == list(range(5))
    items = [each["item"] for each in sent]
    assert keys(items) == KEYS
    assert [base64.b64decode(item["value_b64"]) for item in items] == [key.encode() * 1_000 for key in KEYS]
