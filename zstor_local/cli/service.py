"""`zstor daemon` and `zstor init`: what works before any daemon runs."""

from __future__ import annotations

import gc
import json
import sys

import click

from zstor_local.cli.options import Options, as_json, connection, pass_options
from zstor_local.config import ConfigError
from zstor_local.store.faults import Refused

_CONFIGURATION = 78  # EX_CONFIG of sysexits(3)


@click.command()
@as_json
@connection
@pass_options
def daemon(options: Options) -> None:
    """Serve the store until Ctrl-C.

    The first start makes a store and a master key and says where. Exits with 75 where another daemon runs, with 78 where
    configuration, key or store are at fault. With --json its announcements are lines of JSON.
    """
    try:
        config = options.load()
    except ConfigError as error:
        raise Refused("configuration", str(error), None, _CONFIGURATION) from None
    gc.disable()  # what is imported stays: it need not be looked through, now or ever (a seventh of the start)
    from zstor_local.daemon import main

    gc.freeze()
    gc.enable()
    main(config, options.load, Announcer(as_json=options.json))


@click.command()
@as_json
@connection
@pass_options
def init(options: Options) -> None:
    """Make a store and its master key.

    `zstor daemon` does it too at its first start. What is there already is never touched.
    """
    from zstor_local.daemon import init_store

    init_store(options.load(), Announcer(as_json=options.json))


class Announcer:
    """Tells what happens: to people on stderr, to programs as lines of JSON on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json

    def __call__(self, text: str, /, **members: object) -> None:
        stream = sys.stdout if self._json else sys.stderr
        stream.write(f"{json.dumps(members) if self._json else text}\n")
        stream.flush()
