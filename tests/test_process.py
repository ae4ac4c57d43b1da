"""What a serving process does about its own memory."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from zstor_local import process
from zstor_local.limits import MIB

FRAGMENTED = f"""
from zstor_local.process import give_back, keep_buffers, resident_bytes
keep_buffers()
pieces = [bytearray({MIB} // 4) for _ in range(800)]
for piece in pieces:
    piece[:] = b"x" * len(piece)
full = resident_bytes()
del pieces[:-1]  # the last one keeps the heap from shrinking
kept = resident_bytes()
give_back()
print(full, kept, resident_bytes())
"""


async def test_memory_is_given_back_whenever_some_more_has_become_resident(autojump_clock: trio.testing.MockClock) -> None:
    resident, given_back = 100 * MIB, []

    def give_back() -> None:
        given_back.append(resident // MIB)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.give_back_memory, lambda: resident, lambda: 0.0, give_back)
        for resident in (100 * MIB, 130 * MIB, 133 * MIB, 134 * MIB, 50 * MIB, 81 * MIB, 83 * MIB):  # noqa: B007 (give_back reads it)
            await trio.sleep(11)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert given_back == [133, 83]


async def test_memory_is_given_back_once_after_a_busy_time(autojump_clock: trio.testing.MockClock) -> None:
    """What was in use when it was last given back is free by then, and nothing grows any more."""
    worked, given_back = 0.0, []

    def give_back() -> None:
        given_back.append(worked)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.give_back_memory, lambda: 100 * MIB, lambda: worked, give_back)
        await trio.testing.wait_all_tasks_blocked()
        for worked in (5.0, 10.0, 10.5, 11.0, 15.0, 15.1, 15.2):  # noqa: B007 (give_back reads it)
            await trio.sleep(10)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert given_back == [10.5, 15.1]


async def test_memory_is_given_back_later_where_nobody_can_tell_of_it_now(autojump_clock: trio.testing.MockClock) -> None:
    """As where clients have taken all descriptors that the process may have: that is no reason to end it."""
    known, given_back = [100 * MIB], list[int]()

    def resident() -> int:
        if not known:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return known[0]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.give_back_memory, resident, lambda: 0.0, lambda: given_back.append(resident() // MIB))
        for size in (None, None, 200):
            await trio.sleep(11)
            known[:] = [] if size is None else [size * MIB]
        await trio.sleep(11)
        nursery.cancel_scope.cancel()
    assert given_back == [200]


def test_what_lies_free_below_a_piece_in_use_is_given_back() -> None:
    ran = subprocess.run([sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True)
    full, kept, left = (int(number) // MIB for number in ran.stdout.split())
    assert kept > 150, "nothing to give back"
    assert left < full - 150


OLD = """
import gc
from zstor_local.process import collect_seldom
collect_seldom()
looks = []
gc.callbacks.append(lambda phase, info: looks.append(info["generation"]) if phase == "start" else None)
living = [[] for _ in range(1_000_000)]
print(looks.count(0), looks.count(2))
"""


def test_what_lives_for_long_is_seldom_looked_through() -> None:
    ran = subprocess.run([sys.executable, "-c", OLD], capture_output=True, text=True, check=True)
    young, old = map(int, ran.stdout.split())
    assert young > 1_000
    assert old == 0


DUMPABLE = """
import ctypes, sys
from zstor_local.cli.root import run
before = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE of prctl(2)
run(sys.argv[1:])
print(before, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
SECRET = ["key backup --yes", "key restore", "init", "shard trust", "rebuild", "shard serve --listen unix:s --data d --trust none"]


@pytest.mark.parametrize("command", SECRET)
def test_there_are_no_core_dumps_of_what_has_keys_in_memory(command: str, tmp_path: Path) -> None:
    """Whatever comes of it; most of these fail here, for want of what they need."""
    variables = {
        name: str(tmp_path / name) for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME")
    }
    arguments = [sys.executable, "-c", DUMPABLE, *command.split()]
    ran = subprocess.run(arguments, input="", cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "1 0", ran.stderr


STUCK = """
import logging, threading
from zstor_local.process import end_after, log_to_stderr
log_to_stderr()
end_after(0)
threading.Event().wait()
"""


def test_what_never_ends_does_not_keep_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "does not answer" in done.stderr


WITHOUT_THREADS = """
import threading
from zstor_local.process import end_after
def start(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
end_after(0)
threading.Event().wait()
"""


def test_nor_where_there_is_no_thread_to_end_it() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_THREADS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGALRM, "")
