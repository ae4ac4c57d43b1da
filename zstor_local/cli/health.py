"""`zstor check` and `repair`: whether objects are whole, and making them so."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, cast

import click

from zstor_local.cli import report, text
from zstor_local.cli.interrupting import if_interrupted
from zstor_local.cli.near import nearer
from zstor_local.cli.options import Options, as_json, completed, connection, namespace, no_progress, pass_options
from zstor_local.cli.progress import progress
from zstor_local.counted import counted
from zstor_local.errors import Cancelled, ZstorError

if TYPE_CHECKING:
    from zstor_local.rpc.methods.health import CheckView as Check
    from zstor_local.rpc.methods.objects import Written
    from zstor_local.rpc.methods.upkeep import RepairedAllView as RepairedAll


@click.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True, shell_complete=completed("keys"))
@click.option("--fast", is_flag=True, help="Only look whether the shares are there and long enough.")
@no_progress
@as_json
@namespace
@connection
@pass_options
def check(options: Options, keys: tuple[str, ...], fast: bool) -> int:
    """Look at every share of objects.

    Each block is opened. Exits with 1 unless all of them are optimal.
    """
    well = True
    with options.connect() as client:
        for key in keys:
            try:
                with progress(f"check {key}", wanted=not options.no_progress, counted=True) as shown:
                    found = cast("Check", client.call("object.check", {"key": key, **options.place(), "fast": fast}, progress=shown))
            except Cancelled:
                raise
            except ZstorError as error:
                well = False
                report.error(nearer(error, options), json=options.json)
                continue
            well = well and found["status"] == "optimal"
            click.echo(json.dumps({"key": key, **found}) if options.json else _line(key, found))
    return 0 if well else 1


def _line(key: str, found: Check) -> str:
    states = Counter(share["state"] for share in found["shares"])
    bad = [f"{share['state']} on shard {share['shard']}" for share in found["shares"] if share["state"] != "ok"]
    told = f": {', '.join(bad)}" if bad else ""
    return f"{found['status']:7}  {text.shown(key)}  {states['ok']} of {len(found['shares'])} shares are good{told}"


@click.command()
@click.argument("keys", metavar="[KEY...]", nargs=-1, shell_complete=completed("keys"))
@click.option("--all", "everything", is_flag=True, help="All objects of all namespaces.")
@no_progress
@as_json
@namespace
@connection
@pass_options
def repair(options: Options, keys: tuple[str, ...], everything: bool) -> int:
    """Make the bad shares of objects anew.

    What is good is not touched. A share whose shard is away goes to another shard, if there is one.
    """
    if bool(keys) == everything:
        raise click.UsageError("name the keys, or --all")
    return _repair_all(options) if everything else _repair(options, keys)


def _repair_all(options: Options) -> int:
    kept = if_interrupted("what was repaired by then is repaired", hint="`zstor repair --all` begins anew, and finds less to do")
    with kept, options.connect() as client, progress("repair", wanted=not options.no_progress, counted=True) as shown:
        found = cast("RepairedAll", client.call("health.repair_all", {}, progress=shown))
    if options.json:
        click.echo(json.dumps(found))
    else:
        still = counted(found["lacking"], "still lacks", "still lack")
        lacking = f", {still} a share that no shard can take" if found["lacking"] else ""
        owed = f", {counted(found['owed'], 'thing')} owed to shards that are away" if found["owed"] else ""
        click.echo(f"{counted(found['objects'], 'object')}: {found['repaired']:,} repaired, {found['failed']:,} not{lacking}{owed}")
        for each in found["found"]:
            click.echo(f"{each['error']}  {text.shown(each['namespace'])}/{text.shown(each['key'])}  {text.shown(each['message'])}")
    return 1 if found["failed"] else 0


def _repair(options: Options, keys: tuple[str, ...]) -> int:
    failed = False
    with options.connect() as client:
        for key in keys:
            try:
                with progress(f"repair {key}", wanted=not options.no_progress, counted=True) as shown:
                    repaired = client.call("object.repair", {"key": key, **options.place()}, progress=shown)
                metadata = cast("Written", repaired)["metadata"]
                found = cast("Check", client.call("object.check", {"key": key, **options.place(), "fast": True}))
            except Cancelled:
                raise
            except ZstorError as error:
                failed = True
                report.error(nearer(error, options), json=options.json)
                continue
            click.echo(json.dumps({"metadata": metadata}) if options.json else _line(key, found))
    return 1 if failed else 0
