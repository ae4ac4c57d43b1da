"""What the shells complete beside commands, options and files: what the running daemon has. Without one nothing, and not a word."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final, TypeAlias, cast

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

from zstor_local.cli.client import Client, Json, NoDaemon
from zstor_local.cli.options import Completed, Options
from zstor_local.config import ConfigError
from zstor_local.errors import ZstorError

Ask: TypeAlias = Callable[[Client, Options, str], Sequence[str]]

_SECONDS: Final = 1.0  # that somebody who pressed Tab waits at most
_MOST: Final = 200  # more than that nobody reads
# What every shell takes as one word as it stands: bash does not quote what is completed, so that a key from somebody else may be a
# command there, and fish's part ends at a comma.
_PLAIN: Final = re.compile(r"[\w@%+=:./][\w@%+=:./-]*\Z")


# click's own hands over words, which bash splits at = and : too, takes a pattern among them for files, and leaves variables behind.
_BASH: Final = """\
%(complete_func)s() {
    local offered
    COMPREPLY=()
    while IFS= read -r offered; do
        case $offered in
            dir,*) compopt -o dirnames ;;
            file,*) compopt -o default ;;
            plain,*) COMPREPLY+=("${offered#plain,}") ;;
        esac
    done < <(COMP_LINE=${COMP_LINE:0:COMP_POINT} COMP_PIECE=$2 %(complete_var)s=bash_complete "${1/#~\\//$HOME/}" 2> /dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _TooLate(Exception):
    """The daemon did not answer in time."""


class _OneWord(ShellComplete):
    """Offers values behind `--OPTION=` together with it: zsh puts what it is offered in the place of the whole word."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        found = super().get_completions(args, incomplete)
        option, separator, _ = incomplete.partition("=")
        if not separator or not option.startswith("--"):
            return found
        return [CompletionItem(f"{option}={item.value}", item.type, item.help) if item.type == "plain" else item for item in found]


class _Bash(_OneWord, BashComplete):
    """Reads the line as it stands. What is offered takes the place of a word's last piece: bash splits at = and : too."""

    source_template = _BASH
    _before = ""  # what of the word stands before that piece

    def get_completion_args(self) -> tuple[list[str], str]:
        if "COMP_LINE" not in os.environ:
            return super().get_completion_args()  # a script that version 0.2 printed
        *words, last = split_arg_string(f"{os.environ['COMP_LINE']}x")  # so that there is a last word, be it empty
        incomplete, piece = last[:-1], os.environ["COMP_PIECE"]
        if incomplete.endswith(piece):  # it has quotes or backslashes in it otherwise
            self._before = incomplete[: len(incomplete) - len(piece)]
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value.removeprefix(self._before)}"


class _Zsh(_OneWord, ZshComplete):
    pass


class _Fish(_OneWord, FishComplete):
    pass


def keep_options() -> None:
    """Have the shells keep `--OPTION=` before what they complete."""
    add_completion_class(_Bash)
    add_completion_class(_Zsh)
    add_completion_class(_Fish)


def complete(what: Completed, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """The names that begin so, as the daemon answers them."""
    found = known(what, ctx.find_root().ensure_object(Options), incomplete)
    return [CompletionItem(name) for name in found if name.startswith(incomplete) and _PLAIN.match(name)]


def known(what: Completed, options: Options, beginning: str) -> Sequence[str]:
    """The names that the daemon has, some of them where there are many; those of keys and names begin so."""
    try:
        with _soon(), options.connect() as client:
            return _ASK[what](client, options, beginning)
    except (NoDaemon, ConfigError, ZstorError, OSError, _TooLate):
        return []


@contextmanager
def _soon() -> Iterator[None]:
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _late(number: int, frame: FrameType | None) -> None:
    raise _TooLate


def _items(method: str, member: str, *, prefix: bool = False) -> Ask:
    """One member of each item of the first page."""

    def ask(client: Client, options: Options, incomplete: str) -> list[str]:
        place = options.place() if method == "object.list" else {}
        params: dict[str, Json] = {"limit": _MOST, **({"prefix": incomplete} if prefix else {}), **place}
        return [item[member] for item in cast("dict[str, list[dict[str, str]]]", client.call(method, params))["items"]]

    return ask


def _methods(client: Client, options: Options, incomplete: str) -> list[str]:
    return [method["name"] for method in cast("dict[str, list[dict[str, str]]]", client.call("rpc.discover", {}))["methods"]]


def _shards(client: Client, options: Options, incomplete: str) -> list[str]:
    return [shard["id"] for shard in cast("dict[str, list[dict[str, str]]]", client.call("shard.list", {}))["shards"]]


_ASK: Final[Mapping[Completed, Ask]] = {
    "keys": _items("object.list", "key", prefix=True),
    "namespaces": _items("namespace.list", "namespace"),
    "names": _items("ns.list", "name", prefix=True),
    "logs": _items("log.list", "log"),
    "contents": _items("cas.list", "id"),
    "shards": _shards,
    "methods": _methods,
}
