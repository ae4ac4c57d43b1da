"""`zstor token`: tokens for shard servers, the keys that these are checked with, and ending tokens early."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import click

from zstor_local.cli import text
from zstor_local.cli.client import parameters
from zstor_local.cli.options import Options, as_json, completed, connection, pass_options
from zstor_local.cli.perm import WORDS

if TYPE_CHECKING:
    from zstor_local.rpc.methods.access import TokenView as TokenShown


@click.group()
def token() -> None:
    """Sign tokens for shard servers, and end them early."""


@token.command()
@click.argument("namespace", shell_complete=completed("namespaces"))
@click.argument("permissions", metavar="read|write|delete|admin...", nargs=-1, required=True, type=WORDS)
@click.option("--user", metavar="USER", help="Whose token it is (the owner's, who has every right).")
@click.option("--ttl", type=click.IntRange(1, 86_400), metavar="SECONDS", help="When it expires (300).")
@as_json
@connection
@pass_options
def create(options: Options, namespace: str, permissions: tuple[str, ...], user: str | None, ttl: int | None) -> None:
    """Print a token for NAMESPACE with these permissions.

    A user gets one only for what was given.
    """
    params = parameters(namespace=namespace, permission=list(permissions), user=user, ttl_seconds=ttl)
    with options.connect() as client:
        made = cast("TokenShown", client.call("token.create", params))
    click.echo(json.dumps(made) if options.json else made["token"])


@token.command()
@click.option("--rotate", is_flag=True, help="Make a new signing key first.")
@click.option(
    "--signs-in",
    type=click.IntRange(0, 86_400),
    metavar="SECONDS",
    help="When the new key begins to sign (3600), so that servers know it.",
)
@as_json
@connection
@pass_options
def keys(options: Options, rotate: bool, signs_in: int | None) -> None:
    """Print the public keys and what was revoked, as JSON.

    It is what `zstor shard serve --trust FILE` takes.
    """
    if signs_in is not None and not rotate:
        raise click.UsageError("--signs-in goes with --rotate")
    with options.connect() as client:
        document = client.call("token.keys", parameters(rotate=rotate or None, signs_in_seconds=signs_in))
    click.echo(json.dumps(document, indent=None if options.json else 2))


@token.command()
@click.option("--user", metavar="USER", help="Every token of USER.")
@click.option(
    "--namespace",
    "space",
    metavar="NAME",
    shell_complete=completed("namespaces"),
    help="Every token for this namespace; with --user, the user's.",
)
@click.option("--jti", metavar="ID", help="One token, by its id.")
@click.option("--key", "kid", metavar="ID", help="A signing key, with all that it signed.")
@click.option("--all", "every", is_flag=True, help="Every token.")
@as_json
@connection
@pass_options
def revoke(options: Options, user: str | None, space: str | None, jti: str | None, kid: str | None, every: bool) -> None:
    """End tokens that have not expired. Permissions stay: see `zstor perm remove`.

    It counts on a shard server as soon as it has the new keys.
    """
    params = parameters(user=user, namespace=space, jti=jti, kid=kid, all=every or None)
    if not params:
        raise click.UsageError("say which: --user, --namespace, --jti, --key or --all")
    with options.connect() as client:
        answer = client.call("token.revoke", params)
    click.echo(json.dumps(answer) if options.json else f"revoked {_what(user, space, jti, kid)}")


def _what(user: str | None, space: str | None, jti: str | None, kid: str | None) -> str:
    """What was named, so that a slip is seen: no list of the tokens that were signed is kept, so any user, name or id is taken."""
    if jti is not None:
        return f"the token {text.shown(jti)}, if there is one"
    if kid is not None:
        return f"the signing key {text.shown(kid)} and every token that it signed"
    whose = "" if user is None else f" of {text.shown(user)}"
    where = "" if space is None else f" for {text.shown(space)}"
    return f"every token{whose}{where} that was signed until now" + (", if there is one" if whose or where else "")
