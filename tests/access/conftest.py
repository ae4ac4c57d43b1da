"""A home for the stores that authorities keep their rows in."""

from __future__ import annotations

from tests.store.conftest import home

__all__ = ["home"]
