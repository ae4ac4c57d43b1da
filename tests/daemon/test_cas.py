"""`cas.*` over the wire. Each test forgets what it stored: afterwards the daemon is as it was."""

from __future__ import annotations

import base64
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import pytest

from tests.daemon.client import Client, pipe
from tests.daemon.process import Daemon
from tests.formats.samples import SAMPLES, Sample

EMPTY, HELLO, TWO_BLOCKS = SAMPLES[0], SAMPLES[1], SAMPLES[4]


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.client() as connected:
        yield connected
        for item in connected.result("cas.list")["items"]:
            for owner in [pin["owner"] for pin in item["pins"]]:
                connected.result("cas.unpin", id=item["id"], owner=owner, forget=True)
        assert not any(item["pins"] for item in connected.result("cas.list")["items"])


@pytest.mark.parametrize("sample", [EMPTY, HELLO, TWO_BLOCKS], ids=lambda sample: sample.name)
def test_a_value_has_its_id_and_comes_back(client: Client, sample: Sample) -> None:
    encoded = base64.b64encode(sample.data).decode()
    assert client.result("cas.upload", value_b64=encoded) == {"id": sample.cid, "size": len(sample.data), "new": True}
    assert client.result("cas.upload", value_b64=encoded) == {"id": sample.cid, "size": len(sample.data), "new": False}
    assert client.result("cas.fetch", id=sample.cid) == {"value_b64": encoded}
    assert client.result("cas.fetch", id=sample.cid, offset=2, length=3)["value_b64"] == base64.b64encode(sample.data[2:5]).decode()
    assert client.result("cas.verify", id=sample.cid) == {"id": sample.cid, "size": len(sample.data), "verified": True}


def test_text_comes_back_as_text(client: Client) -> None:
    assert client.result("cas.upload", value="hello\n")["id"] == HELLO.cid
    assert client.result("cas.fetch", id=HELLO.cid, encoding="utf-8", verify=True) == {"value": "hello\n"}
    other = client.result("cas.upload", value_b64="/w==")["id"]
    assert client.refusal("cas.fetch", id=other, encoding="utf-8") == "bad_encoding"


@pytest.mark.parametrize("verify", [False, True])
def test_a_file_by_its_path(client: Client, tmp_path: Path, verify: bool) -> None:
    (tmp_path / "in").write_bytes(TWO_BLOCKS.data)
    assert client.result("cas.upload", path=str(tmp_path / "in"))["id"] == TWO_BLOCKS.cid
    out = str(tmp_path / "out")
    assert client.result("cas.fetch", id=TWO_BLOCKS.cid, path=out, verify=verify) == {"bytes": len(TWO_BLOCKS.data)}
    assert Path(out).read_bytes() == TWO_BLOCKS.data
    assert client.refusal("cas.fetch", id=TWO_BLOCKS.cid, path=out, mode="exclusive") == "already_exists"


def test_a_pipe_and_a_file_by_descriptor(client: Client) -> None:
    with ExitStack() as stack:
        reader, writer = pipe(stack)
        Thread(target=_feed, args=(writer, TWO_BLOCKS.data)).start()
        assert client.result("cas.upload", fds=[reader], fd=0)["id"] == TWO_BLOCKS.cid
        file = stack.enter_context(tempfile.TemporaryFile())
        assert client.result("cas.fetch", id=TWO_BLOCKS.cid, fds=[file.fileno()], fd=0, offset=1) == {"bytes": len(TWO_BLOCKS.data) - 1}
        file.seek(1)
        again = client.result("cas.upload", fds=[file.fileno()], fd=0)
        assert again["size"] == len(TWO_BLOCKS.data) - 2
        reader, writer = pipe(stack)
        client.request("cas.fetch", {"id": TWO_BLOCKS.cid, "fd": 0}, fds=[writer])
        os.close(writer)
        with os.fdopen(reader, "rb", closefd=False) as pipe_end:
            assert pipe_end.read() == TWO_BLOCKS.data
        assert client.reply()["result"] == {"bytes": len(TWO_BLOCKS.data)}


def _feed(writer: int, data: bytes) -> None:
    with os.fdopen(writer, "wb") as file:
        file.write(data)


