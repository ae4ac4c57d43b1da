"""Clients that take more than their part of the server: connections, memory, its work for what they do not read."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.shardserver.inside import Inside
from tests.shardserver.server import LIMIT, NAMESPACE, SPACE, Issuer, append, make_space, scanned, send, upload, version
from tests.shardserver.test_slow_readers import A_MOMENT, ASK, connected
from zstor_local.limits import MIB
from zstor_local.model.ids import NamespaceId, ShareId
from zstor_local.runtime import Files, read_exactly
from zstor_local.shards.http import wire
from zstor_local.shards.http.wire import Batch, pack_batch, share_name
from zstor_local.shardserver.answer import SEND_BYTES
from zstor_local.shardserver.large import LargeShares
from zstor_local.shardserver.memory import BYTES, Memory
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.space import Space
from zstor_local.system import real_runtime

SHARE = ShareId(version(1), 0)
READ = f"/v1/{SPACE}/shares/{share_name(SHARE)}?namespace={NAMESPACE.hex()}"
LETTER = b"GET /v1/%s/letters/%s HTTP/1.1\r\nHost: shard\r\n" % (SPACE.encode(), b"0" * 32)
FEW = 3


class House:
    """A server with room for FEW connections, its owner and a guest."""

    def __init__(self, place: Path) -> None:
        self.issuer = Issuer()
        self.server = Inside(real_runtime(), place / "data", self.issuer, connections=FEW)
        self.path = self.server.url.removeprefix("http+unix://")
        self.token = self.issuer.token("photos", "read")
        with self.client(self.issuer.owner()) as owner:
            make_space(owner)
            name = json.dumps({"namespace": "photos"}).encode()
            assert send(owner, "PUT", f"/v1/{SPACE}/namespaces/{NAMESPACE.hex()}", name).status_code == 204
            assert upload(owner, SHARE, bytes(8 * SEND_BYTES)).status_code == 201
        self.server.restart()  # the owner's connection takes room until the server has closed it too

    def client(self, token: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}", "zstor-writer": f"1:1:{'5' * 32}"}
        return httpx.Client(base_url="http://shard", transport=httpx.HTTPTransport(uds=self.path), headers=headers, timeout=LIMIT)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.server.close()


def is_over(client: socket.socket) -> bool:
    """Wait until the server has ended the connection."""
    client.settimeout(LIMIT)
    try:
        while client.recv(MIB):
            pass
    except ConnectionResetError:
        pass
    return True


def send_on_and_on(client: socket.socket) -> None:
    while True:
        client.send(bytes(MIB))


# --- Connections ---


def test_where_there_are_too_many_the_one_goes_that_is_waited_for_the_longest(house: House) -> None:
    with ExitStack() as opened:
        clients = [opened.enter_context(connected(house.path)) for _ in range(FEW)]
        for client in [*clients, clients[0]]:  # the first one asks once more
            client.sendall(ASK)
            assert client.recv(4_096).startswith(b"HTTP/1.1 200")
        another = opened.enter_context(connected(house.path))
        another.sendall(ASK)
        assert another.recv(4_096).startswith(b"HTTP/1.1 200")
        assert is_over(clients[1])
        for client in (clients[0], clients[2]):
            client.sendall(ASK)
            assert client.recv(4_096).startswith(b"HTTP/1.1 200")


def test_who_waits_for_news_keeps_nobody_out(house: House) -> None:
    follow = (
        f"GET /v1/{SPACE}/log?namespace={NAMESPACE.hex()}&wait=60 HTTP/1.1\r\nHost: s\r\nAuthorization: Bearer {house.token}\r\n\r\n"
    )
    with ExitStack() as opened:
        for _ in range(FEW):
            opened.enter_context(connected(house.path)).sendall(follow.encode())
        with house.client(house.issuer.owner()) as owner:
            assert append(owner, 1, scanned(1)).status_code == 204


def test_a_body_that_nobody_takes_holds_no_connection(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is still coming when the answer goes out."""
    sent = threading.Event()

    def letter(self: Space, name: bytes) -> bytes:
        assert sent.wait(LIMIT)
        return b"a letter"

    monkeypatch.setattr(Space, "letter", letter)
    with connected(house.path) as client:
        client.settimeout(A_MOMENT)
        client.sendall(LETTER + b"Content-Length: 1000000000\r\n\r\n")
        with pytest.raises(TimeoutError):
            send_on_and_on(client)
        sent.set()
        client.settimeout(LIMIT)
        answer = client.recv(4_096)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        client.shutdown(socket.SHUT_WR)
        assert is_over(client)


