"""The README shows what really happens: its first session and its examples are run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zstor_local.cli.private_daemon import PrivateDaemon
from zstor_local.config import load_config

README = Path(__file__).parent.parent / "README.md"
MOST_COMMANDS = 10
DONE = "--- done ---"

# What differs from machine to machine and from run to run, and what stands for it.
VARIABLE = [
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
    (r"\b[0-9a-f]{16,}\b", "ID"),
    (r"\b[\d.,]+ [KMGTP]?i?B\b", "SIZE"),
    (r"^repair +\d+ waiting\n", ""),  # versions that were read without one of the lost shares: where they lie is drawn by lot
    (r"[█░]+", "BAR"),
    (r"\bfs-[\d-]+", "GROUP"),
    (r"^scrub .*\n", ""),  # the first one may still be at work
    (r"(shard \w+ is missing): .*", r"\1: WHY"),  # whoever met its absence first says how
    (r"[ \t]+", " "),
]


def block(name: str) -> str:
    """The code block under the comment of that name."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, f"the README has no block {name!r}"
    return found[1]


def steps(name: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a session, and the lines that it prints."""
    for step in re.split(r"^\$ ", block(name), flags=re.MULTILINE)[1:]:
        command, *lines = step.splitlines()
        yield command, lines


def alike(lines: list[str]) -> list[str]:
    """The lines with what varies replaced."""
    text = "\n".join(lines)
    for pattern, replacement in VARIABLE:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return [line.strip() for line in text.splitlines()]


class Terminal:
    """A shell in an empty home, which the README's reader calls /home/ann."""

    def __init__(self, home: Path, runtime: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ZSTOR_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._names = {str(home): "/home/ann", str(runtime): "/run/user/1000"}
        self.shell = subprocess.Popen(
            ["bash"],
            cwd=home,
            env=inherited | {"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime), "PATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, line: str) -> None:
        assert self.shell.stdin is not None
        self.shell.stdin.write(line + "\n")
        self.shell.stdin.flush()

    def read(self) -> str:
        assert self.shell.stdout is not None
        line = self.shell.stdout.readline().rstrip("\n")
        for path, name in self._names.items():
            line = line.replace(path, name)
        return line

    def run(self, command: str) -> list[str]:
        """What a command prints."""
        self.type(f"{command}\necho '{DONE}'")
        return list(iter(self.read, DONE))


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[tuple[Terminal, Terminal]]:
    for name in ("ann", "run"):
        (tmp_path / name).mkdir(mode=0o700)
    first, second = (Terminal(tmp_path / "ann", tmp_path / "run") for _ in range(2))
    with first.shell, second.shell:
        yield first, second
        first.shell.kill()
        second.shell.kill()


def test_the_first_session_is_what_happens(terminals: tuple[Terminal, Terminal]) -> None:
    first, second = terminals
    (start, started), session = next(steps("first terminal")), list(steps("second terminal"))
    assert 1 + len(session) <= MOST_COMMANDS
    first.type(f"exec {start}")
    assert alike([first.read() for _ in started]) == alike(started)
    for command, lines in session:
        assert alike(second.run(command)) == alike(lines), command
    first.shell.terminate()
    assert first.shell.wait() == 0


def run_example(program: list[str], text: str, daemon: PrivateDaemon) -> str:
    runtime = {"XDG_RUNTIME_DIR": str(daemon.socket.parent.parent)}
    command = subprocess.run(
        program, input=text, cwd=daemon.home, env=daemon.environment | runtime, capture_output=True, text=True, check=False
    )
    assert (command.returncode, command.stderr) == (0, "")
    return command.stdout


def test_the_socat_example_works(daemon: PrivateDaemon) -> None:
    written, read = run_example(["bash"], block("socat"), daemon).splitlines()
    assert '"key":"greeting"' in written
    assert '"value":"hello"' in read


def test_the_python_example_works(daemon: PrivateDaemon) -> None:
    printed = run_example([sys.executable, "-W", "ignore", "-"], block("python"), daemon)
    license_text = Path("/usr/share/common-licenses/GPL-3").read_bytes()
    assert printed == f"{len(license_text)} bytes came back\n"
    assert (daemon.home / "copy").read_bytes() == license_text


def test_the_configuration_example_can_be_used() -> None:
    config = load_config(text=block("configuration"), file="config.toml", environment={"HOME": "/home/ann"})
    assert len(config.shards) == config.policy.m
    assert config.policy.write_quorum == config.policy.m - 1
