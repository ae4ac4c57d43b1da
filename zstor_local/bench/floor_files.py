"""The floor for large files: straight-line Python that does a store's work per byte, and nothing else.

Per chunk of 1 MiB, in as many threads as there are cores: read, blake3 of the whole file in order, zstd 1 kept if smaller, k-of-m
erasure code, one AES-256-GCM seal per block, one write per share file. At the end every share is flushed and gets its name. Reading
goes the other way from k shares; with lost data shares parity stands in. No daemon, no socket, no metadata, no errors handled.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import blake3
import zfec
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from zstor_local.limits import MIB
from zstor_local.runtime import Buffer

K: Final = 4
M: Final = 6
_CHUNK: Final = MIB
_TAG: Final = 16
_SLOT: Final = _CHUNK // K + _TAG  # each chunk's place in a share
_ZSTD_LEVEL: Final = 1
_KEY: Final = b"floor's own key, thirty-two byte"
_BOUND: Final = b"floor"  # what each block is bound to beside its nonce
_PATIENCE_SECONDS: Final = 600.0  # for the turn of a chunk whose predecessor's thread has died
_TABLE: Final = "table.json"


@dataclass(slots=True)
class _Table:
    """What reading has to know. A chunk: its plain length, its stored length, the width of its blocks, whether it is compressed."""

    size: int
    digest: str = ""
    chunks: list[tuple[int, int, int, bool]] = field(default_factory=list)


class _Digest:
    """blake3 over chunks that several threads hold: each waits for its turn."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._next = 0
        self.hash = blake3.blake3()

    def add(self, number: int, data: Buffer) -> None:
        with self._turn:
            if not self._turn.wait_for(lambda: self._next == number, _PATIENCE_SECONDS):
                raise TimeoutError(f"chunk {number} never had its turn")
        self.hash.update(data)
        with self._turn:
            self._next += 1
            self._turn.notify_all()


def write(source: Path, target: Path, threads: int) -> float:
    """Store a file as m share files in the directory `target`, made anew. Returns the seconds it took, all of it durable."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    began = time.perf_counter()
    file = os.open(source, os.O_RDONLY)
    size = os.fstat(file).st_size
    chunks = -(-size // _CHUNK)
    table = _Table(size, chunks=[(0, 0, 0, False)] * chunks)
    shares = [os.open(target / f"{index}.new", os.O_WRONLY | os.O_CREAT, 0o600) for index in range(M)]
    digest, numbers = _Digest(), count()

    def work() -> None:
        seal, compressor, code = AESGCM(_KEY), zstandard.ZstdCompressor(level=_ZSTD_LEVEL), zfec.Encoder(K, M)
        buffer = bytearray(_CHUNK)
        while (number := next(numbers)) < chunks:
            length = os.preadv(file, [buffer], number * _CHUNK)
            plain = memoryview(buffer)[:length]
            digest.add(number, plain)
            frame = compressor.compress(plain)
            body: Buffer = frame if len(frame) < length else plain
            width = -(-len(body) // K)
            blocks = _split(body, width)
            blocks += code.encode(tuple(blocks), tuple(range(K, M)))
            sealed = [seal.encrypt(_nonce(index, number), block, _BOUND) for index, block in enumerate(blocks)]
            for share, block in zip(shares, sealed, strict=True):
                os.pwrite(share, block, number * _SLOT)
            table.chunks[number] = (length, len(body), width, body is frame)

    _in_threads(threads, work)
    for index, share in enumerate(shares):
        os.fdatasync(share)
        os.close(share)
        os.rename(target / f"{index}.new", target / str(index))
    os.close(file)
    table.digest = digest.hash.hexdigest()
    (target / _TABLE).write_text(json.dumps(asdict(table)))
    return time.perf_counter() - began


def read(source: Path, target: Path, threads: int, *, lost: int) -> float:
    """Restore the file from the shares in `source`, without the first `lost` of them. Returns the seconds it took."""
    began = time.perf_counter()
    table = _Table(**json.loads((source / _TABLE).read_text()))
    used = [index if index >= lost else K + index for index in range(K)]  # a parity share in the place of each lost one
    shares = [os.open(source / str(index), os.O_RDONLY) for index in used]
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    numbers = count()

    def work() -> None:
        seal, decompressor, code = AESGCM(_KEY), zstandard.ZstdDecompressor(), zfec.Decoder(K, M)
        while (number := next(numbers)) < len(table.chunks):
            _, stored, width, compressed = table.chunks[number]
            sealed = [os.pread(share, width + _TAG, number * _SLOT) for share in shares]
            blocks: list[Buffer] = [
                seal.decrypt(_nonce(index, number), block, _BOUND) for index, block in zip(used, sealed, strict=True)
            ]
            if lost:
                blocks = code.decode(tuple(blocks), tuple(used))
            if compressed:
                body = memoryview(b"".join(blocks))[:stored]
                blocks = [decompressor.decompress(body, max_output_size=_CHUNK)]
            os.pwritev(out, blocks, number * _CHUNK)

    _in_threads(threads, work)
    os.ftruncate(out, table.size)  # less the last chunk's padding
    for descriptor in (*shares, out):
        os.close(descriptor)
    return time.perf_counter() - began


def _split(body: Buffer, width: int) -> list[Buffer]:
    """k blocks; the last are padded with zeros where the body does not fill them."""
    whole = memoryview(body) if len(body) == K * width else memoryview(bytes(body).ljust(K * width, b"\0"))
    return [whole[start : start + width] for start in range(0, K * width, width)]


def _nonce(index: int, chunk: int) -> bytes:
    return struct.pack("<QI", chunk, index)


def _in_threads(threads: int, work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(threads)]:
            future.result()
