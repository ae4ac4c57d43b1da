"""`zstor shard`: the places that hold shares."""

from __future__ import annotations

import click

from zstor_local.cli.serving import serve


@click.group()
def shard() -> None:
    """Serve a shard to daemons on other machines."""


shard.add_command(serve)
