"""`zstor scrub` and `collect`: the store as a whole, proved and tidied. (`repair --all` is in health.py.)"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import click

from zstor_local.cli import report, text
from zstor_local.cli.client import Object
from zstor_local.cli.interrupting import if_interrupted
from zstor_local.cli.options import Options, as_json, connection, no_progress, pass_options
from zstor_local.cli.progress import progress
from zstor_local.cli.status import scrub_line
from zstor_local.counted import counted

if TYPE_CHECKING:
    from zstor_local.rpc.methods.daemon import Status
    from zstor_local.rpc.methods.upkeep import CollectedShares
    from zstor_local.rpc.methods.upkeep import ScrubView as Scrub


@click.command()
@click.option("--pause", is_flag=True, help="Read nothing until it is resumed, over restarts too.")
@click.option("--resume", is_flag=True, help="Go on after a pause.")
@click.option("--status", is_flag=True, help="Only tell how far it is and what it has found.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the end.")
@no_progress
@as_json
@connection
@pass_options
def scrub(options: Options, pause: bool, resume: bool, status: bool, no_wait: bool) -> int:
    """Read and prove everything now, and have repaired what is bad.

    The daemon does so by itself too, spread over the days of [scrub]. Ctrl-C ends the waiting, not the scrub. Exits with 1 if
    something was found that cannot be mended.
    """
    if pause + resume + status > 1:
        raise click.UsageError("--pause, --resume and --status stand for each other")
    action = "pause" if pause else "resume" if resume else "start"
    with options.connect() as client:
        if status:
            found = cast("Status", client.call("daemon.status", {}))["scrub"]
        else:
            params: Object = {"action": action, "wait": action == "start" and not no_wait}
            on = if_interrupted("the scrub goes on", hint="`zstor scrub --status` tells how far it is, `zstor scrub --pause` stops it")
            with on, progress("scrub", wanted=not options.no_progress, counted=True) as shown:
                found = cast("Scrub", client.call("health.scrub", params, progress=shown))
    click.echo(json.dumps(found) if options.json else scrub_line(found))
    told = found.get("found", {})
    return 1 if any(told.get(name) for name in ("unreadable", "strays_kept", "unknown_keys", "records_damaged")) else 0


@click.command()
@click.option("--dry-run", is_flag=True, help="Free nothing, only tell.")
@click.option("--accept-loss", is_flag=True, help="Free also shares that no record names and nothing later buries.")
@no_progress
@as_json
@connection
@pass_options
def collect(options: Options, dry_run: bool, accept_loss: bool) -> int:
    """Free the shares that nothing needs any more.

    Those are what broken-off writes, overwrites and deletes left. A share that no record names and nothing buries is told and kept:
    the metastore may have lost its record, and `zstor rebuild` would bring it back.
    """
    kept = if_interrupted("what was freed by then is freed, the rest waits", hint="`zstor collect` frees it")
    with kept, options.connect() as client, progress("collect", wanted=not options.no_progress, counted=True) as shown:
        found = cast("CollectedShares", client.call("health.collect", {"dry_run": dry_run, "accept_loss": accept_loss}, progress=shown))
    if options.json:
        click.echo(json.dumps(found))
        return 0
    numbers = cast(dict[str, int], found)
    counts = {"freed": "freed", "to be freed": "waiting", "kept": "kept"}
    told = [f"{numbers[name]:,} {words}" for words, name in counts.items()]
    click.echo(", ".join([f"{counted(found['looked_at'], 'share')} looked at", *told]))
    for share in found["found"]:
        whose = f"  {text.shown(share['namespace'])}/{text.shown(share['key'])}" if "key" in share and "namespace" in share else ""
        click.echo(f"{share['reason']:9}  {share['version'][:8]}.{share['index']} on shard {share['shard']}{whose}")
    for shard in found["unseen"]:
        report.warning(f"shard {shard} could not be looked at")
    return 0
