"""The command `zstor`: text for people and JSON for programs, made from the same answers of the daemon."""

from zstor_local.cli.root import main

__all__ = ["main"]
