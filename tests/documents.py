"""Pages as their reader runs them: every block of a page in order, by somebody called ann, in an empty home with a clone in it.

```sh        must end well
```console   a session: what follows a `$ command` is what it prints, but for what varies
```python, ```js   a program, must end well; a last `# comment` is what it prints
```toml      a configuration that is understood
```text      a picture, or a conversation that a test of its own has; no commands

`<!-- NAME -->` above a block gives it a terminal of that name, with the same home. A daemon or server is waited for until it listens.
`python -m tests.test_documents PAGE` writes what the commands of a page print into its console blocks.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lacking import lacking
from tests.second_machine import second_machine
from zstor_local.config import load_config

ROOT = Path(__file__).parent.parent
LANGUAGES = {"sh", "console", "python", "js", "toml", "text"}
PROGRAMS = {"python": "python3 -", "js": "node --input-type=module -"}
DONE, ENDED = "--- done ---", "--- ended ---"
LIMIT = "360"  # seconds until a page that hangs is ended, with all that it has started
_BLOCK = re.compile(r"(?:<!--(?P<name>[^>]*)-->\n)?^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_PORT = re.compile(r"(?<=[1t]:)[78]\d{3}\b")  # any free port instead of the page's
_LISTENS = ("listening on", "zstor: error")

# What differs from machine to machine and from run to run, and what stands for it.
VARIABLE = [
    (r"\d{4}-\d\d-\d\dT?[ T]\d\d:\d\d:\d\d(Z|\.\d+Z?)?", "TIME"),
    (r"\b[0-9a-f]{16,}\b", "ID"),
    (r"\bbaf[a-z2-7]{50,}", "CID"),
    (r"\b[\d.,]+ [KMGTP]?i?B(/s)?\b", "SIZE"),
    (r"\b\d{13,}\b", "NUMBER"),
    (r"[█░]+", "BAR"),
    (r"\bfs-[\d-]+", "GROUP"),
    (r"^WARNING zstor\..*\n?", ""),  # the daemon's, in its terminal, when it has seen something
    (r"^(repair|owed|collect) +\d+ waiting\n", ""),  # what reads have found: which shares they read is drawn by lot
    (r"^scrub .*\n", ""),  # the first one may still be at work
    (r"(shard \w+ is missing): .*", r"\1: WHY"),  # whoever met its absence first says how
    (r"\bpid \d+", "pid N"),
    (r"\bread \d+ records", "read N records"),
    (r"[ \t]+", " "),
]


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, the name above it, its text, where that stands in the page."""

    language: str
    name: str
    text: str
    start: int
    end: int

    def steps(self) -> Iterator[tuple[str, list[str]]]:
        """The commands of a session with what each prints."""
        for step in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            lines = step.splitlines()
            more = 1
            while lines[more - 1].endswith("\\"):
                more += 1
            yield "\n".join(lines[:more]), lines[more:]


def blocks(page: str) -> Iterator[Block]:
    for found in _BLOCK.finditer(page):
        yield Block(found["language"], (found["name"] or "").strip(), found["text"], found.start("text"), found.end("text"))


def alike(lines: list[str]) -> list[str]:
    """The lines with what varies replaced."""
    text = "\n".join(lines)
    for pattern, replacement in VARIABLE:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return [line.strip() for line in text.splitlines()]


