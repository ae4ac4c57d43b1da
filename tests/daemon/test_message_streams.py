"""Streams inside messages with a daemon and socat: what docs/wire.md shows is what happens; clients that die leave nothing."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.client import Client
from tests.daemon.process import Daemon
from zstor_local import limits

WIRE = Path(__file__).parent.parent.parent / "docs" / "wire.md"


def block(name: str) -> str:
    """The code block under the comment of that name."""
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```", WIRE.read_text(), re.DOTALL)
    assert found, f"docs/wire.md has no block {name!r}"
    return found[1]


@pytest.fixture
def socat(daemon: Daemon) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        ["socat", "-t", "3600", "-", f"UNIX-CONNECT:{daemon.socket}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


@pytest.mark.parametrize("name", ["stream write", "stream read"])
def test_the_transcripts_are_what_happens(client: Client, socat: subprocess.Popen[str], name: str) -> None:
    assert socat.stdin is not None
    assert socat.stdout is not None
    client.write("greeting", b"hello world")
    stream = ""
    for mark, line in (shown.split(" ", 1) for shown in block(name).splitlines()):
        if mark == ">":
            socat.stdin.write(line.replace("ID", stream) + "\n")
            socat.stdin.flush()
        else:
            said = socat.stdout.readline().rstrip("\n")
            stream = stream or json.loads(said)["result"]["stream"]
            before, _, after = line.replace("ID", stream).partition("{...}")
            assert said.startswith(before)
            assert said.endswith(after)
            assert "..." in line or said == before
    assert client.read("greeting") == b"hello world"
    client.result("object.delete", key="greeting")


def test_a_stream_is_an_ability(client: Client) -> None:
    assert "stream" in client.result("daemon.info")["capabilities"]


@pytest.mark.parametrize("way", ["goes", "goes while it is read to", "goes while it closes"])
def test_a_client_that_goes_leaves_nothing(daemon: Daemon, client: Client, way: str) -> None:
    """The fixture looks for files, descriptors and shares that stayed."""
    client.write("large", os.urandom(8 * limits.MIB))
    with daemon.client() as peer:
        if way == "goes while it is read to":
            peer.request("object.read_stream", {"key": "large"})
            peer.reply()
            assert peer.reply()["method"] == "stream.data"
        else:
            stream = peer.result("object.write_stream", key="half")["stream"]
            piece = base64.b64encode(os.urandom(limits.MIB)).decode()
            for seq in range(3):
                peer.result("stream.write", stream=stream, seq=seq, value_b64=piece)
            if way == "goes while it closes":
                peer.request("stream.close", {"stream": stream})
    if "half" in client.stored():  # only a close that was committed
        assert way == "goes while it closes"
        client.result("object.delete", key="half")
    client.result("object.delete", key="large")


def test_a_long_write_needs_little_memory(daemon: Daemon, client: Client) -> None:
    """Far less than its size: some chunks, and what the allocators of the threads keep."""
    mebibytes = 256
    piece = base64.b64encode(os.urandom(limits.MIB)).decode()
    stream = client.result("object.write_stream", key="long")["stream"]
    for seq in range(mebibytes):
        client.result("stream.write", stream=stream, seq=seq, value_b64=piece)
    assert client.result("stream.close", stream=stream)["metadata"]["size"] == mebibytes * limits.MIB
    assert daemon.peak_memory() < 240 * limits.MIB
    client.result("object.delete", key="long")
