"""What becomes of the things of a tree: a line for each, and one for all of them at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

import click

from zstor_local.cli import report
from zstor_local.cli.client import Json
from zstor_local.cli.client import Progress as Show
from zstor_local.cli.options import Options
from zstor_local.counted import counted
from zstor_local.errors import CorruptRecord, ZstorError


@dataclass(slots=True)
class Account:
    """What became of the things of a tree, told as it comes: to programs one line each, to people what went wrong."""

    options: Options
    show: Show | None
    below: str = ""  # the directory in which people find the things
    counted: bool = False  # whether the progress is of things, and not of bytes
    total: int | None = None
    done: int = 0
    bytes: int = 0
    failed: int = 0
    owed: int = 0

    def note(self, member: str, name: str, answer: Mapping[str, Json] | ZstorError, size: int = 0, owed: int = 0) -> None:
        if isinstance(answer, ZstorError):
            self.failed += 1
            self._complain(member, name, answer)
            return
        self.done, self.bytes, self.owed = self.done + 1, self.bytes + size, max(self.owed, owed)
        if self.options.json:
            click.echo(json.dumps({member: name, **answer}))
        if self.show is not None:
            self.show(self.done if self.counted else self.bytes, self.total, "")

    def damaged(self, error: CorruptRecord) -> None:
        """One of them is there, but its record does not open."""
        self.note("key", str(error.data.get("key", "")), error)

    def _complain(self, member: str, name: str, error: ZstorError) -> None:
        if self.options.json:
            hint = {"hint": error.hint} if error.hint else {}
            click.echo(json.dumps({member: name, "error": {"type": error.type, "message": error.message, **hint}}))
        else:
            shown = os.path.join(self.below, name)
            named = error.message if shown in error.message else f"{shown}: {error.message}"
            report.warning(f"{named}; {error.hint}" if error.hint else named)

    def end(self, line: str) -> int:
        if self.options.json:
            click.echo(json.dumps({"done": self.done, "bytes": self.bytes, "failed": self.failed}))
        else:
            click.echo(line)
            if self.failed:
                report.warning(f"left out: {counted(self.failed, 'thing')}")
            if self.owed:
                report.owed(self.owed)
        return 1 if self.failed else 0
