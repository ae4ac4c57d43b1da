"""A client for trio: content by its id, names, and logs, over the daemon's socket. Any number of calls at once.

    async with connected("/run/user/1000/zstor/zstor.sock") as node:
        cid = await node.upload(b"hello")
        seq = await node.update("greeting", str(cid).encode())
        name = await node.fetch("greeting", after=seq, wait=60)

The wire is docs/wire.md: JSON-RPC 2.0, one line a message. What is fetched is compared with its id here too: a node believes nobody.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, cast

import trio

from zstor_local import limits
from zstor_local.errors import CorruptRecord, errno_text, typed_error
from zstor_local.formats import unixfs
from zstor_local.formats.cid import Cid, parse
from zstor_local.unix_socket import connectable, other_end

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

_RECEIVE_BYTES: Final = 64 * limits.KIB


class Disconnected(Exception):
    """Nobody, or the wrong one, answers at the socket, or the connection broke. Whether a running call happened is not known."""


@dataclass(frozen=True, slots=True)
class FetchedName:
    """A name's value and number; no value where nothing is new or the name is not there."""

    value: bytes | None
    seq: int


@dataclass(slots=True)
class _Running:
    done: trio.Event = field(default_factory=trio.Event)
    reply: Mapping[str, Any] | None = None


class Node:
    """One connection; made by `connected`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._sending = trio.Lock()
        self._running: dict[int, _Running] = {}
        self._last_id = 0
        self._lines = 0  # that came
        self._ended: str | None = None  # why nothing can be asked any more

    # --- Content ---

    async def upload(self, data: bytes, *, pin: bool = True) -> Cid:
        """Store bytes (8 MiB at most); durable when this returns. Their id is computed here as well: CorruptRecord if they differ."""
        answer = await self.call("cas.upload", value_b64=_text(data), pin=pin)
        cid = parse(answer["id"])
        if cid != unixfs.content_id(data):
            raise CorruptRecord(f"the daemon calls these bytes {cid}, they are {unixfs.content_id(data)}")
        return cid

    async def content(self, cid: Cid) -> bytes:
        """The bytes of an id (8 MiB at most), compared with it: CorruptRecord if they are others; NotFound, TooLarge."""
        data = base64.b64decode((await self.call("cas.fetch", id=str(cid)))["value_b64"])
        if unixfs.content_id(data) != cid:
            raise CorruptRecord(f"the bytes under {cid} are others", hint=f"`zstor cas verify {cid}` tells more")
        return data

    # --- Names ---

    async def update(self, name: str, value: bytes, *, if_seq: int | None = None) -> int:
        """Set a name's value. With `if_seq` only while that is its number, else Conflict. Returns its number."""
        condition = {} if if_seq is None else {"if_seq": if_seq}
        return int((await self.call("ns.update", name=name, value_b64=_text(value), **condition))["seq"])

    async def fetch(self, name: str, *, after: int = 0, wait: float = 0) -> FetchedName:
        """A name's value if its number is above `after`; else wait so many seconds for that."""
        answer = await self.call("ns.fetch", name=name, after_seq=after, wait_seconds=wait)
        value = answer.get("value_b64")
        return FetchedName(None if value is None else base64.b64decode(value), answer["seq"])

    # --- Logs ---

    async def append(self, log: str, local_hash: bytes, cid: Cid) -> int:
        """Add stored content to the end of a log: its new head is under the name when this returns. Returns the entry's number."""
        answer = await self.call("log.append", log=log, local_hash_b64=_text(local_hash), id=str(cid))
        return int(answer["seq"])

    # --- Calls ---

    async def call(self, method: str, **params: Json) -> dict[str, Any]:
        """The result of a call. The typed error that was answered, or Disconnected. A cancel is passed on."""
        self._last_id += 1
        number, running = self._last_id, _Running()
        self._running[number] = running
        try:
            await self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            try:
                await running.done.wait()
            except trio.Cancelled:
                with trio.CancelScope(shield=True), trio.move_on_after(1), suppress(Disconnected):
                    await self._send({"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": number}})
                raise
        finally:
            del self._running[number]
        if running.reply is None:
            raise Disconnected(self._ended or "the daemon closed the connection before it answered")
        if "error" in running.reply:
            raise typed_error(running.reply["error"])
        return cast("dict[str, Any]", running.reply["result"])

    async def _send(self, message: Mapping[str, object]) -> None:
        """A cancel while the line goes out ends the connection: what came next would be taken for the rest of it."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        async with self._sending:
            if self._ended is not None:
                raise Disconnected(self._ended)
            await trio.lowlevel.checkpoint_if_cancelled()  # nothing is out yet
            try:
                await self._stream.send_all(line)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise Disconnected("the daemon has closed the connection") from None
            except trio.Cancelled:
                self._ended = "the connection to the daemon was ended, as a call was given up halfway out"
                self._stream.socket.close()
                raise

    async def receive(self) -> None:
        """Hand replies to their calls, until the connection ends or something comes that is no message. `connected` runs it."""
        buffer, ended = bytearray(), "the daemon closed the connection before it answered"
        try:
            while data := await self._stream.receive_some(_RECEIVE_BYTES):
                searched = len(buffer)
                buffer += data
                while (end := buffer.find(b"\n", searched)) >= 0:
                    self._take(bytes(buffer[:end]))
                    del buffer[: end + 1]
                    searched = 0
                if len(buffer) > limits.MESSAGE_BYTES:
                    raise _NoMessage("has no end")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except _Refused as error:
            ended = f"the daemon could not read what was sent: {error}"
        except _NoMessage as error:
            ended = f"what answers at the socket is no zstor daemon: line {self._lines + 1} {error}"
        finally:
            self._ended = self._ended or ended
            for running in self._running.values():
                running.done.set()

    def _take(self, line: bytes) -> None:
        message = _parse(line) if line.strip() else {}
        number = message.get("id") if "method" not in message else None
        if number is None and "error" in message:  # nobody can tell which call that was
            raise _Refused(typed_error(message["error"]))
        running = self._running.get(number) if isinstance(number, int) else None
        if running is not None:
            if "result" not in message and "error" not in message:
                raise _NoMessage("answers nothing")
            running.reply = message
            running.done.set()
        self._lines += 1


class _Refused(Exception):
    """What the daemon says of a message of ours that is no request."""


class _NoMessage(Exception):
    """What is wrong with a line."""


def _parse(line: bytes) -> Mapping[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise _NoMessage("is no JSON") from None
    if not isinstance(message, dict):
        raise _NoMessage("is no JSON object")
    return message


@asynccontextmanager
async def connected(path: str) -> AsyncIterator[Node]:
    """A connection to the daemon at this socket, which must run under our own user id; Disconnected."""
    try:
        with connectable(path) as place:
            stream = await trio.open_unix_socket(place)
    except OSError as error:
        raise Disconnected(f"no daemon answers at {path}: {errno_text(error)}") from None
    async with stream:
        _, uid = other_end(stream.socket)
        if uid != os.getuid():
            raise Disconnected(f"the socket {path} belongs to a process of user id {uid}, not of yours")
        node = Node(stream)
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.receive)
            try:
                yield node
            except BaseException as error:
                failure = error  # raised as it is below, not in a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
