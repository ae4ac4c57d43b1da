"""docs/remote-log.md shows what really happens: its terminals and its program are run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_readme import Terminal, alike
from zstor_local.cli.private_daemon import PrivateDaemon

PAGE = Path(__file__).parent.parent / "docs" / "remote-log.md"
TERMINALS = ("alice", "bob", "third", "scrub", "backup")


def blocks() -> dict[str, str]:
    """The code blocks by the names in the comments above them."""
    return dict(re.findall(r"<!-- ([a-z]+) -->\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL))


def steps(name: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a terminal, and the lines that it prints."""
    for step in re.split(r"^\$ ", blocks()[name], flags=re.MULTILINE)[1:]:
        command, *lines = step.splitlines()
        yield command, lines


def without_ids(lines: list[str]) -> list[str]:
    return [re.sub(r"\bbaf[a-z2-7]+", "CID", line) for line in alike(lines)]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Alice's home with a running daemon, and its runtime directory."""
    for name in ("alice", "run"):
        (tmp_path / name).mkdir(mode=0o700)
    terminal = Terminal(tmp_path / "alice", tmp_path / "run")
    with terminal.shell:
        terminal.type("exec zstor daemon")
        while not terminal.read().startswith("listening on "):
            pass
        yield tmp_path / "alice", tmp_path / "run"
        terminal.shell.terminate()


def test_the_story_is_what_happens(home: tuple[Path, Path]) -> None:
    assert [*blocks()] == [*TERMINALS, "program"]
    for name in TERMINALS:
        terminal = Terminal(*home)
        with terminal.shell:
            for command, lines in steps(name):
                assert without_ids(terminal.run(command)) == without_ids(lines), command
            terminal.shell.kill()


def test_every_block_of_the_page_is_run() -> None:
    assert PAGE.read_text().count("```") == 2 * len(blocks())


def test_the_program_works(daemon: PrivateDaemon) -> None:
    program = blocks()["program"]
    runtime = {"XDG_RUNTIME_DIR": str(daemon.socket.parent.parent)}
    ran = subprocess.run(
        [sys.executable, "-"],
        input=program,
        cwd=daemon.home,
        env=daemon.environment | runtime,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.strip() == program.splitlines()[-1].partition("# ")[2]
