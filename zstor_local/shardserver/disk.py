"""Where the parts of a space lie, its small files whole or not there, and the system's errors in a shard server's words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from zstor_local.runtime import Runtime, read_exactly, write_all
from zstor_local.shardserver.refusal import of_system

ABOUT: Final = "about.json"
ROOMS: Final = "rooms"
SHARES: Final = "shares"
TEMPORARY: Final = "tmp"
SMALL_FILE_BYTES: Final = 1 << 20


def read_file(runtime: Runtime, path: str) -> bytes:
    """A small file, whole. OSError."""
    fd = runtime.files.open(path, os.O_RDONLY)
    try:
        return bytes(read_exactly(runtime.files, fd, SMALL_FILE_BYTES, 0))
    finally:
        runtime.files.close(fd)


def write_file(runtime: Runtime, path: str, data: bytes) -> None:
    """Make or overwrite a file, its content durable when this returns; its name is the caller's to sync. OSError."""
    files = runtime.files
    fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(files, fd, [data], 0)
        files.fsync(fd)
    finally:
        files.close(fd)


@contextmanager
def answering() -> Iterator[None]:
    """The system's errors as refusals."""
    try:
        yield
    except OSError as error:
        raise of_system(error) from error
