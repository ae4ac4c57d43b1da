"""Linked objects over the wire: previous_key and previous_metadata on every kind of write."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.client import Client, pipe


def links(client: Client, key: str) -> tuple[str | None, str | None]:
    metadata = client.result("object.stat", key=key)["metadata"]
    return metadata["previous_key"], metadata["next_key"]


def test_each_kind_of_write_links(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"from a file")
    first = client.write("value", b"1")
    client.result("object.write_file", key="file", path=str(file), previous_metadata=first)
    with ExitStack() as opened:
        reader, writer = pipe(opened)
        with open(writer, "wb") as stream:
            stream.write(b"from a pipe")
        metadata = client.result("object.write_stream", key="stream", fd=0, previous_key="file", fds=[reader])["metadata"]
    assert (metadata["previous_key"], metadata["next_key"]) == ("file", None)
    assert [links(client, key) for key in ("value", "file", "stream")] == [(None, "file"), ("value", "stream"), ("file", None)]
    created = [client.result("object.stat", key=key)["metadata"]["created_epoch"] for key in ("value", "file", "stream")]
    assert created == sorted(set(created))
    client.result("object.delete", key="file")
    assert [links(client, key) for key in ("value", "stream")] == [(None, "stream"), ("value", None)]


@pytest.mark.parametrize(
    ("previous", "error"),
    [
        ({"previous_key": "head"}, "conflict"),
        ({"previous_key": "nowhere"}, "not_found"),
        ({"previous_key": "new"}, "invalid_params"),
        ({"previous_key": ""}, "invalid_params"),
        ({"previous_metadata": {"seal": "AAAA"}}, "corrupt_record"),
    ],
)
def test_a_link_that_cannot_be_is_refused(client: Client, previous: dict[str, Any], error: str) -> None:
    client.write("head", b"1")
    client.write("tail", b"2", previous_key="head")
    assert client.refusal("object.write", key="new", value="x", **previous) == error
    assert "new" not in client.stored()
    assert links(client, "head") == (None, "tail")


def test_metadata_of_a_version_that_was_left_or_of_another_namespace_is_no_predecessor(client: Client) -> None:
    old = client.write("again", b"1")
    new = client.write("again", b"2")
    assert client.refusal("object.write", key="b", value="", previous_metadata=old) == "conflict"
    assert client.refusal("object.write", key="b", value="", previous_metadata=new, previous_key="again") == "invalid_params"
    assert client.refusal("object.write", key="b", value="", previous_metadata=new, namespace="other") == "invalid_params"


def test_stat_by_metadata_shows_the_links_of_now(client: Client) -> None:
    metadata = client.write("one", b"1")
    client.write("two", b"2", previous_key="one")
    assert metadata["next_key"] is None
    assert client.result("object.stat", metadata=metadata)["metadata"]["next_key"] == "two"
