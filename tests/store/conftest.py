"""A home for the stores under test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from tests.store.home import Home
from zstor_local.model.storewide import NamespaceRecord
from zstor_local.store.namespaces import Namespace, Namespaces


@pytest.fixture(autouse=True)
def namespaces_are_the_event_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that looked for one might make a second gate of it, which its deletion does not close."""
    remember = Namespaces._remember

    def checked(namespaces: Namespaces, record: NamespaceRecord, *, anew: bool = False) -> Namespace:
        assert threading.current_thread() is threading.main_thread()
        return remember(namespaces, record, anew=anew)

    monkeypatch.setattr(Namespaces, "_remember", checked)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home without a store: 2 of 3 shares, chunks of 256 KiB. When the store is closed no descriptor may be left."""
    before = open_descriptors()
    yield Home(tmp_path)
    assert open_descriptors() == before
