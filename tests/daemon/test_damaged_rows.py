"""A metastore in which records do not open: the daemon starts, each list goes on past them, and what can be comes back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from tests.daemon.client import Client, error_type
from tests.daemon.process import Daemon

NEEDED = ("store", "shards", "keys")


def spoil(daemon: Daemon, where: str, change: str = "sealed = zeroblob(200)") -> int:
    with closing(sqlite3.connect(daemon.store / "metastore.sqlite", isolation_level=None)) as db:
        needed = ", ".join(f"'{name}'" for name in NEEDED)
        query = f"update record set {change} where cast(name as text) not in ({needed}) and {where}"  # noqa: S608 (constants)
        return db.execute(query).rowcount


def listed(client: Client, method: str, member: str, **params: object) -> tuple[list[Any], list[str]]:
    """What a list tells over all its pages, and what it says does not open."""
    found: list[Any] = []
    damaged: list[str] = []
    cursor: dict[str, object] = {}
    while True:
        reply = client.call(method, {**params, **cursor})
        if "error" in reply:
            data = reply["error"]["data"]
            assert data["type"] == "corrupt_record"
            damaged.append(data["key"])
            cursor = {"cursor": data["cursor"]}
            continue
        page = reply["result"]
        found += [item[member] for item in page["items"]]
        if page["cursor"] is None:
            return found, damaged
        cursor = {"cursor": page["cursor"]}


def fill(client: Client) -> None:
    for number in range(5):
        client.write(f"key {number}", b"value", references=["r"])
        client.result("ns.update", name=f"name {number}", value="value")
        client.result("log.create", log=f"log{number}")
        client.result("namespace.create", namespace=f"space{number}")
        client.result("permission.give", namespace=f"space{number}", user="ada", permission="read")
    client.result("cas.upload", value="content")
    client.result("token.create", namespace="space1", permission="read")


def test_a_list_goes_on_past_what_does_not_open(new_daemon: Daemon) -> None:
    daemon = new_daemon.start()
    with daemon.client() as client:
        fill(client)
    daemon.stop()
    for name in ("key 2", "row/name/name 2", "row/log/log2", "namespace/space2"):
        assert spoil(daemon, f"name = cast('{name}' as blob)", "sequence = sequence + 1000") == 1  # no log has a copy of that one
    daemon.start()
    with daemon.client() as client:
        for limit in (1, 2, 1_000):
            assert listed(client, "object.list", "key", limit=limit) == ([f"key {n}" for n in (0, 1, 3, 4)], ["key 2"])
            names = [f"name {n}" for n in (0, 1, 3, 4)]
            assert listed(client, "ns.list", "name", limit=limit, prefix="name") == (names, ["name 2"])
            assert listed(client, "log.list", "log", limit=limit) == ([f"log{n}" for n in (0, 1, 3, 4)], ["log2"])
            spaces = ["default", *(f"space{n}" for n in (0, 1, 3, 4))]
            assert listed(client, "namespace.list", "namespace", limit=limit) == (spaces, ["space2"])
        first = client.result("reference.find", reference="r")
        assert first["keys"] == ["key 0", "key 1"]
        behind = client.call("reference.find", {"reference": "r", "cursor": first["cursor"]})["error"]["data"]["cursor"]
        assert client.result("reference.find", reference="r", cursor=behind)["keys"] == ["key 3", "key 4"]
        since, seen = 0, []
        while True:
            reply = client.call("object.changes", {"since": since})
            if "error" in reply:
                assert reply["error"]["data"]["key"] == "key 2"
                since = reply["error"]["data"]["cursor"]
                continue
            if not reply["result"]["items"]:
                break
            seen += [item["key"] for item in reply["result"]["items"]]
            since = reply["result"]["cursor"]
        assert seen == [f"key {n}" for n in (0, 1, 3, 4)]


def test_what_somebody_asked_for_comes_back_by_itself(new_daemon: Daemon) -> None:
    daemon = new_daemon.start()
    with daemon.client() as client:
        fill(client)
        last = client.result("object.changes")["cursor"]
    daemon.stop()
    assert spoil(daemon, "name in (cast('key 1' as blob), cast('key 2' as blob))") == 2
    daemon.start()
    with daemon.client() as client:
        assert client.result("object.repair", key="key 1")["metadata"]["key"] == "key 1"
        assert client.read("key 1") == b"value"
        last = client.result("object.changes", since=last)["cursor"]
        assert error_type(client.call("object.read", {"key": "key 2"})) == "corrupt_record"
        news = client.result("object.changes", since=last, wait_seconds=60)["items"]
        assert [item["key"] for item in news] == ["key 2"]
        assert client.read("key 2") == b"value"


def test_with_every_record_damaged_it_starts_and_a_scrub_brings_all_back(new_daemon: Daemon) -> None:
    daemon = new_daemon.start()
    with daemon.client() as client:
        fill(client)
        client.result("health.scrub", action="start", wait=True)
    daemon.stop()
    assert spoil(daemon, "true") == 30
    daemon.start()
    with daemon.client() as client:
        assert client.result("daemon.status")["state"] == "ok"
        assert len(listed(client, "namespace.list", "namespace")[1]) == 7
        assert error_type(client.call("object.list")) == "corrupt_record"
        found = client.result("health.scrub", action="start", wait=True)["found"]
        assert found["records_mended"] > 10  # some came back by themselves, once they were asked for
        assert found["records_damaged"] == 0
        assert listed(client, "object.list", "key") == ([f"key {n}" for n in range(5)], [])
        assert listed(client, "log.list", "log")[1] == []
        assert client.result("permission.get", namespace="space3", user="ada")["read"]
        client.result("token.create", namespace="space1", permission="read")
        assert client.read("key 4") == b"value"


def test_where_the_record_of_the_older_keys_does_not_open_the_status_says_so(new_daemon: Daemon) -> None:
    daemon = new_daemon.start()
    with daemon.client() as client:
        client.result("job.wait", job=client.result("key.rotate")["job"])
        with closing(sqlite3.connect(daemon.store / "metastore.sqlite", isolation_level=None)) as db:
            assert db.execute("update record set sealed = zeroblob(200) where name = cast('keys' as blob)").rowcount == 1
        assert any("older master keys cannot be read" in warning for warning in client.result("daemon.status")["warnings"])


def test_what_waits_is_null_where_it_cannot_be_read_and_the_rest_is_told(new_daemon: Daemon) -> None:
    with (
        new_daemon.start().client() as client,
        closing(sqlite3.connect(new_daemon.store / "metastore.sqlite", isolation_level=None)) as db,
    ):
        db.execute("alter table debt rename to lost")
        status, figures = client.result("daemon.status"), client.result("daemon.metrics")
        db.execute("alter table lost rename to debt")
        assert (status["state"], status["queues"]) == ("ok", {"repair": 0, "owed": None, "collect": None})
        assert any("metastore cannot be read: SQLITE_ERROR; see whether the disk of" in warning for warning in status["warnings"])
        assert 'zstor_queue{queue="repair"} 0\n' in figures
        assert "zstor_objects 0\n" in figures
        assert client.result("daemon.status")["queues"] == {"repair": 0, "owed": 0, "collect": 0}
