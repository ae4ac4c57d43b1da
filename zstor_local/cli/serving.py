"""`zstor shard serve`: a shard for daemons on other machines. Works without a daemon."""

from __future__ import annotations

import json as json_text
import os

import click

from zstor_local.cli.options import Size
from zstor_local.store.faults import Refused

_REFUSED = 78  # EX_CONFIG of sysexits(3)
_IN_USE = 75  # EX_TEMPFAIL
_WORKERS = 40  # worker threads: they wait for disks and compute little


@click.command()
@click.option("--listen", required=True, metavar="HOST:PORT|unix:PATH", help="Where daemons find it; port 0 takes a free one.")
@click.option("--data", required=True, metavar="DIR", type=click.Path(file_okay=False), help="Where it keeps what it is given.")
@click.option(
    "--trust",
    required=True,
    multiple=True,
    metavar="FILE|URL",
    type=click.Path(),
    help="What `zstor shard trust` prints: whose tokens count.",
)
@click.option("--tls-cert", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Certificate chain, PEM.")
@click.option("--tls-key", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Its private key, PEM.")
@click.option("--quota", type=Size(), metavar="SIZE", help="How much each shard of a store may keep here (no limit).")
@click.option("--plaintext", is_flag=True, help="Listen beyond this machine without TLS: only where the network itself is encrypted.")
@click.option("--json", "as_json", is_flag=True, help="Say where it listens as JSON.")
def serve(
    listen: str,
    data: str,
    trust: tuple[str, ...],
    tls_cert: str | None,
    tls_key: str | None,
    quota: int | None,
    plaintext: bool,
    as_json: bool,
) -> None:
    """Serve shards to daemons on other machines.

    Until SIGTERM or Ctrl-C. It stores ciphertext only, checks a token on every request, and can be run by somebody whom nobody trusts.
    """
    if not data:  # a variable that was not set: the present directory was not meant
        raise click.UsageError("--data: an empty name is no directory")
    if listen.startswith("unix:") and listen != "unix:":  # what it says that it listens at is a URL to copy, and that has a whole path
        listen = f"unix:{os.path.abspath(listen.removeprefix('unix:'))}"
    import trio

    from zstor_local import process
    from zstor_local.shardserver.serve import ServerFault, Settings, run
    from zstor_local.shardserver.volume import VolumeInUse
    from zstor_local.system import real_runtime

    process.log_to_stderr()
    process.keep_secrets()
    process.allow_descriptors()

    def ready(url: str) -> None:
        click.echo(json_text.dumps({"listening": url, "pid": os.getpid()}) if as_json else f"listening on {url}")

    settings = Settings(listen, os.path.abspath(data), trust, tls_cert, tls_key, quota, plaintext)
    try:
        trio.run(run, real_runtime(_WORKERS), settings, ready)
    except VolumeInUse as error:
        raise Refused("in_use", str(error), "stop that one, or give another directory", _IN_USE) from None
    except ServerFault as error:
        raise Refused("fault", str(error), error.hint, _REFUSED) from None
