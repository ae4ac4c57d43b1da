"""Content-Length frames to messages and back, as language servers speak: a state machine without I/O.

    Content-Length: 52\\r\\n
    \\r\\n
    {"jsonrpc": "2.0", "id": 1, "method": "rpc.ping", …}

Other headers (Content-Type) are read over. A body that is no JSON costs itself alone; a header that cannot be read ends the
connection, for nobody can tell where the next message begins.
"""

from __future__ import annotations

import re
from typing import Final

from zstor_local import limits
from zstor_local.errors import ParseError, TooLarge
from zstor_local.rpc.framing import Event, Fault, Message
from zstor_local.rpc.strict_json import decode, parse_error

_HEADERS_BYTES: Final = 4 * limits.KIB  # the two headers that exist take 80
_HEADERS_END: Final = re.compile(rb"\r?\n\r?\n")  # a client that ends lines like the text of its system is not to wait for ever
_HEADERS: Final = re.compile(rb"(?:[^\r\n:]+:[^\r\n]*(?:\r?\n|\Z))*")
_LENGTH: Final = re.compile(rb"^content-length:[ \t]*(.*?)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_NUMBER: Final = re.compile(rb"[0-9]{1,15}")


class ContentLengthFramer:
    """Feed it with `receive` and `end`, take events with `next_event` until it answers None. `frame` makes what is sent."""

    def __init__(self, limit: int = limits.MESSAGE_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0  # no end of the headers begins before it
        self._body: int | None = None  # length of the body that is being received; None: headers are
        self._skip = 0  # bytes of a body that nobody wants
        self._ended = False
        self._broken = False

    @property
    def pending(self) -> int:
        """Bytes held for a message that has begun; one at least where its headers are read."""
        return len(self._buffer) or int(self._body is not None)

    def receive(self, data: bytes) -> None:
        """Take what was read."""
        if self._broken:
            return
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._buffer += memoryview(data)[skipped:]

    def end(self) -> None:
        """Nothing will follow."""
        self._ended = True

    def discard(self) -> None:
        """Give up the message that has begun: go on behind its end."""
        if self._body is None:
            self._broken = True
        else:
            self._skip = self._body - len(self._buffer)
            self._body = None
        self._buffer.clear()

    def next_event(self) -> Event | None:
        """The next event in what was received, or None if it takes more bytes."""
        if self._body is None and (fault := self._read_headers()) is not None:
            return fault
        if self._body is None or len(self._buffer) < self._body:
            if not self._ended or not (self._buffer or self._body is not None):
                return None
            return self._break("the input ends inside a message")
        length, self._body = self._body, None
        try:
            return Message(decode(self._buffer, 0, length), length, line=True)
        except ParseError as error:
            return Fault(error, line=True)
        finally:
            del self._buffer[:length]

    def frame(self, message: bytes) -> bytes:
        """A message as it is sent."""
        return b"Content-Length: %d\r\n\r\n%b" % (len(message), message)

    def _read_headers(self) -> Fault | None:
        """Look for the headers' end; with it the body's length is known."""
        end = _HEADERS_END.search(self._buffer, self._searched)
        if (len(self._buffer) if end is None else end.start()) > _HEADERS_BYTES:
            return self._break("headers without an end")
        if end is None:
            self._searched = max(0, len(self._buffer) - 3)
            return None
        headers, body = bytes(self._buffer[: end.start()]), end.end()
        lengths = set(_LENGTH.findall(headers)) if _HEADERS.fullmatch(headers) else set()
        if len(lengths) != 1 or not _NUMBER.fullmatch(text := lengths.pop()):
            return self._break("headers without one Content-Length")
        length = int(text)
        del self._buffer[:body]
        self._searched = 0
        if length <= self._limit:
            self._body = length
            return None
        dropped = min(length, len(self._buffer))
        del self._buffer[:dropped]
        self._skip = length - dropped
        hint = "send large values as a path, or as a descriptor (fd) in a connection of JSON lines"
        return Fault(TooLarge(f"a message of more than {self._limit} bytes", hint=hint, limit=self._limit), line=True)

    def _break(self, why: str) -> Fault:
        self._broken = True
        self._buffer.clear()
        self._body = None
        return Fault(parse_error("syntax", why), line=True, last=True)
