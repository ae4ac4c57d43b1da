"""`zstor rebuild`: a new metastore from the shards and the master key."""

from __future__ import annotations

import dataclasses
import json
import sys

import click

from zstor_local.cli import text
from zstor_local.cli.options import Options, as_json, connection, pass_options


@click.command()
@click.option("--accept-loss", is_flag=True, help="Take what there is, although something may be missing.")
@as_json
@connection
@pass_options
def rebuild(options: Options, accept_loss: bool) -> None:
    """Make the metastore anew from the shards and the master key.

    For a store whose metastore is damaged, rolled back or lost: keys, namespaces, references, links and user metadata come back,
    deleted objects do not. The daemon must not run. An old metastore is put aside.

    Where something may be missing (a shard is away, an object has too few shares) it says so and changes nothing, unless that is
    accepted.
    """
    from zstor_local.daemon import rebuild_store

    config = options.load()
    report = rebuild_store(config, accept_loss=accept_loss, progress=_show)
    if options.json:
        click.echo(json.dumps({**dataclasses.asdict(report), "loss": report.loss}))
        return
    click.echo(f"read {text.count(report.records, 'record')} on {text.count(len(report.seen), 'shard')}")
    click.echo(f"rebuilt {text.count(report.objects, 'object')}, {text.size(report.bytes)}; {report.deleted:,} keys stay deleted")
    for line in report.loss:
        click.echo(f"  {line}")
    click.echo(f"the new metastore is in {config.store}; next: zstor daemon")


def _show(what: str, count: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{count:,} {what}", nl=False, err=True)
