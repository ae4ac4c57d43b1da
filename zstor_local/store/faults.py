"""Why a store does not open: something is wrong that only a person can decide."""

from __future__ import annotations


class StoreFault(Exception):
    """Configuration, key or store at fault: nothing was created or changed. The daemon leaves with status 78."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class StoreInUse(Exception):
    """Another process has the store's lock. The daemon leaves with status 75."""
