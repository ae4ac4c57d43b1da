"""Where and with what the benchmark works: its plan, its directory, its processes, its test files."""

from __future__ import annotations

import os
import signal
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import blake3

from zstor_local.bench import load
from zstor_local.bench.servers import Daemon
from zstor_local.config import load_config
from zstor_local.limits import MIB
from zstor_local.signals import termination_raises
from zstor_local.system import RealFiles

P = ParamSpec("P")
T = TypeVar("T")

_LOOK_SECONDS: Final = 0.05

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. `objects`: fill the store so far and measure small objects again; `entries`: a log; 0 leaves it out."""

    rounds: int = 3
    file_bytes: int = 256 * MIB
    pipe_bytes: int = 1024 * MIB
    writes: int = 2_000  # and reads, of 4 KiB objects in a round, by each number of clients
    calls: int = 5_000
    objects: int = 0
    entries: int = 0


QUICK: Final = Plan(file_bytes=64 * MIB, pipe_bytes=128 * MIB, writes=300, calls=1_000)


@dataclass(frozen=True, slots=True)
class Place:
    """What every case has at hand."""

    plan: Plan
    home: Path  # on the disk that is measured
    run: Path  # for sockets, whose paths are short
    daemon: Daemon
    load: Process
    floor: Process
    say: Say

    @property
    def threads(self) -> int:
        """As many as the daemon's workers."""
        return max(2, cores())

    def settle(self) -> None:
        """Let earlier work end, freeing and flushing included, so that nobody pays for another's bytes."""
        while self.load(load.call, self.daemon.socket, "daemon.status", {}).result["queues"]["collect"]:
            time.sleep(_LOOK_SECONDS)
        fd = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY)
        try:
            RealFiles().syncfs(fd)
        finally:
            os.close(fd)


class Process:
    """One process of our own program that runs functions, one after the other."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._executor.submit(work, *args, **kwargs).result()


@contextmanager
def prepared(plan: Plan, beside: Path, say: Say) -> Iterator[Place]:
    """A temporary directory in `beside` with a daemon that listens on a new store; all of it is gone afterwards."""
    with termination_raises(), ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zstor-bench-", dir=beside)))
        run = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zstor-")))
        daemon = stack.enter_context(Daemon(home, run))
        driver, floor = (Process(stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))) for _ in range(2))
        say("starting a daemon on a new store")
        daemon.start()
        yield Place(plan, home, run, daemon, driver, floor, say)
        daemon.end(signal.SIGTERM)


def in_turns(all_of_them: Sequence[T], number: int) -> list[T]:
    """Each of them, another one first in every round: being first has a price (memory that nobody touched yet)."""
    first = number % len(all_of_them)
    return [*all_of_them[first:], *all_of_them[:first]]


def default_directory() -> Path:
    """Beside the default store: the nearest directory above it that is there."""
    environment = {"HOME": str(Path.home()), **os.environ}
    store = Path(load_config(text=None, file="", environment=environment).store)
    return next(parent for parent in store.parents if parent.is_dir())


def file_system(directory: Path) -> str:
    """The kind of file system that a directory lies on."""
    files = RealFiles()
    fd = files.open(str(directory), os.O_RDONLY | os.O_DIRECTORY)
    try:
        return files.file_system(fd).kind
    finally:
        files.close(fd)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def make_random(path: Path, size: int) -> None:
    """A file that no compression makes smaller."""
    with path.open("xb") as file:
        for start in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - start)))


def make_text(path: Path, size: int) -> None:
    """A file of text: this Python's own sources, again and again."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    with path.open("xb") as file:
        while file.tell() < size:
            for source in sources:
                if file.tell() >= size:
                    break
                file.write(source.read_bytes())
        file.truncate(size)


def digest(path: Path) -> str:
    """A file's digest as the daemon writes it."""
    return "blake3:" + blake3.blake3().update_mmap(path).hexdigest()
