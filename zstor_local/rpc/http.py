"""JSON-RPC over HTTP/1.1 on the same socket: a POST carries a message, its response the answer. On h11, without I/O.

    curl --unix-socket $XDG_RUNTIME_DIR/zstor/zstor.sock http://zstor/ -d '{"jsonrpc": "2.0", "id": 1, "method": "rpc.ping"}'

Whatever path, host and content type a request names, it is taken: who may connect is the socket's matter. The status tells of HTTP
alone: 200 for every answer of JSON-RPC, an error too; 204 for notifications. Requests of one connection are answered one by one.
"""

from __future__ import annotations

import h11

from zstor_local import limits
from zstor_local.errors import InvalidRequest, NotSupported, ParseError, TooLarge, ZstorError
from zstor_local.rpc.descriptors import Descriptors
from zstor_local.rpc.framing import Event, Fault, Message
from zstor_local.rpc.http1 import has_two_lengths, new_connection, next_request, receive
from zstor_local.rpc.strict_json import decode

_OK, _NO_CONTENT, _BAD_REQUEST, _BAD_METHOD, _TOO_LARGE, _UNAVAILABLE = 200, 204, 400, 405, 413, 503


class NoDescriptors(Descriptors):
    """Stands where a message's descriptors would be."""

    __slots__ = ()

    def take(self, index: int) -> int:
        raise NotSupported(
            "a descriptor cannot come over HTTP", hint="send value_b64 or a path, or JSON lines with the descriptor (docs/wire.md)"
        )

    def hand_over(self) -> Descriptors:
        return self


class HttpFramer:
    """Feed it with `receive` and `end`, take events with `next_event` until it answers None; then `frame` the answer.

    After a message there is no event until its answer has been framed.
    """

    def __init__(self, limit: int = limits.MESSAGE_BYTES) -> None:
        self._limit = limit
        self._http = new_connection()
        self._body = bytearray()
        self._head = False  # HEAD: the response has no body
        self._fault: ZstorError | None = None  # what this request is answered, once it is complete
        self._status = _OK
        self._closing = False
        self._unanswered = False

    @property
    def pending(self) -> int:
        """Bytes held for a message that has begun."""
        return len(self._body)

    @property
    def closing(self) -> bool:
        """No further request will be read."""
        return self._closing

    @property
    def unanswered(self) -> bool:
        """The last message has had no answer yet."""
        return self._unanswered

    def receive(self, data: bytes) -> None:
        """Take what was read."""
        receive(self._http, data)

    def end(self) -> None:
        """Nothing will follow."""
        self._http.receive_data(b"")

    def discard(self) -> None:
        """Give up the message that has begun, and with it the connection."""
        self._body.clear()
        self._status = _UNAVAILABLE
        self._closing = True

    def continues(self) -> bytes:
        """What a client must be told before it sends the body: nothing, if it does not wait for it."""
        if self._closing or not self._http.they_are_waiting_for_100_continue:
            return b""
        return self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b""

    def next_event(self) -> Event | None:
        """The next event in what was received, or None if it takes more bytes or the answer to the last one."""
        while not self._closing:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                self._status = error.error_status_hint
                self._closing = True
                return Fault(InvalidRequest("what came is not HTTP/1.1", hint="speak HTTP/1.1, or send one line of JSON"), line=True)
            if isinstance(event, h11.Request):
                if (fault := self._begin(event)) is not None:
                    return fault
            elif isinstance(event, h11.Data):
                self._append(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return self._complete()
            elif isinstance(event, h11.ConnectionClosed):
                self._closing = True
            else:  # NEED_DATA, PAUSED
                return None
        return None

    def frame(self, message: bytes) -> bytes:
        """The response that carries an answer; empty for nothing to answer (204)."""
        began = self._http.our_state
        if began not in (h11.IDLE, h11.SEND_RESPONSE):
            return b""  # what the connection says after an answer has no place in HTTP
        self._unanswered = False
        status = self._status if message else _NO_CONTENT
        headers: list[tuple[str, str]] = []
        if message:
            headers += [("content-type", "application/json"), ("content-length", str(len(message)))]
        if status == _BAD_METHOD:
            headers.append(("allow", "POST"))
        if self._closing or self._http.their_state is not h11.DONE:
            self._closing = True
            headers.append(("connection", "close"))
        response = self._http.send(h11.Response(status_code=status, headers=headers)) or b""
        if message and not self._head:
            response += self._http.send(h11.Data(data=message)) or b""
        response += self._http.send(h11.EndOfMessage()) or b""
        self._status, self._head = _OK, False
        if self._http.our_state is h11.DONE:
            self._http = next_request(self._http)
        else:
            self._closing = True
        return response

    def _begin(self, request: h11.Request) -> Fault | None:
        self._head = request.method == b"HEAD"
        self._fault = None
        if has_two_lengths(request):
            self._status = _BAD_REQUEST
            self._closing = True
            why, hint = "Content-Length and Transfer-Encoding exclude each other", "send one of them"
            return Fault(InvalidRequest(why, hint=hint), line=True)
        length = next((int(value) for name, value in request.headers if name == b"content-length"), 0)
        if request.method != b"POST":
            self._fault = NotSupported(f"{request.method.decode()[:16]} carries no request", hint="POST one JSON-RPC request or batch")
            self._status = _BAD_METHOD
        elif length > self._limit:
            self._too_large()
            if self._http.they_are_waiting_for_100_continue:  # it need not send the body at all
                self._closing = True
                return Fault(self._fault, line=True) if self._fault else None
        return None

    def _append(self, data: bytes) -> None:
        if self._fault is not None:
            return
        self._body += data
        if len(self._body) > self._limit:
            self._too_large()

    def _too_large(self) -> None:
        self._body = bytearray()
        self._status = _TOO_LARGE
        self._fault = TooLarge(f"a message of more than {self._limit} bytes", hint="send large values as a path", limit=self._limit)

    def _complete(self) -> Event:
        if self._fault is not None:
            return Fault(self._fault, line=True)
        body, self._body = self._body, bytearray()
        self._unanswered = True
        try:
            return Message(decode(body, 0, len(body)), len(body), line=True)
        except ParseError as error:
            return Fault(error, line=True)
