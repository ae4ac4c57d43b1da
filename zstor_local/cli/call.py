"""`zstor call`: any method of the daemon, from the shell."""

from __future__ import annotations

import json
import re
import sys
from contextlib import ExitStack
from typing import Final, cast

import click

from zstor_local.cli import text
from zstor_local.cli.client import Json
from zstor_local.cli.handover import source
from zstor_local.cli.options import Options, as_json, completed, connection, no_progress, pass_options
from zstor_local.cli.progress import progress

_PARAMETER: Final = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<sign>:=|:@|=)(?P<value>.*)\Z", re.DOTALL)
_SHOWN: Final = 100  # characters of what is no JSON

_EXAMPLES: Final = """\b
For example:
  zstor call object.stat key=notes.txt
  zstor call object.write key=a value=hello exclusive:=true"""


@click.command(epilog=_EXAMPLES)
@click.argument("method", shell_complete=completed("methods"))
@click.argument("parameters", metavar="[NAME=TEXT | NAME:=JSON | fd:@FILE]...", nargs=-1)
@no_progress
@as_json
@connection
@pass_options
def call(options: Options, method: str, parameters: tuple[str, ...]) -> None:
    """Call METHOD and print its result as JSON.

    `zstor call help` lists the methods, `zstor call help method=NAME` explains one; on a terminal a text is shown as it is.
    NAME=TEXT is always text, NAME:=JSON anything else, and fd:@FILE hands over a file (- is standard input) as a descriptor.
    """
    with ExitStack() as opened:
        params: dict[str, Json] = {}
        fds: list[int] = []
        for parameter in parameters:
            name, sign, value = _split(parameter)
            if name in params:
                raise click.UsageError(f"{name} is given twice")
            if sign == ":@":
                params[name] = len(fds)
                fds.append(opened.enter_context(source(value)).fd)
            else:
                params[name] = value if sign == "=" else _json(name, value)
        client = opened.enter_context(options.connect())
        with progress(method, wanted=not options.no_progress, counted=True) as shown:
            result = client.call(method, params, fds=fds, progress=shown)
    if options.json or not sys.stdout.isatty():
        click.echo(json.dumps(result))
    else:
        click.echo(text.shown_lines(result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False)))


def _split(parameter: str) -> tuple[str, str, str]:
    found = _PARAMETER.match(parameter)
    if found is None:
        raise click.UsageError(f"{parameter!r} is not NAME=TEXT, NAME:=JSON or fd:@FILE")
    return found["name"], found["sign"], found["value"]


def _json(name: str, value: str) -> Json:
    """What the JSON text says; it may neither be nested without end nor hold halves of surrogate pairs, which are no text."""
    try:
        parsed = cast(Json, json.loads(value))
        json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        shown = value[:_SHOWN]
        raise click.UsageError(f"{name}:= is followed by JSON, not {shown!r}; for text write {name}={shown}") from None
    return parsed
