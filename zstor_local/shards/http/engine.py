"""Shards on shard servers: `http://HOST:PORT`, `https://HOST:PORT`, `http+unix:///PATH`, with `/NAME` behind for more than one."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import blake3

from zstor_local.coding.keys import NamespaceKeys
from zstor_local.model.ids import ID_BYTES, ShardUid, StoreId
from zstor_local.model.record import STORE_WIDE, Envelope, Kind
from zstor_local.model.storewide import ShardEntry
from zstor_local.runtime import Network, Runtime
from zstor_local.shards.base import NoPlace, Shard, ShardError, ShareMissing
from zstor_local.shards.http.about import ABOUT_BYTES, ask_about
from zstor_local.shards.http.ask import Ask, Deadlines
from zstor_local.shards.http.pages import read_log
from zstor_local.shards.http.peer import OwnTokens, Peer
from zstor_local.shards.http.server import Server
from zstor_local.shards.http.shard import HttpShard
from zstor_local.shards.http.wire import DIGEST, FENCE, Fence, digest, space_path
from zstor_local.shards.marker import BadMarker, Marker, claimed_shard
from zstor_local.shards.opening import Identified

SCHEMES: Final = ("http", "https", "http+unix")
PROVE_ONE_IN: Final = 16  # batches of which a small share is read back
DEADLINES: Final = Deadlines()
_SALT_BYTES: Final = 32
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]+\Z")  # a name, or an address of either kind

log = logging.getLogger("zstor.shards")


class HttpEngine:
    """See shards.opening.ShardEngine. One for a store in a daemon's life: whoever asks a server shares its connections."""

    def __init__(
        self,
        runtime: Runtime,
        network: Network,
        tokens: OwnTokens,
        store_id: StoreId,
        keys: NamespaceKeys,
        deadlines: Deadlines = DEADLINES,
    ) -> None:
        self._runtime = runtime
        self._network = network
        self._tokens = tokens
        self._store_id = store_id
        self._keys = keys
        self._deadlines = deadlines
        self._lock = threading.Lock()
        self._servers: dict[str, Server] = {}
        self._openings = 0
        self._session = runtime.randomness.bytes(ID_BYTES).hex()

    def open(self, entry: ShardEntry, url: str) -> Shard:
        server, space = self._place(url)
        peer = Peer(server, self._tokens.of(ShardUid(entry.uid)))
        try:
            about = self._network.run(lambda: ask_about(peer, space))
            found = Marker.parse(about.marker, self._keys, self._store_id)
        except ShareMissing:
            raise ShardError("failed", f"{url} answers something else than was asked") from None
        except BadMarker as error:
            raise ShardError("missing", f"{url}: {error}") from None
        if found.uid != entry.uid:
            raise ShardError("missing", f"{url} is another shard of this store than {entry.id}")
        return HttpShard(entry, url, peer, space, self._network, about, self._next_fence(about.writer), self._is_to_prove)

    def _next_fence(self, writer: int) -> Fence:
        """That of another opening in this life."""
        with self._lock:
            self._openings += 1
            return Fence(writer, self._openings, self._session)

    def _is_to_prove(self) -> bool:
        return self._runtime.randomness.bytes(1)[0] % PROVE_ONE_IN == 0

    def identify(self, url: str) -> Identified | None:
        server, space = self._place(url)
        try:
            about = self._network.run(lambda: ask_about(Peer(server, self._tokens), space))
        except ShardError as error:
            if error.code == "no_space_here":
                return None
            raise
        except ShareMissing:
            raise ShardError("failed", f"{url} answers something else than was asked") from None
        return Identified(Marker.parse(about.marker, self._keys, self._store_id), (server.url, space))

    def older_keys(self, url: str) -> Iterator[Envelope]:
        server, space = self._place(url)
        try:
            uid = claimed_shard(self._network.run(lambda: ask_about(Peer(server, self._tokens), space)).marker)
            if uid is None:
                return
            peer = Peer(server, self._tokens.of(uid))
            log_path = f"{space}/log?namespace={STORE_WIDE.hex()}&"
            for scanned in read_log(url, log_path, lambda ask: self._network.run(lambda: peer.ask(ask))):
                if scanned.entry.envelope.kind is Kind.KEYS:
                    yield scanned.entry.envelope
        except ShareMissing:
            raise ShardError("failed", f"{url} answers something else than was asked") from None

    def create(self, url: str, identity: Marker) -> None:
        server, space = self._place(url)
        found = self.identify(url)
        if found is not None and found.marker.uid == identity.uid:
            return
        body = identity.pack(self._keys, self._runtime.randomness.bytes(_SALT_BYTES))
        peer = Peer(server, self._tokens.of(identity.uid))
        try:
            if found is not None:
                uid = ShardUid(found.marker.uid)
                self._network.run(lambda: self._vacate(Peer(server, self._tokens.of(uid)), space, uid))
            self._network.run(lambda: peer.ask(Ask("PUT", space, body, {DIGEST: digest(body)})))
        except ShareMissing:
            raise ShardError("failed", f"{url} answers something else than was asked") from None

    def retire(self, entry: ShardEntry, url: str) -> None:
        """Its server removes all of it, so that the place can be given again."""
        try:
            server, space = self._place(url)
            peer = Peer(server, self._tokens.of(ShardUid(entry.uid)))
            self._network.run(lambda: self._remove(peer, space, entry.uid))
        except (ShardError, ShareMissing, BadMarker) as error:
            reason = str(error) or "it answers something else than was asked"
            log.warning("shard %s is no shard any more, but what it holds stays on its server: %s", entry.id, reason)

    async def _vacate(self, peer: Peer, space: str, uid: bytes) -> None:
        """Take away what an interrupted `create` left, which no life ever wrote to. BadMarker for any other shard."""
        if (await ask_about(peer, space)).writer:
            raise BadMarker("it is already another shard of this store")
        await self._remove(peer, space, uid)

    async def _remove(self, peer: Peer, space: str, uid: bytes) -> None:
        """Take the space over from its opening in this life, then away. ShardError `fenced` if a later life has it."""
        try:
            about = await ask_about(peer, space)
            if Marker.parse(about.marker, self._keys, self._store_id).uid != uid:
                return
            headers = {FENCE: str(self._next_fence(about.writer or 1))}  # no life has 0
            await peer.ask(Ask("POST", f"{space}/writer", headers=headers, expect=(200,), most=ABOUT_BYTES))
            await peer.ask(Ask("DELETE", space, headers=headers, durable=True))
        except ShardError as error:
            if error.code != "no_space_here":  # or the answer to the first of two was lost
                raise

    def _place(self, url: str) -> tuple[Server, str]:
        """The server, and where on it the shard lies: one place for each store and name."""
        at, space = locate(url, self._store_id)
        with self._lock:
            server = self._servers.get(at)
            if server is None:
                server = self._servers[at] = Server(at, self._network, self._runtime.randomness, self._deadlines)
        return server, space


