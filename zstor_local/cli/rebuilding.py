"""`zstor rebuild`: a new metastore from the shards and the master key."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

from zstor_local.cli import text
from zstor_local.cli.client import Progress
from zstor_local.cli.interrupting import Interrupted
from zstor_local.cli.options import Options, as_json, connection, no_progress, pass_options
from zstor_local.cli.progress import progress
from zstor_local.counted import counted


@click.command()
@click.option("--accept-loss", is_flag=True, help="Take what there is, although something may be missing.")
@no_progress
@as_json
@connection
@pass_options
def rebuild(options: Options, accept_loss: bool) -> None:
    """Make the metastore anew from the shards and the master key.

    For a store whose metastore is damaged, rolled back or lost: keys, namespaces, references, links and user metadata come back,
    deleted objects do not. The daemon must not run. An old metastore is put aside.

    Where something may be missing (a shard is away, an object has too few shares) it says so and changes nothing, unless that is
    accepted.
    """
    from zstor_local.daemon import rebuild_store

    config = options.load()
    with progress("rebuild", wanted=not options.no_progress, counted=True) as shown, _interruptible(shown) as told:
        try:
            report = rebuild_store(config, accept_loss=accept_loss, progress=told)
        except BaseExceptionGroup as group:
            if group.subgroup(Interrupted) is None:
                raise
            raise Interrupted("interrupted; nothing was changed") from None
    if options.json:
        click.echo(json.dumps({**dataclasses.asdict(report), "loss": report.loss}))
        return
    click.echo(f"read {counted(report.records, 'record')} on {counted(len(report.seen), 'shard')}")
    deleted = f"{counted(report.deleted, 'key stays', 'keys stay')} deleted"
    click.echo(f"rebuilt {counted(report.objects, 'object')}, {text.size(report.bytes)}; {deleted}")
    for line in report.loss:
        click.echo(f"  {line}")
    click.echo(f"the new metastore is in {config.store}; next: zstor daemon")


class CtrlC:
    """A signal handler that remembers."""

    heard = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.heard = True


@contextmanager
def _interruptible(show: Progress | None) -> Iterator[Callable[[str, int], None]]:
    """What takes the news: it ends the work after a Ctrl-C, which a worker thread does not hear, as long as nothing is changed."""
    from zstor_local.store.rebuild import WRITING

    ctrl_c = CtrlC()

    def tell(what: str, count: int) -> None:
        if ctrl_c.heard and what != WRITING:
            raise Interrupted("interrupted")
        if show is not None:
            show(count, None, what)

    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        yield tell
    finally:
        signal.signal(signal.SIGINT, before)
