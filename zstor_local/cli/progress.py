"""A progress bar on stderr, drawn only on a terminal and only once there is progress to show."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zstor_local.cli.client import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


@contextmanager
def progress(label: str, *, wanted: bool, total: int | None = None) -> Iterator[Progress | None]:
    """What `Client.call` takes as `progress`; None where no bar is wanted or stderr is no terminal."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    line = _Line(label, total)
    try:
        yield line.show
    finally:
        line.clear()


class _Line:
    """The bar, made at the first news: most calls end before."""

    def __init__(self, label: str, total: int | None) -> None:
        self._label = label
        self._total = total
        self._bar: tuple[Bar, TaskID] | None = None

    def show(self, done: int, total: int | None, message: str) -> None:
        if self._bar is None:
            self._bar = _start(self._label, total if total is not None else self._total)
        bar, task = self._bar
        bar.update(task, completed=done, total=total if total is not None else self._total)

    def clear(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()


def _start(label: str, total: int | None) -> tuple[Bar, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR"))),
        transient=True,
    )
    bar.start()
    return bar, bar.add_task(label, total=total)
