"""The real SQLite under faults: killed, torn, short and failing at each of its calls that change a file. What was answered holds."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lacking import lacking
from tests.metastore.faulty_program import COMMITS, SPACE, envelope
from zstor_local.metastore.sqlite import SqliteMetastore
from zstor_local.store.engines import METASTORE, RESERVE

COUNT, KILL, TORN, SHORT, FAIL_ONCE, FAIL_ALL, NO_ROOM = range(7)


class Faulty:
    """The program, waiting for what is to go wrong next."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            lacking("a C compiler")
        shim = directory / "shim.so"
        source = Path(__file__).with_name("shim.c")
        subprocess.run([str(compiler), "-O1", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        self._directory = directory
        self._tries = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.metastore.faulty_program"],
            env={**os.environ, "LD_PRELOAD": str(shim)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, number: int, mode: int, code: int = 0) -> tuple[Path, int, list[str]]:
        """One try: where the store is, the exit status, and what the program was told."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._tries += 1
        store = self._directory / f"store{self._tries}"
        store.mkdir()
        self.process.stdin.write(f"{number} {mode} {code} {store}\n")
        self.process.stdin.flush()
        status, _, told = self.process.stdout.readline().rstrip("\n").partition(": ")
        return store, int(status), told.split(", ") if told else []


@pytest.fixture(scope="module")
def faulty() -> Iterator[Faulty]:
    """In memory where there is such a place: no power is cut here, and so a sync has nothing to wait for."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 (a directory of our own is made in it)
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        faulty = Faulty(Path(directory))
        with faulty.process:
            yield faulty
            faulty.process.kill()


def points(faulty: Faulty) -> int:
    store, status, told = faulty.run(0, COUNT)
    assert (status, told[:-1]) == (0, [f"a {number}" for number in range(1, COMMITS + 1)])
    check(store, told)
    return int(told[-1].split()[1])


def check(store: Path, told: list[str]) -> None:
    """What lies there holds every promise, and is a sound database."""
    promised = {int(number): word for word, number in (each.split() for each in told if each[:2] in ("a ", "r ", "u "))}
    path = store / METASTORE
    if not path.exists():
        assert "a" not in promised.values()
        shutil.rmtree(store)
        return
    metastore = SqliteMetastore(str(path))
    present = {number for number in range(1, COMMITS + 1) if metastore.get(SPACE, f"own {number}") is not None}
    for number in present:
        assert metastore.get(SPACE, f"own {number}") == envelope(number)
        assert promised.get(number) != "r", told
    assert {number for number, word in promised.items() if word == "a"} <= present, told
    last = max(present)
    assert metastore.get(SPACE, "the same") == envelope(last)  # whole transactions only
    assert metastore.state().sequence == last
    metastore.close()
    with sqlite3.connect(path) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
    database.close()
    shutil.rmtree(store)


@pytest.mark.parametrize(("mode", "code"), [(KILL, 0), (TORN, 0)])
def test_killed_at_each_call_or_in_the_middle_of_it(faulty: Faulty, mode: int, code: int) -> None:
    total, killed = points(faulty), 0
    for number in range(1, total + 1):
        store, status, told = faulty.run(number, mode, code)
        killed += status == -signal.SIGKILL
        check(store, told)
    assert killed == total if mode == KILL else killed > total / 4


@pytest.mark.parametrize("mode", [FAIL_ONCE, FAIL_ALL])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_failing_at_each_call_alone_or_from_there_on(faulty: Faulty, mode: int, code: int) -> None:
    total, noticed = points(faulty), 0
    for number in range(1, total + 1):
        store, status, told = faulty.run(number, mode, code)
        assert status == 0
        noticed += any(not each.startswith(("a ", "points")) for each in told)
        check(store, told)
    assert noticed > total / 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_want_of_room_ends_nothing(faulty: Faulty, code: int) -> None:
    """Wherever the room ends, be it by a quota: what is not acknowledged is refused, and goes on once the reserve was given up."""
    total, given_up = points(faulty), 0
    for number in range(1, total + 1):
        store, status, told = faulty.run(number, NO_ROOM, code)
        assert status == 0
        made = "a 1" in told and not any(each.startswith("error") for each in told)  # it opened, or there was no room from the start
        if made:
            given_up += not (store / RESERVE).exists()
            assert told[:-1] == [f"a {number}" for number in range(1, COMMITS + 1)]
        check(store, told)
    assert given_up > total / 8


def test_short_writes_are_gone_on_with(faulty: Faulty) -> None:
    for number in range(1, points(faulty) + 1):
        store, status, told = faulty.run(number, SHORT)
        assert status == 0
        check(store, told)
