"""`zstor status`: is everything well?"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Final, cast

import click

from zstor_local.cli import report, text
from zstor_local.cli.options import Options, as_json, connection, pass_options
from zstor_local.cli.shapes import Shard, Status

if TYPE_CHECKING:
    from rich.table import Table

_COLORS: Final = {"ok": "green", "degraded": "yellow", "readonly": "yellow"}  # anything else is bad: red
_PIPE_WIDTH: Final = 160  # columns where there is no terminal


@click.command()
@click.option("--check", is_flag=True, help="Exit with 1 unless everything is well: for monitoring.")
@as_json
@connection
@pass_options
def status(options: Options, check: bool) -> int:
    """Show whether store and shards are well."""
    with options.connect() as client:
        answer = cast(Status, client.call("daemon.status", {}))
    if options.json:
        click.echo(json.dumps(answer))
    else:
        _draw(answer)
    return 1 if check and answer["state"] != "ok" else 0


def _draw(answer: Status) -> None:
    state = click.style(answer["state"], fg=_COLORS.get(answer["state"], "red"), bold=True)
    writable = "" if answer["metastore"]["writable"] else ", not writable"
    click.echo(f"state    {state}")
    click.echo(f"objects  {answer['objects']:,}, {text.size(answer['bytes'])}")
    click.echo(f"records  {answer['metastore']['kind']}{writable}")
    for name, waiting in answer["queues"].items():
        if waiting:
            click.echo(f"{name:<8} {waiting:,} waiting")
    click.echo()
    _print(_table(answer["shards"]))
    for warning in answer["warnings"]:
        report.warning(warning)


def _table(shards: list[Shard]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("SHARD", "STATE"):
        table.add_column(heading)
    for heading in ("DISK USED", "DISK FREE"):
        table.add_column(heading, justify="right")
    table.add_column("PLACE", overflow="fold")
    for shard in shards:
        table.add_row(
            shard["id"],
            Text(shard["state"], style=_COLORS.get(shard["state"], "red")),
            _room(shard["used"]),
            _room(shard["free"]),
            Text(text.shown(shard["url"])),
        )
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(width=width, no_color=bool(os.environ.get("NO_COLOR")), highlight=False)
    with console.capture() as drawn:
        console.print(table)
    for line in drawn.get().splitlines():
        click.echo(line.rstrip())


def _room(count: int | None) -> str:
    return "–" if count is None else text.size(count)
