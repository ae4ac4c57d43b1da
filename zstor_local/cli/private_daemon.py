"""A daemon with a home of its own: a real process, as the demo and the tests need it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_READY: Final = "listening on "


class DaemonEnded(Exception):
    """The daemon ended instead of listening: its exit code, and all it said."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"the daemon ended with exit code {code}:\n{said}")
        self.code = code
        self.said = said


class PrivateDaemon:
    """A daemon, and the command, in an environment where HOME and the XDG directories lie in one directory.

    As a context manager it ends the daemon, if it runs, at the end of the block.
    """

    def __init__(self, home: Path) -> None:
        self.socket = home / "run" / "zstor" / "zstor.sock"
        self.log = home / "daemon.log"
        self.home = home
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ZSTOR_"))}
        directories = {"CONFIG_HOME": "config", "DATA_HOME": "data", "STATE_HOME": "state", "RUNTIME_DIR": "run"}
        self.environment = inherited | {"HOME": str(home)} | {f"XDG_{name}": str(home / place) for name, place in directories.items()}
        (home / "run").mkdir(mode=0o700)
        self._process: subprocess.Popen[str] | None = None
        self._follower: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    @property
    def pid(self) -> int | None:
        """Its process id; None before the first start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the daemon and return when it listens."""
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "zstor_local", "daemon"],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        ready = threading.Event()
        self._follower = threading.Thread(target=self._follow, args=(process, ready), daemon=True)
        self._follower.start()
        ready.wait()
        if process.poll() is not None:
            raise DaemonEnded(process.returncode, self.log.read_text())

    def _follow(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        """Keep what the daemon says in the log; it is ready when it says so, or when it says no more."""
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        with process.stdout, self.log.open("a") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if _READY in line:
                    ready.set()
        process.wait()
        ready.set()

    def stop(self) -> int:
        """Ask it to end, as a service manager does. Returns its exit code."""
        if self._process is None:
            return 0
        self._process.terminate()
        return self._ended()

    def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._ended()

    def _ended(self) -> int:
        """Wait until it has ended and all that it said is in the log. Returns its exit code."""
        assert self._process is not None  # noqa: S101 - who calls has seen it
        assert self._follower is not None  # noqa: S101 - as above
        self._follower.join()
        return self._process.wait()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`zstor` with these arguments in the same home, run to its end; stdout and stderr come together in `stdout`."""
        return subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", "zstor_local", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.home,
            env=self.environment,
            check=False,
        )
