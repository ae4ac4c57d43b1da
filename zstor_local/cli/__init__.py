"""The command `zstor`: text for people and JSON for programs, made from the same answers of the daemon."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    try:
        from zstor_local.cli.root import run  # here, so that a Ctrl-C while it is imported is no traceback

        return run(arguments)
    except KeyboardInterrupt:  # as the one before or behind what tells of it
        return 130


__all__ = ["main"]
