"""What goes to stderr: errors as two lines for people, or as one JSON object for programs; warnings."""

from __future__ import annotations

import json as jsonlib
import sys
from typing import Final

import click

from zstor_local.cli import stdio
from zstor_local.cli.text import safe
from zstor_local.counted import counted
from zstor_local.errors import ZstorError

OWN: Final = 600  # the code of what the command itself says, before or without an answer; data.type tells what it is


def error(error: ZstorError, *, json: bool) -> None:
    """A typed error, the daemon's or our own."""
    if json:
        data = {"type": error.type, "retryable": error.retryable} | ({"hint": error.hint} if error.hint else {}) | error.data
        _print_json({"code": error.code, "message": error.message, "data": data})
    else:
        _print_text(error.message, error.hint)


def failure(kind: str, message: str, *, hint: str | None = None, json: bool) -> None:
    """What went wrong before or without an answer."""
    if json:
        data = {"type": kind, "retryable": False} | ({"hint": hint} if hint else {})
        _print_json({"code": OWN, "message": message, "data": data})
    else:
        _print_text(message, hint)


def usage(error: click.UsageError, *, json: bool) -> None:
    """A wrong command line, and how to see a right one."""
    command = error.ctx.command_path if error.ctx else "zstor"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()  # the help itself
        return
    message = " ".join(error.format_message().split()).rstrip(".")  # click lists choices in lines of their own
    message = message.replace("a valid integer range", "a whole number")  # its name of a type for what is none of it
    hint = f"{command} --help"
    if "unexpected extra argument" in message and error.ctx and any(param.name == "log" for param in error.ctx.command.params):
        hint = f"a log is named with --log: {hint}"
    failure("usage", message[:1].lower() + message[1:], hint=hint, json=json)


def warning(message: str) -> None:
    _line("zstor: warning: ", "yellow", message)


def owed(shards: int) -> None:
    """A change that some shards have still to hear of."""
    warning(f"it is done, but {counted(shards, 'shard was', 'shards were')} away; what was missed there follows when it is back")


def _print_text(message: str, hint: str | None) -> None:
    _line("zstor: error: ", "red", message)
    if hint:
        _line("  hint: ", "cyan", hint)


def _line(label: str, color: str, text: str) -> None:
    _tell(stdio.styled(label, sys.stderr, fg=color, bold=True) + safe(text, sys.stderr))


def _print_json(error: dict[str, object]) -> None:
    _tell(jsonlib.dumps({"error": error}))


def _tell(line: str) -> None:
    """Where it cannot be written, as on a full disk, the exit code alone says how it went."""
    try:
        click.echo(line, err=True)
    except BrokenPipeError:
        raise
    except OSError:
        stdio.discard(sys.stderr)
