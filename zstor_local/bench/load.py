"""The load: prebuilt bytes over raw Unix sockets, replies counted. Everything here runs in one process that does nothing else.

The same functions drive the daemon and the floors' servers.
"""

from __future__ import annotations

import array
import base64
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from zstor_local.limits import KIB, MIB

_RECEIVE_BYTES: Final = 256 * KIB
_PIPE_BYTES: Final = MIB
_SHOWN: Final = 400  # bytes of a reply that went wrong


class BenchFailed(Exception):
    """What was to be measured went wrong: a server does not run or answer, or answers with something else. The message says how."""


@dataclass(frozen=True, slots=True)
class Burst:
    """Requests of one method, a key each (an empty one: none), dealt out to clients that each wait for their reply.

    The key goes as `parameter`, with `extra` ones beside it. `value_bytes` random bytes go with each of them. `result` is what a good
    reply contains.
    """

    socket: Path
    method: str
    keys: Sequence[str]
    clients: int = 1
    value_bytes: int = 0
    result: bytes = b'"result"'
    parameter: str = "key"
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answered:
    """A reply's result and the seconds from the first byte sent to the last received."""

    seconds: float
    result: dict[str, Any]


def burst(job: Burst) -> float:
    """Send it all. Returns the seconds from the first request to the last reply."""
    value = base64.b64encode(os.urandom(job.value_bytes)).decode()
    lines = [_line(number, job.method, _params(job, key, value)) for number, key in enumerate(job.keys)]
    clients: dict[int, tuple[socket.socket, Iterator[bytes]]] = {}
    partial: dict[int, bytes] = {}
    with select.epoll() as ready:
        for first in range(min(job.clients, len(lines))):
            peer = connect(job.socket)
            ready.register(peer, select.EPOLLIN)
            clients[peer.fileno()] = peer, iter(lines[first :: job.clients])
        began = time.perf_counter()
        for peer, waiting in clients.values():
            peer.sendall(next(waiting))
        while clients:
            for number, _ in ready.poll():
                peer, waiting = clients[number]
                data = partial.pop(number, b"") + peer.recv(_RECEIVE_BYTES)
                if not data.endswith(b"\n"):
                    if not data:
                        raise BenchFailed(f"{job.method}: the server closed the connection")
                    partial[number] = data
                    continue
                if job.result not in data:
                    raise BenchFailed(f"{job.method}: {data[:_SHOWN]!r}")
                line = next(waiting, None)
                if line is None:
                    peer.close()
                    del clients[number]
                else:
                    peer.sendall(line)
        return time.perf_counter() - began


def call(path: Path, method: str, params: Mapping[str, object], fd: int | None = None, *, keep_fd: bool = True) -> Answered:
    """One call, with a descriptor if one is given; it is closed once it is sent unless it is to be kept."""
    with connect(path) as peer:
        line = _line(0, method, params)
        began = time.perf_counter()
        if fd is None:
            peer.sendall(line)
        else:
            peer.sendmsg([line], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
            if not keep_fd:
                os.close(fd)
        with peer.makefile("rb") as replies:
            answer = replies.readline()
        seconds = time.perf_counter() - began
    reply = json.loads(answer) if answer else {}
    if "result" not in reply:
        raise BenchFailed(f"{method}: {answer[:_SHOWN]!r}")
    return Answered(seconds, reply["result"])


def write_file(path: Path, key: str, file: Path, *, by_path: bool) -> Answered:
    """object.write_file of a file by its path or as a descriptor."""
    if by_path:
        return call(path, "object.write_file", {"key": key, "path": str(file)})
    with file.open("rb") as opened:
        return call(path, "object.write_file", {"key": key, "fd": 0}, opened.fileno())


def read_file(path: Path, key: str, file: Path, *, by_path: bool) -> Answered:
    """object.read_file into a new file, not flushed, as the floor's is not."""
    if by_path:
        return call(path, "object.read_file", {"key": key, "path": str(file), "sync": False})
    with file.open("xb") as opened:
        return call(path, "object.read_file", {"key": key, "fd": 0, "sync": False}, opened.fileno())


def pipe_in(path: Path, key: str, size: int) -> Answered:
    """object.write_stream of random bytes, made on the fly; what was stored must have their digest."""
    digest = blake3.blake3()

    def produce(end: int) -> None:
        stream = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
        zeros = bytes(_PIPE_BYTES)
        for start in range(0, size, _PIPE_BYTES):
            piece = memoryview(stream.update(zeros[: min(_PIPE_BYTES, size - start)]))
            digest.update(piece)
            while piece:
                piece = piece[os.write(end, piece) :]
        os.close(end)

    theirs, ours = os.pipe()
    with _beside(produce, ours):
        answer = call(path, "object.write_stream", {"key": key, "fd": 0}, theirs, keep_fd=False)
    if answer.result["metadata"]["digest"] != f"blake3:{digest.hexdigest()}":
        raise BenchFailed("object.write_stream stored other bytes than were sent")
    return answer


def pipe_out(path: Path, key: str) -> Answered:
    """object.read_stream into a pipe; what comes must have the object's digest."""
    digest = blake3.blake3()

    def consume(end: int) -> None:
        while data := os.read(end, _PIPE_BYTES):
            digest.update(data)
        os.close(end)

    ours, theirs = os.pipe()
    with _beside(consume, ours):
        answer = call(path, "object.read_stream", {"key": key, "fd": 0}, theirs, keep_fd=False)
    if answer.result["metadata"]["digest"] != f"blake3:{digest.hexdigest()}":
        raise BenchFailed("object.read_stream gave other bytes than were stored")
    return answer


@contextmanager
def _beside(work: Callable[[int], None], end: int) -> Iterator[None]:
    """While a thread works at our end of a pipe; waits for it to have done."""
    thread = threading.Thread(target=work, args=(end,), daemon=True)
    thread.start()
    yield
    thread.join()


def connect(path: Path) -> socket.socket:
    """A connection to a server."""
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.connect(str(path))
    except OSError:
        peer.close()
        raise
    return peer


def _params(job: Burst, key: str, value: str) -> dict[str, object] | None:
    params = {**job.extra} | ({job.parameter: key} if key else {}) | ({"value_b64": value} if value else {})
    return params or None


def _line(number: int, method: str, params: Mapping[str, object] | None) -> bytes:
    request: dict[str, object] = {"jsonrpc": "2.0", "id": number, "method": method}
    if params is not None:
        request["params"] = params
    return json.dumps(request, separators=(",", ":")).encode() + b"\n"
