"""`zstor ns`: names for things that change."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, cast

import click

from zstor_local import limits
from zstor_local.cli import text
from zstor_local.cli.client import Client, parameters
from zstor_local.cli.handover import bytes_of
from zstor_local.cli.interrupting import ends_by_interrupt
from zstor_local.cli.options import Options, as_json, completed, connection, pass_options

if TYPE_CHECKING:
    from zstor_local.rpc.methods.ns import NameFetched, NameListed


WATCH_SECONDS: Final = 300


@click.group()
def ns() -> None:
    """Give names to things that change, and wait for their changes."""


@ns.command("set")
@click.argument("name", shell_complete=completed("names"))
@click.argument("value", metavar="TEXT|-")
@click.option("--if-seq", type=click.IntRange(min=0), metavar="N", help="Only while this is its number; 0: while it is not there.")
@as_json
@connection
@pass_options
def set_(options: Options, name: str, value: str, if_seq: int | None) -> None:
    """Set the value of NAME to TEXT, or to what standard input holds (-).

    Done means durable, and that everybody who watches the name is told.
    """
    in_base64 = base64.b64encode(bytes_of(value, limits.NAME_VALUE_BYTES)).decode()
    with options.connect() as client:
        answer = cast("NameFetched", client.call("ns.update", parameters(name=name, value_b64=in_base64, if_seq=if_seq)))
    click.echo(json.dumps(answer) if options.json else f"set {text.shown(name)}: change {answer['seq']}")


@ns.command()
@click.argument("name", shell_complete=completed("names"))
@as_json
@connection
@pass_options
def get(options: Options, name: str) -> None:
    """Print the value of NAME."""
    with options.connect() as client:
        _show(options, cast("NameFetched", client.call("ns.fetch", {"name": name})))


@ns.command()
@click.argument("name", shell_complete=completed("names"))
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="N", help="Begin with the first change above this number.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many changes.")
@as_json
@connection
@pass_options
def watch(options: Options, name: str, after: int, count: int | None) -> None:
    """Print the value of NAME, and again whenever it changes.

    Of changes in quick succession the last one is shown; with --json one line a change.
    """
    with ends_by_interrupt(None if options.json else f"changes of {name}"), options.connect() as client:
        for number, change in enumerate(_changes(client, name, after), 1):
            _show(options, change, line=True)
            sys.stdout.flush()
            if number == count:
                return


@ns.command()
@click.argument("prefix", default="", shell_complete=completed("names"))
@as_json
@connection
@pass_options
def ls(options: Options, prefix: str) -> None:
    """List the names that begin with PREFIX.

    Those that begin with log/ are the heads of logs.
    """
    with options.connect() as client:
        for item in cast("Iterator[NameListed]", client.items("ns.list", {"prefix": prefix})):
            if options.json:
                click.echo(json.dumps(item))
            else:
                when, size = text.when(item["updated_epoch"]), text.size(item["size"])
                click.echo(f"{when}  {size:>10}  {item['seq']:>6}  {text.shown(item['name'])}")


@ns.command()
@click.argument("name", shell_complete=completed("names"))
@click.option("--if-seq", type=click.IntRange(min=0), metavar="N", help="Only while this is the name's number.")
@as_json
@connection
@pass_options
def rm(options: Options, name: str, if_seq: int | None) -> None:
    """Delete NAME.

    Its number is not used again: should it come back, it goes on above.
    """
    with options.connect() as client:
        answer = client.call("ns.delete", parameters(name=name, if_seq=if_seq))
    click.echo(json.dumps(answer) if options.json else f"deleted {text.shown(name)}")


def _changes(client: Client, name: str, after: int) -> Iterator[NameFetched]:
    """Every state of the name that is seen, from `after` on, for ever."""
    while True:
        answer = cast("NameFetched", client.call("ns.fetch", {"name": name, "after_seq": after, "wait_seconds": WATCH_SECONDS}))
        if answer["seq"] > after:
            after = answer["seq"]
            yield answer


def _show(options: Options, fetched: NameFetched, *, line: bool = False) -> None:
    """The bytes as they are; on a terminal as lines that end, of a stream as one line."""
    if options.json:
        click.echo(json.dumps(fetched))
        return
    data = base64.b64decode(str(fetched.get("value_b64", "")))
    if not line and not sys.stdout.isatty():
        sys.stdout.buffer.write(data)
        return
    content = data.decode(errors="backslashreplace")
    click.echo("(deleted)" if fetched.get("deleted") else text.shown(content) if line else text.shown_lines(content))
