"""`make docs`: docs/api.md and the man pages, from what the daemon and the command say of themselves.

A daemon of its own is asked for its OpenRPC document (rpc.discover), click for its commands: no second list of either is kept.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import click

from zstor_local import errors
from zstor_local.cli.private_daemon import PrivateDaemon
from zstor_local.cli.root import zstor
from zstor_local.rpc.openrpc import kind_of

HERE: Final = Path(__file__).parent
_GROUPS: Final = {
    "object": "Objects",
    "stream": "Streams inside messages",
    "reference": "References",
    "namespace": "Namespaces",
    "permission": "Permissions",
    "token": "Tokens",
    "cas": "Content",
    "ns": "Names",
    "log": "Logs",
    "daemon": "The daemon",
    "shard": "Shards",
    "health": "Health",
    "key": "The key",
    "job": "Jobs",
    "rpc": "About the methods",
    "help": "About the methods",
}

Pairs: TypeAlias = list[tuple[str, str]]

DESCRIPTION: Final = """\
One daemon per user (zstor daemon) keeps that user's data safe over several disks. Each object is split into shares on shards, of which
any k of m give it back; everything is compressed, encrypted and authenticated, and an answer means that the data is durable.

No configuration is needed: the first start makes a store of six directories, any four of which are enough, and a master key. Keep the
words of zstor key backup on paper: without the key nothing can be read."""
EXIT_STATUS: Final = [
    ("0", "done"),
    ("1", "the daemon answered with an error, or what was looked at is not well (check, status --check)"),
    ("2", "no daemon"),
    ("3", "usage"),
    ("75, 78", "zstor daemon: another one runs; configuration, key or store at fault"),
    ("130", "interrupted"),
    ("141", "nobody reads the output any more, as in  zstor ls | head -1"),
]
ENVIRONMENT: Final = [
    ("ZSTOR_CONFIG, ZSTOR_SOCKET", "as --config and --socket, which win"),
    ("XDG_CONFIG_HOME, XDG_DATA_HOME, XDG_STATE_HOME, XDG_RUNTIME_DIR", "where the files below are"),
    ("NO_COLOR", "no colours"),
]
FILES: Final = [
    ("~/.config/zstor/config.toml", "the configuration; there need be none"),
    ("~/.config/zstor/master.key", "the master key"),
    ("~/.local/share/zstor", "the store: records, lock, and the shards unless they are elsewhere"),
    ("$XDG_RUNTIME_DIR/zstor/zstor.sock", "the socket; ~/.local/state/zstor/run/zstor.sock where there is no runtime directory"),
]


def pages() -> dict[str, str]:
    """The text of each generated file, by its path below docs/."""
    with tempfile.TemporaryDirectory() as home, PrivateDaemon(Path(home)) as daemon:
        daemon.start()
        document = json.loads(daemon.run("call", "rpc.discover", "--json").stdout)
        daemon.stop()
    return {"api.md": api(document), "man/zstor.1": man_of_commands(), "man/zstor-api.7": man_of_methods(document)}


# --- The methods ---


def api(document: dict[str, Any]) -> str:
    parts = [
        "# The methods",
        "Made from the daemon's own description (`make docs`); `zstor call rpc.discover` has it as OpenRPC,\nwith all schemas. "
        "How messages look is in [wire.md](wire.md).\nA parameter with `?` may be left out; "
        "they go by name or, in this order, by position.",
    ]
    heading = ""
    for method in sorted(document["methods"], key=_rank):
        group = _group(method["name"])
        if group != heading:
            heading = group
            parts.append(f"## {heading}")
        parts.append("\n".join(_method(method)))
    parts += ["## Errors", "`data.type` is what a client matches on; `data.hint` says what to do now.", _errors()]
    return "\n\n".join(parts) + "\n"


def _method(method: dict[str, Any]) -> Iterator[str]:
    yield f"### {method['name']}"
    yield from ("", method["summary"])
    if description := method.get("description"):
        yield from ("", description)
    rows = [*method["params"], *([{**rest, "name": f"{rest['name']}…"}] if (rest := method.get("x-rest")) else [])]
    if rows:
        yield ""
        for parameter in rows:
            optional = "" if parameter.get("required") else "?"
            text = f": {_line(parameter['description'])}" if parameter.get("description") else ""
            yield f"- `{parameter['name']}{optional}` {_escaped(kind_of(parameter['schema']))}{text}"
    yield ""
    yield f"Result: {_escaped(kind_of(method['result']['schema']))}." + _told_errors(method) + _detach(method)


def _told_errors(method: dict[str, Any]) -> str:
    types = [f"`{error['data']['type']}`" for error in method.get("errors", [])]
    return f" Errors: {', '.join(types)}." if types else ""


def _detach(method: dict[str, Any]) -> str:
    return " With `_meta.detach: true` it goes on as a job." if method.get("x-detach") else ""


def _errors() -> str:
    rows = ["| code | type | again? | when |", "|---|---|---|---|"]
    for error in sorted(_classes(errors.ZstorError), key=lambda error: (error.code < 0, abs(error.code))):
        rows.append(f"| {error.code} | `{error.type}` | {'yes' if error.retryable else ''} | {_line(error.__doc__ or '')} |")
    return "\n".join(rows)


def _classes(base: type[errors.ZstorError]) -> Iterator[type[errors.ZstorError]]:
    for known in base.__subclasses__():
        if "type" in vars(known) and known.__module__ == errors.__name__:
            yield known
        yield from _classes(known)


def _group(name: str) -> str:
    return _GROUPS.get(name.partition(".")[0], "More")


def _rank(method: dict[str, Any]) -> int:
    return [*dict.fromkeys(_GROUPS.values()), "More"].index(_group(method["name"]))


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".") if text else ""


def _escaped(text: str) -> str:
    return text.replace("|", "or") if text else "anything"


# --- Man pages ---


def man_of_methods(document: dict[str, Any]) -> str:
    lines = [
        '.TH ZSTOR\\-API 7 "" "zstor\\-local"',
        ".SH NAME",
        "zstor\\-api \\- the methods of the zstor\\-local daemon",
        ".SH METHODS",
    ]
    for method in sorted(document["methods"], key=_rank):
        names = [f"{parameter['name']}{'' if parameter.get('required') else '?'}" for parameter in method["params"]]
        lines += [".TP", f".B {_roff(method['name'])}({_roff(', '.join(names))})", _roff(method["summary"])]
        if description := method.get("description"):
            lines += [".br", _roff(_line(description) + ".")]
    return "\n".join(lines) + "\n"


def man_of_commands() -> str:
    root = click.Context(zstor, info_name="zstor", help_option_names=zstor.context_settings["help_option_names"])
    shared = _options(zstor, root)
    lines = ['.TH ZSTOR 1 "" "zstor\\-local"', ".SH NAME", "zstor \\- local, private, self\\-healing storage behind one Unix socket"]
    lines += [".SH SYNOPSIS", ".B zstor", "[OPTIONS] COMMAND [ARGS]..."]
    lines += [".SH DESCRIPTION", *_paragraphs(DESCRIPTION)]
    lines += [
        ".SH OPTIONS",
        r"These stand before the name of any command; all but \-\-version behind it too, where they mean something.",
        *_list(shared),
    ]
    lines += [".SH COMMANDS", *_commands(zstor, root, shared)]
    lines += [".SH EXIT STATUS", *_list(EXIT_STATUS), ".SH ENVIRONMENT", *_list(ENVIRONMENT), ".SH FILES", *_list(FILES)]
    lines += [".SH SEE ALSO", ".BR zstor\\-api (7), systemctl (1)"]
    return "\n".join(lines) + "\n"


def _commands(group: click.Group, context: click.Context, shared: Pairs) -> list[str]:
    lines: list[str] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            lines += _commands(command, inner, shared)
            continue
        usage = " ".join(command.collect_usage_pieces(inner))
        lines += [f".SS {_roff(inner.command_path)} {_roff(usage)}", *_paragraphs(command.help or "")]
        lines += _list([option for option in _options(command, inner) if option not in shared])
        if command.epilog:
            lines += [".PP", *_paragraphs(command.epilog)]
    return lines


def _options(command: click.Command, context: click.Context) -> Pairs:
    """The options of a command with what they do; its arguments stand in the line above."""
    records = (parameter.get_help_record(context) for parameter in command.get_params(context) if isinstance(parameter, click.Option))
    return [record for record in records if record is not None]


def _list(pairs: Pairs) -> list[str]:
    return [line for term, text in pairs for line in (".TP", f".B {_roff(term)}", _roff(text))]


def _paragraphs(text: str) -> list[str]:
    """What blank lines part, each on a line; what begins with \\b keeps its lines, as in click."""
    lines: list[str] = []
    for part in re.split(r"\n\s*\n", text.strip(" \n")):
        kept = [".nf", *map(_roff, part.splitlines()[1:]), ".fi"] if part.startswith("\b") else [_roff(" ".join(part.split()))]
        lines += [".PP", *kept]
    return lines[1:]


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def main() -> None:
    for name, text in pages().items():
        path = HERE / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
