"""The standard streams, in whatever state the command is given them: closed, full, in another encoding, without colors."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Final

import click

from zstor_local.errors import ZstorError


def settle() -> None:
    """Make the three streams usable: after it nothing else gets their numbers, and no text is too foreign to be written.

    One that is closed refuses to be read or written (EBADF): the number must not become a socket's or a file's, which would then get
    what is meant for the user.
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - for as long as the process runs
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # as the command line: what is no text is refused where text is needed
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: what the locale cannot say appears as an escape


# What click's contexts take as `color`: it takes no escape sequence away. What others wrote (a key, an entry of a log) goes into a pipe
# byte for byte; where it may not reach a terminal, `text.safe` has seen to it.
UNTOUCHED: Final = True


def plain() -> bool:
    """Whether somebody wants no colors, even on a terminal."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def styled(text: str, stream: IO[str], *, fg: str | None = None, bold: bool | None = None, dim: bool | None = None) -> str:
    """The text in color where the stream is a terminal and colors are wanted, else as it is."""
    return click.style(text, fg=fg, bold=bold, dim=dim) if stream.isatty() and not plain() else text


def failed(error: OSError) -> ZstorError:
    """What the system says against the output as a typed error. What could not be written is given up."""
    from zstor_local.cli.handover import as_io_error

    discard(sys.stdout)
    return as_io_error(error, str(error.filename) if error.filename else "the output")


class Unread(Exception):
    """Whoever read the output has enough."""


@contextmanager
def told_unread() -> Iterator[None]:
    """Unread for a closed pipe, of which click and rich make an exit by code 1."""
    try:
        yield
    except BrokenPipeError:
        raise Unread from None
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            raise Unread from None
        raise


def give_up() -> None:
    """Nobody reads: what was not written goes nowhere."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
            continue
        discard(stream)


def discard(stream: IO[str]) -> None:
    """What was not written there, and what is yet to be, goes nowhere."""
    with suppress(OSError, ValueError):
        fd = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, fd)  # else the interpreter tries again at its end, and complains in its own words
        os.close(nowhere)
