"""clients/js: one file against the real daemon (client.mjs has the tests), and the package that npm makes of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import CLIENTS, LARGE, Place
from tests.daemon.process import Daemon
from tests.lacking import lacking


def node(*arguments: str, place: Place, **environment: str) -> str:
    if shutil.which("node") is None:
        lacking("node")
    done = subprocess.run(
        ["node", *arguments],
        env=place.environment | environment,
        cwd=place.files,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def all_pass(name: str, place: Place, **environment: str) -> None:
    script = Path(__file__).parent / name
    said = node("--test-reporter=tap", str(script), place=place, **environment)
    assert "# fail 0" in said
    count = script.read_text().count("\ntest(")
    assert f"# pass {count}" in said, said


def test_all_that_the_client_promises(place: Place) -> None:
    with place.no_descriptor_is_left():
        all_pass("client.mjs", place)


def test_where_things_go_wrong(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "large").write_bytes(LARGE)
    with Daemon(tmp_path / "home") as daemon:
        own = Place(daemon.start(), tmp_path / "files")
        all_pass("trouble.mjs", own, DAEMON=str(daemon.pid))


def test_it_has_no_dependencies_and_300_lines() -> None:
    text = (CLIENTS / "js" / "zstor-client.mjs").read_text()
    assert len(text.splitlines()) <= 300
    assert all("'node:" in line for line in text.splitlines() if line.startswith("import "))
    package = json.loads((CLIENTS / "js" / "package.json").read_text())
    assert not any("ependencies" in name for name in package)


def test_it_is_installed_from_its_folder(place: Place, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        lacking("npm")
    folder = shutil.copytree(CLIENTS / "js", tmp_path / "folder")
    for command in (["npm", "pack", "--silent", str(folder)], ["npm", "install", "--silent", "--offline", "zstor-client-0.2.0.tgz"]):
        subprocess.run(command, cwd=tmp_path, env=place.environment, check=True, stdout=subprocess.DEVNULL)
    (tmp_path / "ping.mjs").write_text(
        "import { Client } from 'zstor-client'\nconst z = await Client.connect()\nconsole.log(await z.call('rpc.ping'))\nz.close()\n"
    )
    assert node(str(tmp_path / "ping.mjs"), place=place) == "pong\n"


@pytest.mark.parametrize("client", ["python", "js", "shell"])
def test_each_client_has_a_readme_of_one_screen(client: str) -> None:
    assert 10 < len((CLIENTS / client / "README.md").read_text().splitlines()) <= 40
