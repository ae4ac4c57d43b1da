"""`zstor namespace`: separate sets of keys, each with its policy and quota."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, cast

import click

from zstor_local.cli import text
from zstor_local.cli.client import Json, parameters
from zstor_local.cli.handover import naming_errors
from zstor_local.cli.interrupting import if_interrupted
from zstor_local.cli.options import Decorator, Function, Options, Size, as_json, completed, connection, no_progress, pass_options
from zstor_local.cli.progress import progress
from zstor_local.counted import counted

if TYPE_CHECKING:
    from zstor_local.rpc.methods.namespaces import NamespaceDeleted
    from zstor_local.rpc.methods.namespaces import NamespaceView as NamespaceShown
    from zstor_local.rpc.methods.namespaces import Rewriting as JobStarted
    from zstor_local.rpc.methods.sharing import Invitation as Invited
    from zstor_local.rpc.methods.sharing import JoiningKey, NamespaceJoined


class Quota(Size):
    """A size, or -1 for `none`, as namespace.set takes it."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return -1 if value == "none" else super().convert(value, param, ctx)


class InvitationFile(click.File):
    """A file with an invitation; what is given in place of a file's name is often the invitation itself."""

    def convert(self, value: str | os.PathLike[str] | IO[Any], param: click.Parameter | None, ctx: click.Context | None) -> IO[Any]:
        if isinstance(value, str) and value.startswith("zstor1") and not os.path.lexists(value):
            raise click.UsageError("that is an invitation, not a file with one: give the file, or - where it comes by a pipe")
        return super().convert(value, param, ctx)


@click.group()
def namespace() -> None:
    """Keep sets of keys apart, each with policy and quota of its own."""


