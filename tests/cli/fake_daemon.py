"""A daemon that answers as a test tells it to: what the client does with rare answers cannot be had from the real one."""

from __future__ import annotations

import array
import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from zstor_local.cli.client import Json

Message = dict[str, Json]


@dataclass
class Peer:
    """The daemon's end of one connection, and all that came through it."""

    connected: socket.socket
    received: list[Message] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)
    sends: list[bytes] = field(default_factory=list)  # what each send that carried descriptors held
    _buffer: bytes = b""

    def receive(self) -> Message | None:
        """The next message; None at the end."""
        while b"\n" not in self._buffer:
            data, control, _, _ = self.connected.recvmsg(65_536, socket.CMSG_SPACE(253 * 4))
            if not data:
                return None
            for _, _, payload in control:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self.fds += fds
                self.sends.append(data)
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: Message = json.loads(line)
        self.received.append(message)
        return message

    def send(self, message: Message) -> None:
        self.connected.sendall(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")

    def answer(self, request: Message | None, result: Json) -> None:
        assert request is not None
        self.send({"id": request["id"], "result": result})


class FakeDaemon:
    """Serves each connection with `serve`, in a thread of its own, until the block ends."""

    def __init__(self, path: Path, serve: Callable[[Peer], None]) -> None:
        self.path = path
        self.peers: list[Peer] = []
        self._serve = serve
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for peer in self.peers:  # no more than what came: a command that gave up in this process may have left threads that hold on
            with suppress(OSError):
                peer.connected.shutdown(socket.SHUT_RD)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        serving = []
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                break
            self.peers.append(Peer(connected))
            serving.append(threading.Thread(target=self._attend, args=(self.peers[-1],)))
            serving[-1].start()
        for thread in serving:
            thread.join()

    def _attend(self, peer: Peer) -> None:
        with peer.connected:
            self._serve(peer)
