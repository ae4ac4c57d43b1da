"""Remote logs: what an append costs, and a read of the newest entries, as the log grows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from zstor_local.bench import load
from zstor_local.bench.calls import CLIENTS
from zstor_local.bench.load import Burst
from zstor_local.bench.place import Place
from zstor_local.bench.results import Budget, Row

NEWEST: Final = 10
_FEW: Final = 1_000
_FLAT: Final = Budget(most=1.3)
_FILL_BURST: Final = 10_000


def grown(place: Place) -> Iterator[Sequence[Row]]:
    """A log at 1,000 entries, at ten times as many and so on; not unless the plan asks for it."""
    wanted = place.plan.entries
    costs: dict[tuple[str, int], list[float]] = defaultdict(list)
    sizes = _sizes(wanted)
    there = 0
    for size in sizes:
        there = _fill(place, there, size)
        for number in range(place.plan.rounds):
            place.say(f"a log of {size:,} entries, round {number + 1}")
            contents = [f"{size}.{number}.{each}" for each in range(place.plan.writes)]
            costs["append", size].append(_microseconds(place, Burst(place.daemon.socket, "log.append", contents, parameter="value")))
            there += len(contents)
            reads = Burst(place.daemon.socket, "log.read", [""] * place.plan.writes, extra={"newest": NEWEST, "values": True})
            costs["read", size].append(_microseconds(place, reads))
    yield [
        Row(
            work=f"{text} a log of {size:,}",
            unit="µs",
            here=costs[work, size],
            beside=costs[work, sizes[0]] if sizes else [],
            note=f"of {sizes[0]:,}" if sizes else "--entries N fills a log first",
            figure_is="ratio",
            budget=_FLAT,
        )
        for work, text in (("append", "append to"), ("read", f"read the newest {NEWEST} of"))
        for size in sizes[1:] or [100_000]
    ]


def _sizes(wanted: int) -> list[int]:
    """1,000, 10,000, … and what was wanted; of few entries a tenth first."""
    if not wanted:
        return []
    sizes = []
    size = min(_FEW, max(1, wanted // 10))
    while size < wanted:
        sizes.append(size)
        size *= 10
    return [*sizes, wanted]


def _fill(place: Place, there: int, size: int) -> int:
    """Have that many entries in the log. Returns how many there are."""
    for first in range(there, size, _FILL_BURST):
        place.say(f"filling a log: {first:,} of {size:,}")
        contents = [f"fill.{each}" for each in range(first, min(first + _FILL_BURST, size))]
        place.load(load.burst, Burst(place.daemon.socket, "log.append", contents, max(CLIENTS), parameter="value"))
    return max(there, size)


def _microseconds(place: Place, job: Burst) -> float:
    """The time of one call, with one client."""
    place.settle()
    return 1e6 * place.load(load.burst, job) / len(job.keys)
