"""`put -r` and `get -r`: a directory as objects, one for each thing in it, and back.

The object of `sub/file` in a tree under the key `photos` is `photos/sub/file`; directories have keys that end with a slash, a symbolic
link holds its target. `user` has `type` (file, directory, symlink), `mode` (octal, as text) and `mtime` (nanoseconds since 1970, as
text: JavaScript could not hold the number). What went wrong with one thing is said, and the others go on.
"""

from __future__ import annotations

import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Literal, cast

import click

from zstor_local import limits
from zstor_local.cli import text
from zstor_local.cli.client import Client, Json
from zstor_local.cli.handover import naming_errors
from zstor_local.cli.interrupting import if_interrupted
from zstor_local.cli.listing import items
from zstor_local.cli.local_tree import Entry, Tree, check_path, write_out
from zstor_local.cli.options import Options
from zstor_local.cli.progress import progress
from zstor_local.cli.transfers import transfers
from zstor_local.cli.tree_account import Account
from zstor_local.counted import counted
from zstor_local.errors import AlreadyExists, InvalidParams, IoError, NotFound, TooLarge, ZstorError, errno_text

if TYPE_CHECKING:
    from zstor_local.rpc.methods.listing import Item
    from zstor_local.rpc.methods.objects import Sent, Written
    from zstor_local.rpc.methods.objects import Value as Read
    from zstor_local.store.protected import Protected


BY_VALUE_BYTES: Final = 32 * limits.KIB  # smaller files go inside the messages: a descriptor costs the daemon more than their bytes

_TYPES = ("file", "directory", "symlink")
_TIMES: Final = range(-(10**20), 10**20)  # nanoseconds: three thousand years each way, more than file systems hold


# --- put -r ---


def put_tree(options: Options, directory: str, key: str | None, extra: Mapping[str, Json]) -> int:
    """Store everything in a directory under keys that begin with `key`, or the directory's name, and a slash."""
    prefix = Path(os.path.abspath(directory)).name if key is None else key.rstrip("/")
    if not prefix:
        raise click.UsageError(
            f"{directory} has no name of its own: give a KEY" if key is None else f"{key!r} is no KEY for a directory"
        )

    def store(client: Client, entry: Entry) -> Written:
        user = {**cast(Mapping[str, Json], extra.get("user", {})), "type": entry.type, **_times(entry.mode, entry.mtime)}
        params = {**extra, "key": _key(prefix, entry), "user": user, **options.place()}
        if entry.type == "file":
            with tree.reading(entry.path) as fd:
                found = os.fstat(fd)
                user.update(_times(found.st_mode, found.st_mtime_ns))
                if found.st_size > BY_VALUE_BYTES:
                    return cast("Written", client.call("object.write_file", {**params, "fd": 0}, fds=[fd]))
                content = tree.content(fd, entry.path)
        else:
            content = os.fsencode(tree.target(entry.path)) if entry.type == "symlink" else b""
        return cast("Written", client.call("object.write", {**params, "value_b64": b64encode(content).decode()}))

    with (
        if_interrupted("what was stored by then is stored, each object whole", hint="the same again stores all of it"),
        Tree(directory, own=_own(options, directory)) as tree,
        progress(prefix, wanted=not options.no_progress) as show,
        transfers(options.connect, _named(tree, account := Account(options, show, directory)), store) as answers,
    ):
        for entry, answer in answers:
            if isinstance(answer, ZstorError):
                account.note("path", entry.path, answer)
            else:
                metadata = answer["metadata"]
                account.note(
                    "path", entry.path, {"key": metadata["key"], "bytes": metadata["size"]}, metadata["size"], metadata["owed"]
                )
    return account.end(f"stored {text.shown(prefix)}/: {counted(account.done, 'object')}, {text.size(account.bytes)}")


def _own(options: Options, directory: str) -> Protected:
    """What is the daemon's own; PathRefused if the directory lies in it."""
    with options.connect() as client:
        own = options.daemons_own(client)
    own.check_place(os.path.realpath(directory), directory)
    return own


