"""A home for the stores under test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from tests.store.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home without a store: 2 of 3 shares, chunks of 256 KiB. When the store is closed no descriptor may be left."""
    before = open_descriptors()
    yield Home(tmp_path)
    assert open_descriptors() == before
