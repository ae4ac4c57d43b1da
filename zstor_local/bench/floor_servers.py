"""The floors for requests, each a process of its own: a bare trio echo, and small durable writes without dispatch or checks.

    python -m zstor_local.bench.floor_servers echo|small SOCKET DIRECTORY

The small writes: a line of JSON with a value in base64 is encoded 4+2, its six blocks and a record are sealed; one thread takes all
that waits, appends it to six logs, flushes them with one syncfs, commits one SQLite transaction (WAL, synchronous=FULL), and wakes
the writers.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import sqlite3
import struct
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio
import zfec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from zstor_local.bench.floor_files import K, M
from zstor_local.limits import GROUP_CHANGES, MIB
from zstor_local.system import RealFiles

_LOG_BYTES: Final = 64 * MIB  # allocated at the start, so that appending does not change a file's size
_BACKLOG: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    """One object on its way: what each log gets, and the row."""

    parts: Sequence[bytes]
    key: str
    record: bytes
    durable: trio.Event


class _Committer:
    """The thread that makes all waiting writes durable together."""

    def __init__(self, directory: str) -> None:
        self.waiting: queue.SimpleQueue[_Write] = queue.SimpleQueue()
        self._files = RealFiles()
        self._token = trio.lowlevel.current_trio_token()
        self._index = f"{directory}/index.sqlite"
        self._end = 0
        self._logs = [self._files.open(f"{directory}/{number}.log", os.O_RDWR | os.O_CREAT | os.O_EXCL) for number in range(M)]
        for log in self._logs:
            self._files.allocate(log, 0, _LOG_BYTES)
            self._files.fsync(log)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        index = sqlite3.connect(self._index, isolation_level=None)
        index.execute("pragma journal_mode=wal")
        index.execute("pragma synchronous=full")
        index.execute("create table record(key text primary key, body blob) without rowid")
        while True:
            group = self._group()
            self._append(group)
            index.execute("begin immediate")
            index.executemany("insert or replace into record values(?, ?)", [(write.key, write.record) for write in group])
            index.execute("commit")
            self._token.run_sync_soon(_wake, group)

    def _group(self) -> list[_Write]:
        group = [self.waiting.get()]
        while len(group) < GROUP_CHANGES:
            try:
                group.append(self.waiting.get_nowait())
            except queue.Empty:
                break
        return group

    def _append(self, group: Sequence[_Write]) -> None:
        longest = 0
        for number, log in enumerate(self._logs):
            entries = b"".join([write.parts[number] for write in group])
            os.pwrite(log, entries, self._end)
            longest = max(longest, len(entries))
        self._end += longest
        self._files.syncfs(self._logs[0])


def _wake(group: Sequence[_Write]) -> None:
    for write in group:
        write.durable.set()


async def _small_writes(committer: _Committer, code: zfec.Encoder, stream: trio.SocketStream) -> None:
    received = b""
    async for piece in stream:
        received += piece
        while b"\n" in received:
            line, received = received.split(b"\n", 1)
            request = json.loads(line)
            key, value = request["params"]["key"], base64.b64decode(request["params"]["value_b64"])
            write = _encode(code, key, value)
            committer.waiting.put(write)
            await write.durable.wait()
            await stream.send_all(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": True}).encode() + b"\n")


def _encode(code: zfec.Encoder, key: str, value: bytes) -> _Write:
    seal = AESGCM(os.urandom(32))
    width = -(-len(value) // K)
    padded = value.ljust(K * width, b"\0")
    blocks = [padded[start : start + width] for start in range(0, K * width, width)]
    blocks += code.encode(blocks, tuple(range(K, M)))
    record = seal.encrypt(b"the record's", json.dumps({"key": key, "size": len(value)}).encode(), b"record")
    sealed = [seal.encrypt(struct.pack("<QI", 0, index), block, b"block") for index, block in enumerate(blocks)]
    parts = [struct.pack("<II", len(record), len(block)) + record + block for block in sealed]
    return _Write(parts, key, record, trio.Event())


async def _echo(stream: trio.SocketStream) -> None:
    async for piece in stream:
        await stream.send_all(piece)


async def _serve(kind: str, path: str, directory: str) -> None:
    connection: Callable[[trio.SocketStream], Awaitable[None]] = _echo
    if kind == "small":
        connection = partial(_small_writes, _Committer(directory), zfec.Encoder(K, M))
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(path)
    listener.listen(_BACKLOG)
    await trio.serve_listeners(connection, [trio.SocketListener(listener)])


if __name__ == "__main__":
    trio.run(_serve, sys.argv[1], sys.argv[2], sys.argv[3])
