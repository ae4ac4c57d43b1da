"""Invitations and letters of somebody who is up to something: the daemon that takes them goes on, and gives nothing away."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import pytest
import trio

from tests.shardserver.server import Issuer, scanned
from tests.store.home import Home, get, put
from zstor_local.access.builtin import builtin_authority
from zstor_local.access.invitation import PLACES_MAX, Pass, Place, parse_public_key, seal_invitation, seal_letter
from zstor_local.access.joining import TABLE, Joining, _Joined
from zstor_local.errors import AlreadyExists, CorruptRecord, InvalidParams, ZstorError
from zstor_local.model.ids import NamespaceId, StoreId
from zstor_local.model.record import STORE_WIDE
from zstor_local.network import open_network
from zstor_local.shards.base import ShardError
from zstor_local.shards.http.peer import Ask, Peer, Reply
from zstor_local.shards.http.wire import NEXT, Batch, pack_batch
from zstor_local.store.store import Store

SOCKET = "http+unix:///nowhere/shard.sock"
GOOD = Pass(
    namespace="photos",
    namespace_id=NamespaceId(b"somebody's space"),
    store_id=StoreId(b"somebody's store"),
    user="bob",
    record_keys=(b"k" * 32,),
    places=(Place(0, "one", SOCKET),),
    source="letters",
    organization="local",
    token="",
    letter_key=b"l" * 32,
    letter_id=b"letter id 16 byt",
    made=1,
)
Change = Callable[[Pass], Pass]


@dataclass
class Reader:
    store: Store
    joining: Joining

    async def join(self, given: Pass, name: str | None = None) -> None:
        invitation = seal_invitation(given, parse_public_key(await self.joining.public_key()))
        await self.joining.join(invitation, name, lambda objects: None)

    def joined(self, name: str = "photos") -> _Joined:
        return self.joining._joined[name]


@asynccontextmanager
async def reading(store: Store) -> AsyncIterator[Reader]:
    async with open_network() as network, trio.open_nursery() as nursery:
        joining = Joining(store, builtin_authority(store), network)
        await nursery.start(joining.run)
        yield Reader(store, joining)
        nursery.cancel_scope.cancel()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that went out; nobody answers."""
    tokens: list[str] = []

    async def nobody(self: Peer, ask: Ask, token: str, *, last: bool) -> Reply:
        tokens.append(token)
        raise ShardError("missing", f"{self.url} does not answer")

    monkeypatch.setattr(Peer, "_send", nobody)
    return tokens


def places(*given: Place) -> Change:
    return lambda before: replace(before, places=given)


def token(text: str) -> Change:
    return lambda before: replace(before, token=text)


def token_of(payload: bytes) -> str:
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (b'{"alg":"none"}', payload, b"x"))


