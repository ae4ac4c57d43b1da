"""A daemon process with a home of its own, and what a test may ask of it from outside: its files, descriptors, memory, words."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.daemon.client import SAFETY_NET_SECONDS, Client
from zstor_local.shards.share_files import SHARES, TEMPORARY

LISTENING = "listening on "

_KNOWN_FILES = re.compile(
    r"lock|reserve|metastore\.sqlite(-wal|-shm)?|(index|logs)\.sqlite(-wal|-shm)?|shards/\d+/(marker|log/\d{10}\.log|shares/[0-9a-f]{2}/[0-9a-f]{32}\.\d+)"
)
_SHARE = re.compile(r"shards/\d+/shares/../([0-9a-f]{32})\.\d+")


class Ended(Exception):
    """The daemon ended instead of listening."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"exit status {status}:\n{said}")
        self.status = status
        self.said = said


class Daemon:
    """`zstor daemon` in a home: start it, as often as wanted, and look at it."""

    def __init__(self, home: Path, *, environment: dict[str, str] | None = None) -> None:
        self.home = home
        self.environment = self.own_environment(home) if environment is None else environment
        self.wrapper: tuple[str, ...] = ()  # a command that becomes the daemon
        self.socket = str(home / "run/zstor/zstor.sock")
        self.store = home / "data/zstor"
        self.key_file = home / "config/zstor/master.key"
        self.config_file = home / "config/zstor/config.toml"
        self.said = ""
        self.at_rest: Counter[str] | None = None  # its descriptors with one client that does nothing
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._heard = threading.Condition()
        home.mkdir(exist_ok=True)
        (home / "run").mkdir(mode=0o700, exist_ok=True)

    @staticmethod
    def own_environment(home: Path) -> dict[str, str]:
        """Nothing of the tests' own environment but how to find the program."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ZSTOR_"))}
        places = {"CONFIG_HOME": "config", "DATA_HOME": "data", "STATE_HOME": "state", "RUNTIME_DIR": "run"}
        return inherited | {"HOME": str(home)} | {f"XDG_{name}": str(home / place) for name, place in places.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    # --- Life ---

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        self.kill()
        self.said, self.at_rest = "", None
        self._process = subprocess.Popen(
            [*self.wrapper, sys.executable, "-m", "zstor_local", "daemon"],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_it_listens(self) -> None:
        """Read what it says up to the line that means it serves; Ended if it ends instead."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if LISTENING in line:
                self._reader = threading.Thread(target=self._follow)
                self._reader.start()
                return
        raise Ended(self.wait(), self.said)

    def start(self) -> Self:
        self.launch()
        self.wait_until_it_listens()
        return self

    def refuses_to_start(self) -> Ended:
        """What it said, and its status, when it did not start."""
        try:
            self.start()
        except Ended as ended:
            return ended
        raise AssertionError(f"the daemon started:\n{self.said}")

    def _follow(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._heard:
                self.said += line
                self._heard.notify_all()

    def wait_until_it_says(self, text: str) -> None:
        with self._heard:
            assert self._heard.wait_for(lambda: text in self.said, SAFETY_NET_SECONDS), self.said

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, when it has ended and all its words are read."""
        status = self.process.wait(SAFETY_NET_SECONDS)
        if self._reader is not None:
            self._reader.join()
            self._reader = None
        if self.process.stderr is not None:
            self.said += self.process.stderr.read()
            self.process.stderr.close()
        return status

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            if self._process.stderr is not None and not self._process.stderr.closed:
                self.wait()
            self._process = None

    def restart(self) -> None:
        """As after a power cut that lost nothing."""
        self.kill()
        self.start()

    # --- From outside ---

    def client(self) -> Client:
        return Client(self.socket)

    def descriptors(self) -> Counter[str]:
        """What it holds open outside its store, and of its store what is open only while somebody writes or reads.

        Only root can see it, for the daemon is not dumpable; else nothing is compared.
        """
        if os.geteuid() != 0:
            return Counter()
        found: Counter[str] = Counter()
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                target = os.readlink(f"/proc/{self.pid}/fd/{name}")
            except FileNotFoundError:
                continue
            _, _, in_store = target.partition(f"{self.store}/")
            if not in_store or f"/{SHARES}/" in in_store or f"/{TEMPORARY}/" in in_store:
                found[re.sub(r"^(socket|pipe):.*", r"\1", target)] += 1
        return found

    def strange_files(self) -> list[str]:
        """Files of the home that nobody should find there: temporary ones, and ones no part of the store knows."""
        in_store = [path.relative_to(self.store).as_posix() for path in self.store.rglob("*") if not path.is_dir()]
        parts = [str(path) for path in self.home.rglob("*.part")]
        return sorted([name for name in in_store if not _KNOWN_FILES.fullmatch(name)] + parts)

    def share_versions(self) -> set[str]:
        """The versions that have share files."""
        names = (path.relative_to(self.store).as_posix() for path in self.store.rglob("shares/*/*"))
        return {match[1] for name in names if (match := _SHARE.fullmatch(name))}

    def peak_memory(self) -> int:
        """Bytes of memory that it ever held (VmHWM)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) * 1024
