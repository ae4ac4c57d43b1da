"""`zstor ref`: the references of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import click

from zstor_local.cli import text
from zstor_local.cli.options import Options, as_json, completed, connection, namespace, pass_options
from zstor_local.counted import counted

if TYPE_CHECKING:
    from zstor_local.rpc.methods.objects import Written
    from zstor_local.rpc.methods.references import Appended as References


@click.group()
def ref() -> None:
    """Keep references with objects, and find objects by them."""


@ref.command()
@click.argument("key", shell_complete=completed("keys"))
@click.argument("references", metavar="REFERENCE...", nargs=-1, required=True)
@as_json
@namespace
@connection
@pass_options
def add(options: Options, key: str, references: tuple[str, ...]) -> None:
    """Add references to an object, behind those it has.

    They stay until it is written again.
    """
    _change(options, "reference.append", key, references)


@ref.command()
@click.argument("key", shell_complete=completed("keys"))
@click.argument("references", metavar="REFERENCE...", nargs=-1, required=True)
@as_json
@namespace
@connection
@pass_options
def rm(options: Options, key: str, references: tuple[str, ...]) -> None:
    """Take references away from an object; one that is not there is fine."""
    _change(options, "reference.remove", key, references)


@ref.command()
@click.argument("key", shell_complete=completed("keys"))
@as_json
@namespace
@connection
@pass_options
def ls(options: Options, key: str) -> None:
    """List the references of an object."""
    with options.connect() as client:
        metadata = cast("Written", client.call("object.stat", {"key": key, **options.place()}))["metadata"]
    if options.json:
        click.echo(json.dumps({"references": metadata["references"]}))
        return
    for reference in metadata["references"]:
        click.echo(text.shown(reference))


@ref.command()
@click.argument("reference")
@as_json
@namespace
@connection
@pass_options
def find(options: Options, reference: str) -> None:
    """List the keys of the objects that have REFERENCE.

    In the order of their bytes; with --json one line an object.
    """
    with options.connect() as client:
        for key in cast("Iterator[str]", client.items("reference.find", {"reference": reference, **options.place()}, member="keys")):
            click.echo(json.dumps({"key": key}) if options.json else text.shown(key))


def _change(options: Options, method: str, key: str, references: tuple[str, ...]) -> None:
    with options.connect() as client:
        answer = cast("References", client.call(method, {"key": key, "references": list(references), **options.place()}))
    if options.json:
        click.echo(json.dumps(answer))
    else:
        click.echo(f"{text.shown(key)} has {counted(len(answer['references']), 'reference')}")
