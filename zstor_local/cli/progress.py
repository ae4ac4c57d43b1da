"""A progress bar on stderr, drawn only on a terminal and only once there is progress to show."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from zstor_local.cli import stdio
from zstor_local.cli.client import Progress
from zstor_local.cli.text import safe
from zstor_local.signals import termination_raises

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_LABEL: Final = 40  # characters: the bar has to stay on one line


@contextmanager
def progress(label: str, *, wanted: bool, total: int | None = None, counted: bool = False) -> Iterator[Progress | None]:
    """What `Client.call` takes as `progress`; None where no bar is wanted or stderr is no terminal.

    The label may be anybody's, as keys are. `counted`: progress counts things and not bytes.
    """
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    label = safe(label, sys.stderr)
    line = _Line(label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…", total, counted=counted)
    try:
        with termination_raises():
            yield line.show
    finally:
        line.clear()


class _Line:
    """The bar, made at the first news: most calls end before."""

    def __init__(self, label: str, total: int | None, *, counted: bool) -> None:
        self._label = label
        self._counted = counted
        self._total = total
        self._bar: tuple[Bar, TaskID] | None = None

    def show(self, done: int, total: int | None, message: str) -> None:
        if self._bar is None:
            self._bar = _bar(self._label, total if total is not None else self._total, counted=self._counted)
            self._bar[0].start()  # known before: a signal in it must not leave the cursor hidden
        bar, task = self._bar
        bar.update(task, completed=done, total=total if total is not None else self._total, message=message)

    def clear(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()


def _bar(label: str, total: int | None, *, counted: bool) -> tuple[Bar, TaskID]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount = (MofNCompleteColumn(),) if counted else (DownloadColumn(binary_units=True), TransferSpeedColumn())
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *amount,
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}", markup=False),
        console=Console(stderr=True, color_system=None if stdio.plain() else "auto"),
        transient=True,
    )
    return bar, bar.add_task(label, total=total, message="")
