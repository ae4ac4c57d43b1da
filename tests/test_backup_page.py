"""docs/backup.md shows what really happens: its commands are run as they stand, and what they copy brings everything back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.client import Client
from tests.daemon.process import Daemon

PAGE = Path(__file__).parent.parent / "docs" / "backup.md"
LARGE = bytes(range(256)) * 8_000


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, f"the page has no block {name!r}"
    return found[1]


class Reader:
    """Somebody who does what the page says, in a home of their own with a daemon in it."""

    def __init__(self, home: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ZSTOR_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.home = home
        self.daemon = Daemon(home, environment={**inherited, "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "PATH": path})
        self.store = home / ".local/share/zstor"

    def shell(self, script: str) -> str:
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.home,
            env=self.daemon.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def does(self, name: str) -> None:
        self.shell(block(name))

    def client(self) -> Client:
        return self.daemon.client()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path / "home")
    with reader.daemon:
        reader.daemon.start()
        with reader.client() as client:
            client.write("small", b"small", user={"mode": "0644"}, references=["r"])
            client.write("large", LARGE)
            client.write("other", b"other", namespace="photos")
            client.write("gone", LARGE)
            client.result("object.delete", key="gone")
        yield reader


def check(reader: Reader, **more: bytes) -> None:
    with reader.client() as client:
        assert client.read("small") == b"small"
        assert client.read("large") == LARGE
        assert client.read("other", namespace="photos") == b"other"
        assert client.result("reference.find", reference="r")["keys"] == ["small"]
        for key, value in more.items():
            assert client.read(key) == value
        assert client.stored() == {"small", "large", *more}


def test_a_copy_of_a_stopped_store_brings_it_back(reader: Reader) -> None:
    reader.daemon.stop()
    reader.does("stopped")
    reader.daemon.start()
    with reader.client() as client:
        client.write("after the copy", b"1")
        client.result("object.delete", key="small")
    reader.daemon.stop()
    reader.does("go back")
    reader.daemon.start()
    check(reader)
    with reader.client() as client:
        assert client.result("daemon.status")["state"] == "ok"
        client.write("goes on", b"1")


def test_a_metastore_older_than_its_shards_is_served_read_only(reader: Reader) -> None:
    reader.daemon.stop()
    old = reader.home / "old"
    shutil.copytree(reader.store, old)
    reader.daemon.start()
    with reader.client() as client:
        client.write("after the copy", b"1")
    reader.daemon.stop()
    for file in reader.store.glob("*.sqlite*"):
        file.unlink()
    for file in old.glob("*.sqlite*"):
        shutil.copy(file, reader.store)
    reader.daemon.start()
    with reader.client() as client:
        assert client.result("daemon.status")["state"] == "readonly"
        assert client.read("small") == b"small"
        assert client.refusal("object.write", key="x", value="1") == "unavailable"
    reader.daemon.stop()
    reader.shell("zstor rebuild")
    reader.daemon.start()
    check(reader, **{"after the copy": b"1"})


def test_a_copy_of_one_shard_of_a_running_store_takes_its_place(reader: Reader) -> None:
    reader.does("one shard")
    with reader.client() as client:
        client.write("later", LARGE)
        client.write("later small", b"1")
        client.write("small", b"small")
        client.write("brief", LARGE)
        client.result("object.delete", key="brief")
        client.write("also gone", b"1")
        client.result("object.delete", key="also gone")
    reader.daemon.stop()
    reader.does("put back")
    reader.daemon.start()
    assert "an older copy was put back" in reader.daemon.said
    reader.does("repaired")
    with reader.client() as client:
        for key in client.stored():
            assert client.result("object.check", key=key)["status"] == "optimal"
    reader.daemon.stop()
    reader.shell("zstor rebuild")
    reader.daemon.start()
    with reader.client() as client:
        assert client.stored() == {"small", "large", "later", "later small"}
        assert client.read("later") == LARGE


def test_copies_of_shards_of_a_running_store_and_the_words_bring_back_everything(reader: Reader, tmp_path: Path) -> None:
    words = reader.shell("zstor key backup --yes").partition(":\n")[2]
    with reader.client() as client:
        for number in range(6):
            script = block("one shard").replace("shard-2", f"shard-{number}").replace("shards/2", f"shards/{number}")
            reader.shell(script)
            client.write(f"meanwhile {number}", b"1")
            if number == 4:
                client.write("gone meanwhile", b"1")
                client.result("object.delete", key="gone meanwhile")
    reader.daemon.stop()
    elsewhere = Reader(tmp_path / "elsewhere")
    (elsewhere.store / "shards").mkdir(parents=True)
    for number in range(6):
        shutil.copytree(reader.home / f"copy-of-shard-{number}", elsewhere.store / "shards" / str(number))
    (elsewhere.home / "words").write_text(" ".join(re.findall(r"\d+ ([a-z]+)", words)))
    elsewhere.does("everything")
    with elsewhere.daemon:
        elsewhere.daemon.start()
        with elsewhere.client() as client:
            assert client.read("small") == b"small"
            assert client.read("large") == LARGE
            assert client.read("other", namespace="photos") == b"other"
            assert client.read("meanwhile 0") == b"1"
            assert not {"gone", "gone meanwhile"} & client.stored()


def test_every_block_of_the_page_is_run() -> None:
    named = set(re.findall(r"<!-- ([a-z ]+) -->\n```sh", PAGE.read_text()))
    assert named == {"stopped", "go back", "one shard", "put back", "repaired", "everything"}
    assert PAGE.read_text().count("```sh") == len(named)
