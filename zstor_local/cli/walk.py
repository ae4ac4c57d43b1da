"""`zstor walk`: along linked objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, cast

import click

from zstor_local.cli import text
from zstor_local.cli.client import parameters
from zstor_local.cli.options import Options, as_json, completed, connection, namespace, pass_options

if TYPE_CHECKING:
    from zstor_local.rpc.methods.walk import WalkItem

DIGITS: Final = 30  # Python reads no more than 4,300


def _time(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """Digits are microseconds, unless they are more than any time has; all else is the daemon's to read."""
    return int(value) if value is not None and value.isascii() and value.isdigit() and len(value) <= DIGITS else value


@click.command(epilog="What was put behind what:  zstor put --previous a b && zstor walk a")
@click.argument("key", shell_complete=completed("keys"))
@click.option("--backward", is_flag=True, help="To the objects before it, not to those that follow.")
@click.option("--start", metavar="TIME", callback=_time, help="Only objects created at TIME or later: 2026-01-31T12:00:00Z.")
@click.option("--end", metavar="TIME", callback=_time, help="Only objects created at TIME or earlier.")
@click.option("--values", is_flag=True, help="With --json: their bytes too, where they are not over 8 MiB.")
@as_json
@namespace
@connection
@pass_options
def walk(options: Options, key: str, backward: bool, start: int | str | None, end: int | str | None, values: bool) -> None:
    """Walk along linked objects, from KEY on.

    By the time of their creation; with --json one line an object.
    """
    if values and not options.json:
        raise click.UsageError("--values needs --json: the bytes of objects are not for a terminal")
    direction = "backward" if backward else None
    params = parameters(start_key=key, start_epoch=start, end_epoch=end, direction=direction, values=values or None)
    with options.connect() as client:
        for item in cast("Iterator[WalkItem]", client.items("object.walk", params | options.place())):
            metadata = item["metadata"]
            if options.json:
                click.echo(json.dumps(item))
            else:
                size, created = text.size(metadata["size"]), text.when(metadata["created_epoch"])
                click.echo(f"{created}  {size:>10}  {text.shown(item['key'])}")
