"""A token that is revoked counts no more, whatever its bearer is waiting for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.shardserver.inside import Inside
from tests.shardserver.server import LIMIT, NAMESPACE, SPACE, Issuer, append, make_space, scanned, send, upload, version
from zstor_local.access.trust import parse_trust
from zstor_local.access.verify import TokenVerifier
from zstor_local.model.ids import NamespaceId, ShareId
from zstor_local.shards.http.wire import DIGEST, Batch, digest, share_name
from zstor_local.shardserver.answer import SEND_BYTES, Answer
from zstor_local.shardserver.app import App
from zstor_local.shardserver.guard import Guard
from zstor_local.shardserver.large import LargeShares
from zstor_local.shardserver.metrics import Metrics
from zstor_local.shardserver.request import Request
from zstor_local.shardserver.space import Cursor, Space
from zstor_local.shardserver.trusting import TrustKeeper
from zstor_local.shardserver.volume import Volume
from zstor_local.system import real_runtime
from zstor_local.threads import RealThreads

T = TypeVar("T")
Args = TypeVarTuple("Args")
SHARE = ShareId(version(1), 0)
EVERYTHING = [{"until": 4_000_000_000, "issued_until": 4_000_000_000, "sub": "alice"}]


class House:
    """A server in the test, with a named namespace."""

    def __init__(self, place: Path) -> None:
        self.issuer = Issuer()
        self.server = Inside(real_runtime(), place / "data", self.issuer)
        self.owner = self.client(self.issuer.owner())
        make_space(self.owner)
        name = json.dumps({"namespace": "photos"}).encode()
        assert send(self.owner, "PUT", f"/v1/{SPACE}/namespaces/{NAMESPACE.hex()}", name).status_code == 204
        self.guest = self.client(self.issuer.token("photos", "read"))

    def client(self, token: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}", "zstor-writer": f"1:1:{'5' * 32}"}
        transport = httpx.HTTPTransport(uds=self.server.url.removeprefix("http+unix://"))
        return httpx.Client(base_url="http://shard", transport=transport, headers=headers, timeout=LIMIT)

    def revoke(self) -> None:
        self.server.verifier.trust(parse_trust(json.dumps(self.issuer.document(updated=1, revoked=EVERYTHING))))

    def close(self) -> None:
        self.owner.close()
        self.guest.close()
        self.server.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


def test_who_waits_for_news_is_told_nothing_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Space.page

    def page(self: Space, namespace: NamespaceId | None, cursor: Cursor, limit: int) -> tuple[Batch, Cursor]:
        found = look(self, namespace, cursor, limit)
        if not found[0].entries:  # nothing yet: while it waits, the token is revoked and something comes
            house.revoke()
            self.append(self.fence, 1, Batch([scanned(1, b"news")]))
        return found

    monkeypatch.setattr(Space, "page", page)
    answer = house.guest.get(f"/v1/{SPACE}/log?namespace={NAMESPACE.hex()}&wait=1")
    assert (answer.status_code, answer.json()["type"]) == (401, "unauthenticated")


def test_a_long_answer_ends(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert upload(house.owner, SHARE, bytes(8 * SEND_BYTES)).status_code == 201
    opened = LargeShares.open
    times = 0

    def opening(self: LargeShares, namespace: NamespaceId | None, share: ShareId) -> Any:
        nonlocal times
        times += 1
        if times == 3:  # once for each piece
            house.revoke()
        return opened(self, namespace, share)

    monkeypatch.setattr(LargeShares, "open", opening)
    with pytest.raises(httpx.RemoteProtocolError):
        house.guest.get(f"/v1/{SPACE}/shares/{share_name(SHARE)}?namespace={NAMESPACE.hex()}")
    assert times == 3


def test_who_only_reads_is_not_held_up(house: House) -> None:
    assert upload(house.owner, SHARE, bytes(8 * SEND_BYTES)).status_code == 201
    assert append(house.owner, 1, scanned(1, b"news")).status_code == 204
    assert len(house.guest.get(f"/v1/{SPACE}/shares/{share_name(SHARE)}?namespace={NAMESPACE.hex()}").content) > 8 * SEND_BYTES
    assert house.guest.get(f"/v1/{SPACE}/log?namespace={NAMESPACE.hex()}&wait=1").status_code == 200


async def test_of_two_documents_at_once_the_newer_one_counts(tmp_path: Path) -> None:
    """The older one is slow to be written down."""

    class SlowThreads(RealThreads):
        async def run(self, work: Callable[[*Args], T], *args: *Args) -> T:
            if older in args:
                writing.set()
                await wait_all_tasks_blocked()
            return work(*args)

    runtime, issuer = replace(real_runtime(), threads=SlowThreads()), Issuer()
    volume = Volume(runtime, str(tmp_path / "data"))
    verifier = TokenVerifier([parse_trust(json.dumps(issuer.document()))])
    app = App(
        volume, Guard(verifier, lambda: runtime.clock.now() // 1_000_000), TrustKeeper(runtime, f"{volume.root}/trust"), Metrics()
    )
    writing = trio.Event()
    answers: list[Answer] = []

    async def put(document: bytes) -> None:
        body = [document]

        async def receive() -> bytes:
            return body.pop() if body else b""

        async def keep(answer: Answer) -> None:
            answers.append(answer)

        headers = {"authorization": f"Bearer {issuer.owner()}", "content-length": str(len(document)), DIGEST: digest(document)}
        await app.serve(Request("PUT", ["v1", "trust"], {}, headers, receive, nullcontext), keep)

    older, newer = (issuer.signed_document(updated=number).encode() for number in (1, 2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, older)
        await writing.wait()
        nursery.start_soon(put, newer)
    assert [answer.status for answer in answers] == [204, 204]
    assert verifier.trusts[issuer.name].updated == 2
    volume.close()
