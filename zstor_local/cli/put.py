"""`zstor put`: a file or a pipe becomes an object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from zstor_local.cli import report, text
from zstor_local.cli.client import Client, Json, parameters
from zstor_local.cli.handover import source
from zstor_local.cli.options import FILE, Options, as_json, completed, connection, namespace, no_progress, pass_options
from zstor_local.cli.progress import progress
from zstor_local.counted import counted
from zstor_local.errors import NotFound

if TYPE_CHECKING:
    from zstor_local.rpc.methods.objects import Written
    from zstor_local.store.metadata import Metadata


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for name, separator, _ in pairs:
        if not separator or not name:
            raise click.BadParameter(f"{name!r} is not NAME=TEXT")
    return {name: value for name, _, value in pairs}


@click.command(epilog="From a pipe:  tar c photos | zstor put - photos.tar")
@click.argument("file", metavar="FILE|DIRECTORY|-", type=FILE)
@click.argument("key", required=False, shell_complete=completed("keys"))
@click.option("-r", "recursive", is_flag=True, help="A DIRECTORY with all in it: KEY/name for each, with mode and time.")
@click.option("--if-version", metavar="VERSION", help="Only if this is the version that is there.")
@click.option("--exclusive", is_flag=True, help="Only if no object has the key.")
@click.option("--user", metavar="NAME=TEXT", multiple=True, callback=_pairs, help="Text to keep beside it; may be repeated.")
@click.option("--reference", metavar="TEXT", multiple=True, help="A reference to keep beside it; may be repeated.")
@click.option(
    "--previous", metavar="KEY", shell_complete=completed("keys"), help="Link it behind this object, which nothing else may follow."
)
@click.option("--size", type=click.IntRange(min=0), metavar="BYTES", help="Refuse any other size; a broken pipe looks like its end.")
@click.option("--digest", metavar="blake3:HEX", help="Refuse any other content.")
@no_progress
@as_json
@namespace
@connection
@pass_options
def put(
    options: Options,
    file: str,
    key: str | None,
    recursive: bool,
    if_version: str | None,
    exclusive: bool,
    user: dict[str, str],
    reference: tuple[str, ...],
    previous: str | None,
    size: int | None,
    digest: str | None,
) -> int:
    """Store FILE, or a pipe (-), as an object.

    KEY is its name, the file's own if not given; below KEY if that ends with a slash. Done means durable: it survives a power cut and
    the loss of some shards. An object that is there already gets a new version; a namespace that is not there yet is made.

    With -r contents, modes, times and symbolic links are kept; owners, extended attributes, hard links and holes are not.
    """
    if recursive:
        if if_version or previous or size is not None or digest or file == "-":
            raise click.UsageError("-r takes a directory, and none of --if-version, --previous, --size and --digest")
        if (named := Path(file)).exists() and not named.is_dir():
            raise click.UsageError(f"{file} is no directory: leave -r out")
        from zstor_local.cli.trees import put_tree

        extra: dict[str, Json] = {"user": user, "references": list(reference), "exclusive": exclusive}
        with _telling_of_a_new_namespace(options):
            return put_tree(options, file, key, {name: value for name, value in extra.items() if value})
    if key is None or key.endswith("/"):
        name = "" if file == "-" else Path(file).name
        if not name:
            raise click.UsageError(f"{file} has no name of its own: give a KEY")
        key = f"{key or ''}{name}"
    params = parameters(
        key=key,
        fd=0,
        if_version=if_version,
        exclusive=exclusive or None,
        user=user or None,
        references=list(reference) or None,
        previous_key=previous,
        expected_size=size,
        expected_digest=digest,
    )
    params |= options.place()
    given_source = source(file, instead="`zstor put -r` takes all that is in it; as one object: tar c DIRECTORY | zstor put - KEY")
    with given_source as given, options.connect() as client, _telling_of_a_new_namespace(options):
        with progress(key, wanted=not options.no_progress, total=size if given.size is None else given.size) as shown:
            answer = client.call(f"object.write_{given.kind}", params, fds=[given.fd], progress=shown)
        _tell(cast("Written", answer)["metadata"], json_wanted=options.json)
    return 0


@contextmanager
def _telling_of_a_new_namespace(options: Options) -> Iterator[None]:
    """A mistyped -n makes a namespace, as any first write to a new name does: people are told when it is there."""
    if options.json or options.namespace is None:
        yield
        return
    with options.connect() as client:
        before = _is_there(client, options.namespace)
        yield
        if not before and _is_there(client, options.namespace):
            report.warning(f"there was no namespace {options.namespace}: it was made; `zstor namespace ls` lists all")


def _is_there(client: Client, namespace: str) -> bool:
    try:
        client.call("namespace.get", {"namespace": namespace})
    except NotFound:
        return False
    return True


def _tell(metadata: Metadata, *, json_wanted: bool) -> None:
    if json_wanted:
        click.echo(json.dumps({"metadata": metadata}))
        return
    policy = metadata["policy"]
    shares = counted(policy["m"], "share")
    name = text.shown(metadata["key"])
    click.echo(f"stored {name}: {text.size(metadata['size'])} in {shares}, any {policy['k']} give it back")
    if metadata["owed"]:
        report.owed(metadata["owed"])
    elif metadata["health"] != "optimal":
        report.warning("there is no shard for some of its shares: `zstor shard add` gives room, `zstor repair` fills it")
