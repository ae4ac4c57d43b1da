"""`log.*` over the wire."""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.client import Client
from tests.daemon.process import Daemon
from zstor_local.formats.cid import parse
from zstor_local.formats.messages import REMOTE_LOG


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_entries_are_appended_and_read(client: Client) -> None:
    client.result("log.create", log="story", page_size=2, embed_last=1)
    for number, value in enumerate(("one", "two", "three", "four", "five"), 1):
        appended = client.result("log.append", log="story", value=value)
        assert (appended["seq"], appended["new"]) == (number, True)
    assert client.result("log.append", log="story", value="two") == appended | {
        "seq": 2,
        "new": False,
        "id": client.result("log.read", log="story", since_seq=1)["entries"][0]["id"],
    }
    page = client.result("log.read", log="story", since_seq=1, limit=2, values=True, encoding="utf-8")
    assert [(entry["seq"], entry["value"], entry["size"]) for entry in page["entries"]] == [(2, "two", 3), (3, "three", 5)]
    assert page["next"] == 3
    newest = client.result("log.read", log="story", newest=1, values=True)["entries"]
    assert [base64.b64decode(entry["value_b64"]) for entry in newest] == [b"five"]
    known = newest[0]["local_hash_b64"]
    assert known == b64(sha256(b"five").digest())
    assert client.result("log.read", log="story", since_hash_b64=known) == {"entries": [], "next": 5}
    assert client.refusal("log.read", log="story", since_hash_b64=b64(b"unknown")) == "not_found"
    assert client.refusal("log.read", log="story", since_seq=6) == "invalid_params"
    assert client.refusal("log.read", log="story", since_seq=1, newest=1) == "invalid_params"
    assert client.refusal("log.read", log="nothing") == "not_found"


def test_head_pages_and_their_view(client: Client) -> None:
    client.result("log.create", log="pages", page_size=2)
    ids = [
        client.result("log.append", log="pages", local_hash_b64=b64(bytes([number])), value=str(number))["id"] for number in (1, 2, 3)
    ]
    head = client.result("log.head", log="pages")
    assert (head["log"]["entries"], head["log"]["name"], head["log"]["name_seq"]) == (3, "log/pages", 3)
    assert head["page"]["value_b64"] == client.result("ns.fetch", name="log/pages")["value_b64"]
    (pair,), tail = head["page"]["view"]
    assert pair == ["03", ids[2]]
    older = client.result("log.page", log="pages", seq=1)
    assert older == client.result("log.page", log="pages", id=tail)
    assert (older["id"], older["head"], older["first"], older["last"]) == (tail, False, 1, 2)
    assert older["view"] == [[["02", ids[1]], ["01", ids[0]]], None]
    wire = REMOTE_LOG.parse(base64.b64decode(older["value_b64"]))
    assert [pair.blob("remoteHash") for pair in wire.messages("pair")] == [parse(ids[1]).binary, parse(ids[0]).binary]
    assert parse(tail).digest == sha256(base64.b64decode(older["value_b64"])).digest()
    assert client.refusal("log.page", log="pages", seq=4) == "not_found"
    assert client.refusal("log.page", log="pages", id=ids[0]) == "not_found"


def test_a_page_can_be_json(client: Client) -> None:
    client.result("log.create", log="json", encoding="json")
    made = client.result("log.append", log="json", local_hash_b64=b64(b"\xab"), value="x")
    assert client.result("ns.fetch", name="log/json", encoding="utf-8")["value"] == f'[[["ab","{made["id"]}"]],null,{{"last":1}}]'


def test_an_append_answers_every_reader_who_waits(daemon: Daemon, client: Client) -> None:
    client.result("log.create", log="awaited")
    with ExitStack() as stack, ThreadPoolExecutor(5) as threads:
        clients = [stack.enter_context(daemon.client()) for _ in range(5)]
        waiting = [threads.submit(each.result, "log.read", log="awaited", wait_seconds=300) for each in clients]
        client.result("log.append", log="awaited", value="news")
        assert [reading.result()["next"] for reading in waiting] == [1] * 5


def test_ten_senders_at_once_lose_nothing(daemon: Daemon, client: Client) -> None:
    client.result("log.create", log="busy", page_size=7)

    def send(sender: int) -> list[int]:
        with daemon.client() as own:
            return [own.result("log.append", log="busy", value=f"{sender}/{number}")["seq"] for number in range(10)]

    with ThreadPoolExecutor(10) as threads:
        numbers = [number for sent in threads.map(send, range(10)) for number in sent]
    assert sorted(numbers) == list(range(1, 101))
    entries = client.result("log.read", log="busy", values=True, encoding="utf-8")["entries"]
    assert {entry["value"] for entry in entries} == {f"{sender}/{number}" for sender in range(10) for number in range(10)}
    found = client.result("log.verify", log="busy", contents=True)
    assert (found["entries"], found["problem"]) == (100, None)


