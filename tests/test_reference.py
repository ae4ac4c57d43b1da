"""docs/api.md and the man pages are what the daemon and the command say of themselves."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = generate
    spec.loader.exec_module(generate)
    found: dict[str, str] = generate.pages()
    return found


@pytest.mark.parametrize("name", ["api.md", "man/zstor.1", "man/zstor-api.7"])
def test_the_reference_is_up_to_date(pages: dict[str, str], name: str) -> None:
    assert pages.keys() == {"api.md", "man/zstor.1", "man/zstor-api.7"}
    assert (DOCS / name).read_text() == pages[name], "run `make docs`"
