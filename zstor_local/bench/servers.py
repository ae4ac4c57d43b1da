"""The processes under load: a daemon with a store of its own, and the floors' servers. Each tells its CPU time and its peak memory."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from zstor_local.bench import load
from zstor_local.bench.load import BenchFailed
from zstor_local.limits import KIB

_START_SECONDS: Final = 120.0  # a million objects, a slow disk
_LOOK_SECONDS: Final = 0.002
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def compiled(environment: Mapping[str, str], home: Path) -> Mapping[str, str]:
    """With Python's modules kept compiled in `home` from the first start on, as pip installs them, whatever the environment says."""
    wanted = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return wanted | {"PYTHONPYCACHEPREFIX": str(home / "compiled")}


def peak_bytes(process: str) -> int:
    """The most memory that a process, by its number or `self`, ever held (VmHWM of proc(5))."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * KIB
    raise BenchFailed("the kernel does not tell a process's peak memory")


class Server:
    """One process that listens on a Unix socket. As a context manager it is killed at the end, if it still runs."""

    def __init__(self, socket: Path, module: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.socket = socket
        self._command = [sys.executable, "-m", *module]
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end(signal.SIGKILL)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise BenchFailed("the server is not running")
        return self._process.pid

    def start(self) -> float:
        """Start it. Returns the seconds until it took a connection."""
        began = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = process = subprocess.Popen(  # noqa: S603 (our own program)
                self._command, cwd=self._log.parent, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        while not self._listens():
            if process.poll() is not None or time.perf_counter() - began > _START_SECONDS:
                raise BenchFailed(f"{' '.join(self._command)} does not listen: {self._log.read_text()[-2000:]}")
            time.sleep(_LOOK_SECONDS)
        return time.perf_counter() - began

    def _listens(self) -> bool:
        try:
            load.connect(self.socket).close()
        except OSError:
            return False
        return True

    def end(self, sign: signal.Signals) -> None:
        """End it with a signal and wait until it has ended."""
        if self._process is not None:
            self._process.send_signal(sign)
            self._process.wait()
            self._process = None

    def cpu_seconds(self) -> float:
        """CPU time of all its threads so far, to the nanosecond (clock_getcpuclockid(3))."""
        clock = ctypes.c_int()
        if code := _LIBC.clock_getcpuclockid(self.pid, ctypes.byref(clock)):
            raise OSError(code, os.strerror(code))
        return time.clock_gettime(clock.value)

    def peak_bytes(self) -> int:
        """The most memory it ever held."""
        return peak_bytes(str(self.pid))


class Daemon(Server):
    """`zstor daemon` with HOME and the XDG directories in one directory, its socket under `run`."""

    def __init__(self, home: Path, run: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ZSTOR_"))}
        places = {"CONFIG_HOME": home / "config", "DATA_HOME": home / "data", "STATE_HOME": home / "state", "RUNTIME_DIR": run}
        self.environment = inherited | {"HOME": str(home)} | {f"XDG_{name}": str(place) for name, place in places.items()}
        module, log = ["zstor_local", "daemon"], home / "daemon.log"
        super().__init__(run / "zstor" / "zstor.sock", module, log, compiled(self.environment, home))
        self.store = home / "data" / "zstor"

    def start(self) -> float:
        """Start it. Returns the seconds until it answered a call."""
        began = time.perf_counter()
        super().start()
        load.call(self.socket, "rpc.ping", {})
        return time.perf_counter() - began


def floor_server(kind: str, home: Path, run: Path) -> Server:
    """A floor's server, `echo` or `small`, with a directory of its own in `home`."""
    directory, socket = home / kind, run / f"{kind}.sock"
    directory.mkdir()
    module = ["zstor_local.bench.floor_servers", kind, str(socket), str(directory)]
    return Server(socket, module, directory / "log", os.environ)
