"""A file beside the metastore that holds room for it: given up when the disk is full, so that deletes can still be committed."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from typing import Final

from zstor_local.runtime import Files, write_all

PROBE_BYTES: Final = 64 * 1024


class Reserve:
    """`keep` it while there is room; `give_up` once it is needed. What it holds means nothing, so nothing of it is synced.

    Any thread may do either.
    """

    def __init__(self, files: Files, path: str, size: int) -> None:
        self._files = files
        self._path = path
        self._size = size
        self._turn = threading.Lock()
        self._kept = False
        self.given_up = False  # and not made again since

    def keep(self) -> None:
        """Make the file, if the disk has room for it twice; one of an earlier life is kept."""
        with self._turn:
            if not self._kept:
                self._make()

    def _make(self) -> None:
        try:
            fd = self._files.open(self._path, os.O_RDWR | os.O_CREAT)
            try:
                if self._files.file_system(fd).free > 2 * self._size:
                    self._files.allocate(fd, 0, self._size)  # also of one that was restored from a backup, with holes
                self._kept = self._files.status(fd).size >= self._size
                self.given_up = self.given_up and not self._kept
            finally:
                self._files.close(fd)
        except OSError:  # a full disk, or one that allocates nothing: then there is no reserve
            self._kept = False

    def is_needed(self) -> bool:
        """Whether there is no room for a few bytes more, be it by a quota; tried."""
        path = f"{self._path}.probe"
        try:
            fd = self._files.open(path, os.O_WRONLY | os.O_CREAT)
            try:
                write_all(self._files, fd, [bytes(PROBE_BYTES)], 0)
            finally:
                self._files.close(fd)
        except OSError as error:
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
        finally:
            with suppress(OSError):
                self._files.unlink(path)
        return False

    def give_up(self) -> bool:
        """Free what it holds; False if there was nothing."""
        with self._turn:
            kept, self._kept = self._kept, False
            self.given_up = self.given_up or kept
            with suppress(OSError):
                self._files.unlink(self._path)
            return kept
