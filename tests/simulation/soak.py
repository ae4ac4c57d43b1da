"""Many histories that nobody has seen yet, and what they came to.

python -m tests.simulation.soak 1000           # so many from a seed drawn by lot
python -m tests.simulation.soak 1000 91000000  # from this one on
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter

from tests.simulation.histories import Found, history


def soak(count: int, first: int) -> int:
    """So many seeds, and what they came to."""
    total: Counter[str] = Counter()
    failed: list[int] = []
    begin = time.monotonic()
    for seed in range(first, first + count):
        try:
            done = history(seed)
        except Found as error:
            failed.append(seed)
            sys.stdout.write(f"{error}\n")
            sys.stdout.flush()
        else:
            total += done.counts
            total["operations"] += len(done.operations)
        if (seed - first + 1) % 100 == 0:
            sys.stdout.write(f"{seed - first + 1} histories, {len(failed)} broken, {time.monotonic() - begin:.0f} s\n")
            sys.stdout.flush()
    for what, number in sorted(total.items()):
        sys.stdout.write(f"{number:>10,}  {what}\n")
    sys.stdout.write(f"{count} histories from seed {first}: {len(failed)} broken {failed or ''}\n")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("first", type=int, nargs="?", metavar="seed")
    given = parser.parse_args()
    return soak(given.count, int.from_bytes(os.urandom(6)) if given.first is None else given.first)


if __name__ == "__main__":
    sys.exit(main())
