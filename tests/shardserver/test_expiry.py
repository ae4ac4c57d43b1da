"""A token that expires while the server runs, by the server's own clock."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import httpx

from tests.shardserver.inside import Inside
from tests.shardserver.server import LIMIT, NAMESPACE, SPACE, Issuer, append, make_space, scanned, send
from zstor_local.access.trust import LEEWAY_SECONDS, parse_trust
from zstor_local.access.verify import TokenVerifier
from zstor_local.shards.http.wire import NEXT
from zstor_local.system import real_runtime

SECOND = 1_000_000
READ = f"/v1/{SPACE}/log?namespace={NAMESPACE.hex()}"


class SetClock:
    """Stands still."""

    def __init__(self) -> None:
        self.seconds = int(time.time())

    def now(self) -> int:
        return self.seconds * SECOND


def test_a_token_is_good_until_it_expires_and_the_leeway_is_over(tmp_path: Path) -> None:
    clock, issuer = SetClock(), Issuer()
    server = Inside(replace(real_runtime(), clock=clock), tmp_path / "data", issuer)

    def client(token: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}", "zstor-writer": f"1:1:{'5' * 32}"}
        transport = httpx.HTTPTransport(uds=server.url.removeprefix("http+unix://"))
        return httpx.Client(base_url="http://shard", transport=transport, headers=headers, timeout=LIMIT)

    try:
        with client(issuer.owner()) as owner:
            make_space(owner)
            name = json.dumps({"namespace": "photos"}).encode()
            assert send(owner, "PUT", f"/v1/{SPACE}/namespaces/{NAMESPACE.hex()}", name).status_code == 204
            assert append(owner, 1, scanned(1, b"small")).status_code == 204
        token = issuer.token("photos", "read", seconds=100)
        expires = TokenVerifier([parse_trust(json.dumps(issuer.document()))]).verify(token, clock.seconds).expires
        with client(token) as guest:
            clock.seconds = expires - 1
            read = guest.get(READ)
            assert read.status_code == 200
            clock.seconds = expires + LEEWAY_SECONDS - 1
            late = guest.get(f"{READ}&after={read.headers[NEXT]}&wait=60")  # is answered, and does not wait for what comes
            assert late.status_code == 200
            clock.seconds = expires + LEEWAY_SECONDS
            refused = guest.get(READ)
        assert (refused.status_code, refused.json()["message"]) == (401, "the token has expired: if it is new, compare the clocks")
    finally:
        server.close()
