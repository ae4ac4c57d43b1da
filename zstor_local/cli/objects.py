"""`zstor rm`, `ls` and `stat`: what is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import click

from zstor_local.cli import report, text
from zstor_local.cli.listing import items
from zstor_local.cli.near import nearer
from zstor_local.cli.options import Options, as_json, completed, connection, namespace, no_progress, pass_options
from zstor_local.counted import counted
from zstor_local.errors import Cancelled, ZstorError

if TYPE_CHECKING:
    from zstor_local.rpc.methods.objects import Deleted, Written
    from zstor_local.store.metadata import Metadata


@click.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True, shell_complete=completed("keys"))
@click.option("-r", "recursive", is_flag=True, help="And all objects below KEY/; asks first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@no_progress
@as_json
@namespace
@connection
@pass_options
def rm(options: Options, keys: tuple[str, ...], recursive: bool, yes: bool) -> int:
    """Delete objects.

    A deleted object stays deleted, also after a rebuild from the shards.
    """
    if recursive:
        if not yes and (options.json or not sys.stdin.isatty()):
            raise click.UsageError("nobody is there to confirm it: --yes deletes without asking")
        from zstor_local.cli.tree_removal import remove_trees

        return remove_trees(options, keys, yes=yes)
    failed = False
    with options.connect() as client:
        for key in keys:
            try:
                deleted = cast("Deleted", client.call("object.delete", {"key": key, **options.place()}))
            except Cancelled:
                raise
            except ZstorError as error:
                failed = True
                report.error(nearer(error, options), json=options.json)
            else:
                click.echo(json.dumps({"key": key, **deleted}) if options.json else f"deleted {text.shown(key)}")
                if deleted["owed"] and not options.json:
                    report.owed(deleted["owed"])
    return 1 if failed else 0


@click.command()
@click.argument("prefix", default="", shell_complete=completed("keys"))
@click.option("-l", "long", is_flag=True, help="With size, time of the last change, and health.")
@as_json
@namespace
@connection
@pass_options
def ls(options: Options, prefix: str, long: bool) -> None:
    """List the keys that begin with PREFIX.

    In the order of their bytes; with --json one line an object.
    """
    with options.connect() as client:
        for item in items(client, options, prefix):
            metadata = item["metadata"]
            if options.json:
                click.echo(json.dumps(item))
            elif long:
                size, changed = text.size(metadata["size"]), text.when(metadata["modified_epoch"])
                click.echo(f"{size:>10}  {changed}  {metadata['health']:7}  {text.shown(item['key'])}")
            else:
                click.echo(text.shown(item["key"]))


@click.command()
@click.argument("key", shell_complete=completed("keys"))
@as_json
@namespace
@connection
@pass_options
def stat(options: Options, key: str) -> None:
    """Show all about an object.

    Its size, version, times, policy, and on which shards its shares lie.
    """
    with options.connect() as client:
        metadata = cast("Written", client.call("object.stat", {"key": key, **options.place()}))["metadata"]
    if options.json:
        click.echo(json.dumps({"metadata": metadata}))
        return
    for name, value in _lines(metadata):
        click.echo(f"{name:<11}{value}")


def _lines(metadata: Metadata) -> Iterator[tuple[str, str]]:
    policy, size, stored = metadata["policy"], metadata["size"], metadata["stored_size"]
    yield "key", text.shown(metadata["key"])
    yield "namespace", metadata["namespace"]
    yield "size", text.size(size) + (f" ({size:,} bytes)" if size >= 1024 else "")
    yield "stored", text.size(stored) + (f" ({stored / size:.2f} × its size)" if size else "")
    yield "version", metadata["version"]
    yield "digest", metadata["digest"]
    yield "created", text.when(metadata["created_epoch"])
    yield "modified", text.when(metadata["modified_epoch"])
    yield "policy", f"any {policy['k']} of {policy['m']} shares, chunks of {text.size(policy['chunk_size'])}, {policy['compression']}"
    yield "health", metadata["health"] + (f", {counted(metadata['owed'], 'share')} owed" if metadata["owed"] else "")
    yield "shards", "  ".join(f"{share['index']}:{share['shard']}" for share in metadata["shards"])
    if metadata["previous_key"] is not None:
        yield "previous", text.shown(metadata["previous_key"])
    if metadata["next_key"] is not None:
        yield "next", text.shown(metadata["next_key"])
    for reference in metadata["references"]:
        yield "reference", text.shown(reference)
    for name, value in metadata["user"].items():
        yield "user", text.shown(f"{name}={value}")
