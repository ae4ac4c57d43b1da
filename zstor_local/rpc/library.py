"""What is used of jsonrpcserver: one function of its dispatcher, and what that takes and gives.

Its package imports asyncio, jsonschema and an HTTP server for the rest of it, which is a fifth of a daemon's start. So its modules are
imported beside that, as if the package's own `__init__` were empty; the version is pinned.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from typing import Final

from oslash.either import Left

_PACKAGE: Final = "jsonrpcserver"


@contextmanager
def _without_its_init() -> Iterator[None]:
    spec = find_spec(_PACKAGE)
    if spec is None or _PACKAGE in sys.modules:
        yield
        return
    sys.modules[_PACKAGE] = module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]  # whoever wants all of it imports it anew


with _without_its_init():
    from jsonrpcserver.dispatcher import dispatch_request
    from jsonrpcserver.request import Request as LibraryRequest
    from jsonrpcserver.result import Result, Success

__all__ = ["Left", "LibraryRequest", "Result", "Success", "dispatch_request"]
