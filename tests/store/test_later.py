"""An outcome that comes by itself."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Iterator

import pytest

from zstor_local.store.later import Later


class Value:
    """Something large."""


@pytest.fixture
def no_search_for_garbage() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_search_for_garbage")
def test_what_a_settled_one_was_to_be_made_of_goes_with_it() -> None:
    """As a small write does it: what is left as word knows the view of the result, and that the value."""
    value, heard = Value(), []
    alive = weakref.ref(value)
    committed: Later[int] = Later()
    written = committed.map(functools.partial(lambda value, number: number, value))
    written.then(functools.partial(lambda later: heard.append(later.result()), written))
    committed.settle(5)
    assert heard == [5]
    del value, committed, written
    assert alive() is None