def test_what_is_missing_is_told(client: Client) -> None:
    client.result("log.create", log="gaps", page_size=2)
    for number in range(1, 6):
        client.result("log.append", log="gaps", local_hash_b64=b64(bytes([number])), value=str(number))
    have = [b64(bytes([number])) for number in (2, 3, 9)]
    found = client.result("log.missing", log="gaps", have_b64=have)
    assert [entry["seq"] for entry in found["need"]] == [1, 4, 5]
    assert (found["unknown_b64"], found["next"]) == ([b64(b"\x09")], None)
    first = client.result("log.missing", log="gaps", have_b64=have, limit=2)
    assert ([entry["seq"] for entry in first["need"]], first["next"]) == ([1, 4], 4)
    rest = client.result("log.missing", log="gaps", have_b64=have, since_seq=4)
    assert [entry["seq"] for entry in rest["need"]] == [5]
    client.result("log.scrub", log="gaps", seq=4)
    assert [entry["seq"] for entry in client.result("log.missing", log="gaps", have_b64=have)["need"]] == [1, 5]


def test_a_scrub_removes_content_for_good(client: Client) -> None:
    client.result("log.create", log="secrets", page_size=2, embed_last=2)
    ids = [client.result("log.append", log="secrets", value=value)["id"] for value in ("a secret", "another", "harmless")]
    found = client.result("log.scrub", log="secrets", local_hash_b64=b64(sha256(b"a secret").digest()))
    assert (found["entries"], found["pages"], found["gone"], found["kept"]) == (1, 2, [ids[0]], [])
    entries = client.result("log.read", log="secrets", values=True, encoding="utf-8")["entries"]
    assert [(entry["id"], entry.get("value")) for entry in entries] == [(None, None), (ids[1], "another"), (ids[2], "harmless")]
    assert client.refusal("log.append", log="secrets", value="a secret") == "conflict"
    assert client.refusal("log.append", log="other", id=ids[0], local_hash_b64=b64(b"x")) == "not_found"
    found = client.result("log.scrub", log="secrets", seq=1, last_seq=2)
    assert (found["entries"], found["gone"]) == (1, [ids[1]])
    assert client.refusal("log.scrub", log="secrets", seq=4) == "not_found"
    assert client.result("log.verify", log="secrets")["scrubbed"] == 2


@pytest.mark.parametrize("by", ["path", "file", "pipe"])
def test_a_log_is_exported_and_imported_under_another_name(client: Client, tmp_path: Path, by: str) -> None:
    log, file = f"export-{by}", tmp_path / "log.car"
    client.result("log.create", log=log, page_size=2)
    for value in ("one", "two", "three"):
        client.result("log.append", log=log, value=value)
    exported = export(client, log, file, by)
    assert exported["bytes"] == file.stat().st_size
    if by == "file":
        with file.open("rb") as opened:
            imported = client.result("log.import", fd=0, log=f"{log}-copy", fds=[opened.fileno()])
    else:
        assert client.refusal("log.export", log=log, path=str(file)) == "already_exists"
        imported = client.result("log.import", path=str(file), log=f"{log}-copy")
    assert imported == {"log": f"{log}-copy", "entries": 3, "pages": 2, "stored": 0, "state": "created"}
    copies = [client.result("log.read", log=each, values=True)["entries"] for each in (log, f"{log}-copy")]
    assert copies[0] == copies[1]
    file.write_bytes(file.read_bytes()[:-1])
    assert client.refusal("log.import", path=str(file)) == "incomplete"


def export(client: Client, log: str, file: Path, by: str) -> Any:
    if by == "path":
        return client.result("log.export", log=log, path=str(file))
    if by == "file":
        with file.open("wb") as opened:
            return client.result("log.export", log=log, fd=0, fds=[opened.fileno()])
    reader, writer = os.pipe()
    exported = client.result("log.export", log=log, fd=0, fds=[writer])
    os.close(writer)
    with os.fdopen(reader, "rb") as piped:
        file.write_bytes(piped.read())
    return exported


def test_logs_are_listed_in_pages(client: Client) -> None:
    for name in ("list-a", "list-b", "list-c"):
        client.result("log.create", log=name, page_size=3)
    assert client.refusal("log.create", log="list-a") == "already_exists"
    seen: list[str] = []
    cursor = None
    while True:
        page = client.result("log.list", limit=2, **({} if cursor is None else {"cursor": cursor}))
        seen += [item["log"] for item in page["items"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert [name for name in seen if name.startswith("list-")] == ["list-a", "list-b", "list-c"]


def test_everything_is_there_after_a_kill(new_daemon: Daemon) -> None:
    new_daemon.start()
    with new_daemon.client() as client:
        for number in range(70):
            client.result("log.append", value=f"entry {number}")
    new_daemon.restart()
    with new_daemon.client() as client:
        read = client.result("log.read", limit=100, values=True, encoding="utf-8")
        assert [entry["value"] for entry in read["entries"]] == [f"entry {number}" for number in range(70)]
        assert client.result("log.append", value="entry 70")["seq"] == 71
        assert client.result("log.verify")["problem"] is None
