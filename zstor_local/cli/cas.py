"""`zstor cas`: content by its id."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import click

from zstor_local.cli import text
from zstor_local.cli.client import parameters
from zstor_local.cli.handover import destination, file_to_write, source, standard_output
from zstor_local.cli.interrupting import if_interrupted
from zstor_local.cli.options import FILE, OUTPUT, Options, as_json, completed, connection, no_progress, pass_options
from zstor_local.cli.progress import progress
from zstor_local.counted import counted

if TYPE_CHECKING:
    from zstor_local.rpc.methods.cas import CollectedView as Collected
    from zstor_local.rpc.methods.cas import ContentView as Content
    from zstor_local.rpc.methods.cas import Unpinned
    from zstor_local.rpc.methods.cas import UploadedView as Uploaded
    from zstor_local.rpc.methods.objects import Sent


owned = click.option("--owner", metavar="NAME", help="Whose pin it is (“user” if not given).")


@click.group()
def cas() -> None:
    """Store content under the id that any IPFS tool computes for it."""


@cas.command(epilog="From a pipe:  tar c photos | zstor cas put -")
@click.argument("files", metavar="FILE|-…", nargs=-1, required=True, type=FILE)
@click.option("--pin/--no-pin", default=True, help="Without a pin it is kept for 7 days.")
@owned
@click.option("--reason", metavar="TEXT", help="Why it is kept.")
@click.option("--size", type=click.IntRange(min=0), metavar="BYTES", help="Refuse any other size; a broken pipe looks like its end.")
@no_progress
@as_json
@connection
@pass_options
def put(options: Options, files: tuple[str, ...], pin: bool, owner: str | None, reason: str | None, size: int | None) -> None:
    """Store each FILE, or a pipe (-), and print its id.

    What is stored already is not stored again. Done means durable.
    """
    if not pin and (owner or reason):
        raise click.UsageError("without a pin there is no owner and no reason")
    params = parameters(fd=0, pin=None if pin else False, owner=owner, reason=reason, expected_size=size)
    with options.connect() as client:
        for name in files:
            with source(name, instead="as one content: tar c DIRECTORY | zstor cas put -") as given:
                total = size if given.size is None else given.size
                with progress(name, wanted=not options.no_progress, total=total) as shown:
                    stored = cast("Uploaded", client.call("cas.upload", params, fds=[given.fd], progress=shown))
            if options.json:
                click.echo(json.dumps({**stored, "file": name}))
            else:
                click.echo(stored["id"] if len(files) == 1 else f"{stored['id']}  {text.shown(name)}")
            sys.stdout.flush()


@cas.command()
@click.argument("id_", metavar="ID", shell_complete=completed("contents"))
@click.argument("file", metavar="[FILE|DIRECTORY|-]", required=False, type=OUTPUT)
@click.option("-f", "--force", is_flag=True, help="Replace FILE if it is there.")
@click.option("--offset", type=click.IntRange(min=0), metavar="BYTES", help="Leave out the first BYTES.")
@click.option("--length", type=click.IntRange(min=0), metavar="BYTES", help="At most so many bytes.")
@click.option("--verify", is_flag=True, help="Compare all of it with its id first; its seals are always checked.")
@no_progress
@as_json
@connection
@pass_options
def get(options: Options, id_: str, file: str | None, force: bool, offset: int | None, length: int | None, verify: bool) -> None:
    """Write the content with this ID to FILE, or to a pipe.

    Without FILE: to standard output where that is a file or a pipe, on a terminal to a file named after the ID.
    """
    path = None if file == "-" or (file is None and not sys.stdout.isatty()) else file_to_write(file or id_)
    if path is not None and path.is_dir():
        path = path / id_
    if path is None and options.json:
        raise click.UsageError("--json needs a FILE: standard output has the bytes")
    params = parameters(id=id_, fd=0, sync=False, offset=offset, length=length, verify=verify or None)
    taker = standard_output() if path is None else destination(path, force=force, own=options.daemons_own())
    with options.connect() as client, taker as taken, progress(id_[:12], wanted=not options.no_progress) as shown:
        sent = cast("Sent", client.call("cas.fetch", params, fds=[taken.fd], progress=shown))
    if path is None:
        return
    if options.json:
        click.echo(json.dumps({"id": id_, "bytes": sent["bytes"], "path": str(path.absolute())}))
    else:
        click.echo(f"wrote {text.shown(str(path))}: {text.size(sent['bytes'])}")


@cas.command()
@click.argument("id_", metavar="ID", shell_complete=completed("contents"))
@owned
@click.option("--reason", metavar="TEXT", help="Why it is kept.")
@as_json
@connection
@pass_options
def pin(options: Options, id_: str, owner: str | None, reason: str | None) -> None:
    """Keep a content until its owner unpins it."""
    with options.connect() as client:
        content = cast("Content", client.call("cas.pin", parameters(id=id_, owner=owner, reason=reason)))
    click.echo(json.dumps(content) if options.json else f"pinned {content['id']}: {_keepers(content)}")


@cas.command()
@click.argument("id_", metavar="ID", shell_complete=completed("contents"))
@owned
@click.option("--forget", is_flag=True, help="Delete it at once, if nobody else keeps it.")
@as_json
@connection
@pass_options
def unpin(options: Options, id_: str, owner: str | None, forget: bool) -> None:
    """Let go of a content.

    What nobody pins is kept for 7 days and then deleted, once a day or by `zstor cas collect`.
    """
    with options.connect() as client:
        answer = cast("Unpinned", client.call("cas.unpin", parameters(id=id_, owner=owner, forget=forget or None)))
    if options.json:
        click.echo(json.dumps(answer))
    elif answer["content"] is None:
        click.echo(f"deleted {id_}")
    else:
        click.echo(f"unpinned {id_}: {_keepers(answer['content'])}")


@cas.command()
@click.option("--owner", metavar="NAME", help="Only what this owner pins.")
@as_json
@connection
@pass_options
def ls(options: Options, owner: str | None) -> None:
    """List contents: id, size and who keeps them."""
    with options.connect() as client:
        for content in cast("Iterator[Content]", client.items("cas.list", parameters(owner=owner))):
            if options.json:
                click.echo(json.dumps(content))
            else:
                click.echo(f"{content['id']}  {text.size(content['size']):>10}  {_keepers(content)}")


@cas.command()
@click.argument("id_", metavar="ID", shell_complete=completed("contents"))
@as_json
@connection
@pass_options
def stat(options: Options, id_: str) -> None:
    """Tell what is known of a content."""
    with options.connect() as client:
        content = cast("Content", client.call("cas.stat", {"id": id_}))
    if options.json:
        click.echo(json.dumps(content))
        return
    click.echo(f"id       {content['id']}  (profile unixfs-v1-2025)")
    click.echo(f"size     {text.size(content['size'])}, {text.size(content['stored_size'])} on the shards")
    click.echo(f"stored   {text.when(content['created_epoch'])}, {content['health']}")
    for each in content["pins"]:
        reason = f": {text.shown(each['reason'])}" if each["reason"] else ""
        click.echo(f"pinned   {text.when(each['since_epoch'])} by {text.shown(each['owner'])}{reason}")
    if content["kept_until_epoch"] is not None:
        click.echo(f"kept     {_keepers(content)}")


@cas.command()
@click.argument("id_", metavar="ID", shell_complete=completed("contents"))
@no_progress
@as_json
@connection
@pass_options
def verify(options: Options, id_: str) -> None:
    """Read a content and compare it with its id."""
    with options.connect() as client, progress(id_[:12], wanted=not options.no_progress) as shown:
        answer = cast("Uploaded", client.call("cas.verify", {"id": id_}, progress=shown))
    click.echo(json.dumps(answer) if options.json else f"{id_} is what its id says: {text.size(answer['size'])}")


@cas.command()
@click.option("-n", "--dry-run", is_flag=True, help="Only count what would be deleted.")
@no_progress
@as_json
@connection
@pass_options
def collect(options: Options, dry_run: bool) -> None:
    """Delete the contents that nobody keeps.

    Reads and writes go on meanwhile.
    """
    kept = if_interrupted("what was deleted by then is deleted, the rest waits", hint="`zstor cas collect` goes on")
    with kept, options.connect() as client, progress("collect", wanted=not options.no_progress, counted=True) as shown:
        found = cast("Collected", client.call("cas.collect", {"dry_run": dry_run}, progress=shown))
    if options.json:
        click.echo(json.dumps(found))
        return
    done = "would delete" if dry_run else "deleted"
    click.echo(f"{done} {found['contents']} of {counted(found['looked_at'], 'content')}: {text.size(found['bytes'])}")


def _keepers(content: Content) -> str:
    """Who keeps it, or how long it is kept without anybody."""
    if content["pins"]:
        return "kept by " + ", ".join(text.shown(each["owner"]) for each in content["pins"])
    return f"not pinned, kept until {text.when(content['kept_until_epoch'] or 0)}"
