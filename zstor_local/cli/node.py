"""`zstor node`: the actors of a remote log, as commands for two terminals."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Final

import click
import trio

from zstor_local.cli import report, text
from zstor_local.cli.client import NoDaemon, check_text
from zstor_local.cli.handover import naming_errors
from zstor_local.cli.interrupting import ends_by_interrupt
from zstor_local.cli.logs import a_log
from zstor_local.cli.options import Options, as_json, connection, pass_options
from zstor_local.errors import NotFound
from zstor_local.formats.messages import MESSAGE
from zstor_local.formats.mvds import message_id
from zstor_local.formats.protobuf import Malformed
from zstor_local.node.client import Disconnected, Node, connected
from zstor_local.node.journal import Journal, NoJournal, line_of
from zstor_local.node.receiving import Position, Received, receive
from zstor_local.node.sending import Sent, send

WAIT_SECONDS: Final = 300.0
REFUSED: Final = 1


@click.group()
def node() -> None:
    """Send messages to a remote log, and receive them, now or later."""


@node.command("send")
@click.argument("messages", metavar="TEXT...|-", nargs=-1, required=True)
@a_log
@as_json
@connection
@pass_options
def send_(options: Options, messages: tuple[str, ...], log: str) -> None:
    """Send messages: each TEXT, or each line of standard input (-).

    Content goes into the content store first, then the log's name is told. Each is an MVDS message with an id of its own; done means
    that whoever reads the log later finds it.
    """
    check_text(log)
    trio.run(_send, options, log, _lines_of_input() if messages == ("-",) else messages)


@node.command("receive")
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--into", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Keep entries in FILE, a line each.")
@click.option("--since", type=click.IntRange(0), default=0, metavar="N", help="Begin above this number.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many entries.")
@a_log
@as_json
@connection
@pass_options
def receive_(options: Options, follow: bool, into: Path | None, since: int, count: int | None, log: str) -> int:
    """Receive the messages of a log, the oldest first.

    With --into they are kept in a file, and another time it goes on behind the last of them: none is left out and none comes twice,
    wherever it was broken off. Every page and content is compared with its id.
    """
    check_text(log)
    if into is not None and since:
        raise click.UsageError("--since and --into stand for each other: the file tells where to begin")
    try:
        with ends_by_interrupt(None if options.json else f"messages in the log {log}") if follow else nullcontext():
            trio.run(_receive, options, log, into, Position(since), WAIT_SECONDS if follow else None, count)
    except NoJournal as error:
        hint = "nothing was changed; give a new file, or take that line away: it goes on behind the one before"
        report.failure("no_journal", f"{into}: {error}", hint=hint, json=options.json)
        return REFUSED
    return 0


def _lines_of_input() -> Iterator[str]:
    with naming_errors("standard input"):
        for line in sys.stdin:
            yield line.rstrip("\n")


async def _send(options: Options, log: str, lines: Iterable[str]) -> None:
    last = 0
    async with _connected(options) as node:
        for line in lines:
            last = max(time.time_ns() // 1_000_000, last + 1)  # of two equal messages in a millisecond each is one
            sent = await send(node, log, line.encode(errors="surrogateescape"), timestamp=last)
            _tell(options, sent)


async def _receive(options: Options, log: str, into: Path | None, position: Position, wait: float | None, count: int | None) -> None:
    with nullcontext() if into is None else Journal(into) as journal:
        async with _connected(options) as node:
            if journal is None or not journal.position.seq:
                await _must_be_a_log(options, node, log, waits=wait is not None)
            entries = receive(node, log, position if journal is None else journal.position, wait=wait)
            await _keep(options, entries, journal, count)


@asynccontextmanager
async def _connected(options: Options) -> AsyncIterator[Node]:
    """A connection to the daemon; NoDaemon, with how to start one, also where it breaks."""
    config = options.load()
    try:
        async with connected(config.socket) as node:
            yield node
    except Disconnected as error:
        raise NoDaemon(str(error), hint=options.how_to_start(config)) from None


async def _must_be_a_log(options: Options, node: Node, log: str, *, waits: bool) -> None:
    """NotFound if nobody has made the log or written to it; who waits for what comes is told, for it may come yet."""
    if (await node.fetch(f"log/{log}")).value is not None:
        return
    try:
        await node.call("log.head", log=log)
    except NotFound as error:
        if not waits:
            raise
        if not options.json:
            report.warning(f"{error.message} yet; it is waited for")


async def _keep(options: Options, entries: AsyncGenerator[Received, None], journal: Journal | None, count: int | None) -> None:
    number = 0
    try:
        async with aclosing(entries) as each:
            async for received in each:
                if journal is not None:
                    journal.add(received)
                _show(options, received)
                number += 1
                if number == count:
                    return
    finally:
        if journal is not None:
            journal.sync()


def _tell(options: Options, sent: Sent) -> None:
    if options.json:
        click.echo(json.dumps({"seq": sent.seq, "message_id": sent.message_id.hex(), "id": str(sent.cid)}))
    else:
        click.echo(f"sent as entry {sent.seq}")
    sys.stdout.flush()


def _show(options: Options, received: Received) -> None:
    if options.json:
        click.echo(line_of(received).decode())
    elif received.content is None:
        click.echo(f"{received.seq:>6}  " + ("(scrubbed)" if received.cid is None else f"(large) {received.cid}"))
    else:
        click.echo(f"{received.seq:>6}  {text.shown(_body(received.content, received.local_hash).decode(errors='backslashreplace'))}")
    sys.stdout.flush()


def _body(content: bytes, local_hash: bytes) -> bytes:
    """What an MVDS message says; other content as it is."""
    try:
        message = MESSAGE.parse(content)
    except Malformed:
        return content
    return message.blob("body") if message_id(message) == local_hash else content
