"""The group of commands, what runs before and after each, and the exit codes.

Exit codes are a promise: 0 done, 1 an error was answered, 2 no daemon, 3 usage, 130 interrupted, 141 nobody reads the output any more;
`zstor daemon` adds 75 and 78.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from zstor_local import __version__
from zstor_local.cli import report, stdio
from zstor_local.cli.client import NoDaemon
from zstor_local.cli.interrupting import INTERRUPTED, Interrupted, ungrouped
from zstor_local.cli.near import nearer
from zstor_local.cli.options import Options, as_json, connection
from zstor_local.config import ConfigError
from zstor_local.errors import Cancelled, ZstorError
from zstor_local.store.faults import Refused

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

DONE: Final = 0
REFUSED: Final = 1
NO_DAEMON: Final = 2
USAGE: Final = 3
UNREAD: Final = 128 + signal.SIGPIPE  # what a shell says of `ls | head -1`, and its pipefail; every command ends so, without a word

# Each command's module, imported when the command is used: `zstor get` need not know how to draw a status.
COMMANDS: Final = {
    "daemon": "cli.service",
    "init": "cli.service",
    "put": "cli.put",
    "get": "cli.get",
    "rm": "cli.objects",
    "ls": "cli.objects",
    "stat": "cli.objects",
    "mv": "cli.renaming",
    "cp": "cli.renaming",
    "walk": "cli.walk",
    "ref": "cli.references",
    "cas": "cli.cas",
    "ns": "cli.ns",
    "log": "cli.logs",
    "node": "cli.node",
    "check": "cli.health",
    "repair": "cli.health",
    "namespace": "cli.namespace",
    "perm": "cli.perm",
    "token": "cli.token",
    "scrub": "cli.upkeep",
    "collect": "cli.upkeep",
    "status": "cli.status",
    "shard": "cli.shard",
    "call": "cli.call",
    "rebuild": "cli.rebuilding",
    "key": "cli.key",
    "systemd": "cli.systemd",
    "bench": "bench.command",
    "demo": "cli.demo",
    "complete": "cli.complete",
}

# What `zstor --help` says of each, so that it need not import them all; a test compares.
SUMMARIES: Final = {
    "daemon": "Serve the store until Ctrl-C.",
    "init": "Make a store and its master key.",
    "put": "Store FILE, or a pipe (-), as an object.",
    "get": "Write an object to FILE, or to a pipe.",
    "rm": "Delete objects.",
    "ls": "List the keys that begin with PREFIX.",
    "stat": "Show all about an object.",
    "mv": "Give an object another key.",
    "cp": "Give an object a second key.",
    "walk": "Walk along linked objects, from KEY on.",
    "ref": "Keep references with objects, and find objects by them.",
    "cas": "Store content under the id that any IPFS tool computes for it.",
    "ns": "Give names to things that change, and wait for their changes.",
    "log": "Keep logs of messages that others can catch up on later.",
    "node": "Send messages to a remote log, and receive them, now or later.",
    "check": "Look at every share of objects.",
    "repair": "Make the bad shares of objects anew.",
    "namespace": "Keep sets of keys apart, each with policy and quota of its own.",
    "perm": "Give users permissions in a namespace, and take them away.",
    "token": "Sign tokens for shard servers, and end them early.",
    "scrub": "Read and prove everything now, and have repaired what is bad.",
    "collect": "Free the shares that nothing needs any more.",
    "status": "Show whether the store is well.",
    "shard": "Add, remove and replace disks; serve shards to other machines.",
    "call": "Call METHOD and print its result as JSON.",
    "rebuild": "Make the metastore anew from the shards and the master key.",
    "key": "Keep the master key safe.",
    "systemd": "Run the daemon as a service of your systemd.",
    "bench": "Measure how fast it is here.",
    "demo": "Show in a minute what this is; nothing of it stays.",
    "complete": "Print the completion script of a shell.",
}


class Commands(click.Group):
    """Finds a command by name in its module; knows all names, for help, completion and near misses, without one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"zstor_local.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] == "help" and not ctx.resilient_parsing:  # what other commands have, and no command of ours
            args = [*args[1:], "--help"]
            if len(args) == 1:
                click.echo(ctx.get_help())
                ctx.exit()
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        with stdio.told_unread():  # --help
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> object:
        try:
            with ungrouped(), stdio.told_unread():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None  # click would put an empty line before the error

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        named = [CompletionItem(name, help=summary) for name, summary in SUMMARIES.items() if name.startswith(incomplete)]
        return named + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with `zstor daemon` in one terminal and `zstor put FILE` in another.",
)
@click.version_option(__version__, prog_name="zstor", message="%(prog)s %(version)s")
@as_json
@connection
@click.pass_context
def zstor(ctx: click.Context) -> None:
    """Keep data safe over several disks, through one daemon on this machine."""
    ctx.ensure_object(Options)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code. Nothing it reports goes to stdout but the answer."""
    stdio.settle()
    given = list(sys.argv[1:] if arguments is None else arguments)
    json = "--json" in given[: given.index("--")] if "--" in given else "--json" in given
    try:
        with click.Context(zstor, color=stdio.UNTOUCHED):  # what is reported after the command's own context, too
            return _run(given, json=json)
    except (stdio.Unread, BrokenPipeError):
        stdio.give_up()
        return UNREAD


def _run(given: list[str], *, json: bool) -> int:
    options = Options()
    if "_ZSTOR_COMPLETE" in os.environ:
        from zstor_local.cli.completing import keep_options

        keep_options()
    try:
        code = zstor.main(given, prog_name="zstor", standalone_mode=False, color=stdio.UNTOUCHED, obj=options)
        sys.stdout.flush()
    except click.UsageError as error:
        report.usage(error, json=json)
        return USAGE
    except Refused as error:
        report.failure(error.kind, error.message, hint=error.hint, json=json)
        return error.status
    except ConfigError as error:
        report.failure("configuration", str(error), json=json)
        return USAGE
    except NoDaemon as error:
        report.failure("no_daemon", error.message, hint=error.hint, json=json)
        return NO_DAEMON
    except Cancelled as error:
        _end_line(json=json)
        told = error if isinstance(error, Interrupted) else Interrupted("interrupted; the running call changed nothing")
        report.error(told, json=json)
        return INTERRUPTED
    except ZstorError as error:
        report.error(nearer(error, options), json=json)
        return REFUSED
    except (KeyboardInterrupt, click.Abort):
        _end_line(json=json)
        report.error(Interrupted("interrupted"), json=json)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        report.error(stdio.failed(error), json=json)
        return REFUSED
    if code == INTERRUPTED:
        _end_line(json=json)
    return code if isinstance(code, int) else DONE


def _end_line(*, json: bool) -> None:
    """On a terminal ^C stands where the next line is to begin."""
    if sys.stderr.isatty() and not json:
        click.echo(err=True)
