"""A client that sends exactly the bytes a test wants, with the descriptors it wants, and reads replies."""

from __future__ import annotations

import array
import base64
import json
import os
import re
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SAFETY_NET_SECONDS = 180.0  # nothing here waits so long unless the daemon hangs

Object = dict[str, Any]


_API = Path(__file__, "../../../docs/api.md").resolve().read_text()
_DECLARED = {
    method: re.findall(r"`(\w+)`", errors)
    for method, errors in re.findall(r"^### (\S+)$(?:(?!^### ).)*?^Result: [^\n]*?Errors: ([^\n]*)$", _API, re.MULTILINE | re.DOTALL)
}
_ANY = ("timed_out", "shutting_down", "busy", "too_large", "not_supported")  # of calls as such: deadlines, stops, limits, the transport


class Client:
    """One connection. A reply that does not come ends in TimeoutError."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(SAFETY_NET_SECONDS)
        self._received = b""
        self._last_id = 0
        directory, name = os.path.split(path)
        place = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            self.socket.connect(f"/proc/self/fd/{place}/{name}")  # any length of path
        except BaseException:
            self.socket.close()
            raise
        finally:
            os.close(place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # --- Bytes ---

    def send(self, data: bytes | str, fds: Sequence[int] = ()) -> None:
        """Descriptors go with the first byte, and nothing else in that send."""
        data = data.encode() if isinstance(data, str) else data
        if fds:
            self.socket.sendmsg([data[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
            data = data[1:]
        self.socket.sendall(data)

    def line(self) -> bytes:
        """The next line; EOFError where the daemon has closed."""
        while b"\n" not in self._received:
            try:
                more = self.socket.recv(1 << 18)
            except ConnectionResetError:
                more = b""
            if not more:
                raise EOFError
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return line

    def reply(self) -> Any:
        """The next message, whatever it is."""
        while not (line := self.line()).strip():
            pass
        return json.loads(line)

    def rest(self) -> list[Any]:
        """All messages until the daemon closes."""
        found = []
        try:
            while True:
                found.append(self.reply())
        except EOFError:
            return found

    @property
    def silent(self) -> bool:
        """Nothing came that nobody asked for."""
        self.socket.setblocking(False)
        try:
            return not self._received and not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(SAFETY_NET_SECONDS)

    # --- Calls ---

    def request(self, method: str, params: Any = None, *, fds: Sequence[int] = ()) -> int:
        """Send a request; the id that its reply will have."""
        self._last_id += 1
        self.send(message(method, params, identity=self._last_id), fds)
        return self._last_id

    def call(self, method: str, params: Any = None, *, fds: Sequence[int] = ()) -> Object:
        """The reply to a request, with no other call running."""
        identity = self.request(method, params, fds=fds)
        while True:
            reply = self.reply()
            if "method" not in reply:
                assert reply["id"] == identity, reply
                if reply.get("error", {}).get("code", 0) > 0:
                    assert error_type(reply) in (*_DECLARED.get(method, []), *_ANY), f"{method} does not declare {error_type(reply)}"
                return dict(reply)

    def result(self, method: str, *, fds: Sequence[int] = (), **params: Any) -> Any:
        """The result of a call that must succeed."""
        reply = self.call(method, params, fds=fds)
        assert "error" not in reply, reply
        return reply["result"]

    def refusal(self, method: str, *, fds: Sequence[int] = (), **params: Any) -> str:
        """The type of the error of a call that must fail."""
        return error_type(self.call(method, params, fds=fds))

    # --- Objects ---

    def write(self, key: str, data: bytes, **params: Any) -> Object:
        """The metadata of an object that came in the call."""
        return dict(self.result("object.write", key=key, value_b64=base64.b64encode(data).decode(), **params)["metadata"])

    def read(self, key: str, **params: Any) -> bytes:
        return base64.b64decode(self.result("object.read", key=key, **params)["value_b64"])

    def stored(self) -> set[str]:
        return {item["key"] for item in self.result("object.list")["items"]}


def message(method: str, params: Any = None, *, identity: Any = 1) -> str:
    """A request as a line."""
    members = {"jsonrpc": "2.0", "id": identity, "method": method}
    return json.dumps(members if params is None else {**members, "params": params}) + "\n"


def error_type(reply: Any) -> str:
    """`data.type` of a reply that is an error."""
    assert "error" in reply, reply
    return str(reply["error"]["data"]["type"])


def pipe(opened: ExitStack) -> tuple[int, int]:
    """A pipe, first the end to read from; what the test does not close is closed in the end."""
    reader, writer = os.pipe()
    for end in (reader, writer):
        opened.callback(close, end)
    return reader, writer


def close(fd: int) -> None:
    """Close a descriptor, if it is open: only for ones that no number can be used again for meanwhile."""
    with suppress(OSError):
        os.close(fd)
