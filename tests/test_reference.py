"""docs/api.md and the man pages are what the daemon and the command say of themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PRINT = "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1])['pages']()))"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Made in a process of its own: a command remembers how it was asked for help before."""
    made = subprocess.run([sys.executable, "-c", PRINT, str(DOCS / "generate.py")], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(made.stdout)
    return found


@pytest.mark.parametrize("name", ["api.md", "man/zstor.1", "man/zstor-api.7"])
def test_the_reference_is_up_to_date(pages: dict[str, str], name: str) -> None:
    assert pages.keys() == {"api.md", "man/zstor.1", "man/zstor-api.7"}
    assert (DOCS / name).read_text() == pages[name], "run `make docs`"
