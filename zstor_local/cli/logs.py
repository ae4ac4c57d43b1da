"""`zstor log`: remote logs."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, cast

import click

from zstor_local import limits
from zstor_local.cli import text
from zstor_local.cli.client import Client, Json, parameters
from zstor_local.cli.handover import bytes_of, destination, file_to_write, naming_errors, source, standard_output
from zstor_local.cli.interrupting import ends_by_interrupt, if_interrupted
from zstor_local.cli.options import FILE, OUTPUT, Options, as_json, completed, connection, no_progress, pass_options
from zstor_local.cli.progress import progress
from zstor_local.counted import counted

if TYPE_CHECKING:
    from zstor_local.rpc.methods.logs import LogAppended, LogEntries, LogEntry, LogHead, LogPageView, LogView


FOLLOW_SECONDS: Final = 300

a_log = click.option(
    "--log", "log", default="default", metavar="LOG", shell_complete=completed("logs"), help="The log (the one called “default”)."
)


@click.group()
def log() -> None:
    """Keep logs of messages that others can catch up on later."""


@log.command()
@click.argument("name", metavar="LOG")
@click.option(
    "--page-size",
    type=click.IntRange(1, limits.LOG_PAGE_ENTRIES),
    default=64,
    metavar="N",
    help="Entries in a page (64); 1 makes a linked list.",
)
@click.option(
    "--embed-last", type=click.IntRange(0), default=0, metavar="N", help="How many of a page's newest entries carry their content."
)
@click.option("--encoding", type=click.Choice(["protobuf", "json"]), default="protobuf", help="How pages are written (protobuf).")
@click.option("--mvds", is_flag=True, help="Only MVDS messages, each under its message id.")
@as_json
@connection
@pass_options
def create(options: Options, name: str, page_size: int, embed_last: int, encoding: str, mvds: bool) -> None:
    """Make a log; the default one is there already."""
    messages = "mvds" if mvds else None
    params = parameters(log=name, page_size=page_size, embed_last=embed_last, encoding=encoding, messages=messages)
    with options.connect() as client:
        made = cast("LogView", client.call("log.create", params))
    click.echo(json.dumps(made) if options.json else f"made the log {made['log']}, pages of {made['page_size']}")


@log.command()
@click.argument("content", metavar="TEXT|-")
@click.option(
    "--hash",
    "local_hash",
    metavar="HEX",
    callback=lambda *given: given[2] and _in_base64(given[2]),
    help="The hash that readers know it by.",
)
@a_log
@as_json
@connection
@pass_options
def append(options: Options, content: str, local_hash: str | None, log: str) -> None:
    """Add TEXT, or what standard input holds (-), to the end of a log.

    Done means durable. The same again is the same entry.
    """
    value = base64.b64encode(bytes_of(content, limits.INLINE_VALUE_BYTES)).decode()
    with options.connect() as client:
        made = cast("LogAppended", client.call("log.append", parameters(log=log, value_b64=value, local_hash_b64=local_hash)))
    click.echo(json.dumps(made) if options.json else f"entry {made['seq']}" + ("" if made["new"] else ", which was there already"))


@log.command()
@click.option("--since", type=click.IntRange(0), metavar="N", help="Only entries above this number.")
@click.option("--newest", type=click.IntRange(0), metavar="N", help="Only the newest N entries.")
@a_log
@as_json
@connection
@pass_options
def read(options: Options, since: int | None, newest: int | None, log: str) -> None:
    """Print the entries of a log, the oldest first.

    With --json one line an entry, content in base64.
    """
    if since is not None and newest is not None:
        raise click.UsageError("--since and --newest stand for each other")
    with options.connect() as client:
        for entry in _entries(client, log, since, newest, wait=0):
            show(options, entry)


@log.command()
@click.option("--since", type=click.IntRange(0), metavar="N", help="Begin above this number, not with what comes next.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many entries.")
@a_log
@as_json
@connection
@pass_options
def follow(options: Options, since: int | None, count: int | None, log: str) -> None:
    """Print entries of a log as they come, until Ctrl-C."""
    with ends_by_interrupt(None if options.json else f"entries of the log {log}"), options.connect() as client:
        entries = _entries(client, log, since, 0 if since is None else None, wait=FOLLOW_SECONDS)
        for number, entry in enumerate(entries, 1):
            show(options, entry)
            sys.stdout.flush()
            if number == count:
                return


@log.command()
@a_log
@as_json
@connection
@pass_options
def head(options: Options, log: str) -> None:
    """Tell of a log, and show its newest page."""
    with options.connect() as client:
        answer = cast("LogHead", client.call("log.head", {"log": log}))
    if options.json:
        click.echo(json.dumps(answer))
        return
    about = answer["log"]
    click.echo(f"log {about['log']}: {_count(about['entries'])}, change {about['name_seq']}")
    _show_page(answer["page"])


@log.command()
@click.argument("page_id", metavar="[ID]", required=False)
@click.option("--seq", type=click.IntRange(1), metavar="N", help="The page with this entry.")
@a_log
@as_json
@connection
@pass_options
def page(options: Options, page_id: str | None, seq: int | None, log: str) -> None:
    """Show a page of a log: the newest, or one by its id or an entry."""
    with options.connect() as client:
        answer = cast("LogPageView", client.call("log.page", parameters(log=log, id=page_id, seq=seq)))
    if options.json:
        click.echo(json.dumps(answer))
    else:
        _show_page(answer)


@log.command()
@click.argument("have", metavar="[HEX]...", nargs=-1)
@click.option("--since", type=click.IntRange(0), default=0, metavar="N", help="Every entry up to this number is there.")
@a_log
@as_json
@connection
@pass_options
def missing(options: Options, have: tuple[str, ...], since: int, log: str) -> None:
    """List the entries whose local hashes are not given.

    A - reads the hashes from standard input.
    """
    with naming_errors("standard input"):
        hashes = sys.stdin.read().split() if have == ("-",) else have
    params = parameters(log=log, have_b64=[_in_base64(each) for each in hashes], since_seq=since)
    with options.connect() as client:
        while True:
            answer = cast("dict[str, Json]", client.call("log.missing", params))
            for entry in cast("list[LogEntry]", answer["need"]):
                click.echo(json.dumps(entry) if options.json else _line(entry))
            if answer["next"] is None:
                return
            params["since_seq"] = answer["next"]


@log.command()
@click.option("--contents", is_flag=True, help="Read all content too, and compare it with its ids.")
@a_log
@no_progress
@as_json
@connection
@pass_options
def verify(options: Options, contents: bool, log: str) -> int:
    """Check a whole log, and name the first gap, fork or bad hash."""
    with options.connect() as client, progress(f"checking {log}", wanted=not options.no_progress, counted=True) as shown:
        found = cast("dict[str, Json]", client.call("log.verify", {"log": log, "contents": contents}, progress=shown))
    problem = cast("dict[str, Json] | None", found["problem"])
    if options.json:
        click.echo(json.dumps(found))
    elif problem is None:
        entries, pages = _count(cast(int, found["entries"])), counted(cast(int, found["pages"]), "page")
        click.echo(f"log {log} is whole: {entries} in {pages}, {found['scrubbed']} of them scrubbed")
    else:
        for each in cast("list[dict[str, Json]]", found["problems"]):
            click.echo(f"{each['kind']}: {text.shown(str(each['message']))}")
    return 0 if problem is None else 1


@log.command()
@click.argument("seq", type=click.IntRange(1))
@click.argument("last_seq", metavar="[LAST]", type=click.IntRange(1), required=False)
@a_log
@no_progress
@as_json
@connection
@pass_options
def scrub(options: Options, seq: int, last_seq: int | None, log: str) -> None:
    """Remove the content of entry SEQ, or of SEQ to LAST, for good.

    The number and the local hash stay, so that readers do not take it for lost.
    """
    params = parameters(log=log, seq=seq, last_seq=last_seq)
    undone = if_interrupted("the log is as it was, or scrubbed", hint=f"`zstor log scrub {seq}` again is safe, and finishes it")
    with undone, options.connect() as client, progress("scrubbing", wanted=not options.no_progress, counted=True) as shown:
        found = cast("dict[str, Json]", client.call("log.scrub", params, progress=shown))
    if options.json:
        click.echo(json.dumps(found))
        return
    gone, kept = cast("list[str]", found["gone"]), cast("list[dict[str, Json]]", found["kept"])
    click.echo(f"scrubbed {_count(cast(int, found['entries']))}, {counted(len(gone), 'content')} gone")
    for each in kept:
        owners = text.shown(", ".join(cast("list[str]", each["owners"])))
        click.echo(f"kept: {each['id']}, for {owners or 'nobody, until it is collected'}")
    click.echo(f"what remains: {found['remains']}")


@log.command()
@click.argument("file", metavar="FILE|-", type=OUTPUT)
@click.option("-f", "--force", is_flag=True, help="Replace a file that is there.")
@a_log
@no_progress
@as_json
@connection
@pass_options
def export(options: Options, file: str, force: bool, log: str) -> None:
    """Write a whole log as one CAR file that any IPFS tool can read."""
    if file == "-" and options.json:
        raise click.UsageError("--json needs a FILE: standard output has the log's bytes")
    taker = standard_output() if file == "-" else destination(file_to_write(file), force=force, own=options.daemons_own())
    with (
        options.connect() as client,
        taker as taken,
        progress(f"exporting {log}", wanted=not options.no_progress, counted=True) as shown,
    ):
        found = cast("dict[str, Json]", client.call("log.export", {"log": log, "fd": 0}, fds=[taken.fd], progress=shown))
    if file == "-":
        return
    size = text.size(cast(int, found["bytes"]))
    click.echo(json.dumps(found) if options.json else f"exported {_count(cast(int, found['entries']))}, {size}, root {found['root']}")


@log.command("import")
@click.argument("file", metavar="FILE", type=FILE)
@click.option("--log", "log", metavar="LOG", help="The log to make of it (the one it was exported from).")
@no_progress
@as_json
@connection
@pass_options
def import_(options: Options, file: str, log: str | None) -> None:
    """Make a log what FILE of `zstor log export` says.

    Every block is checked. A log that is there may only grow by it; an import that was broken off goes on where it was.
    """
    params = parameters(fd=0, log=log)
    kept = if_interrupted("the log is as it was; what was read of its content is kept for a while", hint="the same again goes on there")
    with (
        kept,
        source(file, instead="name a file that `zstor log export` has written") as given,
        options.connect() as client,
        progress(f"importing {file}", wanted=not options.no_progress, counted=True) as shown,
    ):
        found = cast("dict[str, Json]", client.call("log.import", params, fds=[given.fd], progress=shown))
    click.echo(
        json.dumps(found) if options.json else f"log {found['log']}: {found['state']}, {_count(cast(int, found['entries']))} more"
    )


@log.command()
@as_json
@connection
@pass_options
def ls(options: Options) -> None:
    """List the logs."""
    with options.connect() as client:
        for each in cast("Iterator[LogView]", client.items("log.list", {})):
            click.echo(json.dumps(each) if options.json else f"{each['entries']:>8}  {each['log']}")


# --- What is shown ---


def show(options: Options, entry: LogEntry) -> None:
    """An entry as a line: with --json all of it, else its number and content."""
    click.echo(json.dumps(entry) if options.json else _line(entry))


def _count(entries: int) -> str:
    return counted(entries, "entry", "entries")


def _line(entry: LogEntry) -> str:
    if entry["id"] is None:
        content = "(scrubbed)"
    elif "value_b64" in entry:
        content = text.shown(base64.b64decode(str(entry["value_b64"])).decode(errors="backslashreplace"))
    else:
        content = f"{base64.b64decode(str(entry['local_hash_b64'])).hex()}  {entry['id']}"
    return f"{entry['seq']:>6}  {content}"


def _show_page(page: LogPageView) -> None:
    """The specification's view, a line a pair."""
    pairs, tail = cast("tuple[list[list[str | None]], str | None]", page["view"])
    for local_hash, address in pairs:
        click.echo(f"  {local_hash}  {address or '(scrubbed)'}")
    click.echo(f"next page: {tail or 'none, this is the first'}")


def _entries(client: Client, log: str, since: int | None, newest: int | None, *, wait: int) -> Iterator[LogEntry]:
    """Entries with their content: those that are there, or with `wait` for ever."""
    if newest is not None and wait:  # what comes next: the number to begin at is asked for once
        since, newest = cast("LogHead", client.call("log.head", {"log": log}))["log"]["entries"], None
    params = parameters(log=log, values=True, newest=newest, since_seq=since, wait_seconds=wait or None)
    while True:
        page = cast("LogEntries", client.call("log.read", params))
        yield from page["entries"]
        if not page["entries"] and not wait:
            return
        params.pop("newest", None)
        params["since_seq"] = page["next"]


def _in_base64(given: str) -> str:
    """The same bytes as hex digits say."""
    try:
        return base64.b64encode(bytes.fromhex(given)).decode()
    except ValueError:
        raise click.BadParameter(f"{given!r} is not hex digits") from None
