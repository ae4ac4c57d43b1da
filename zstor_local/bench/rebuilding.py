"""A rebuild of the metastore from the shards' logs: records a second of CPU time, and its memory."""

from __future__ import annotations

import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from zstor_local.bench.place import Place
from zstor_local.bench.results import Budget, Row
from zstor_local.bench.servers import peak_bytes
from zstor_local.config import load_config
from zstor_local.limits import MIB
from zstor_local.store.engines import INDEX, METASTORE

_RECORDS: Final = Budget(least=100_000)
_MEMORY: Final = Budget(most=200)
_INDEX: Final = {True: "", False: ", without the index of the logs"}


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """One rebuild: records that the logs held, seconds of CPU time in all threads, and the most memory that its process ever took."""

    records: int
    objects: int
    seconds: float
    peak_bytes: int


def measure(place: Place) -> Iterator[Sequence[Row]]:
    """What the daemon's store has come to, with the index of the logs and without. Yields once a round; the last rows are whole."""
    rates: dict[bool, list[float]] = defaultdict(list)
    peaks: list[float] = []
    records = objects = 0
    for number in range(place.plan.rounds):
        place.say(f"rebuild, round {number + 1}")
        place.daemon.end(signal.SIGTERM)
        peaks.append(0.0)
        for index in _INDEX:
            _lose(place.daemon.store, index=not index)
            with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                done = fresh.submit(rebuilt, place.daemon.environment).result()
            records, objects = done.records, done.objects
            rates[index].append(done.records / done.seconds)
            peaks[-1] = max(peaks[-1], done.peak_bytes / MIB)
        place.daemon.start()
        yield []
    work, note = f"rebuild of {objects:,} objects", f"a second of CPU time, of {records:,} in the logs"
    yield [
        *[
            Row(work + without, "records", rates[index], note=note, budget=_RECORDS if index else Budget())
            for index, without in _INDEX.items()
        ],
        Row(f"peak memory of a {work}", "MiB", peaks, budget=_MEMORY),
    ]


def rebuilt(environment: Mapping[str, str]) -> Rebuilt:
    """Rebuild the default store of an environment. In a process of its own: its peak of memory counts from the process's start."""
    from zstor_local.daemon import rebuild_store

    config = load_config(text=None, file="", environment=environment)
    began = time.process_time()
    report = rebuild_store(config, accept_loss=False, progress=lambda what, count: None)
    seconds = time.process_time() - began
    return Rebuilt(report.records, report.objects, seconds, peak_bytes("self"))


def _lose(store: Path, *, index: bool) -> None:
    """Take the metastore away, and what earlier rebuilds put aside; the index of the logs too."""
    for path in store.iterdir():
        if path.name.startswith(METASTORE) or (index and path.name.startswith(INDEX)):
            path.unlink()
