"""`zstor shard`: the places that hold shares."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, cast

import click

from zstor_local.cli import text
from zstor_local.cli.client import Object, parameters
from zstor_local.cli.interrupting import if_interrupted
from zstor_local.cli.options import FILE, Options, as_json, completed, connection, no_progress, pass_options
from zstor_local.cli.progress import progress
from zstor_local.cli.serving import serve
from zstor_local.cli.status import draw_shards
from zstor_local.counted import counted

if TYPE_CHECKING:
    from zstor_local.rpc.methods.daemon import ShardView as Shard
    from zstor_local.rpc.methods.shards import RemovedView as Removed


@click.group()
def shard() -> None:
    """Add, remove and replace disks; serve shards to other machines."""


@shard.command()
@as_json
@connection
@pass_options
def ls(options: Options) -> None:
    """Look at every shard, and tell how each is."""
    with options.connect() as client:
        answer = cast("dict[str, list[Shard]]", client.call("shard.list", {}))
    if options.json:
        click.echo(json.dumps(answer))
    else:
        draw_shards(answer["shards"])


@shard.command()
@click.argument("place", metavar="DIRECTORY|URL", type=FILE)
@click.option("--group", metavar="NAME", help="What it shares its fate with: a disk, a host. Its file system or host if left out.")
@as_json
@connection
@pass_options
def add(options: Options, place: str, group: str | None) -> None:
    """Give the store a new shard, in a new or empty directory.

    New objects use it at once. A shard that is missing, or being drained, is taken back where its directory is named.
    """
    params = parameters(url=_url(place), group=group or None)
    with options.connect() as client:
        added = cast("Shard", client.call("shard.add", params))
    if options.json:
        click.echo(json.dumps(added))
    else:
        click.echo(f"shard {added['id']} is at {text.shown(added['url'])}: {added['state']}")


@shard.command()
@click.argument("shard_id", metavar="SHARD", shell_complete=completed("shards"))
@click.argument("place", metavar="[DIRECTORY|URL]", required=False, type=FILE)
@no_progress
@as_json
@connection
@pass_options
def replace(options: Options, shard_id: str, place: str | None) -> None:
    """Make a dead shard anew in an empty place.

    What it held is made from the other shards. Without a place: where the dead one was, on the new disk that
    is mounted there. It goes on if this command is interrupted.
    """
    params = parameters(shard=shard_id, url=None if place is None else _url(place))
    hint = "`zstor shard ls` shows the old one as draining until all is made; `zstor shard rm` with its id there waits for it"
    _tell(options, _wait(options, "shard.replace", params, f"replacing shard {shard_id}", hint), "replaced", "made anew")


@shard.command()
@click.argument("shard_id", metavar="SHARD", shell_complete=completed("shards"))
@click.option("--force", is_flag=True, help="Forget it at once, unless objects would be lost; what it held is made anew afterwards.")
@no_progress
@as_json
@connection
@pass_options
def rm(options: Options, shard_id: str, force: bool) -> None:
    """Move what a shard holds to others, then forget it.

    It goes on if this command is interrupted; `zstor shard add` with its directory keeps the shard after all.
    """
    params = parameters(shard=shard_id, force=force)
    hint = f"`zstor shard rm {shard_id}` waits for it, `zstor shard add` with its directory keeps the shard after all"
    _tell(options, _wait(options, "shard.remove", params, f"draining shard {shard_id}", hint), "removed", "made elsewhere")


shard.add_command(serve)


@shard.command()
@as_json
@connection
@pass_options
def trust(options: Options) -> None:
    """Print what a shard server must know of this store.

    Give it to `zstor shard serve --trust FILE`. It works before the first start: shards on servers are there from the beginning then.
    """
    from zstor_local.daemon import own_trust

    click.echo(json.dumps(own_trust(options.load())))


def _wait(options: Options, method: str, params: Object, label: str, hint: str) -> Removed:
    on = if_interrupted("what has begun goes on without this command", hint=hint)
    with on, options.connect() as client, progress(label, wanted=not options.no_progress, counted=True) as show:
        return cast("Removed", client.call(method, params, progress=show))


def _tell(options: Options, removed: Removed, what: str, where: str) -> None:
    if options.json:
        click.echo(json.dumps(removed))
        return
    click.echo(f"{what} shard {removed['shard']}: {counted(removed['moved'], 'share')} {where}")
    if removed["lacking"]:
        click.echo(f"{counted(removed['lacking'], 'object')} with a share less: `zstor shard add` gives room, `zstor repair` fills it")


def _url(place: str) -> str:
    if "://" in place:
        return place
    if ":" in place.partition("/")[0] and not os.path.lexists(place):  # an address: a directory would be made that has its name
        raise click.UsageError(f"'{place}' is no URL, as https://HOST:PORT is one; of a directory with such a name write ./{place}")
    return os.path.abspath(place)