def locate(url: str, store_id: StoreId) -> tuple[str, str]:
    """The URL of the server, and the path there of a store's shard. NoPlace for a URL that is none of a shard server's."""
    server, name = _split(url)
    uid = blake3.blake3(b"zstor/1 space" + store_id + name.encode()).digest(ID_BYTES) if name else bytes(store_id)
    return server, space_path(ShardUid(uid))


def _split(url: str) -> tuple[str, str]:
    """The server's URL and the name behind it; NoPlace for what is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise NoPlace("that is no URL") from None
    if not url.isprintable():
        raise NoPlace("that is no URL: it holds characters that cannot be shown")
    if parts.scheme == "http+unix":
        path, _, name = parts.path.partition("//")
        if not path.startswith("/") or parts.netloc:
            raise NoPlace(f"{url}: the socket is an absolute path: http+unix:///run/shard.sock")
        return f"http+unix://{path}", name
    try:
        host = parts.hostname is not None and _HOST.match(parts.hostname) is not None
        valid = host and parts.port is not None and "@" not in parts.netloc and not parts.query and not parts.fragment
    except ValueError:
        valid = False
    if not valid:  # not shown: there may be a password in it
        raise NoPlace("that is no URL of a shard server: http(s)://HOST:PORT, with /NAME behind if need be")
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")
