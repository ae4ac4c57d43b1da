"""Content by its id: what the id costs beside SHA-256 alone, and an upload beside a write of the same file, new and known."""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from zstor_local.bench import load
from zstor_local.bench.place import Place, in_turns, make_random
from zstor_local.bench.results import Budget, Row
from zstor_local.formats import unixfs
from zstor_local.limits import MIB

_HASHED_BYTES: Final = 128 * MIB
_ID: Final = Budget(least=0.8)


def measure(place: Place) -> Iterator[Sequence[Row]]:
    """Yields the rows at the end."""
    rates: dict[str, list[float]] = defaultdict(list)
    size, hashed = place.plan.file_bytes, min(_HASHED_BYTES, place.plan.file_bytes)
    for number in range(place.plan.rounds):
        place.say(f"content, round {number + 1}")
        for what in in_turns(["id", "sha256"], number):
            rates[what].append(hashed / place.floor(hash_bytes, hashed, alone=what == "sha256") / 1e6)
        _uploads(place, rates, number)
        yield []
    work = f"{size // MIB} MiB, random, path"
    yield [
        Row(f"content id of {hashed // MIB} MiB", "MB/s", rates["id"], rates["sha256"], "sha256", "ratio", _ID),
        Row(f"cas.upload {work}", "MB/s", rates["new"], rates["write"], "object.write_file", "ratio"),
        Row(f"cas.upload {work}, known", "MB/s", rates["known"], rates["write"], "object.write_file", "ratio"),
    ]


def hash_bytes(size: int, *, alone: bool) -> float:
    """The seconds for the content id of random bytes, or for their SHA-256 alone."""
    data = os.urandom(MIB) * (size // MIB)
    began = time.perf_counter()
    if alone:
        hashlib.sha256(data).digest()
    else:
        unixfs.content_id(data)
    return time.perf_counter() - began


def _uploads(place: Place, rates: dict[str, list[float]], number: int) -> None:
    """A new file each round: what was uploaded before is known."""
    file, socket = place.home / "content", place.daemon.socket
    make_random(file, place.plan.file_bytes)
    for what in in_turns(["new", "write"], number):
        place.settle()
        if what == "write":
            done = place.load(load.write_file, socket, "content", file, by_path=True)
        else:
            done = place.load(load.call, socket, "cas.upload", {"path": str(file)})
        rates[what].append(place.plan.file_bytes / done.seconds / 1e6)
    place.settle()
    known = place.load(load.call, socket, "cas.upload", {"path": str(file)})
    rates["known"].append(place.plan.file_bytes / known.seconds / 1e6)
    place.load(load.call, socket, "cas.unpin", {"id": known.result["id"], "forget": True})
    place.load(load.call, socket, "object.delete", {"key": "content"})
    file.unlink()
