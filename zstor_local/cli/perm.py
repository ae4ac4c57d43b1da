"""`zstor perm`: what users may do in a namespace, on shard servers that check tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, cast

import click

from zstor_local.cli import text
from zstor_local.cli.options import Options, as_json, completed, connection, pass_options
from zstor_local.model.permission import PERMISSIONS

if TYPE_CHECKING:
    from zstor_local.rpc.methods.access import PermissionGiven, PermissionList
    from zstor_local.rpc.methods.access import PermissionView as Rights


WORDS: Final = click.Choice([*PERMISSIONS])


@click.group()
def perm() -> None:
    """Give users permissions in a namespace, and take them away."""


@perm.command()
@click.argument("namespace", shell_complete=completed("namespaces"))
@click.argument("user")
@click.argument("permissions", metavar="read|write|delete|admin...", nargs=-1, required=True, type=WORDS)
@as_json
@connection
@pass_options
def give(options: Options, namespace: str, user: str, permissions: tuple[str, ...]) -> None:
    """Give USER permissions in NAMESPACE. Admin is all of them."""
    _change(options, "permission.give", namespace, user, permissions)


@perm.command()
@click.argument("namespace", shell_complete=completed("namespaces"))
@click.argument("user")
@click.argument("permissions", metavar="read|write|delete|admin...", nargs=-1, required=True, type=WORDS)
@as_json
@connection
@pass_options
def remove(options: Options, namespace: str, user: str, permissions: tuple[str, ...]) -> None:
    """Take permissions in NAMESPACE from USER.

    New tokens lack them at once; running ones until they expire, or until
    `zstor token revoke`.
    """
    _change(options, "permission.remove", namespace, user, permissions)


@perm.command()
@click.argument("namespace", shell_complete=completed("namespaces"))
@click.argument("user")
@as_json
@connection
@pass_options
def get(options: Options, namespace: str, user: str) -> None:
    """Show what USER may do in NAMESPACE."""
    with options.connect() as client:
        found = cast("Rights", client.call("permission.get", {"namespace": namespace, "user": user}))
    click.echo(json.dumps(found) if options.json else f"{text.shown(user)}: {_words(found)}")


@perm.command()
@click.argument("namespace", shell_complete=completed("namespaces"))
@as_json
@connection
@pass_options
def ls(options: Options, namespace: str) -> None:
    """List everybody who may do something in NAMESPACE.

    With --json one line each.
    """
    with options.connect() as client:
        found = cast("PermissionList", client.call("permission.list", {"namespace": namespace}))
    for item in found["items"]:
        click.echo(json.dumps(item) if options.json else _line(item))


def _change(options: Options, method: str, namespace: str, user: str, permissions: tuple[str, ...]) -> None:
    with options.connect() as client:
        params = {"namespace": namespace, "user": user, "permission": list(permissions)}
        given = cast("PermissionGiven", client.call(method, params))
    click.echo(json.dumps(given) if options.json else _line(given))


def _line(given: PermissionGiven) -> str:
    pending = f"; when the invitation is accepted: {', '.join(given['pending'])}" if given["pending"] else ""
    return f"{text.shown(given['user'])}: {_words(given)}{pending}"


def _words(rights: Rights) -> str:
    return ", ".join(word for word in PERMISSIONS if rights[word]) or "nothing"
