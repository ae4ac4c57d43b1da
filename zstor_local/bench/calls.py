"""Requests: durable objects of 4 KiB, written and read by one client and by sixteen, and what a call costs beside an echo."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from zstor_local.bench import load
from zstor_local.bench.load import Burst
from zstor_local.bench.place import Place, in_turns
from zstor_local.bench.results import Budget, Row
from zstor_local.bench.servers import Server, floor_server
from zstor_local.counted import counted
from zstor_local.limits import KIB

SMALL_BYTES: Final = 4 * KIB
CLIENTS: Final = (1, 16)
_WRITES: Final = Budget(least=0.85)
_READS: Final = {1: Budget(least=4_500), 16: Budget(least=9_300)}
_OVERHEAD: Final = Budget(most=30)
_GROWN: Final = Budget(most=1.3)
_TEN_THOUSAND: Final = 10_000
_FILL_BURST: Final = 10_000


def small_objects(place: Place) -> Iterator[Sequence[Row]]:
    """Yields once a round; the last rows are whole."""
    writes: dict[tuple[str, int], list[float]] = defaultdict(list)
    reads: dict[int, list[float]] = defaultdict(list)
    with floor_server("small", place.home, place.run) as floor:
        floor.start()
        for number in range(place.plan.rounds):
            place.say(f"objects of 4 KiB, round {number + 1}")
            for clients in CLIENTS:
                keys = [f"{number}.{clients}.{each}" for each in range(place.plan.writes)]
                for name, server in in_turns([("floor", floor), ("here", place.daemon)], number):
                    writes[name, clients].append(_rate(place, server, "object.write", keys, clients, SMALL_BYTES))
                random.Random(number).shuffle(keys)  # noqa: S311 (an order, no secret)
                reads[clients].append(_rate(place, place.daemon, "object.read", keys, clients))
            yield []
    yield [
        *[
            Row(
                work=f"write 4 KiB, durable, {_count(clients)}",
                unit="/s",
                here=writes["here", clients],
                beside=writes["floor", clients],
                note="floor",
                figure_is="ratio",
                budget=_WRITES,
            )
            for clients in CLIENTS
        ],
        *[
            Row(
                work=f"read 4 KiB, {_count(clients)}",
                unit="/s",
                here=reads[clients],
                beside=writes["here", clients],
                note="writes",
                budget=_READS[clients],
            )
            for clients in CLIENTS
        ],
    ]


def overhead(place: Place) -> Iterator[Sequence[Row]]:
    """The server's CPU time per call; yields once a round, the last rows are whole."""
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    key = "overhead"
    place.load(load.burst, Burst(place.daemon.socket, "object.write", [key], value_bytes=SMALL_BYTES))
    with floor_server("echo", place.home, place.run) as echo:
        echo.start()
        for number in range(place.plan.rounds):
            place.say(f"calls, round {number + 1}")
            for method, keys in (("rpc.ping", [""]), ("object.stat", [key])):
                for name, server in in_turns([("echo", echo), ("here", place.daemon)], number):
                    result = b"" if name == "echo" else b'"result"'
                    before = server.cpu_seconds()
                    place.load(load.burst, Burst(server.socket, method, keys * place.plan.calls, result=result))
                    spent[name, method].append((server.cpu_seconds() - before) / place.plan.calls * 1e6)
            yield []
    yield [
        Row(
            work=f"CPU of a call, {method}",
            unit="µs",
            here=spent["here", method],
            beside=spent["echo", method],
            note="echo",
            figure_is="difference",
            budget=_OVERHEAD if method == "rpc.ping" else Budget(),
        )
        for method in ("rpc.ping", "object.stat")
    ]


def grown(place: Place) -> Iterator[Sequence[Row]]:
    """Small objects again in a store of many; not unless the plan asks for it."""
    wanted = place.plan.objects
    few = min(_TEN_THOUSAND, wanted)
    costs: dict[tuple[str, str], list[float]] = defaultdict(list)
    if wanted:
        for amount, there, size in (("few", 0, few), ("many", few, wanted)):
            _fill(place, there, size)
            for number in range(place.plan.rounds):
                place.say(f"with {size:,} objects, round {number + 1}")
                keys = [f"{amount}.{number}.{each}" for each in range(place.plan.writes)]
                costs["write", amount].append(1e6 / _rate(place, place.daemon, "object.write", keys, 1, SMALL_BYTES))
                old = random.Random(number).sample(range(size), min(place.plan.writes, size))  # noqa: S311
                costs["read", amount].append(1e6 / _rate(place, place.daemon, "object.read", [f"fill.{each}" for each in old], 1))
    yield [
        Row(
            work=f"{work} 4 KiB in a store of {wanted or 1_000_000:,}",
            unit="µs",
            here=costs[work, "many"],
            beside=costs[work, "few"],
            note=f"with {few:,}" if wanted else "--objects N fills the store first",
            figure_is="ratio",
            budget=_GROWN,
        )
        for work in ("write", "read")
    ]


def _fill(place: Place, there: int, size: int) -> None:
    """Have the objects `fill.0` to `fill.{size - 1}` in the store, where the first are there already."""
    for first in range(there, size, _FILL_BURST):
        place.say(f"filling the store: {first:,} of {size:,}")
        keys = [f"fill.{each}" for each in range(first, min(first + _FILL_BURST, size))]
        place.load(load.burst, Burst(place.daemon.socket, "object.write", keys, max(CLIENTS), SMALL_BYTES))


def _rate(place: Place, server: Server, method: str, keys: Sequence[str], clients: int, value_bytes: int = 0) -> float:
    """Calls per second."""
    place.settle()
    return len(keys) / place.load(load.burst, Burst(server.socket, method, keys, clients, value_bytes))


def _count(clients: int) -> str:
    return counted(clients, "client")
