"""What a connection speaks, chosen by its first byte: JSON, JSON behind Content-Length headers, or JSON over HTTP."""

from __future__ import annotations

from typing import Protocol

from zstor_local.rpc.content_length import ContentLengthFramer
from zstor_local.rpc.framing import Event, Framer
from zstor_local.rpc.http import HttpFramer


class Wire(Protocol):
    """Bytes to messages and back: a state machine without I/O."""

    @property
    def pending(self) -> int:
        """Bytes held for a message that has begun."""
        ...

    def receive(self, data: bytes) -> None:
        """Take what was read."""
        ...

    def end(self) -> None:
        """Nothing will follow."""
        ...

    def discard(self) -> None:
        """Give up the message that has begun."""
        ...

    def next_event(self) -> Event | None:
        """The next event in what was received, or None if it takes more bytes."""
        ...


def wire_of(first: int) -> Wire:
    """C or c begins a Content-Length header; P, G, H, O and D the methods of HTTP; no JSON value begins with any of them."""
    if first in b"Cc":
        return ContentLengthFramer()
    return HttpFramer() if first in b"PGHOD" else Framer()
