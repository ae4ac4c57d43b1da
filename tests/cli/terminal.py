"""A command on a terminal of its own, as a user sees it: what it draws, Ctrl-C, what it leaves of the terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

ZSTOR: Final = (sys.executable, "-m", "zstor_local")
_SECONDS: Final = 180.0  # how long a machine with other work may take for anything
_ESCAPE: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_CTRL_C: Final = b"\x03"


class Terminal:
    """Runs one command; use it as a context manager. Its standard streams are the terminal, but for those that are given."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        home: Path,
        environment: Mapping[str, str],
        columns: int = 120,
        stdin: int | None = None,
        stdout: int | None = None,
    ) -> None:
        size = ("COLUMNS", "LINES")  # of another terminal, that the tests were started in
        environment = {name: value for name, value in environment.items() if name not in size}
        self._controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
        self._settings = termios.tcgetattr(terminal)
        self._terminal = terminal
        self._drawn = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN, *command],
            cwd=home,
            env={"TERM": "xterm-256color", **environment},
            stdin=terminal if stdin is None else stdin,
            stdout=terminal if stdout is None else stdout,
            stderr=terminal,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._terminal)
        os.close(self._controller)

    @property
    def drawn(self) -> str:
        """All it wrote so far, with its escape sequences."""
        return self._drawn.decode(errors="replace")

    @property
    def text(self) -> str:
        """All it wrote so far, without them."""
        return _ESCAPE.sub("", self.drawn).replace("\r\n", "\n").replace("\x07", "")

    def type(self, keys: str) -> None:
        os.write(self._controller, keys.encode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.write(self._controller, _CTRL_C)

    def read_until(self, wanted: str, *, again: Callable[[], None] | None = None) -> str:
        """Wait until the text holds something; `again` is done every second meanwhile."""
        self._follow(lambda: wanted in self.text, what=wanted, again=again)
        return self.text

    def wait_until_it_waits(self) -> None:
        """For what is typed, after a question: a Ctrl-C just before that wakes nobody."""
        self._follow(lambda: Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2][0] == "S", what="its waiting")

    def end(self) -> int:
        """Wait for its end; the exit status. All it wrote is in `text` then."""
        self._follow(lambda: self.process.poll() is not None, what="its end")
        while self._read(0):
            pass
        return self.process.returncode

    def is_as_before(self) -> bool:
        """Whether the terminal is set as it was, its cursor shown, its screen the normal one and nothing in color."""
        shown = self.drawn.rfind("\x1b[?25h") >= self.drawn.rfind("\x1b[?25l")
        normal = self.drawn.rfind("\x1b[?1049l") >= self.drawn.rfind("\x1b[?1049h")
        colors = re.findall(r"\x1b\[[0-9;]*m", self.drawn)
        return termios.tcgetattr(self._terminal) == self._settings and shown and normal and (not colors or colors[-1] == "\x1b[0m")

    def _follow(self, done: Callable[[], bool], *, what: str, again: Callable[[], None] | None = None) -> None:
        latest = time.monotonic() + _SECONDS
        each = time.monotonic() + 1
        while not done():
            if again is not None and time.monotonic() > each:
                each = time.monotonic() + 1
                again()
            assert time.monotonic() < latest, f"waited in vain for {what!r}; there was: {self.text}"
            if not self._read(0.05) and self.process.poll() is not None:
                while self._read(0):
                    pass
                assert done(), f"it ended with {self.process.returncode} before {what!r}; there was: {self.text}"

    def _read(self, seconds: float) -> bool:
        if not select.select([self._controller], [], [], seconds)[0]:
            return False
        self._drawn += os.read(self._controller, 65_536)
        return True


def environments_with(place: Path) -> list[str]:
    """Those of all processes that name a place: who was started there and still runs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found.append((process / "environ").read_bytes().decode(errors="replace"))
    return [each for each in found if str(place) in each]


# The terminal becomes the controlling one of the new session, so that Ctrl-C reaches whoever runs there.
_BEGIN: Final = "import fcntl, os, sys, termios; fcntl.ioctl(2, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
