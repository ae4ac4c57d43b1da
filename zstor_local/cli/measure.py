"""`zstor bench`: how fast is it here?"""

from __future__ import annotations

import click


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> int:
    """Measure how fast it is here.

    Each figure stands beside that of a straight-line program that does the same work.
    """
    from zstor_local.bench import main

    return main(arguments)