def test_pins_are_told_and_listed(client: Client) -> None:
    client.result("cas.upload", value="hello\n", owner="alice", reason="greeting")
    pinned = client.result("cas.pin", id=HELLO.cid.upper(), owner="bob")
    assert [(pin["owner"], pin["reason"]) for pin in pinned["pins"]] == [("alice", "greeting"), ("bob", "")]
    assert pinned == client.result("cas.stat", id=HELLO.cid)
    assert (pinned["id"], pinned["size"], pinned["kept_until_epoch"]) == (HELLO.cid, 6, None)
    client.result("cas.upload", value="bob's", owner="bob")
    assert len(client.result("cas.list", owner="bob")["items"]) == 2
    assert client.result("cas.list", owner="alice")["items"] == [pinned]
    page = client.result("cas.list", owner="bob", limit=1)
    rest = client.result("cas.list", owner="bob", limit=1, cursor=page["cursor"])
    assert rest["cursor"] is None
    assert {page["items"][0]["id"], rest["items"][0]["id"]} <= {item["id"] for item in client.result("cas.list")["items"]}
    left = client.result("cas.unpin", id=HELLO.cid, owner="alice")
    assert (left["deleted"], [pin["owner"] for pin in left["content"]["pins"]]) == (False, ["bob"])
    assert client.result("cas.unpin", id=HELLO.cid, owner="bob", forget=True) == {"deleted": True, "content": None}
    assert client.refusal("cas.stat", id=HELLO.cid) == "not_found"


def test_a_collection_leaves_what_is_promised(client: Client) -> None:
    stored = client.result("cas.upload", value="unpinned", pin=False)
    assert client.result("cas.stat", id=stored["id"])["kept_until_epoch"] > 0
    for dry_run in (True, False):
        found = client.result("cas.collect", dry_run=dry_run)
        assert found == {"looked_at": found["looked_at"], "contents": 0, "bytes": 0, "dry_run": dry_run}
        assert found["looked_at"] >= 1
    assert client.result("cas.fetch", id=stored["id"], encoding="utf-8") == {"value": "unpinned"}


def test_bad_parameters_are_refused(client: Client) -> None:
    assert client.refusal("cas.upload") == "invalid_params"
    assert client.refusal("cas.upload", value="a", value_b64="YQ==") == "invalid_params"
    assert client.refusal("cas.upload", value="a", pin=False, owner="alice") == "invalid_params"
    assert client.refusal("cas.upload", value="a", owner="log/main") == "invalid_params"
    assert client.refusal("cas.upload", value="a", owner="") == "invalid_params"
    assert client.refusal("cas.upload", value="a", reason="r" * 256) == "invalid_params"
    assert client.refusal("cas.upload", value="a", owner="é" * 128) == "invalid_params"
    assert client.refusal("cas.upload", value="a", reason="é" * 128) == "too_large"
    assert client.refusal("cas.upload", value="a", expected_id=HELLO.cid) == "incomplete"
    assert client.refusal("cas.upload", value="a", expected_size=2) == "incomplete"
    assert client.refusal("cas.fetch", id="hello") == "invalid_params"
    assert client.refusal("cas.fetch", id=HELLO.cid) == "not_found"
    assert client.refusal("cas.fetch", id=HELLO.cid, fd=0, path="/x") == "invalid_params"
    assert client.refusal("cas.pin", id=HELLO.cid, owner="log/main") == "invalid_params"
    assert client.refusal("cas.unpin", id=HELLO.cid) == "not_found"
    assert client.refusal("object.list", namespace="_cas") == "invalid_params"


def test_a_large_content_does_not_go_into_a_reply(client: Client, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(random.Random(1).randbytes(9 << 20))
    stored = client.result("cas.upload", path=str(tmp_path / "in"))
    assert client.refusal("cas.fetch", id=stored["id"]) == "too_large"
    assert len(base64.b64decode(client.result("cas.fetch", id=stored["id"], offset=8 << 20)["value_b64"])) == 1 << 20


def test_an_upload_can_be_a_job(client: Client, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(TWO_BLOCKS.data)
    job = client.result("cas.upload", path=str(tmp_path / "in"), _meta={"detach": True})["job"]
    assert client.result("job.wait", job=job)["result"] == {"id": TWO_BLOCKS.cid, "size": len(TWO_BLOCKS.data), "new": True}
