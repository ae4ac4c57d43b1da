"""What takes the event loop of a server no longer than all the others can wait."""

from __future__ import annotations

import hashlib
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from tests.shardserver.inside import Inside
from tests.shardserver.server import LIMIT, SESSION, SPACE, Issuer, make_space, scanned, send
from zstor_local.shards.http import wire
from zstor_local.shards.http.wire import Batch, digest, pack_batch, parse_batch
from zstor_local.shardserver.log_requests import AT_ONCE_BYTES
from zstor_local.shardserver.memory import Memory
from zstor_local.shardserver.request import Request
from zstor_local.system import real_runtime


async def test_a_body_is_hashed_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, body = [b"one", b"two", b"three"], b"onetwothree"
    hashed: list[bytes] = []

    class Hash:
        def __init__(self) -> None:
            self._hash = hashlib.sha256()

        def update(self, data: bytes) -> None:
            hashed.append(data)
            self._hash.update(data)

        def digest(self) -> bytes:
            return self._hash.digest()

    came: list[bytes] = []

    async def receive() -> bytes:
        assert hashed == came
        if not pieces:
            return b""
        came.append(pieces.pop(0))
        return came[-1]

    monkeypatch.setattr("zstor_local.shardserver.request.hashlib", SimpleNamespace(sha256=Hash))
    headers = {"content-length": str(len(body)), wire.DIGEST: digest(body)}
    request = Request("PUT", [], {}, headers, receive, nullcontext)
    assert await request.body(100, Memory(), "bearer") == body
    assert len(hashed) == 3


def test_large_batches_are_parsed_in_a_worker_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def parse(data: bytes) -> Batch:
        threads.append(threading.current_thread())
        return parse_batch(data)

    monkeypatch.setattr(wire, "parse_batch", parse)
    issuer = Issuer()
    server = Inside(real_runtime(), tmp_path / "data", issuer)
    try:
        headers = {"zstor-writer": f"1:1:{SESSION}", "authorization": f"Bearer {issuer.owner()}"}
        transport = httpx.HTTPTransport(uds=server.url.removeprefix("http+unix://"))
        with httpx.Client(base_url="http://shard", transport=transport, headers=headers, timeout=LIMIT) as owner:
            make_space(owner)
            batches = [Batch([scanned(1)]), Batch([scanned(number, bytes(60_000)) for number in (2, 3)])]
            for number, batch in enumerate(batches, 1):
                assert send(owner, "POST", f"/v1/{SPACE}/log?batch={number}", pack_batch(batch)).status_code == 204
    finally:
        server.close()
    assert [thread is server._thread for thread in threads] == [True, False]
    assert len(pack_batch(batches[0])) < AT_ONCE_BYTES < len(pack_batch(batches[1]))