def _policy_options(function: Function) -> Function:
    options: list[Decorator] = [
        click.option("-k", type=int, metavar="K", help="Shares that give an object back."),
        click.option("-m", type=int, metavar="M", help="Shares in all, one to a shard."),
        click.option("--chunk-size", type=Size(), metavar="SIZE", help="A power of two from 256K to 4M."),
        click.option(
            "--compression",
            type=click.Choice(["zstd", "none"]),
            help="Of each chunk; with zstd too what does not shrink stays as it is.",
        ),
        click.option("--padding", type=click.Choice(["none", "padme"]), help="padme hides the exact length of chunks."),
        click.option(
            "--on",
            "placement",
            metavar="SHARD|GROUP",
            multiple=True,
            shell_complete=completed("shards"),
            help="Where shares go (all shards); may be repeated.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@namespace.command()
@click.argument("name")
@_policy_options
@click.option("--quota", type=Size(), metavar="SIZE", help="Bytes that its objects may have together.")
@as_json
@connection
@pass_options
def create(options: Options, /, name: str, placement: tuple[str, ...], quota: int | None, **policy: Json) -> None:
    """Create the namespace NAME.

    Its policy is the configured one where no option says otherwise. A first write to a new name creates one too.
    """
    _shown(options, "namespace.create", _params(name, placement, quota, policy))


@namespace.command("set")
@click.argument("name", shell_complete=completed("namespaces"))
@_policy_options
@click.option("--quota", type=Quota(), metavar="SIZE|none", help="Bytes that its objects may have together.")
@click.option("--rewrite", is_flag=True, help="Convert the objects that are there, with new keys, as a job.")
@as_json
@connection
@pass_options
def set_(options: Options, /, name: str, placement: tuple[str, ...], quota: int | None, rewrite: bool, **policy: Json) -> None:
    """Change the namespace NAME; what is not named stays.

    A policy is for what is written from now on; --rewrite converts the rest.
    """
    _shown(options, "namespace.set", _params(name, placement, quota, policy))
    if rewrite:
        with options.connect() as client:
            job = cast("JobStarted", client.call("namespace.rewrite", {"namespace": name}))["job"]
        click.echo(json.dumps({"job": job}) if options.json else f"rewriting it: zstor call job.wait job={job}")


@namespace.command()
@click.argument("name", shell_complete=completed("namespaces"))
@click.option("--force", is_flag=True, help="Delete its objects with it.")
@no_progress
@as_json
@connection
@pass_options
def rm(options: Options, name: str, force: bool) -> None:
    """Delete the namespace NAME and everybody's permissions in it.

    With objects in it only with --force, which deletes them for good. One that was joined is only left: its owner keeps it.
    """
    on = if_interrupted("what has begun to be deleted goes on", hint=f"`zstor namespace get {name}` tells whether it is still there")
    with on, options.connect() as client, progress(f"deleting {name}", wanted=not options.no_progress, counted=True) as shown:
        answer = cast("NamespaceDeleted", client.call("namespace.delete", {"namespace": name, "force": force}, progress=shown))
    if options.json:
        click.echo(json.dumps(answer))
    else:
        gone = f"deleted the namespace {text.shown(name)} and {counted(answer['objects'], 'object')}"
        click.echo(f"left the namespace {text.shown(name)}; its owner keeps it" if answer.get("left") else gone)


@namespace.command()
@as_json
@connection
@pass_options
def ls(options: Options) -> None:
    """List the namespaces; with --json one line each."""
    with options.connect() as client:
        for item in cast("Iterator[NamespaceShown]", client.items("namespace.list", {})):
            click.echo(json.dumps(item) if options.json else _line(item))


@namespace.command()
@click.argument("name", shell_complete=completed("namespaces"))
@as_json
@connection
@pass_options
def get(options: Options, name: str) -> None:
    """Show the namespace NAME: its policy, quota and what it holds."""
    _shown(options, "namespace.get", {"namespace": name})


@namespace.command()
@click.argument("name", shell_complete=completed("namespaces"))
@click.argument("user")
@click.argument("public_key", metavar="PUBLIC-KEY")
@as_json
@connection
@pass_options
def invite(options: Options, name: str, user: str, public_key: str) -> None:
    """Print an invitation for USER to read the namespace NAME.

    PUBLIC-KEY is what `zstor namespace join` prints for that user.
    """
    params = {"namespace": name, "user": user, "public_key": public_key}
    with options.connect() as client:
        made = cast("Invited", client.call("namespace.invite", params))
    click.echo(json.dumps(made) if options.json else made["invitation"])


@namespace.command()
@click.argument("invitation", required=False, metavar="[FILE|-]", type=InvitationFile("r", errors="surrogateescape"))
@click.option("--as", "name", metavar="NAME", help="Its name here.")
@no_progress
@as_json
@connection
@pass_options
def join(options: Options, invitation: IO[str] | None, name: str | None) -> None:
    """Read another user's namespace, with an invitation (- is stdin).

    Without a file: print the public key that the invitation is to be made with.
    """
    with options.connect() as client:
        if invitation is None:
            key = cast("JoiningKey", client.call("namespace.key", {}))
            click.echo(json.dumps(key) if options.json else key["public_key"])
            return
        with naming_errors(invitation.name):
            written = invitation.read().strip()
        if not written:
            raise click.UsageError(f"there is no invitation in {invitation.name}")
        params = parameters(invitation=written, namespace=name)
        on = if_interrupted("what is joined already stays so", hint="`zstor namespace ls` shows it, `zstor namespace rm` leaves it")
        with on, progress("join", wanted=not options.no_progress, counted=True) as shown:
            joined = cast("NamespaceJoined", client.call("namespace.join", params, progress=shown))
    if options.json:
        click.echo(json.dumps(joined))
    else:
        click.echo(f"joined {joined['namespace']}: {counted(joined['objects'], 'object')}, {text.size(joined['bytes'])}")


def _params(name: str, placement: tuple[str, ...], quota: int | None, policy: dict[str, Json]) -> dict[str, Json]:
    return parameters(namespace=name, policy=parameters(**policy) or None, placement=list(placement) or None, quota_bytes=quota)


def _shown(options: Options, method: str, params: dict[str, Json]) -> None:
    with options.connect() as client:
        found = cast("NamespaceShown", client.call(method, params))
    if options.json:
        click.echo(json.dumps(found))
        return
    policy = found["policy"]
    click.echo(_line(found))
    chunks = f"chunks of {text.size(policy['chunk_size'])}, compression {policy['compression']}, padding {policy['padding']}"
    click.echo(f"  any {policy['k']} of {policy['m']} shares give an object back; {chunks}")
    if found["placement"]:
        click.echo(f"  shares go to {', '.join(found['placement'])}")


def _line(found: NamespaceShown) -> str:
    quota = "" if found["quota_bytes"] is None else f" of {text.size(found['quota_bytes'])}"
    return f"{found['namespace']}: {counted(found['objects'], 'object')}, {text.size(found['bytes'])}{quota}"
