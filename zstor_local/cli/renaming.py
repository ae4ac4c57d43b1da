"""`zstor mv` and `cp`: other keys for objects, without moving their bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import click

from zstor_local.cli import report, text
from zstor_local.cli.client import parameters
from zstor_local.cli.options import Options, as_json, completed, connection, namespace, pass_options

if TYPE_CHECKING:
    from zstor_local.rpc.methods.objects import Written


@click.command()
@click.argument("key", shell_complete=completed("keys"))
@click.argument("new_key")
@click.option("--exclusive", is_flag=True, help="Only if no object has NEW_KEY.")
@as_json
@namespace
@connection
@pass_options
def mv(options: Options, key: str, new_key: str, exclusive: bool) -> None:
    """Give an object another key.

    At once, whatever its size; an object that has NEW_KEY is replaced. With a slash at its end NEW_KEY is a directory: the object goes
    into it, under its last name.
    """
    _change(options, "object.rename", key, new_key, exclusive=exclusive, done="renamed")


@click.command()
@click.argument("key", shell_complete=completed("keys"))
@click.argument("new_key")
@click.option("--exclusive", is_flag=True, help="Only if no object has NEW_KEY.")
@as_json
@namespace
@connection
@pass_options
def cp(options: Options, key: str, new_key: str, exclusive: bool) -> None:
    """Give an object a second key.

    At once and without more room, whatever its size; each of the two may be written or deleted by itself. With a slash at its end
    NEW_KEY is a directory: the copy goes into it, under the object's last name.
    """
    _change(options, "object.copy", key, new_key, exclusive=exclusive, done="copied")


def _change(options: Options, method: str, key: str, new_key: str, *, exclusive: bool, done: str) -> None:
    if new_key.endswith("/") and not key.endswith("/"):
        new_key += key.rpartition("/")[2]
    params = parameters(key=key, new_key=new_key, exclusive=exclusive or None) | options.place()
    with options.connect() as client:
        metadata = cast("Written", client.call(method, params))["metadata"]
    if options.json:
        click.echo(json.dumps({"metadata": metadata}))
        return
    click.echo(f"{done} {text.shown(key)} to {text.shown(new_key)}")
    if metadata["owed"]:
        report.owed(metadata["owed"])
