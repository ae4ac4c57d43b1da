"""`zstor get`: an object becomes a file, or goes through a pipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast

import click

from zstor_local.cli import text
from zstor_local.cli.client import parameters
from zstor_local.cli.handover import destination, file_to_write, standard_output
from zstor_local.cli.options import OUTPUT, Options, as_json, completed, connection, namespace, no_progress, pass_options
from zstor_local.cli.progress import progress

if TYPE_CHECKING:
    from zstor_local.rpc.methods.objects import Sent


@click.command()
@click.argument("key", shell_complete=completed("keys"))
@click.argument("file", metavar="[FILE|DIRECTORY|-]", required=False, type=OUTPUT)
@click.option("-f", "--force", is_flag=True, help="Replace FILE if it is there.")
@click.option("-r", "recursive", is_flag=True, help="All objects below KEY/, as the files of a DIRECTORY.")
@click.option("--links-outside", is_flag=True, help="With -r: make symbolic links that lead out of the DIRECTORY too.")
@click.option("--offset", type=click.IntRange(min=0), metavar="BYTES", help="Leave out the first BYTES.")
@click.option("--length", type=click.IntRange(min=0), metavar="BYTES", help="At most so many bytes.")
@no_progress
@as_json
@namespace
@connection
@pass_options
def get(
    options: Options,
    key: str,
    file: str | None,
    force: bool,
    recursive: bool,
    links_outside: bool,
    offset: int | None,
    length: int | None,
) -> int:
    """Write an object to FILE, or to a pipe.

    Without FILE: to standard output where that is a file or a pipe, on a terminal to a file of the key's last name. A file that is
    there already stays, unless -f is given, and the new one appears only when it is whole.

    With -r everything that `zstor put -r` stored under KEY comes back, in a directory of its last name, or in DIRECTORY if nothing has
    that name yet. Nothing is written outside of it, or through a symbolic link.
    """
    if recursive:
        if offset is not None or length is not None:
            raise click.UsageError("-r makes a directory; it takes neither --offset nor --length")
        if file == "-":
            raise click.UsageError("-r makes a directory, and no pipe: name it in place of the -")
        from zstor_local.cli.trees import get_tree

        return get_tree(options, key, file, force=force, outside=links_outside)
    path = _path(key, file)
    if path is None and options.json:
        raise click.UsageError("--json needs a FILE: standard output has the object's bytes")
    params = parameters(key=key, fd=0, offset=offset, length=length) | options.place()
    taker = standard_output() if path is None else destination(path, force=force, own=options.daemons_own())
    with options.connect() as client, taker as taken, progress(key, wanted=not options.no_progress) as shown:
        sent = cast("Sent", client.call(f"object.read_{taken.kind}", params, fds=[taken.fd], progress=shown))
    if path is None:
        return 0
    if options.json:
        click.echo(json.dumps(dict(sent) | {"path": str(path.absolute())}))
    else:
        click.echo(f"wrote {text.shown(str(path))}: {text.size(sent['bytes'])}")
    return 0


def _path(key: str, file: str | None) -> Path | None:
    """Where the bytes go; None is standard output."""
    if file == "-" or (file is None and not sys.stdout.isatty()):
        return None
    path = file_to_write(file or ".")
    if not path.is_dir():
        return path
    name = PurePosixPath(key).name
    if name in ("", ".."):
        raise click.UsageError(f"{key!r} has no last name: give a FILE")
    return path / name
