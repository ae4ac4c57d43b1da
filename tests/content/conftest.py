"""A home for the stores under test."""

from tests.store.conftest import home

__all__ = ["home"]