class Terminal:
    """A shell. It ends with the first command of a script that fails."""

    def __init__(
        self, arguments: list[str], home: Path, environment: Mapping[str, str], names: Mapping[str, str], step: Path, step_there: Path
    ) -> None:
        """A step is a file here, which the shell sees there."""
        self._names, self._step, self._step_there = names, step, step_there
        self._shell = subprocess.Popen(
            ["timeout", "--signal=KILL", LIMIT, *arguments],
            cwd=home,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        self._type(f"trap \"echo; echo '{ENDED}'\" EXIT")

    def close(self) -> None:
        """End the shell and what it has started."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        with suppress(BrokenPipeError):
            self._shell.stdin.close()
        if self._step == self._step_there:  # elsewhere a machine ends, and all on it
            os.killpg(self._shell.pid, signal.SIGTERM)  # its session: what a block left running in the background, too
        with self._shell.stdout as said:
            said.read()
        self._shell.wait()

    def run(self, text: str, *, script: bool = False) -> list[str]:
        """What the commands print; AssertionError with it, if one of a script fails."""
        self._step.write_text(text + "\n")
        sourced = f". {self._step_there} < /dev/null"
        self._type(f"set -e; {sourced}; set +e" if script else sourced)
        self._type(f"echo; echo '{DONE}'")
        lines: list[str] = []
        while (line := self._read(text, lines)) != DONE:
            lines.append(line)
        return lines[:-1] if lines and not lines[-1] else lines

    def start(self, command: str) -> list[str]:
        """What a daemon prints until it listens; it stays in the background."""
        self._type(command if command.endswith("&") else f"{command} &")
        lines: list[str] = []
        while not lines or not lines[-1].startswith(_LISTENS):
            lines.append(self._read(command, lines))
        return lines

    def _type(self, line: str) -> None:
        assert self._shell.stdin is not None
        with suppress(BrokenPipeError):  # the shell has ended: what it printed says why
            self._shell.stdin.write(line + "\n")
            self._shell.stdin.flush()

    def _read(self, text: str, before: list[str]) -> str:
        assert self._shell.stdout is not None
        line = self._shell.stdout.readline()
        assert line not in ("", f"{ENDED}\n"), "\n".join(["this failed:", text, "it printed:", *before])
        for path, name in self._names.items():
            line = line.replace(path, name)
        return line.rstrip("\n")


class Reader:
    """Ann, who reads a page and does what it says. She has a clone in ~/zstor-local, and `zstor` unless she is about to install it."""

    def __init__(self, place: Path, *, installed: bool = True, in_clone: bool = False) -> None:
        self._place, self._home, self._terminals = place, place / "ann", dict[str, Terminal]()
        self._begins = self._home / "zstor-local" if in_clone else self._home
        self._rest = ExitStack()
        self._ports: dict[str, str] = {}
        runtime = place / "run"
        for directory in (self._home, runtime):
            directory.mkdir(mode=0o700)
        _clone(self._home / "zstor-local")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ZSTOR_", "VIRTUAL_ENV"))}
        own = str(Path(sys.executable).parent)
        others = [path for path in os.environ["PATH"].split(":") if path != own]
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        self._environment = inherited | {
            "HOME": str(self._home),
            "XDG_RUNTIME_DIR": str(runtime),
            "PATH": ":".join([own if installed else f"{sys.base_prefix}/bin", *others]),
            "PIP_CACHE_DIR": str(caches / "pip"),  # what was fetched once need not be again
            "PIP_NO_COMPILE": "1",  # most of it is never run
        }
        self._names = {str(self._home): "/home/ann", str(runtime): "/run/user/1000"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._rest.close()

    def finds_a_second_machine(self) -> None:
        """`ben@attic`, by ssh."""
        self._environment |= self._rest.enter_context(second_machine(self._place, self._environment))

    def terminal(self, name: str = "") -> Terminal:
        if name not in self._terminals:
            step = self._place / f"step-{len(self._terminals)}"
            self._opened(name, Terminal(["bash"], self._begins, self._environment, self._names, step, step))
        return self._terminals[name]

    def _opened(self, name: str, terminal: Terminal) -> None:
        self._terminals[name] = terminal
        self._rest.callback(terminal.close)

    def does(self, block: Block) -> list[tuple[str, list[str]]]:
        """What each command of a session prints; any other block ends well, or it is an AssertionError."""
        text = _PORT.sub(lambda port: self._port(port[0]), block.text)
        if block.language == "console":
            terminal = self.terminal(block.name)
            typed = [command for command, _ in replace(block, text=text).steps()]
            return [(command, self._printed(terminal, own, shown)) for own, (command, shown) in zip(typed, block.steps(), strict=True)]
        if block.language == "toml":
            load_config(text=text, file="config.toml", environment={"HOME": "/home/ann"})
        elif block.language in PROGRAMS:
            printed = self.terminal(block.name).run(f"{PROGRAMS[block.language]} <<'END OF PROGRAM'\n{text}END OF PROGRAM", script=True)
            promised = re.search(r"[^\n]  # ([^\n]+)\n\Z", text)
            assert promised is None or printed == [promised[1]], (text, printed)
        elif block.language == "sh":
            self.terminal(block.name).run(text, script=True)
        return []

    def _port(self, shown: str) -> str:
        """A free one in place of the page's, which stands for it again in what is printed."""
        if shown not in self._ports:
            self._ports[shown] = _free_port()
            self._names[f":{self._ports[shown]}"] = f":{shown}"
        return self._ports[shown]

    def _printed(self, terminal: Terminal, command: str, shown: list[str]) -> list[str]:
        listens = bool(shown) and shown[-1].startswith(_LISTENS[0])
        return terminal.start(command) if listens else terminal.run(command)


class ReaderWithService(Reader):
    """Ann under a service manager of her own, on a machine where she is a new user: that takes root (tests/systemd/manager.sh)."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        if os.geteuid() != 0 or shutil.which("systemctl") is None:
            lacking("a user manager: that takes root and systemd")
        place.chmod(0o755)
        here, clone = Path(__file__).parent / "systemd", self._home / "zstor-local"
        names = {"/home/zstortest": "/home/ann", "/run/user/64117": "/run/user/1000"}
        binds = [f"ro:clone:{clone}", f"ro:page:{place}", f"ro:scripts:{here}"]
        command = ["bash", str(here / "manager.sh"), "/mnt/scripts/reader.sh", *binds]
        environment = os.environ | {"LIMIT_SECONDS": LIMIT}
        self._opened("", Terminal(command, place, environment, names, place / "step", Path("/mnt/page/step")))


def _clone(place: Path) -> None:
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))


def _free_port() -> str:
    """None of those that the system gives to whoever asks for any: it would be somebody else's until a server listens there."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as asked, suppress(OSError):
            asked.bind(("127.0.0.1", port))
            return str(port)


def filled(page: str, reader: Reader) -> str:
    """The page with what its commands print."""
    parts, position = [], 0
    for block in blocks(page):
        printed = reader.does(block)
        if block.language == "console":
            parts += [page[position : block.start], *("\n".join([f"$ {command}", *lines, ""]) for command, lines in printed)]
            position = block.end
    return "".join([*parts, page[position:]])
