"""How fast it is here: the daemon beside straight-line programs that do the same work (`zstor bench`)."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark with the arguments of `zstor bench`. Returns the exit code, 0: a benchmark measures and does not judge."""
    from zstor_local.bench.command import bench  # rich and click are not for the floors' processes, which import this package too

    bench.main(list(arguments), prog_name="zstor bench", standalone_mode=False)
    return 0
