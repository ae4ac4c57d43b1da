"""Options that several commands share, and what they lead to: the configuration and a connection."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, TypeVar, cast

import click

from zstor_local.cli import report
from zstor_local.cli.client import Client, Json
from zstor_local.config import Config, ConfigError, config_file, load_config
from zstor_local.errors import errno_text

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from zstor_local.rpc.methods.daemon import Status
    from zstor_local.store.protected import Protected

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE: Final = re.compile(r"(\d{1,30})\s*([KMGTP]?)(?:i?B)?\Z", re.IGNORECASE)

Function = TypeVar("Function", bound=Callable[..., object])
Completed: TypeAlias = Literal["keys", "namespaces", "names", "logs", "contents", "shards", "methods"]
Completer: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[CompletionItem]]"


class Decorator(Protocol):
    """What gives a command function one more option."""

    def __call__(self, function: Function, /) -> Function: ...


@dataclass(slots=True)
class Options:
    """What the shared options said, wherever on the command line they stood."""

    config: str | None = None
    socket: str | None = None
    namespace: str | None = None
    json: bool = False
    no_progress: bool = False

    def load(self) -> Config:
        """The configuration; ConfigError says what is wrong with it."""
        environment = {"HOME": str(Path("~").expanduser()), **os.environ}
        file, named = config_file(environment, self.config)
        try:
            text = Path(file).read_text()
        except FileNotFoundError:
            if named:
                named_by = "--config" if self.config else "ZSTOR_CONFIG"
                raise ConfigError(f"there is no such configuration file; {named_by} names it", file=file) from None
            text = None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the configuration file cannot be read: {_reason(error)}", file=file) from None
        return load_config(text=text, file=file, environment=environment, socket=self.socket, namespace=self.namespace)

    def place(self) -> dict[str, Json]:
        """The parameter that names the namespace, where one was given."""
        return {"namespace": self.namespace} if self.namespace else {}

    def daemons_own(self, client: Client | None = None) -> Protected:
        """What nothing is written over, here as by the daemon where it is given a path: files of its own.

        The `client` is asked for the shards that the configuration does not name; without it they are the daemon's to refuse.
        """
        from zstor_local.store.protected import Protected

        status = None if client is None else cast("Status", client.call("daemon.status", {}))
        urls = [shard["url"].removeprefix("file://") for shard in status["shards"]] if status else []
        added = [url for url in urls if url.startswith("/")]
        return Protected.of(self.load(), functools.cache(os.path.realpath), lambda: added)

    def connect(self) -> Client:
        """A connection to the daemon; NoDaemon says how to start it."""
        config = self.load()
        return Client.connect(config.socket, start=self.how_to_start(config), hanging=None if self.json else _tell_of_hanging)

    def how_to_start(self, config: Config) -> str:
        """How the daemon is started, for people: as it was installed, if it was."""
        from zstor_local.cli.units import installed_socket

        if installed_socket(os.environ) == config.socket:
            return "start its service:  systemctl --user start zstor.socket  (`journalctl --user -u zstor` says why it ended)"
        flags = [part for name, value in (("--config", self.config), ("--socket", self.socket)) if value for part in (name, value)]
        return f"start it in another terminal:  {shlex.join(['zstor', *flags, 'daemon'])}"


def _tell_of_hanging() -> None:
    report.warning("the daemon was told to cancel it and has not answered yet; another Ctrl-C ends the command at once")


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return errno_text(error) if isinstance(error, OSError) else "it is not UTF-8"


def _keep(ctx: click.Context, param: click.Parameter, value: str | bool | None) -> None:
    if value == "":  # a variable that was not set: the default was not meant
        raise click.UsageError(f"{param.opts[-1]} has an empty name behind it")
    if value and param.name:
        setattr(ctx.find_root().ensure_object(Options), param.name, value)


def _keep_path(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    _keep(ctx, param, value and str(Path(value).absolute()))


def completed(what: Completed) -> Completer:
    """What click takes as `shell_complete`: the names that the running daemon has."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from zstor_local.cli.completing import complete

        return complete(what, ctx, incomplete)

    return complete


class _File(click.Path):
    """The name of a file; an empty one is a variable that was not set, and the present directory was not meant.

    Nothing is looked at, as click would do: where a disk hangs that is the daemon's to find out, which need not wait for it.
    """

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not os.fspath(value):
            raise click.UsageError("an empty name is no file or directory")
        return str(value)


class _Output(_File):
    """A file to write, or standard output, which is no file to replace under any of its names."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> str:
        return "-" if value in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1") else super().convert(value, param, ctx)


class Size(click.ParamType[int]):
    """A number of bytes: 1048576, 1M, 1MiB."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.match(str(value))
        if match is None:
            self.fail(f"{value!r} is no size; write it like 500M, 10GiB or 1048576", param, ctx)
        return int(match[1]) * _UNITS[match[2].upper()]


FILE: Final = _File(readable=False, allow_dash=True)  # the shells complete it; whether it can be opened is said where it is
OUTPUT: Final = _Output(readable=False, allow_dash=True)


def _shared(
    *names: str, path: bool = False, metavar: str | None = None, flag: bool = False, text: str, complete: Completer | None = None
) -> Decorator:
    return click.option(
        *names,
        callback=_keep_path if path else _keep,
        expose_value=False,
        metavar=metavar,
        is_flag=flag,
        type=FILE if path else None,
        help=text,
        shell_complete=complete,
    )


def connection(function: Function) -> Function:
    """--config and --socket, which the group and each command understand."""
    function = _shared("--socket", path=True, metavar="PATH", text="The daemon's socket.")(function)
    return _shared("--config", path=True, metavar="FILE", text="The configuration file.")(function)


namespace = _shared(
    "-n",
    "--namespace",
    metavar="NAME",
    text="The namespace (the configured default, at first “default”).",
    complete=completed("namespaces"),
)
as_json = _shared("--json", flag=True, text="JSON for programs, errors too.")
no_progress = _shared("--no-progress", flag=True, text="No progress bar.")
pass_options = click.make_pass_decorator(Options, ensure=True)
