"""Whose tokens count on a shard server: the documents it was started with, and newer ones that their issuers sent since."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

from zstor_local.access.trust import Trust, parse_trust
from zstor_local.access.verify import TRUST_BYTES, TokenRefused, verify_trust
from zstor_local.runtime import Runtime, read_exactly, sync_directory, write_all


class TrustKeeper:
    """Keeps each issuer's newest document, so that what was revoked stays revoked after a restart."""

    def __init__(self, runtime: Runtime, directory: str) -> None:
        self._runtime = runtime
        self._directory = directory

    def keep(self, issuer: str, document: bytes) -> None:
        """Remember a signed document that was verified; durable when this returns."""
        files = self._runtime.files
        path = self._path(issuer)
        fd = files.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(files, fd, [document], 0)
            files.fsync(fd)
        finally:
            files.close(fd)
        files.rename(f"{path}.new", path)
        sync_directory(files, self._directory)

    def newest(self, given: Iterable[bytes]) -> Iterator[Trust]:
        """The documents given at the start, or in place of each the newer one that was sent. InvalidParams for what is none."""
        for text in given:
            trust = parse_trust(text)
            try:
                yield verify_trust(self._read(trust.issuer), trust)
            except (FileNotFoundError, TokenRefused):
                yield trust

    def _read(self, issuer: str) -> str:
        files = self._runtime.files
        fd = files.open(self._path(issuer), os.O_RDONLY)
        try:
            return read_exactly(files, fd, TRUST_BYTES, 0).decode("ascii", "replace")
        finally:
            files.close(fd)

    def _path(self, issuer: str) -> str:
        return f"{self._directory}/{hashlib.sha256(issuer.encode()).hexdigest()[:32]}"
