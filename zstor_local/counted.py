"""How many of something, for people."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """1 share, 6 shares, 1,000 entries. `many` where the plural is another word than `one` with an s, as of a noun with its verb."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
