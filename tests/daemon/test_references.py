"""`reference.*` over the wire."""

from __future__ import annotations

from typing import Any

import pytest

from tests.daemon.client import Client


def test_references_are_appended_removed_and_found(client: Client) -> None:
    metadata = client.write("a", b"1", references=["x"])
    assert client.result("reference.append", key="a", references=["y", "x"]) == {"references": ["x", "y"]}
    assert client.result("reference.append", metadata=metadata, references=["z"]) == {"references": ["x", "y", "z"]}
    assert client.result("reference.remove", key="a", references=["x", "w"]) == {"references": ["y", "z"], "remaining": 2}
    assert client.result("object.read", key="a")["references"] == ["y", "z"]
    assert client.result("object.stat", metadata=metadata)["metadata"]["references"] == ["y", "z"]
    assert client.result("reference.find", reference="y") == {"keys": ["a"], "cursor": None}
    assert client.result("reference.find", reference="x") == {"keys": [], "cursor": None}


def test_keys_come_in_pages(client: Client) -> None:
    for number in range(5):
        client.write(f"page{number}", b"", references=["paged"])
    keys: list[str] = []
    cursor = None
    while True:
        page = client.result("reference.find", reference="paged", limit=2, **({} if cursor is None else {"cursor": cursor}))
        keys += page["keys"]
        cursor = page["cursor"]
        if cursor is None:
            break
        assert len(page["keys"]) == 2
    assert keys == [f"page{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("reference.append", {"key": "nowhere", "references": ["x"]}, "not_found"),
        ("reference.append", {"key": "b"}, "invalid_params"),
        ("reference.append", {"references": ["x"]}, "invalid_params"),
        ("reference.append", {"key": "b", "references": [""]}, "invalid_params"),
        ("reference.append", {"key": "b", "references": ["x" * 256]}, "invalid_params"),
        ("reference.append", {"key": "b", "references": ["é" * 128]}, "too_large"),
        ("reference.append", {"key": "b", "references": [str(number) for number in range(10_001)]}, "too_large"),
        ("reference.remove", {"key": "nowhere", "references": ["x"]}, "not_found"),
        ("reference.find", {"reference": ""}, "invalid_params"),
        ("reference.find", {"reference": "x", "cursor": "?"}, "invalid_params"),
    ],
)
def test_what_cannot_be_is_refused(client: Client, method: str, params: dict[str, Any], error: str) -> None:
    client.write("b", b"")
    assert client.refusal(method, **params) == error
    assert client.result("object.stat", key="b")["metadata"]["references"] == []


def test_metadata_of_a_version_that_was_left_behind_changes_nothing(client: Client) -> None:
    old = client.write("again", b"1")
    client.write("again", b"2")
    assert client.refusal("reference.append", metadata=old, references=["x"]) == "conflict"
    assert client.result("reference.find", reference="x")["keys"] == []
