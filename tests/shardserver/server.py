"""A shard server as its own process, with an owner and guests whose tokens it trusts."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from zstor_local.access.signing import SEED_BYTES, Claims, SigningKey, sign_token, sign_trust
from zstor_local.access.trust import AUDIENCE
from zstor_local.coding.keys import KeyRing
from zstor_local.coding.share import ShareHeader, pack_share_header
from zstor_local.model.ids import KeyHash, NamespaceId, ShardUid, ShareId, StoreId, Version
from zstor_local.model.permission import STORE_NAMESPACE, Permission, scope
from zstor_local.model.record import Envelope, Kind
from zstor_local.shards.base import Entry, ScannedEntry
from zstor_local.shards.http.wire import Batch, digest, pack_batch
from zstor_local.shards.marker import Marker

LIMIT: Final = 180.0  # seconds that a loaded machine may take for a process to start or end
STORE: Final = StoreId(b"store id 16bytes")
SPACE: Final = STORE.hex()
NAMESPACE: Final = NamespaceId(b"namespace id 16b")
SHARD: Final = ShardUid(bytes(16))
MARKER: Final = Marker(STORE, SHARD, 0, 1).pack(KeyRing(bytes(32), STORE).store_wide(), bytes(32))
SESSION: Final = "5" * 32


@dataclass
class Issuer:
    """An authority: signs tokens, and the trust documents that servers know it by."""

    store: StoreId = STORE
    key: SigningKey = field(default_factory=lambda: SigningKey.from_seed(secrets.token_bytes(SEED_BYTES)))

    @property
    def name(self) -> str:
        return f"zstor:{self.store.hex()}"

    def document(self, **other: Any) -> dict[str, Any]:
        own = {"issuer": self.name, "organization": "local", "profile": "zstor", "audience": AUDIENCE, "keys": [self.key.jwk()]}
        return {**own, "updated": 0, **other}

    def signed_document(self, **other: Any) -> str:
        return sign_trust(self.key, self.document(**other))

    def token(
        self, namespace: str, *permissions: Permission, user: str = "alice", seconds: int = 300, shard: ShardUid | None = None
    ) -> str:
        now = int(time.time())
        scopes = [scope("local", namespace, each) for each in permissions]
        return sign_token(
            self.key,
            Claims(
                issuer=self.name,
                audience=AUDIENCE,
                user=user,
                scopes=scopes,
                issued=now,
                expires=now + seconds,
                jti=secrets.token_hex(8),
                shard=None if shard is None else shard.hex(),
            ),
        )

    def owner(self, shard: ShardUid | None = SHARD) -> str:
        return self.token(STORE_NAMESPACE, "admin", user="owner", shard=shard)


class Server:
    """One running server. `url` is what a daemon's configuration names."""

    def __init__(self, data: Path, trust: Sequence[Path], listen: str, *more: str) -> None:
        self.data = data
        command = [sys.executable, "-m", "zstor_local", "shard", "serve", "--json", "--listen", listen, "--data", str(data), *more]
        for each in trust:
            command += ["--trust", str(each)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the server did not start: exit {self.process.wait(LIMIT)}"
        self.url: str = json.loads(line)["listening"]

    @property
    def socket(self) -> str | None:
        return self.url.removeprefix("http+unix://") if self.url.startswith("http+unix://") else None

    def client(self, token: str | None, *, writer: int = 1, opening: int = 1) -> httpx.Client:
        headers = {"zstor-writer": f"{writer}:{opening}:{SESSION}"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        transport = httpx.HTTPTransport(uds=self.socket)
        base = "http://shard" if self.socket else self.url
        return httpx.Client(base_url=base, transport=transport, headers=headers, timeout=LIMIT)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        status = self.process.wait(LIMIT)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def kill(self) -> None:
        self.process.kill()
        self.stop()


@contextmanager
def serving(data: Path, *issuers: Issuer, listen: str | None = None, more: Sequence[str] = ()) -> Iterator[Server]:
    """A server on a Unix socket beside its data, trusting these issuers."""
    files = []
    data.parent.mkdir(parents=True, exist_ok=True)
    for number, issuer in enumerate(issuers):
        file = data.parent / f"{data.name}.trust{number}.json"
        file.write_text(json.dumps(issuer.document()))
        files.append(file)
    server = Server(data, files, listen or f"unix:{data.parent}/{data.name}.sock", *more)
    try:
        yield server
    finally:
        server.stop()


# --- What is sent ---


def version(number: int) -> Version:
    return Version(number.to_bytes(16, "big"))


def scanned(number: int, share: bytes | None = None, *, namespace: NamespaceId = NAMESPACE, committed: int = 0) -> ScannedEntry:
    envelope = Envelope(Kind.OBJECT, namespace, KeyHash(b"a hashed key 16b"), version(number), number, b"sealed %d" % number)
    return ScannedEntry(Entry(envelope, None if share is None else 0, share or b""), committed)


def send(client: httpx.Client, method: str, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.request(method, path, content=body, headers={"content-digest": digest(body), **named})


def make_space(client: httpx.Client, space: str = SPACE) -> None:
    """A space that this client's life may write to."""
    assert send(client, "PUT", f"/v1/{space}", MARKER).status_code == 204
    assert client.post(f"/v1/{space}/writer").status_code == 200


def append(
    client: httpx.Client, number: int, *entries: ScannedEntry, freed: Sequence[ShareId] = (), space: str = SPACE
) -> httpx.Response:
    return send(client, "POST", f"/v1/{space}/log?batch={number}", pack_batch(Batch(entries, freed)))


def share_file(share: ShareId, blocks: bytes, namespace: NamespaceId = NAMESPACE) -> bytes:
    return pack_share_header(ShareHeader(share.index, 2, 3, "none", share.version, namespace)) + blocks


def upload(
    client: httpx.Client, share: ShareId, blocks: bytes, *, namespace: NamespaceId = NAMESPACE, space: str = SPACE
) -> httpx.Response:
    """A large share in two parts, then finished."""
    data = share_file(share, blocks, namespace)
    at = f"/v1/{space}/uploads/{share.version.hex()}.{share.index}?namespace={namespace.hex()}"
    half = len(data) // 2
    for offset, part in ((half, data[half:]), (0, data[:half])):
        answer = send(client, "PUT", f"{at}&offset={offset}", part)
        if answer.status_code != 204:
            return answer
    return client.post(f"{at}&length={len(data)}")
