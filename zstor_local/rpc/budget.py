"""Bytes of input that all connections together may hold before it is run."""

from __future__ import annotations

from zstor_local import limits


class InputBudget:
    """A count of bytes with a limit. What was taken must be given back."""

    __slots__ = ("left",)

    def __init__(self, size: int = limits.INPUT_BUDGET_BYTES) -> None:
        self.left = size

    def take(self, count: int) -> bool:
        """Reserve bytes; False, and nothing taken, if there are too few left."""
        if count > self.left:
            return False
        self.left -= count
        return True

    def give(self, count: int) -> None:
        """Give bytes back."""
        self.left += count