def test_what_cannot_be_read_as_http_1_is_answered_and_ended(house: House) -> None:
    """HTTP/2 would make a hundred of one connection."""
    for words in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"nonsense\r\n\r\n"):
        with connected(house.path) as client:
            client.sendall(words)
            answer = client.recv(4_096)
            assert answer.startswith(b"HTTP/1.1 4"), answer
            client.shutdown(socket.SHUT_WR)
            assert is_over(client)
    with connected(house.path) as client:
        client.sendall(ASK[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
        assert client.recv(4_096).startswith(b"HTTP/1.1 200")


def test_a_request_whose_end_is_told_in_two_ways_is_the_last_one(house: House) -> None:
    with connected(house.path) as client:
        client.sendall(ASK[:-2] + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + ASK)
        answer = b"".join(iter(lambda: client.recv(4_096), b""))
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"connection: close" in answer.lower()
        assert answer.count(b"HTTP/1.1") == 1


def test_a_refusal_of_what_asks_for_a_head_alone_has_no_body(house: House) -> None:
    with connected(house.path) as client:
        client.sendall(b"HEAD /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4_096), b""))
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.endswith(b"\r\n\r\n")


# --- Memory ---


def test_nobody_takes_more_memory_than_is_left_for_others() -> None:
    memory = Memory(100)

    def refused(issuer: str, user: str, size: int) -> bool:
        try:
            with memory.holding((issuer, user), size):
                return False
        except Refusal:
            return True

    with ExitStack() as held:
        assert refused("one", "ann", 101)
        held.enter_context(memory.holding(("one", "ann"), 30))
        assert refused("one", "ann", 11)
        held.enter_context(memory.holding(("one", "ann"), 5))
        assert refused("one", "ann", 1)
        assert not refused("one", "bob", 30)
        for user in range(1_000):  # an issuer may have any number of users
            if not refused("one", f"user {user}", 1):
                held.enter_context(memory.holding(("one", f"user {user}"), 1))
        assert not refused("another", "ann", 50)
    assert not refused("one", "ann", 100)


def test_what_is_made_of_a_body_counts_too(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest entries take ten times their bytes once they are parsed."""
    with house.client(house.issuer.owner()) as owner:
        with monkeypatch.context() as patch:
            patch.setattr(wire, "ENTRY_MEMORY", 2 * BYTES)
            assert append(owner, 1, scanned(1)).json()["type"] == "busy"
            patch.setattr(wire, "UNSETTLED_BYTES_MAX", 2 * BYTES)
            assert owner.get(f"/v1/{SPACE}/unsettled").json()["type"] == "busy"
            free = pack_batch(Batch([], [SHARE]))
            assert send(owner, "POST", f"/v1/{SPACE}/free", free).json()["type"] == "busy"
        assert append(owner, 1, scanned(1)).status_code == 204


def test_no_range_is_read_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def reading(files: Files, fd: int, length: int, offset: int) -> bytes:
        asked.append(length)
        return read_exactly(files, fd, length, offset)

    monkeypatch.setattr("zstor_local.shardserver.space.read_exactly", reading)
    with house.client(house.token) as guest:
        for wanted in ("bytes=-9999999999", "bytes=0-9999999999", None):
            answer = guest.get(READ, headers={} if wanted is None else {"range": wanted})
            assert len(answer.content) > 8 * SEND_BYTES
    assert max(asked) == SEND_BYTES


def test_nothing_is_read_for_who_is_gone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threading.Event()
    opened = LargeShares.open
    times = 0

    def opening(self: LargeShares, namespace: NamespaceId | None, share: ShareId) -> Any:
        nonlocal times
        times += 1
        if times == 2:
            assert gone.wait(LIMIT)
        return opened(self, namespace, share)

    monkeypatch.setattr(LargeShares, "open", opening)
    with connected(house.path) as client:
        client.sendall(f"GET {READ} HTTP/1.1\r\nHost: s\r\nAuthorization: Bearer {house.token}\r\n\r\n".encode())
        taken = 0
        while taken < SEND_BYTES:
            taken += len(client.recv(MIB))
    gone.set()
    with house.client(house.token) as guest:
        assert guest.get(READ, headers={"range": "bytes=0-0"}).status_code == 206
    assert times == 3


def test_a_body_is_not_taken_from_who_has_not_taken_the_space_over(house: House) -> None:
    with connected(house.path) as client:
        lines = [
            f"POST /v1/{SPACE}/log?batch=1 HTTP/1.1",
            "Host: s",
            f"Authorization: Bearer {house.issuer.owner()}",
            f"Zstor-Writer: 1:1:{'6' * 32}",
            "Content-Length: 60000000",
        ]
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = client.recv(4_096)
    assert answer.startswith(b"HTTP/1.1 409")
    assert b'"fenced"' in answer


def test_a_client_that_breaks_off_in_a_body_is_no_fault_of_the_server(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """As a daemon that is killed: what it had not read makes the end of its connection an error."""
    lines = [
        f"POST /v1/{SPACE}/log?batch=1 HTTP/1.1",
        "Host: s",
        f"Authorization: Bearer {house.issuer.owner()}",
        f"Zstor-Writer: 1:1:{'5' * 32}",
        "Content-Length: 60000000",
        "Expect: 100-continue",
    ]
    with connected(house.path) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        assert client.recv(4_096, socket.MSG_PEEK).startswith(b"HTTP/1.1 100")
    house.server.restart()  # which waits for what is under way
    assert "a request failed" not in caplog.text
