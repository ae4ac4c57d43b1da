"""`zstor daemon` and `zstor init`: what works before any daemon runs."""

from __future__ import annotations

import click

from zstor_local.cli import report
from zstor_local.cli.options import Options, connection, pass_options
from zstor_local.config import ConfigError

_CONFIGURATION = 78  # EX_CONFIG of sysexits(3)


@click.command()
@connection
@pass_options
def daemon(options: Options) -> int:
    """Serve the store until Ctrl-C.

    The first start makes a store and a master key and says where. Exits with 75 where another daemon runs, with 78 where
    configuration, key or store are at fault.
    """
    try:
        config = options.load()
    except ConfigError as error:
        report.failure("configuration", str(error), json=False)
        return _CONFIGURATION
    from zstor_local.daemon import main

    return main(config, options.load)


@click.command()
@connection
@pass_options
def init(options: Options) -> int:
    """Make a store and its master key.

    `zstor daemon` does it too at its first start. What is there already is never touched.
    """
    from zstor_local.daemon import init_store

    return init_store(options.load())
