"""What the daemon takes: memory for a file and for a long pipe, room on the disk, time to start."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from zstor_local.bench import load
from zstor_local.bench.calls import SMALL_BYTES
from zstor_local.bench.load import Burst
from zstor_local.bench.place import Place
from zstor_local.bench.results import Budget, Row
from zstor_local.limits import MIB

_MEMORY: Final = Budget(most=200)
_DISK: Final = Budget(most=2.2)
_START: Final = Budget(most=0.5)
_CLIENTS: Final = 16


def peak_after_file(place: Place) -> Iterator[Sequence[Row]]:
    """The peak so far: call it right after the large files."""
    size = place.plan.file_bytes // MIB
    yield [Row(f"peak memory after files of {size} MiB", "MiB", [place.daemon.peak_bytes() / MIB], budget=_MEMORY)]


def peak_after_pipe(place: Place) -> Iterator[Sequence[Row]]:
    """A long pipe in and out; beside its peak stands that of before."""
    size, socket = place.plan.pipe_bytes, place.daemon.socket
    before = place.daemon.peak_bytes() / MIB
    place.say(f"a pipe of {size // MIB:,} MiB, in")
    place.load(load.pipe_in, socket, "pipe", size)
    yield []
    place.say(f"a pipe of {size // MIB:,} MiB, out")
    place.load(load.pipe_out, socket, "pipe")
    place.load(load.call, socket, "object.delete", {"key": "pipe"})
    peak = place.daemon.peak_bytes() / MIB
    yield [Row(f"peak memory after a pipe of {size // MIB:,} MiB, in and out", "MiB", [peak], [before], "before it", budget=_MEMORY)]


def disk(place: Place) -> Iterator[Sequence[Row]]:
    """What objects of 4 KiB add to the store's files, each of them, once the daemon has put its house in order."""
    place.say("room on the disk")
    place.settle()
    place.daemon.end(signal.SIGTERM)
    before = _written(place.daemon.store)
    place.daemon.start()
    keys = [f"disk.{each}" for each in range(2 * place.plan.writes)]
    place.load(load.burst, Burst(place.daemon.socket, "object.write", keys, _CLIENTS, SMALL_BYTES))
    place.daemon.end(signal.SIGTERM)
    added = _written(place.daemon.store) - before
    place.daemon.start()
    yield [
        Row(
            work="disk for an object of 4 KiB",
            unit="×",
            here=[added / len(keys) / SMALL_BYTES],
            note="without empty allocated room",
            budget=_DISK,
        )
    ]


def start(place: Place) -> Iterator[Sequence[Row]]:
    """From the start of the process to the first answer, after SIGTERM and after SIGKILL in the midst of work."""
    objects = place.load(load.call, place.daemon.socket, "daemon.status", {}).result["objects"]
    seconds: dict[signal.Signals, list[float]] = {signal.SIGTERM: [], signal.SIGKILL: []}
    for number in range(place.plan.rounds):
        place.say(f"start, round {number + 1}")
        for sign, measured in seconds.items():
            keys = [f"start.{each}" for each in range(place.plan.writes)]
            place.load(load.burst, Burst(place.daemon.socket, "object.write", keys, _CLIENTS, SMALL_BYTES))
            place.daemon.end(sign)
            measured.append(place.daemon.start())
        yield []
    words = {signal.SIGTERM: "a clean stop", signal.SIGKILL: "a kill"}
    yield [
        Row(f"ready after {words[sign]}, {objects:,} objects", "s", measured, note="for 1,000,000", budget=_START)
        for sign, measured in seconds.items()
    ]


def _written(directory: Path) -> int:
    """Bytes in all files beneath, less their holes and what was allocated and never written (SEEK_DATA of lseek(2))."""
    total = 0
    for path in directory.rglob("*"):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not allocated yet counts as a hole on some file systems
            total += _data(file.fileno())
    return total


def _data(fd: int) -> int:
    total, end, size = 0, 0, os.fstat(fd).st_size
    while end < size:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole follows
            break
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        total += end - begin
    return total
