"""What RFC 9112 asks of a server beyond what h11 sees to. Without I/O."""

from __future__ import annotations

from typing import Final

import h11

from zstor_local import limits

HEADERS_BYTES: Final = 16 * limits.KIB  # Apache and nginx take 8
_BLANK: Final = b"\r\n"


def new_connection() -> h11.Connection:
    """The server's side of a connection."""
    return h11.Connection(h11.SERVER, max_incomplete_event_size=HEADERS_BYTES)


def receive(http: h11.Connection, data: bytes) -> None:
    """Take what was read, b"" for the end. Blank lines before a request are read over (RFC 9112 §2.2): some clients end a body so."""
    if data and http.their_state is h11.IDLE and not http.trailing_data[0]:
        data = data.lstrip(_BLANK)
        if not data:
            return
    http.receive_data(data)


def next_request(http: h11.Connection) -> h11.Connection:
    """The connection as it waits for the next request, with what was received of it already."""
    ahead, ended = http.trailing_data
    if ahead[:1] not in (b"\r", b"\n"):
        http.start_next_cycle()
        return http
    fresh = new_connection()
    receive(fresh, ahead)
    if ended:
        fresh.receive_data(b"")
    return fresh


def has_two_lengths(request: h11.Request) -> bool:
    """Whether a request says in two ways where it ends. Who believes one of them may be led astray (RFC 9112 §6.1)."""
    return {b"content-length", b"transfer-encoding"} <= {name for name, _ in request.headers}
