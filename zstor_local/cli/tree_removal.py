"""`rm -r`: all objects whose keys begin with a key and a slash. What went wrong with one is said, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import click

from zstor_local.cli import text
from zstor_local.cli.client import Client
from zstor_local.cli.interrupting import if_interrupted
from zstor_local.cli.listing import items
from zstor_local.cli.options import Options
from zstor_local.cli.progress import progress
from zstor_local.cli.transfers import transfers
from zstor_local.cli.tree_account import Account
from zstor_local.counted import counted
from zstor_local.errors import CorruptRecord, NotFound, ZstorError

if TYPE_CHECKING:
    from zstor_local.rpc.methods.listing import Item
    from zstor_local.rpc.methods.objects import Deleted, Written


def remove_trees(options: Options, keys: tuple[str, ...], *, yes: bool) -> int:
    """Delete all objects whose keys begin with one of these and a slash, and those of the keys that have none at their end."""
    if any(key.strip("/") == "" for key in keys):
        raise click.UsageError("an empty KEY would mean everything; `zstor namespace rm` deletes a namespace")
    number: int | None = None
    outermost = _outermost(keys)
    if not yes:
        with options.connect() as client:
            _must_be_there(client, options, keys)
            number = size = 0
            for item in _below(client, options, outermost, damaged=lambda _: None):  # it is told where it cannot be deleted
                number, size = number + 1, size + item["metadata"]["size"]
        what = ", ".join(text.shown(key) for key in keys)
        if not click.confirm(f"Delete {counted(number, 'object')}, {text.size(size)}, below {what}?", err=True):
            return Account(options, None).end("nothing was deleted")

    def delete(client: Client, key: str) -> Deleted:
        return cast("Deleted", client.call("object.delete", {"key": key, **options.place()}))

    with (
        if_interrupted("what was deleted by then is deleted, the rest is there"),
        progress("delete", wanted=not options.no_progress, counted=True) as show,
        options.connect() as client,
    ):
        _must_be_there(client, options, keys)
        account = Account(options, show, counted=True, total=number)
        names = (item["key"] for item in _below(client, options, outermost, damaged=account.damaged))
        with transfers(options.connect, names, delete) as answers:
            for key, answer in answers:
                if isinstance(answer, ZstorError):
                    account.note("key", key, answer)
                else:
                    account.note("key", key, {"deleted": True}, owed=answer["owed"])
    return account.end(f"deleted {counted(account.done, 'object')}")


def _must_be_there(client: Client, options: Options, keys: tuple[str, ...]) -> None:
    """NotFound if one of them is nothing: then none is deleted."""
    for key in keys:
        damaged: list[CorruptRecord] = []
        if next(_below(client, options, (key,), damaged=damaged.append), None) is None and not damaged:
            raise NotFound(f"there is no key {key!r}, and none below it", hint="`zstor ls` lists the keys", key=key)


def _outermost(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The keys less those that lie below another one: what is there is deleted, and counted, once."""
    found: list[str] = []
    for key in sorted({*keys}):
        if not any(f"{key}/".startswith(f"{other.rstrip('/')}/") for other in found):
            found.append(key)
    return tuple(found)


def _below(client: Client, options: Options, keys: tuple[str, ...], *, damaged: Callable[[CorruptRecord], object]) -> Iterator[Item]:
    """With a slash at its end a key means what is below it, and not an object that is called so without one. `damaged` is told what
    does not open.
    """
    for key in keys:
        if not key.endswith("/"):
            try:
                metadata = cast("Written", client.call("object.stat", {"key": key, **options.place()}))["metadata"]
            except NotFound:
                pass
            except CorruptRecord as error:
                damaged(error)
            else:
                yield {"key": key, "metadata": metadata}
        yield from items(client, options, f"{key.rstrip('/')}/", damaged=damaged)
