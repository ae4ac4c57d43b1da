"""Stores that earlier versions have written: each is opened, read, proved, rebuilt and written to (docs/format.md)."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.client import Client
from tests.daemon.process import Daemon
from tests.golden.making import EXPECTED, PLACE, SUMS, Object, everything, read_object, rotate

STORES = sorted(path.name.removesuffix(".tar.xz") for path in PLACE.glob("*.tar.xz"))
QUOTA = 5_000_000
DATABASES = "*.sqlite*"  # what a rebuild makes anew


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Daemon, Object]]:
    """A daemon that is to open the store, and what there is to read."""
    home = tmp_path / "home"
    with tarfile.open(PLACE / f"{request.param}.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # none in Python 3.11.2, Debian 12's
        archive.extractall(home)  # noqa: S202 - it is our own
    with Daemon(home) as daemon:
        yield daemon, json.loads((home / EXPECTED).read_text())


def is_as_it_was(client: Client, expected: Object) -> None:
    found = everything(client)
    assert {part: found[part] for part in expected} == expected
    for namespace, objects in expected["objects"].items():
        for key in objects:
            assert client.result("object.check", key=key, namespace=namespace)["status"] == "optimal"


def is_proved(client: Client) -> None:
    scrub = client.result("health.scrub", action="start", wait=True)
    assert scrub["state"] == "idle"
    found = {name: count for name, count in scrub["found"].items() if name not in ("objects", "bytes") and count}
    assert found == {}
    assert client.result("daemon.status")["state"] == "ok"


def is_written_to(client: Client, expected: Object) -> None:
    """Changes of what was there, and news beside it; the expectation follows."""
    objects = expected["objects"]["default"]
    for key in ("written again", "large"):
        client.write(key, b"by a later version")
        objects.pop(key)
    client.write("a new one", bytes(400_000))
    client.result("object.delete", key="written again")
    for log in expected.get("logs", {}):
        after = expected["logs"][log]["entries"][-1]["seq"]
        assert client.result("log.append", log=log, value="a later version's")["seq"] == after + 1
        client.result("log.verify", log=log, contents=True)
    if "page" in expected.get("names", {}):
        client.result("ns.update", name="page", value="third", if_seq=expected["names"].pop("page")["seq"])
    if "photos" in expected["objects"]:
        client.result("namespace.set", namespace="photos", quota_bytes=QUOTA)
    for part in ("logs", "references", "spaces"):
        expected.pop(part, None)
    rotate(client)
    objects.pop("after the rotation", None)


def holds_still(client: Client, expected: Object) -> None:
    found = everything(client)
    for part in expected.keys() - {"objects", "names"}:
        assert found[part] == expected[part]
    for name, value in expected.get("names", {}).items():
        assert found["names"][name] == value
    for namespace, objects in expected["objects"].items():
        assert {key: found["objects"][namespace][key] for key in objects} == objects
    assert client.read("large") == b"by a later version"
    assert client.read("a new one") == bytes(400_000)
    assert client.refusal("object.read", key="written again") == "not_found"
    if "photos" in expected["objects"]:
        assert client.result("namespace.get", namespace="photos")["quota_bytes"] == QUOTA


def test_it_is_read_and_found_whole(store: tuple[Daemon, Object]) -> None:
    daemon, expected = store
    with daemon.start().client() as client:
        is_as_it_was(client, expected)
        is_proved(client)
        is_as_it_was(client, expected)


def test_it_is_rebuilt_from_shards_and_key(store: tuple[Daemon, Object]) -> None:
    daemon, expected = store
    for path in daemon.store.glob(DATABASES):
        path.unlink()
    rebuild = subprocess.run(
        [sys.executable, "-m", "zstor_local", "rebuild", "--json"],
        env=daemon.environment,
        cwd=daemon.home,
        capture_output=True,
        check=False,
    )
    assert rebuild.returncode == 0, rebuild
    with daemon.start().client() as client:
        is_as_it_was(client, expected)
        is_proved(client)


def test_it_is_written_to_and_rebuilt_then(store: tuple[Daemon, Object]) -> None:
    daemon, expected = store
    with daemon.start().client() as client:
        is_written_to(client, expected)
        holds_still(client, expected)
        is_proved(client)
    daemon.restart()
    with daemon.client() as client:
        holds_still(client, expected)
    daemon.kill()
    for path in daemon.store.glob(DATABASES):
        path.unlink()
    subprocess.run([sys.executable, "-m", "zstor_local", "rebuild"], env=daemon.environment, cwd=daemon.home, check=True)
    with daemon.start().client() as client:
        holds_still(client, expected)
        is_proved(client)


def test_it_is_read_with_two_shards_gone(store: tuple[Daemon, Object]) -> None:
    daemon, expected = store
    shards = [path.parent for path in daemon.home.rglob("marker")]
    assert len(shards) == 6
    for shard in sorted(shards)[2:4]:
        shutil.rmtree(shard)
    with daemon.start().client() as client:
        for key, kept in expected["objects"]["default"].items():
            assert read_object(client, "default", key) == kept


def test_none_was_made_again_and_all_are_small() -> None:
    stores = sorted(PLACE.glob("*.tar.xz"))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in stores]
    assert sums == sorted(SUMS.read_text().splitlines(), key=lambda line: line.split()[1])
    assert all(path.stat().st_size < 50_000 for path in stores)