BAD: Mapping[str, Change] = {
    "token beyond ASCII": token("gr\u00fcn"),
    "token with a header behind it": token("a\r\nx: y"),
    "endless token": token("a" * 8_193),
    "number of another store's shard": places(Place(PLACES_MAX, "one", SOCKET)),
    "number of one of ours": places(Place(-PLACES_MAX + 1, "one", SOCKET)),
    "one number twice": places(Place(0, "one", SOCKET), Place(0, "two", SOCKET)),
    "name that steers a terminal": places(Place(0, "\x1b[2J", SOCKET)),
    "socket with a NUL": places(Place(0, "one", "http+unix:///a\0b")),
}
ODD: Mapping[str, Change] = {
    "no URL": places(Place(0, "one", "http://[")),
    "no host": places(Place(0, "one", "http://:1")),
    "nobody's host": places(Place(0, "one", "http://xn--ls8h=:1")),
    "host with a space": places(Place(0, "one", "http://a b:1")),
    "relative socket": places(Place(0, "one", "http+unix://nowhere")),
    "unknown scheme": places(Place(0, "one", "gopher://host:1")),
    "deep token": token(token_of(b"[" * 5_000)),
    "token for ever": token(token_of(b'{"exp":1e999}')),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
async def test_an_invitation_that_cannot_be_is_not_taken(home: Home, shown: list[str], change: Change) -> None:
    async with home.open() as store, reading(store) as bob:
        with pytest.raises(InvalidParams):
            await bob.join(change(GOOD))
        assert not list(store.rows.scan(TABLE))


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
async def test_an_odd_invitation_harms_nobody_but_itself(home: Home, shown: list[str], change: Change) -> None:
    async with home.open() as store, reading(store) as bob:
        with suppress(ZstorError):  # and nothing else
            await bob.join(change(GOOD))
    async with home.open() as store, reading(store):  # it starts again
        await put(store, "key", b"ours")
        assert await get(store, "key") == b"ours"


@pytest.mark.parametrize("change", [*BAD.values(), *ODD.values()], ids=[*BAD, *ODD])
async def test_a_letter_like_that_does_not_end_the_daemon(home: Home, monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    letter = seal_letter(replace(change(GOOD), made=2), bytes(32))

    async def answer(self: Peer, ask: Ask, token: str, *, last: bool) -> Reply:
        if "/letters/" in ask.path:
            return Reply(200, {}, letter)
        raise ShardError("missing", "nobody answers")

    monkeypatch.setattr(Peer, "_send", answer)
    async with home.open() as store, reading(store) as bob:
        with suppress(ZstorError):
            await bob.join(GOOD)
        for shard in list(bob.joined().shards.values()):
            with pytest.raises(ShardError):
                await shard.look()
        assert bob.joining.joined("photos")


@pytest.mark.parametrize("which", ["the store's own records", "a namespace of ours"])
async def test_nobody_puts_a_namespace_in_the_place_of_ours(home: Home, shown: list[str], which: str) -> None:
    async with home.open() as store, reading(store) as bob:
        await put(store, "key", b"ours")
        ours = STORE_WIDE if which == "the store's own records" else store.namespaces.get("default").id
        given = replace(GOOD, namespace_id=ours)
        with pytest.raises(AlreadyExists, match="this very store"):
            await bob.join(given)
        await store.rows.put(TABLE, "photos", given.encode())  # as an earlier version took it
        await put(store, "another", b"key")
    async with home.open() as store, reading(store) as bob:
        assert not bob.joining.joined("photos")
        await store.namespaces.create("new", policy=None, quota=None)
        await put(store, "key", b"ours still")
    async with home.open() as store:
        assert await get(store, "key") == b"ours still"
        assert store.namespaces.get("new")


async def test_our_own_authority_signs_nothing_for_somebody_elses_servers(home: Home, shown: list[str]) -> None:
    """The invitation names a namespace of ours: a token for it would open our own shards to whoever wrote the invitation."""
    async with home.open() as store, reading(store) as bob:
        await put(store, "key", b"ours")
        with pytest.raises(ZstorError, match="no authority here gives tokens"):
            await bob.join(replace(GOOD, namespace="default", source="authority"), "innocent")
        assert {*shown} <= {"none"}


async def test_a_server_that_sends_the_owners_log_in_circles_is_not_followed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    following = iter(["1.1.5", "1.1.4"])

    async def circles(self: Peer, ask: Ask, token: str, *, last: bool) -> Reply:
        return Reply(200, {NEXT: next(following)}, pack_batch(Batch([scanned(1)])))

    issuer = Issuer()
    monkeypatch.setattr(Peer, "_send", circles)
    monkeypatch.setattr(_Joined, "follow", _no_follow)
    async with home.open() as store, reading(store) as bob:
        with pytest.raises(ZstorError, match="in circles"):
            await bob.join(replace(GOOD, token=issuer.token("photos", "read")))


async def _no_follow(self: _Joined) -> None:
    pass


def test_what_is_malformed_is_told_by_name() -> None:
    with pytest.raises(CorruptRecord):
        Pass.decode(token("\n")(GOOD).encode())
