"""What takes the event loop of a server no longer than all the others can wait."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from tests.shardserver.inside import Inside
from tests.shardserver.server import LIMIT, NAMESPACE, SESSION, SPACE, Issuer, append, make_space, scanned, send
from zstor_local.model.ids import NamespaceId, ShardUid
from zstor_local.shards.base import Capacity
from zstor_local.shards.http import wire
from zstor_local.shards.http.wire import Batch, digest, pack_batch, parse_batch
from zstor_local.shardserver.log_requests import AT_ONCE_BYTES
from zstor_local.shardserver.memory import Memory
from zstor_local.shardserver.request import Request
from zstor_local.shardserver.rooms import Room, Rooms
from zstor_local.shardserver.space import Cursor, Space
from zstor_local.shardserver.volume import Volume
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
    assert await request.body(100, Memory(), ("issuer", "user")) == body
    assert len(hashed) == 3


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple[Inside, httpx.Client]]:
    """A server in the test, and its owner with a space there."""
    issuer = Issuer()
    server = Inside(real_runtime(), tmp_path / "data", issuer)
    try:
        headers = {"zstor-writer": f"1:1:{SESSION}", "authorization": f"Bearer {issuer.owner()}"}
        transport = httpx.HTTPTransport(uds=server.url.removeprefix("http+unix://"))
        with httpx.Client(base_url="http://shard", transport=transport, headers=headers, timeout=LIMIT) as client:
            make_space(client)
            yield server, client
    finally:
        server.close()


def test_large_batches_are_parsed_in_a_worker_thread(owner: tuple[Inside, httpx.Client], monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = owner
    threads: list[threading.Thread] = []

    def parse(data: bytes) -> Batch:
        threads.append(threading.current_thread())
        return parse_batch(data)

    monkeypatch.setattr(wire, "parse_batch", parse)
    batches = [Batch([scanned(1)]), Batch([scanned(number, bytes(60_000)) for number in (2, 3)])]
    for number, batch in enumerate(batches, 1):
        assert send(client, "POST", f"/v1/{SPACE}/log?batch={number}", pack_batch(batch)).status_code == 204
    assert [thread is server._thread for thread in threads] == [True, False]
    assert len(pack_batch(batches[0])) < AT_ONCE_BYTES < len(pack_batch(batches[1]))


def test_metrics_wait_for_a_disk_in_a_worker_thread_while_spaces_come(
    owner: tuple[Inside, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = owner
    append(client, 1, scanned(1))
    asked: list[threading.Thread] = []
    capacity, rooms = Volume.capacity, Rooms.__iter__
    (space,) = server.volume.spaces.values()

    def looked(self: Volume) -> Capacity:
        asked.append(threading.current_thread())
        return capacity(self)

    def opened(self: Rooms) -> Iterator[Room]:
        server.volume.spaces[ShardUid(b"another id 16bts")] = space
        return rooms(self)

    with monkeypatch.context() as patch:
        patch.setattr(Volume, "capacity", looked)
        patch.setattr(Rooms, "__iter__", opened)
        assert "zstor_shard_spaces_open 1\n" in client.get("/metrics").text
    assert server._thread not in asked
    assert asked
    del server.volume.spaces[ShardUid(b"another id 16bts")]


@pytest.mark.parametrize("query", ["", "?namespaces=0"])
def test_a_space_of_many_namespaces_is_described_in_a_worker_thread(
    owner: tuple[Inside, httpx.Client], monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    server, client = owner
    append(client, 1, scanned(1), scanned(2, namespace=NamespaceId(b"another id 16bts")))
    threads: list[threading.Thread] = []
    rooms = Rooms.__iter__

    def looked(self: Rooms) -> Iterator[Room]:
        threads.append(threading.current_thread())
        return rooms(self)

    with monkeypatch.context() as patch:
        patch.setattr(Rooms, "__iter__", looked)
        about = client.get(f"/v1/{SPACE}{query}").json()
    assert [each["id"] for each in about["namespaces"]] == ([] if query else [NAMESPACE.hex(), b"another id 16bts".hex()])
    assert threads
    assert server._thread not in threads


def test_who_waits_for_news_of_a_namespace_is_not_woken_for_others(
    owner: tuple[Inside, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may have many that are followed, and write to another one all the time."""
    server, client = owner
    looked = threading.Semaphore(0)
    times = 0
    page = Space.page

    def counted(self: Space, namespace: NamespaceId | None, cursor: Cursor, limit: int) -> tuple[Batch, Cursor]:
        nonlocal times
        times += 1
        looked.release()
        return page(self, namespace, cursor, limit)

    monkeypatch.setattr(Space, "page", counted)
    with ThreadPoolExecutor(1) as threads, httpx.Client(transport=httpx.HTTPTransport(uds=server.url[12:]), timeout=LIMIT) as other:
        path = f"http://shard/v1/{SPACE}/log?namespace={NAMESPACE.hex()}&wait=60"
        following = threads.submit(other.get, path, headers={"authorization": client.headers["authorization"]})
        assert looked.acquire(timeout=LIMIT)
        for number in range(1, 20):
            append(client, number, scanned(number, namespace=NamespaceId(b"another id 16bts")))
        append(client, 20, scanned(20, b"news"))
        news = parse_batch(following.result(LIMIT).content).entries
    assert [each.entry.share for each in news] == [b"news"]
    assert times == 2
