"""`zstor status`: is everything well? Shards, backlog and scrub at a glance, once or again and again."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING, Final, NoReturn, cast

import click

from zstor_local.cli import report, stdio, text
from zstor_local.cli.client import Client
from zstor_local.cli.interrupting import ends_by_interrupt
from zstor_local.cli.options import Options, as_json, connection, pass_options
from zstor_local.counted import counted
from zstor_local.signals import termination_raises

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from zstor_local.rpc.methods.daemon import ShardView as Shard
    from zstor_local.rpc.methods.daemon import Status
    from zstor_local.rpc.methods.upkeep import ScrubView as Scrub

_COLORS: Final = {"ok": "green", "degraded": "yellow", "readonly": "yellow"}  # anything else is bad: red
_PIPE_WIDTH: Final = 4_096  # columns where there is no terminal: a path is folded for people only
_WIDE: Final = 72  # columns from which on all of a shard fits beside its place
_PLAIN: Final = "\x1b[0m"
_BAR: Final = 12  # characters that show how full a disk is
_WATCH_SECONDS: Final = 2.0
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_QUEUES: Final = {"repair": "versions to repair", "owed": "things to tell or give shards that were away", "collect": "shares to free"}


@click.command()
@click.option("--check", is_flag=True, help="Exit with 1 if the store is degraded or its scrub overdue: for monitoring.")
@click.option("--watch", is_flag=True, help="Draw it again every two seconds, until Ctrl-C; with --json a line each time.")
@as_json
@connection
@pass_options
def status(options: Options, check: bool, watch: bool) -> int:
    """Show whether the store is well.

    Its state and shards, what waits to be done, and how far the scrub is.
    """
    if check and watch:
        raise click.UsageError("--check looks once: leave --watch out")
    with options.connect() as client:
        if watch:
            _watch(client, json_lines=options.json)
        answer = _ask(client)
    if options.json:
        click.echo(json.dumps(answer))
    else:
        _show(answer)
    return 1 if check and (answer["state"] != "ok" or answer["scrub"].get("overdue")) else 0


def _ask(client: Client) -> Status:
    return cast("Status", client.call("daemon.status", {}))


def _watch(client: Client, *, json_lines: bool) -> NoReturn:
    """Until Ctrl-C: on a screen of its own where there is one, else one picture, or line, after the other."""
    with ends_by_interrupt():
        console = None if json_lines else _console()
        if console is not None and console.is_terminal and not console.is_dumb_terminal:
            _on_screen(client, console)
        while True:
            answer = _ask(client)
            if json_lines:
                click.echo(json.dumps(answer))
            else:
                _print(_drawn(answer))
                click.echo()
            client.rest(_WATCH_SECONDS)


def _on_screen(client: Client, console: Console) -> NoReturn:
    from rich.live import Live

    live = Live(_drawn(_ask(client)), auto_refresh=False, screen=True, console=console)
    with termination_raises():
        try:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # one halfway through the start could not be undone
            try:
                live.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            while True:
                live.update(_drawn(_ask(client)), refresh=True)
                client.rest(_WATCH_SECONDS)
        finally:
            live.stop()
            if console.color_system:
                click.echo(_PLAIN, nl=False)  # the signal may have come in the middle of a colored word


def _show(answer: Status) -> None:
    """Once: the picture on stdout, the warnings on stderr."""
    _print(_picture(answer))
    for warning in answer["warnings"]:
        report.warning(warning)


def draw_shards(shards: list[Shard]) -> None:
    """One line for each shard."""
    _print(_shards(shards))


def _print(picture: RenderableType) -> None:
    console = _console()
    with console.capture() as drawn:
        console.print(picture)
    for line in drawn.get().splitlines():
        click.echo(line.rstrip())


def _drawn(answer: Status) -> RenderableType:
    """For a screen: everything, warnings too."""
    from rich.console import Group
    from rich.text import Text

    return Group(_picture(answer), *(Text(text.shown(f"! {warning}"), style="yellow") for warning in answer["warnings"]))


def _picture(answer: Status) -> RenderableType:
    from rich.console import Group

    return Group(_summary(answer), "", _shards(answer["shards"]))


def _summary(answer: Status) -> Table:
    from rich.table import Table
    from rich.text import Text

    writable = "" if answer["metastore"]["writable"] else ", not writable"
    rows: list[tuple[str, str | Text]] = [
        ("state", Text(answer["state"], style=f"bold {_COLORS.get(answer['state'], 'red')}")),
        ("objects", f"{answer['objects']:,}, {text.size(answer['bytes'])}"),
        ("records", f"{answer['metastore']['kind']}{writable}"),
    ]
    rows += [
        (name, Text(f"{waiting:,} waiting  ({_QUEUES.get(name, name)})", style="yellow"))
        for name, waiting in answer["queues"].items()
        if waiting
    ]
    rows.append(("scrub", Text(scrub_line(answer["scrub"]), style="yellow" if answer["scrub"].get("overdue") else "")))
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(name, value)
    return table


def scrub_line(scrub: Scrub) -> str:
    """The scrub in a line."""
    from zstor_local.store.scrubrow import WORDS

    parts: list[str] = [scrub["state"]]
    if scrub["state"] != "idle":
        parts[0] += f", {scrub.get('cursor_percent', 0):.1f} %"
    if (eta := scrub.get("eta_seconds")) is not None:
        parts.append(f"{text.duration(eta)} to go")
    if (ended := scrub.get("last_ended_epoch")) is not None:
        parts.append(f"last ended {text.when(ended)}")
    found = cast("dict[str, int]", scrub.get("found", {}))
    told = [counted(found[name], *words) for name, words in WORDS.items() if found.get(name)]
    if found.get("objects") and not told:
        told = [f"{counted(found['objects'], 'object')} proved, all well"]
    parts += told
    if scrub.get("overdue"):
        parts.append("overdue")
    return "; ".join(parts)


def _shards(shards: list[Shard]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    wide = _console().width >= _WIDE
    for heading in ("SHARD", "STATE", "DISK", "USED", "FREE", "GROUP", "PLACE") if wide else ("SHARD", "STATE", "FREE", "PLACE"):
        if heading == "PLACE":
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right" if heading in ("USED", "FREE") else "left", no_wrap=True)
    for shard in shards:
        state = Text(shard["state"] + (", draining" if shard.get("draining") else ""), style=_COLORS.get(shard["state"], "red"))
        free, place = _room(shard["free"]), Text(text.shown(shard["url"]))
        if wide:
            group = Text(text.shown(shard["group"] or "–"))
            table.add_row(shard["id"], state, _fullness(shard), _room(shard["used"]), free, group, place)
        else:
            table.add_row(shard["id"], state, free, place)
    return table


def _fullness(shard: Shard) -> Text:
    """How full the disk is: ████████░░░░."""
    from rich.text import Text

    used, free = shard["used"], shard["free"]
    if used is None or free is None or not used + free:
        return Text("·" * _BAR, style="red" if shard["state"] != "ok" else "")
    part = used / (used + free)
    full = min(_BAR, round(part * _BAR))
    mark, rest = "#." if _console().options.ascii_only else "█░"
    return Text(mark * full + rest * (_BAR - full), style="red" if part > 0.97 else "yellow" if part > 0.9 else "green")


def _console() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, color_system=None if stdio.plain() else "auto", highlight=False)


def _room(count: int | None) -> str:
    return "–" if count is None else text.size(count)