def _named(tree: Tree, account: Account) -> Iterator[Entry]:
    """What is in the tree and can have a key; the rest goes to the account."""
    for entry in tree.walk():
        if isinstance(entry, OSError):
            account.note("path", entry.filename or ".", IoError(errno_text(entry)))
            continue
        try:
            entry.path.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(entry.path).decode(errors="backslashreplace")
            account.note("path", shown, InvalidParams("a key is UTF-8, and this name is not", hint="give it another name"))
            continue
        yield entry


def _times(mode: int, mtime: int) -> dict[str, Json]:
    return {"mode": f"{stat.S_IMODE(mode):04o}", "mtime": str(mtime)}


def _key(prefix: str, entry: Entry) -> str:
    path = f"{prefix}/{entry.path}" if entry.path else prefix
    return f"{path}/" if entry.type == "directory" else path


# --- get -r ---


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An object of a tree, and what is to be made of it."""

    item: Item
    path: str
    type: Literal["file", "directory", "symlink"]
    mode: int | None
    mtime: int | None


def get_tree(options: Options, key: str, directory: str | None, *, force: bool, outside: bool) -> int:
    """Make the files of all objects whose keys begin with `key` and a slash, below a directory."""
    prefix = key.rstrip("/")
    name = PurePosixPath(prefix).name
    top = Path(directory or ".")
    if top.is_dir():
        if name in ("", "..") or prefix == "":
            raise click.UsageError(f"{key!r} has no last name: give a DIRECTORY that is not there yet")
        top /= name
    later: list[_Wanted] = []  # directories get mode and time when nothing more comes into them, links when all files are there
    made: dict[str, bool] = {}  # directories that something comes into, and whether they are new

    def fetch(client: Client, wanted: _Wanted) -> Sent:
        with tree.writing(wanted.path, wanted.mode, wanted.mtime, force=force) as fd:
            params: dict[str, Json] = {"key": wanted.item["key"], **options.place()}
            if wanted.item["metadata"]["size"] <= BY_VALUE_BYTES:
                with suppress(TooLarge):  # it was another when it was listed
                    value = cast("Read", client.call("object.read", params))
                    content = b64decode(cast(str, value["value_b64"]))
                    write_out(fd, content)
                    return {"metadata": value["metadata"], "bytes": len(content)}
            # `writing` makes the file durable, with its mode and time.
            return cast("Sent", client.call("object.read_file", {**params, "fd": 0, "sync": False}, fds=[fd]))

    whole = if_interrupted("what was written by then is there, each file whole", hint="the same again with -f writes all of it")
    with whole, progress(name, wanted=not options.no_progress) as show, options.connect() as client:
        account = Account(options, show)
        found = items(client, options, f"{prefix}/", damaged=account.damaged)
        first = [*islice(found, 1)]
        if not first and not account.failed:
            hint = "`zstor ls` lists the keys"
            with suppress(NotFound):
                client.call("object.stat", {"key": key, **options.place()})
                hint = f"{key!r} is one object: leave -r out"
            raise NotFound(f"no object's key begins with {prefix + '/'!r}", hint=hint, key=key)
        own = options.daemons_own(client)
        own.check_new(os.path.realpath(top), str(top))
        if os.path.lexists(top) and not top.is_dir():
            raise AlreadyExists(f"{top} is there already and no directory", hint="move it away, or give another DIRECTORY")
        made[""] = not top.is_dir()
        with naming_errors(str(top), missing=f"directory {top.parent}"):
            top.mkdir(mode=0o700, exist_ok=True)
        with Tree(str(top), own=own) as tree:
            wanted = _files(tree, prefix, chain(first, found), later, made, account)
            with transfers(options.connect, wanted, fetch) as answers:
                for one, answer in answers:
                    if isinstance(answer, ZstorError):
                        account.note("key", one.item["key"], answer)
                    else:
                        account.note("key", one.item["key"], {"path": tree.shown(one.path), "bytes": answer["bytes"]}, answer["bytes"])
            _finish(client, options, tree, later, made, account, force=force, outside=outside)
    return account.end(f"wrote {text.shown(str(top))}/: {counted(account.done, 'object')}, {text.size(account.bytes)}")


def _files(
    tree: Tree, prefix: str, found: Iterable[Item], later: list[_Wanted], made: dict[str, bool], account: Account
) -> Iterator[_Wanted]:
    """The files, each with its directory made; everything else is kept for later."""
    for item in found:
        try:
            wanted = _plan(prefix, item)
            if wanted.type != "file":
                later.append(wanted)
                continue
            _make_above(tree, wanted.path, made)
        except ZstorError as error:
            account.note("key", item["key"], error)
            continue
        yield wanted


def _make_above(tree: Tree, path: str, made: dict[str, bool]) -> None:
    above = path.rpartition("/")[0]
    if above not in made:
        new = tree.make_directory(above)
        parts = above.split("/")
        for depth in range(1, len(parts) + 1):
            directory = "/".join(parts[:depth])
            made.setdefault(directory, directory in new)


def _finish(
    client: Client, options: Options, tree: Tree, later: list[_Wanted], made: dict[str, bool], account: Account, *, force: bool,
    outside: bool,
) -> None:  # fmt: skip
    """Links, empty directories, and then the directories' own modes and times, the deepest first."""
    modes: dict[str, _Wanted] = {}

    def each(wanted: _Wanted, work: Callable[[], None]) -> None:
        try:
            work()
        except ZstorError as error:
            account.note("key", wanted.item["key"], error)
        else:
            account.note("key", wanted.item["key"], {"path": tree.shown(wanted.path), "bytes": 0})

    def directory(wanted: _Wanted) -> None:
        if wanted.path:
            _make_above(tree, f"{wanted.path}/x", made)
        modes[wanted.path] = wanted

    def link(wanted: _Wanted) -> None:
        _make_above(tree, wanted.path, made)
        answer = cast("Read", client.call("object.read", {"key": wanted.item["key"], **options.place()}))
        target = os.fsdecode(b64decode(cast(str, answer["value_b64"])))
        tree.link(wanted.path, target, wanted.mtime, force=force, outside=outside)

    for wanted in later:
        if wanted.type == "directory":
            each(wanted, lambda wanted=wanted: directory(wanted))  # type: ignore[misc]
    for wanted in later:
        if wanted.type == "symlink":
            each(wanted, lambda wanted=wanted: link(wanted))  # type: ignore[misc]
    usual = 0o777 & ~_umask()
    for path in sorted(made, key=lambda path: path.count("/") if path else -1, reverse=True):
        own = modes.get(path)
        mode, mtime = (None, None) if own is None else (own.mode, own.mtime)
        try:
            tree.settle(path, usual if mode is None and made[path] else mode, mtime)
        except ZstorError as error:
            account.note("key", own.item["key"] if own else path, error)


def _umask() -> int:
    """What new files and directories are not to allow. No other thread may make any meanwhile: it can only be read by being set."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _plan(prefix: str, item: Item) -> _Wanted:
    """What an object becomes; PathRefused for one that has no place below the top."""
    path = item["key"].removeprefix(f"{prefix}/")
    user = item["metadata"]["user"]
    kind = user.get("type")
    if kind == "directory" and (path == "" or path.endswith("/")):
        path = path.rstrip("/")
        if path:
            check_path(path)
    else:
        check_path(path)
    type_: Literal["file", "directory", "symlink"] = kind if kind in _TYPES else "file"  # type: ignore[assignment]
    return _Wanted(item, path, type_, _number(user.get("mode"), 8, range(0o10000)), _number(user.get("mtime"), 10, _TIMES))


def _number(text: object, base: int, among: range) -> int | None:
    """What a member of `user` says, if it says what `put -r` writes there: anybody may have set it."""
    try:
        number = int(str(text), base)
    except ValueError:
        return None
    return number if number in among else None
