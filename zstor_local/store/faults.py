"""Why a store does not open: something is wrong that only a person can decide."""

from __future__ import annotations

from typing import Final


class StoreFault(Exception):
    """Configuration, key or store at fault: nothing was created or changed. The daemon leaves with status 78."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class StoreInUse(Exception):
    """Another process has the store's lock. The daemon leaves with status 75."""

    hint: Final = "stop that one first: Ctrl-C where it runs, or systemctl --user stop zstor.socket zstor.service"


class Refused(Exception):
    """Why a program that needs the store to itself does not run: what happened, what to do now, and the status to leave with."""

    def __init__(self, kind: str, message: str, hint: str | None, status: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint
        self.status = status
