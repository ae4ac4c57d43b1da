"""`zstor bench`: what to measure, how it goes on, where the table goes."""

from __future__ import annotations

import json as jsonlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from zstor_local.bench import calls, contents, files, footprint, logs, rebuilding, startup
from zstor_local.bench.load import BenchFailed
from zstor_local.bench.place import QUICK, Place, Plan, cores, default_directory, file_system, prepared
from zstor_local.bench.results import Report, Row, machine
from zstor_local.limits import MIB
from zstor_local.store.faults import Refused

Case = Callable[[Place], Iterator[Sequence[Row]]]

# In the order in which they run: a peak of memory is right after what made it.
CASES: Final[Sequence[Case]] = (
    files.measure,
    footprint.peak_after_file,
    calls.small_objects,
    calls.overhead,
    startup.command,
    footprint.peak_after_pipe,
    footprint.disk,
    calls.grown,
    logs.grown,
    footprint.start,
    rebuilding.measure,
    contents.measure,
)
_MEMORY_FILE_SYSTEMS: Final = frozenset({"tmpfs", "ramfs"})
_PLAIN_WIDTH: Final = 150  # columns where no terminal says how many it has
_QUIET: Final = 0.25  # load average for each core up to which a machine counts as idle
_DURABILITY: Final = "this file system is in memory: nothing durable was measured"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Smaller files, fewer writes: a first impression in half a minute.")
@click.option("--rounds", type=click.IntRange(1), metavar="N", help="How often everything is measured; the table shows medians (3).")
@click.option("--pipe", type=click.IntRange(1), metavar="MIB", help="Length of the long pipe (1024; 10240 for the full test).")
@click.option("--objects", type=click.IntRange(1), metavar="N", help="Also fill the store with N objects and measure there.")
@click.option("--entries", type=click.IntRange(1), metavar="N", help="Also fill a log with N entries and measure on the way.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Measure on this disk (default: where the default store is).",
)
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the table, as .md or .json.")
@click.option("--json", is_flag=True, help="JSON on stdout in place of the table.")
def bench(
    quick: bool,
    rounds: int | None,
    pipe: int | None,
    objects: int | None,
    entries: int | None,
    directory: Path | None,
    write: Path | None,
    json: bool,
) -> None:
    """Measure how fast it is here.

    Everything is measured beside a straight-line program that does the same work, in turns, on a temporary store of its own.
    """
    if write is not None and write.suffix not in (".md", ".json"):
        raise click.UsageError("--write takes a name that ends in .md or .json")
    if write is not None and not write.absolute().parent.is_dir():  # said before anything is measured
        raise click.UsageError(f"there is no directory {write.parent}")
    plan = QUICK if quick else Plan()
    plan = replace(
        plan,
        rounds=rounds or plan.rounds,
        pipe_bytes=pipe * MIB if pipe else plan.pipe_bytes,
        objects=objects or plan.objects,
        entries=entries or plan.entries,
    )
    try:
        report = measure(plan, directory or default_directory())
    except BenchFailed as error:
        raise Refused("bench_failed", f"nothing was measured: {error}", None, 1) from None
    if write is not None:
        write.write_text(_document(report) if write.suffix == ".json" else report.markdown())
    if json:
        click.echo(_document(report), nl=False)
    else:
        console = Console()
        console.print(report.table(), width=None if console.is_terminal else _PLAIN_WIDTH, crop=False)


def measure(plan: Plan, directory: Path) -> Report:
    """Run every case on a disk. Progress goes to a terminal on stderr."""
    kind, load = file_system(directory), os.getloadavg()[0]
    rows: list[Row] = []
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    # Drawn by hand between two measurements: a thread that draws would take its share of what is measured.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=_steps(plan))

        def say(text: str) -> None:
            progress.update(task, description=text, refresh=progress.console.is_terminal)

        with prepared(plan, directory, say) as place:
            for case in CASES:
                for found in case(place):
                    rows += found
                    progress.advance(task)
    about = machine(cores()) | {"file system": kind, "rounds": str(plan.rounds)}
    warnings = [_DURABILITY] if kind in _MEMORY_FILE_SYSTEMS else []
    if load > _QUIET * cores():
        warnings.append(f"other work was running (load average {load:.1f} before): only the ratios mean something, and they waver")
    return Report(rows, about, warnings)


def _steps(plan: Plan) -> int:
    """How often the cases yield: once a round for most of them, for files once for each content, and once at the end."""
    return 8 * plan.rounds + len(CASES) + 1


def _document(report: Report) -> str:
    return jsonlib.dumps(report.json(), indent=2, ensure_ascii=False) + "\n"
