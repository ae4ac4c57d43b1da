"""`zstor key`: the master key, without which nothing can be read."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from zstor_local.cli import report
from zstor_local.cli.backup_words import WORDS, BadWords, from_words, to_words
from zstor_local.cli.handover import as_io_error, naming_errors
from zstor_local.cli.options import Options, as_json, connection, pass_options
from zstor_local.errors import AlreadyExists, IoError, KeyMissing
from zstor_local.model.masterkey import NEXT, BadKeyFile, MasterKey

if TYPE_CHECKING:
    from zstor_local.rpc.methods.daemon import Status
    from zstor_local.rpc.methods.keys import Retired, Rotated


_PER_LINE = 4


@click.group()
def key() -> None:
    """Keep the master key safe.

    Whoever loses it loses everything.
    """
    from zstor_local.process import keep_secrets

    keep_secrets()  # some of these read it themselves, or its words


@key.command()
@click.option("--yes", is_flag=True, help="Print the words although standard output is no terminal.")
@as_json
@connection
@pass_options
def backup(options: Options, yes: bool) -> None:
    """Print the master key as words, to write on paper.

    The words open everything: keep them as the key itself. They hold a check, so that a slip of the pen is found when they are
    read back. No daemon is needed.
    """
    if not sys.stdout.isatty() and not yes:
        raise click.UsageError("the words are secret and standard output is no terminal: --yes prints them all the same")
    _print_words(options, Path(options.load().master_key_file))


@key.command()
@click.option("--yes", is_flag=True, help="Print the new words although standard output is no terminal.")
@as_json
@connection
@pass_options
def rotate(options: Options, yes: bool) -> None:
    """Give the store a new master key, and print its words.

    The words of earlier backups open nothing that is written from now on: destroy them once you have the new ones on paper. The records
    are sealed anew in the background, over restarts if need be; `zstor status` tells until when.

    Where an earlier rotation has not come to its end, because a record did not open or shards were away, this goes on with it instead:
    its key stays, and its words are printed again.

    This does not shut out somebody who has the old key and copies of the shards: those copies stay readable to them. Shard servers let
    in who has the old key until `zstor key retire`.
    """
    if not sys.stdout.isatty() and not yes:
        raise click.UsageError("the new words are secret and standard output is no terminal: --yes prints them all the same")
    with options.connect() as client:
        rotated = cast("Rotated", client.call("key.rotate", {}))
        shards = cast("Status", client.call("daemon.status", {}))["shards"]
    if not rotated["new"] and not options.json:
        report.warning("no new key was made: this goes on with an earlier rotation, whose key it is")
    _print_words(options, Path(rotated["key_file"]), new=rotated["new"])
    if not options.json and not all(shard["url"].removeprefix("file://").startswith("/") for shard in shards):
        click.echo("Once they are there: `zstor key retire`. Until then shard servers let in who has the old ones.")


@key.command()
@as_json
@connection
@pass_options
def retire(options: Options) -> None:
    """Have shard servers let in nobody with an older master key.

    Run it once the words of the present key are kept: on shard servers the older ones are good for nothing from then on. Tokens that
    the daemon has signed for users until now end with it. Servers that are away are told later; `zstor status` names them until then.
    """
    with options.connect() as client:
        retired = cast("Retired", client.call("key.retire", {}))
    click.echo(json.dumps(retired) if options.json else "no shard server that is there lets in who has an older master key")


def _print_words(options: Options, path: Path, **told: bool) -> None:
    """The words for people, or as JSON with what else is `told`."""
    master_key = _read(path)
    words = to_words(master_key)
    if from_words(" ".join(words)) != master_key:
        raise IoError("the words do not read back; nothing is printed")
    if options.json:
        click.echo(json.dumps({"store_id": master_key.store_id.hex(), "words": words, **told}))
        return
    click.echo(f"Master key of the store {master_key.store_id.hex()}, {WORDS} words:\n")
    for start in range(0, WORDS, _PER_LINE):
        click.echo("   ".join(f"{number + 1:2} {words[number]}" for number in range(start, min(start + _PER_LINE, WORDS))))
    click.echo("\nKeep them where the disks of this store are not.")


@key.command()
@as_json
@connection
@pass_options
def restore(options: Options) -> None:
    """Make the master key file anew from the words of a backup.

    They are read from standard input. An existing key file is never replaced. With the key and the shards, `zstor rebuild` brings
    back everything.
    """
    path = Path(options.load().master_key_file)
    if sys.stdin.isatty():
        click.echo(f"Type the {WORDS} words, then Ctrl-D on a line of its own:", err=True)
    with naming_errors("standard input"):
        written = sys.stdin.read()
    try:
        master_key = from_words(_written_words(written))
    except BadWords as error:
        raise KeyMissing(f"that is no backup of a master key: {error}", hint="compare with the paper, word by word") from None
    from zstor_local.daemon import keep_key

    try:
        keep_key(str(path), master_key)
    except FileExistsError:
        raise AlreadyExists(f"there is a master key at {path} already; it was not touched", hint="move it away first") from None
    except OSError as error:
        raise as_io_error(error, str(path)) from None
    if options.json:
        click.echo(json.dumps({"store_id": master_key.store_id.hex(), "master_key_file": str(path)}))
        return
    click.echo(f"restored the master key of the store {master_key.store_id.hex()} to {path}")


def _written_words(text: str) -> str:
    """The lines that have numbers, if some have: what `backup` printed around them is let go."""
    numbered = [line for line in text.splitlines() if re.match(r"\s*\d+\s", line)]
    return "\n".join(numbered) if numbered else text


def _read(path: Path) -> MasterKey:
    if path.with_name(path.name + NEXT).exists():
        raise KeyMissing("a rotation of the master key was broken off", hint="start the daemon: it finishes that; then ask again")
    try:
        if path.stat().st_mode & 0o077:
            report.warning(f"others may read {path}:  chmod 600 {path}")
        return MasterKey.from_text(path.read_text())
    except FileNotFoundError:
        hint = "`zstor key restore` makes it anew from the words of a backup; where there is no store yet, `zstor init` makes both"
        raise KeyMissing(f"there is no master key at {path}", hint=hint) from None
    except OSError as error:
        raise as_io_error(error, str(path)) from None
    except (BadKeyFile, UnicodeDecodeError) as error:
        why = error if isinstance(error, BadKeyFile) else "it is not text"
        raise KeyMissing(f"{path} is no master key: {why}") from None
