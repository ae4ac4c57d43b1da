"""One process at a time: the lock of a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from zstor_local.runtime import Runtime
from zstor_local.store.faults import StoreInUse

LOCK: Final = "lock"


@contextmanager
def store_lock(runtime: Runtime, store: str) -> Iterator[None]:
    """Hold the lock of the store in a directory that is there; StoreInUse if another process has it."""
    fd = runtime.files.open(f"{store}/{LOCK}", os.O_RDWR | os.O_CREAT)
    try:
        if not runtime.files.lock(fd):
            raise StoreInUse(f"another daemon uses the store {store}")
        yield
    finally:
        runtime.files.close(fd)
