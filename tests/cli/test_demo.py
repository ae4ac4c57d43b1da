"""`make demo` ends well and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import Terminal, environments_with

DEMO = [sys.executable, "-m", "zstor_local", "demo"]


def test_the_demo_tells_its_story_to_programs_too(tmp_path: Path) -> None:
    demo = subprocess.run([*DEMO, "--json"], env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (demo.returncode, demo.stderr) == (0, "")
    told = [next(iter(json.loads(line).items())) for line in demo.stdout.splitlines()]
    assert {what for what, _ in told} == {"title", "about", "command", "output", "done", "shown", "next"}
    assert [line for what, line in told if what == "shown"][-1].endswith("every byte as it was")
    assert os.listdir(tmp_path) == []


def test_interrupted_the_demo_leaves_no_store_and_no_daemon(tmp_path: Path) -> None:
    with Terminal(DEMO, home=tmp_path, environment=os.environ | {"TMPDIR": str(tmp_path)}) as terminal:
        terminal.read_until("A real file goes in")
        terminal.interrupt()
        assert terminal.end() == 130
    assert os.listdir(tmp_path) == []
    assert not environments_with(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_ended_takes_store_and_daemon_along(number: signal.Signals, tmp_path: Path) -> None:
    with Terminal(DEMO, home=tmp_path, environment=os.environ | {"TMPDIR": str(tmp_path)}) as terminal:
        terminal.read_until("A real file goes in")
        terminal.process.send_signal(number)
        assert terminal.end() == 128 + number
    assert os.listdir(tmp_path) == []
    assert not environments_with(tmp_path)


def test_the_demo_tells_its_story_and_cleans_up(tmp_path: Path) -> None:
    demo = subprocess.run(DEMO, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (demo.returncode, demo.stderr) == (0, "")
    assert demo.stdout.count("25.0%") == 6
    assert demo.stdout.count(": nothing\n") == 2
    assert "the bad block was found" in demo.stdout
    assert "every byte as it was" in demo.stdout
    assert os.listdir(tmp_path) == []
