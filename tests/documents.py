"""Pages as their reader runs them: every block of commands in order, in one shell, in the empty home of somebody called ann.

A `sh` block must end well. A `console` block is a session: what follows a `$ command` is what it prints, but for what varies.
`zstor daemon &` is waited for until it listens. A block below `<!-- not run: why -->` is left out.

`python -m tests.documents PAGE` writes what the commands of a page print into its console blocks.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DONE = "--- done ---"
_BLOCK = re.compile(r"(?P<mark><!--(?P<comment>[^>]*)-->\n)?```(?P<language>sh|console)\n(?P<text>.*?)```", re.DOTALL)

# What differs from machine to machine and from run to run, and what stands for it.
VARIABLE = [
    (r"\d{4}-\d\d-\d\dT?[ T]\d\d:\d\d:\d\d(Z|\.\d+Z?)?", "TIME"),
    (r"\b[0-9a-f]{16,}\b", "ID"),
    (r"\b[\d.,]+ [KMGTP]?i?B(/s)?\b", "SIZE"),
    (r"\b\d{13,}\b", "NUMBER"),
    (r"^(repair|owed|collect) +\d+ waiting\n", ""),
    (r"^scrub .*\n", ""),
    (r"\bread \d+ records", "read N records"),
    (r"[ \t]+", " "),
]


@dataclass(frozen=True)
class Block:
    """A block of commands: its language, its text, where it stands in the page."""

    language: str
    text: str
    start: int
    end: int

    def steps(self) -> Iterator[tuple[str, list[str]]]:
        """The commands of a session with what each prints; of a script, itself."""
        if self.language == "sh":
            yield self.text.rstrip("\n"), []
            return
        for step in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            lines = step.splitlines()
            more = 1
            while lines[more - 1].endswith("\\"):
                more += 1
            yield "\n".join(lines[:more]), lines[more:]


def blocks(page: str) -> Iterator[Block]:
    for found in _BLOCK.finditer(page):
        if not (found["comment"] or "").strip().startswith("not run"):
            yield Block(found["language"], found["text"], found.start("text"), found.end("text"))


def alike(lines: list[str]) -> list[str]:
    """The lines with what varies replaced."""
    text = "\n".join(lines)
    for pattern, replacement in VARIABLE:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return [line.strip() for line in text.splitlines()]


class Terminal:
    """A shell in an empty home."""

    def __init__(self, place: Path) -> None:
        home, runtime = place / "ann", place / "run"
        for directory in (home, runtime):
            directory.mkdir(mode=0o700)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ZSTOR_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._names = {str(home): "/home/ann", str(runtime): "/run/user/1000", str(ROOT): "/home/ann/zstor-local"}
        (home / "zstor-local").symlink_to(ROOT)
        self._shell = subprocess.Popen(
            ["bash"],
            cwd=home,
            env=inherited | {"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime), "PATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )

    def close(self) -> None:
        """End the shell and what it has started."""
        os.killpg(self._shell.pid, signal.SIGTERM)  # its session: what a block left running in the background, too
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        with self._shell.stdin, self._shell.stdout as said:
            said.read()
        self._shell.wait()

    def run(self, command: str) -> tuple[int, list[str]]:
        """The exit status of a command, and what it prints."""
        if command == "zstor daemon &":
            self._type(command)
            lines = [self._read()]
            while not lines[-1].startswith(("listening on", "zstor: error")):
                lines.append(self._read())
            return 0, lines
        self._type(f"{command}\necho; echo '{DONE}' $?")
        lines = []
        while not (line := self._read()).startswith(DONE):
            lines.append(line)
        lines = lines[:-1] if lines and not lines[-1] else lines
        return int(line.removeprefix(DONE)), lines

    def _type(self, line: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(line + "\n")
        self._shell.stdin.flush()

    def _read(self) -> str:
        assert self._shell.stdout is not None
        line = self._shell.stdout.readline()
        assert line, "the shell has ended"
        for path, name in self._names.items():
            line = line.replace(path, name)
        return line.rstrip("\n")


def filled(page: str, place: Path) -> str:
    """The page with what its commands print."""
    terminal = Terminal(place)
    parts, position = [], 0
    for block in blocks(page):
        parts.append(page[position : block.start])
        position = block.end
        if block.language == "sh":
            status, lines = terminal.run(f"(set -e\n{block.text})" if "&\n" not in block.text else block.text)
            assert status == 0, (block.text, lines)
            parts.append(block.text)
            continue
        for command, _ in block.steps():
            _, lines = terminal.run(command)
            parts.append("\n".join([f"$ {command}", *lines, ""]))
    terminal.close()
    return "".join([*parts, page[position:]])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as place:
            Path(name).write_text(filled(Path(name).read_text(), Path(place)))
