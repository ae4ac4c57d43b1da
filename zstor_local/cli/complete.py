"""`zstor complete`: what a shell needs to complete our commands."""

from __future__ import annotations

import json
from typing import Final

import click
from click.shell_completion import get_completion_class

from zstor_local.cli.options import Options, as_json, pass_options
from zstor_local.cli.root import zstor

_EPILOG: Final = """\b
To switch it on for good (docs/quickstart.md has the rest):
  zstor complete bash > ~/.local/share/bash-completion/completions/zstor
  zstor complete zsh > ~/.zfunc/_zstor
  zstor complete fish > ~/.config/fish/completions/zstor.fish"""


@click.command(epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@as_json
@pass_options
def complete(options: Options, shell: str) -> None:
    """Print the completion script of a shell.

    It completes commands, options, their values, files, and what the running daemon has: keys, namespaces, names, logs, contents,
    shards and methods.
    """
    from zstor_local.cli.completing import keep_options

    keep_options()
    kind = get_completion_class(shell)
    assert kind is not None, "click knows all three"  # noqa: S101 - narrows the type
    script = kind(zstor, {}, "zstor", "_ZSTOR_COMPLETE").source()
    click.echo(json.dumps({"shell": shell, "script": script}) if options.json else script)
