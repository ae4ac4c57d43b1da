"""A file of received entries, one JSON line each, which is also what a receiver knows of how far it is.

A line and the position are one thing: after a kill at any point the file is read again, a line that was cut off is dropped, and the
receiver goes on behind the last whole one. So no entry is left out and none comes twice.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from zstor_local.errors import Busy
from zstor_local.node.receiving import Position, Received

_TAIL_BYTES: Final = 64 * 1024
_BEGINNING: Final = b'{"seq": '


class NoJournal(Exception):
    """The file holds something else than received entries; the text says in which line."""


class Journal:
    """The file, open at its end. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file; NoJournal, OSError, Busy where another one has it: each would add what the other does."""
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.position: Final = self._recover()
        except BlockingIOError:
            self._file.close()
            raise Busy(f"somebody receives into {path} already", hint="wait for its end, or give another file") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, received: Received) -> None:
        """The next entry; it is there after a kill when this returns."""
        self._file.write(line_of(received) + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """What was added is there after a power cut too."""
        os.fsync(self._file.fileno())

    def _recover(self) -> Position:
        """Drop a line that was cut off, and read the one before."""
        end = self._file.seek(0, os.SEEK_END)
        tail, start = b"", end
        while start and tail.count(b"\n") < 2:
            step = min(_TAIL_BYTES, start)
            start -= step
            self._file.seek(start)
            tail = self._file.read(step) + tail
        whole, cut_off = tail[: tail.rfind(b"\n") + 1], tail[tail.rfind(b"\n") + 1 :]
        written = cut_off.rstrip(b"\0") if whole else cut_off  # a power cut may leave zeros in place of what was not synced
        if not written.startswith(_BEGINNING[: len(written)]):
            raise NoJournal(f"line {self._lines() + 1}, the last one, is not a received entry")
        try:
            position = _position(whole.splitlines()[-1]) if whole else Position()
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise NoJournal(f"line {self._lines()}, the last whole one, is not a received entry") from None
        self._file.truncate(end - len(cut_off))
        return position

    def _lines(self) -> int:
        """The whole ones."""
        self._file.seek(0)
        return sum(piece.count(b"\n") for piece in iter(lambda: self._file.read(_TAIL_BYTES), b""))


def _position(line: bytes) -> Position:
    last = json.loads(line)
    return Position(int(last["seq"]), base64.b64decode(last["local_hash_b64"]))


def line_of(received: Received) -> bytes:
    """An entry as one line of JSON."""
    members = {
        "seq": received.seq,
        "local_hash_b64": base64.b64encode(received.local_hash).decode(),
        "id": None if received.cid is None else str(received.cid),
        "content_b64": None if received.content is None else base64.b64encode(received.content).decode(),
    }
    return json.dumps(members).encode()
