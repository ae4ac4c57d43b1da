"""How long the command itself takes, beside an interpreter that does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Final

from zstor_local.bench.place import Place
from zstor_local.bench.results import Budget, Row
from zstor_local.bench.servers import compiled

# 150 and 250 ms where an interpreter takes 15.
_BUDGETS: Final = {"zstor --help": Budget(most=10), "zstor call rpc.ping": Budget(most=16.7)}


def command(place: Place) -> Iterator[Sequence[Row]]:
    """Yields once a round; the last rows are whole."""
    took: dict[str, list[float]] = defaultdict(list)
    program = [sys.executable, "-m", "zstor_local"]
    runs = {
        "nothing": [sys.executable, "-c", "pass"],
        "zstor --help": [*program, "--help"],
        "zstor call rpc.ping": [*program, "call", "--socket", str(place.daemon.socket), "rpc.ping"],
    }
    environment = compiled(os.environ, place.home)
    for arguments in runs.values():
        subprocess.run(arguments, stdout=subprocess.DEVNULL, env=environment, check=True)  # noqa: S603 - our own program
    for number in range(place.plan.rounds):
        place.say(f"the command, round {number + 1}")
        for name, arguments in runs.items():
            began = perf_counter()
            subprocess.run(arguments, stdout=subprocess.DEVNULL, env=environment, check=True)  # noqa: S603 - our own program
            took[name].append((perf_counter() - began) * 1_000)
        yield []
    yield [
        Row(work=name, unit="ms", here=took[name], beside=took["nothing"], note="python -c pass", figure_is="ratio", budget=budget)
        for name, budget in _BUDGETS.items()
    ]
