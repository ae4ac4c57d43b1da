"""Ctrl-C where it is a command's usual end, or where some of the work was done or goes on without it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from zstor_local.cli.text import safe
from zstor_local.errors import Cancelled

INTERRUPTED: Final = 130  # the exit code: 128 + SIGINT, as shells have it


class Interrupted(Cancelled):
    """Ctrl-C ended the command; the message says what became of the work."""


@contextmanager
def ungrouped() -> Iterator[None]:
    """A Ctrl-C that came while a task of a nursery ran, or while it ended, comes out of it in a group."""
    try:
        yield
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None


@contextmanager
def ends_by_interrupt(waits_for: str | None = None) -> Iterator[None]:
    """For what only Ctrl-C ends: the exit code tells of it, no error does. On a terminal it says what it waits for."""
    if waits_for is not None and sys.stderr.isatty():
        click.echo(f"waiting for {safe(waits_for, sys.stderr)}; Ctrl-C ends it", err=True)
    try:
        with ungrouped():
            yield
    except (KeyboardInterrupt, Cancelled):
        raise click.exceptions.Exit(INTERRUPTED) from None


@contextmanager
def if_interrupted(what: str, *, hint: str | None = None) -> Iterator[None]:
    """For work that is not undone by Ctrl-C: what becomes of it."""
    try:
        yield
    except (KeyboardInterrupt, Cancelled):
        raise Interrupted(f"interrupted; {what}", hint=hint) from None
