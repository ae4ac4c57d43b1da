"""What a test cannot do without: where it is lacking a person's run goes on without the test, a CI run fails."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """End the test: skipped on a person's machine, failed in CI, where nothing may be passed over in silence."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have it: {what}")
    pytest.skip(what)
