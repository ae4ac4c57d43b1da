"""Invitations and letters of somebody who is up to something: the daemon that takes them goes on, and gives nothing away."""

from __future__ import annotations

import base64
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.shardserver.server import Issuer, scanned
from tests.store.home import Home, get, put
from zstor_local import limits
from zstor_local.access import joined_rows
from zstor_local.access.authority import Token
from zstor_local.access.builtin import builtin_authority
from zstor_local.access.invitation import PLACES, Pass, Place, parse_public_key, seal_invitation, seal_letter
from zstor_local.access.joined import Joined
from zstor_local.access.joined_shard import JoinedShard
from zstor_local.access.joining import Joining
from zstor_local.access.letters import Letters
from zstor_local.access.spaces import Spaces
from zstor_local.coding.keys import NamespaceKeys
from zstor_local.errors import AlreadyExists, CorruptRecord, InvalidParams, PermissionDenied, Unauthenticated, Unavailable, ZstorError
from zstor_local.metastore.base import CommitRefused
from zstor_local.model.fields import decode, encode
from zstor_local.model.ids import KeyHash, NamespaceId, StoreId, Version
from zstor_local.model.permission import Permission, Rights
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE, Envelope, Kind, Tombstone, associated_data
from zstor_local.network import open_network
from zstor_local.shards.base import Entry, ScannedEntry, ShardError
from zstor_local.shards.http.ask import Ask, Reply
from zstor_local.shards.http.connections import Connections
from zstor_local.shards.http.wire import BEGINNING, NEXT, Batch, pack_batch
from zstor_local.store.namespaces import JOINED_TABLE
from zstor_local.store.store import Store

SEGMENT = "5" * 32  # the id of one, in a cursor
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

    def joined(self, name: str = "photos") -> Joined:
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

    async def nobody(self: Connections, ask: Ask, token: str) -> Reply:
        tokens.append(token)
        raise ShardError("missing", f"{self.url} does not answer")

    monkeypatch.setattr(Connections, "exchange", nobody)
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
    "number of another store's shard": places(Place(limits.SHARD_NUMBERS, "one", SOCKET)),
    "number of one of ours": places(Place(-limits.SHARD_NUMBERS + 1, "one", SOCKET)),
    "one number twice": places(Place(0, "one", SOCKET), Place(0, "two", SOCKET)),
    "more places than there are servers": places(*(Place(number, "one", SOCKET) for number in range(PLACES + 1))),
    "name that steers a terminal": places(Place(0, "\x1b[2J", SOCKET)),
    "namespace that steers a terminal": lambda before: replace(before, namespace="\x1b[2J"),
    "namespace made at no time": lambda before: replace(before, created=10**5_000),
    "more ends of keys than keys": lambda before: replace(before, through=(1, 2)),
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
        assert not list(store.rows.scan(JOINED_TABLE))


async def test_a_server_that_is_away_is_no_token_that_was_refused_whatever_it_is_called(home: Home, shown: list[str]) -> None:
    async with home.open() as store, reading(store) as bob:
        with pytest.raises(Unavailable, match="does not answer"):
            await bob.join(replace(GOOD, token=token_of(b'{"exp":9e9}'), places=(Place(0, "one", "http+unix:///nowhere/tokens.sock"),)))


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

    async def answer(self: Connections, ask: Ask, token: str) -> Reply:
        if "/letters/" in ask.path:
            return Reply(200, {}, letter)
        raise ShardError("missing", "nobody answers")

    monkeypatch.setattr(Connections, "exchange", answer)
    async with home.open() as store, reading(store) as bob:
        with suppress(ZstorError):
            await bob.join(GOOD)
        for shard in list(bob.joined().shards.values()):
            with pytest.raises(ShardError):
                await shard.look()
        assert bob.joining.joined("photos")


async def test_a_letter_that_our_store_cannot_keep_counts_and_does_not_end_the_daemon(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters: list[bytes] = []

    async def answer(self: Connections, ask: Ask, token: str) -> Reply:
        if letters and "/letters/" in ask.path:
            return Reply(200, {}, letters[0])
        raise ShardError("missing", "nobody answers")

    monkeypatch.setattr(Connections, "exchange", answer)
    monkeypatch.setattr(Joined, "follow", _no_follow)
    async with home.open() as store, reading(store) as bob:
        with suppress(ZstorError):
            await bob.join(GOOD)
        for number in (0, 1):
            home.take_away(number)
        await store.presence.look()
        letters.append(seal_letter(replace(GOOD, made=2, token="newer"), bytes(32)))  # noqa: S106
        assert await bob.joined().token() == "newer"
        assert Pass.decode(store.rows.get(JOINED_TABLE, "photos").value).made == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("which", ["the store's own records", "a namespace of ours"])
async def test_nobody_puts_a_namespace_in_the_place_of_ours(home: Home, shown: list[str], which: str) -> None:
    async with home.open() as store, reading(store) as bob:
        await put(store, "key", b"ours")
        ours = STORE_WIDE if which == "the store's own records" else store.namespaces.get("default").id
        given = replace(GOOD, namespace_id=ours)
        with pytest.raises(AlreadyExists, match="this very store"):
            await bob.join(given)
        await store.rows.put(JOINED_TABLE, "photos", given.encode())  # as an earlier version took it
        await put(store, "another", b"key")
    async with home.open() as store, reading(store) as bob:
        assert "photos" not in store.namespaces.joined
        await store.namespaces.create("new", policy=None, quota=None)
        await put(store, "key", b"ours still")
        await bob.joining.leave("photos")
    async with home.open() as store:
        assert await get(store, "key") == b"ours still"
        assert store.namespaces.get("new")


async def test_who_joins_and_who_writes_do_not_both_take_a_name(home: Home, shown: list[str]) -> None:
    async with home.open() as store, reading(store) as reader:
        await reader.joining.public_key()

        async def join() -> None:
            with suppress(AlreadyExists, Unauthenticated):
                await reader.join(GOOD)

        async def write() -> None:
            with suppress(AlreadyExists):
                await store.namespaces.find_or_create("photos")

        both_wait = threading.Event()
        store.runtime.threads.start_commit(both_wait.wait, lambda _: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(join)
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            both_wait.set()
        taken = {store.namespaces.record("photos") is not None, store.rows.get(JOINED_TABLE, "photos") is not None}
        assert taken == {False, True}
        assert store.namespaces.get("photos").gate.read_only == reader.joining.joined("photos")


async def test_nobody_is_given_anything_in_a_namespace_that_is_another_users(home: Home, shown: list[str]) -> None:
    """It would count for one of ours that has the name later."""
    async with home.open() as store, reading(store) as bob:
        authority = builtin_authority(store)
        with suppress(ZstorError):
            await bob.join(GOOD)
        refused: Sequence[Callable[[], Awaitable[object]]] = (
            lambda: authority.give("photos", "carol", Rights.of(["read"])),
            lambda: authority.users("photos"),
            lambda: authority.token("photos", ["read"], None, 60),
            lambda: Letters(store, authority).invite("photos", "carol", bytes(32)),
            lambda: store.namespaces.change("photos", lambda record: record),
            lambda: store.rewriting.start("photos"),
        )
        for attempt in refused:
            with pytest.raises(PermissionDenied, match="another user's"):
                await attempt()
        with pytest.raises(AlreadyExists, match="another user's"):
            await Spaces(store, authority).create("photos", policy=None, quota=None, placement=())
        await bob.joining.leave("photos")
        await put(store, "key", b"ours", namespace="photos")
        assert await authority.users("photos") == {}


async def test_our_own_authority_signs_nothing_for_somebody_elses_servers(home: Home, shown: list[str]) -> None:
    """The invitation names a namespace of ours: a token for it would open our own shards to whoever wrote the invitation."""
    async with home.open() as store, reading(store) as bob:
        await put(store, "key", b"ours")
        with pytest.raises(ZstorError, match="no authority here gives tokens"):
            await bob.join(replace(GOOD, namespace="default", source="authority"), "innocent")
        assert {*shown} <= {"none"}


@pytest.mark.parametrize("way", ["invitation", "letter"])
async def test_nobody_is_shown_a_token_for_a_namespace_that_its_reader_has_not_named(
    home: Home, shown: list[str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """An organization's tokens are for all of its servers: whoever wrote the invitation need not even be of it."""

    async def sign(namespace: str, permissions: Sequence[Permission], user: str | None, seconds: int) -> Token:
        return Token(f"{namespace}.{permissions[0]}", 2**31, ())

    async def letter(self: JoinedShard, before: Pass) -> Pass:
        return replace(payroll, made=2) if way == "letter" else before

    payroll = replace(GOOD, namespace="payroll", source="authority")
    async with home.open() as store, reading(store) as bob:
        monkeypatch.setattr(bob.joining._authority, "kind", "itsyouonline")
        monkeypatch.setattr(bob.joining._authority, "token", sign)
        with monkeypatch.context() as patch:
            patch.setattr(JoinedShard, "letter", letter)
            with suppress(ZstorError):
                await bob.join(payroll if way == "invitation" else GOOD, "photos")
            for shard in bob.joined().shards.values():
                with pytest.raises(ShardError):
                    await shard.look()
        assert "payroll.read" not in shown
        with suppress(ZstorError):
            await bob.join(replace(payroll, namespace_id=NamespaceId(b"another id of 16")))
        assert "payroll.read" in shown  # by the name that it has


async def test_a_server_that_sends_the_owners_log_in_circles_is_not_followed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    following = iter([f"1.1.5.{SEGMENT}", f"1.1.4.{SEGMENT}"])

    async def circles(self: Connections, ask: Ask, token: str) -> Reply:
        return Reply(200, {NEXT: next(following)}, pack_batch(Batch([scanned(1)])))

    issuer = Issuer()
    monkeypatch.setattr(Connections, "exchange", circles)
    monkeypatch.setattr(Joined, "follow", _no_follow)
    async with home.open() as store, reading(store) as bob:
        with pytest.raises(ZstorError, match="in circles"):
            await bob.join(replace(GOOD, token=issuer.token("photos", "read")))


async def test_a_server_that_says_its_log_is_gone_is_read_again_from_the_beginning(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether an older copy was put back there or it lies: less and less often."""
    asked: list[str] = []

    async def gone(self: Connections, ask: Ask, token: str) -> Reply:
        asked.append(after := ask.path.partition("after=")[2].partition("&")[0])
        if after == BEGINNING:
            return Reply(200, {NEXT: f"1.1.5.{SEGMENT}"}, pack_batch(Batch([scanned(1)])))
        raise ShardError("failed", "gone", code="gone")

    monkeypatch.setattr(Connections, "exchange", gone)
    monkeypatch.setattr(Joined, "follow", _no_follow)
    async with home.open() as store, reading(store) as bob:
        for _ in range(2):
            with pytest.raises(ZstorError, match="gone"):
                await bob.join(replace(GOOD, token=Issuer().token("photos", "read")))
    assert asked == [BEGINNING, f"1.1.5.{SEGMENT}"] * 2


async def _no_follow(self: Joined) -> None:
    pass


async def test_who_joins_and_who_follows_may_look_at_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither takes the other's pages for the log's end, nor the server for one that sends it in circles."""
    first, last = f"1.1.5.{SEGMENT}", f"1.1.9.{SEGMENT}"
    later = {BEGINNING: first, first: last, last: last}
    asked: list[str] = []

    async def pages(self: Connections, ask: Ask, token: str) -> Reply:
        asked.append(after := ask.path.partition("after=")[2].partition("&")[0])
        await trio.testing.wait_all_tasks_blocked()
        return Reply(200, {NEXT: later[after]}, pack_batch(Batch([scanned(1)] if later[after] != after else [])))

    monkeypatch.setattr(Connections, "exchange", pages)
    monkeypatch.setattr(Joined, "follow", _no_follow)
    async with home.open() as store, reading(store) as bob:
        await bob.join(replace(GOOD, token=Issuer().token("photos", "read")))
        [shard] = bob.joined().shards.values()
        shard._after = BEGINNING
        asked.clear()
        async with trio.open_nursery() as both:
            for _ in range(2):
                both.start_soon(shard.catch_up, lambda: None)
        assert [*asked].count(last) == 2


async def test_an_invitation_of_somebody_else_does_not_take_the_place_of_one(home: Home, shown: list[str]) -> None:
    """Whoever knows the namespace's id may write one for it; only its owner knows the key of the letters."""
    async with home.open() as store, reading(store) as bob:
        for made, changes in ((1, {}), (2, {"letter_key": b"x" * 32}), (3, {"store_id": StoreId(b"one more store16")}), (4, {})):
            given = replace(GOOD, made=made, **changes)
            with suppress(Unavailable, Unauthenticated):  # no server answers
                if changes:
                    with pytest.raises(AlreadyExists):
                        await bob.join(given)
                else:
                    await bob.join(given)
            assert bob.joined().given.made == (made if not changes else 1)


async def test_places_that_a_letter_names_no_more_are_left(home: Home, shown: list[str]) -> None:
    async with home.open() as store, reading(store) as bob:
        with suppress(ZstorError):
            await bob.join(GOOD)
        joined = bob.joined()
        [before] = joined.shards.values()
        joined.renew(places(Place(7, "two", f"{SOCKET}2"))(GOOD))
        [after] = joined.shards.values()
        assert store.pool.joined == {after.number: after}
        await before.follow()  # ends
        assert joined.follows(after)


def page(*keys: str) -> bytes:
    """A page of a log of the owner's, with deletions."""
    keys_of, entries = NamespaceKeys.of(GOOD.record_keys), []
    for sequence, key in enumerate(keys, 1):
        key_hash, version = KeyHash(key.encode().ljust(16)), Version(sequence.to_bytes(16, "big"))
        bound = associated_data(GOOD.store_id, Kind.TOMBSTONE, GOOD.namespace_id, key_hash, version, sequence)
        sealed = keys_of.seal_record(bytes(32), bound, Tombstone(key, 1).encode())
        entries.append(ScannedEntry(Entry(Envelope(Kind.TOMBSTONE, GOOD.namespace_id, key_hash, version, sequence, sealed)), 0))
    return pack_batch(Batch(entries))


async def test_records_have_a_bound_and_what_keeps_them_may_fail(home: Home, shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store, reading(store) as bob:
        with suppress(ZstorError):
            await bob.join(GOOD)
        rows = bob.joined().rows
        assert await bob.joined().take(page("a"))
        with monkeypatch.context() as patch:
            patch.setattr(joined_rows, "ROWS_BYTES", 1_000)
            with pytest.raises(ShardError, match="more than 1000 bytes"):
                await bob.joined().take(page("a", "b"))
        with monkeypatch.context() as patch:
            patch.setattr(rows, "commit", _refuse)
            with pytest.raises(ShardError, match="cannot be kept: the disk is full"):
                await bob.joined().take(page("a", "b"))
        assert rows.tombstone(GOOD.namespace_id, "a") is not None
        assert rows.tombstone(GOOD.namespace_id, "b") is None
        assert await bob.joined().take(page("a", "b"))
        assert rows.tombstone(GOOD.namespace_id, "b") is not None
        assert list(Path(home.store).glob("joined-*"))
        await bob.joining.leave("photos")
        assert not list(Path(home.store).glob("joined-*"))


def _refuse(*_: object) -> None:
    raise CommitRefused("the disk is full", no_space=True)


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_what_is_malformed_is_told_by_name(change: Change) -> None:
    with pytest.raises(CorruptRecord):
        Pass.decode(change(GOOD).encode())


def test_a_pass_of_before_is_taken_without_what_it_does_not_tell() -> None:
    """It is a row of its reader's store until a letter renews it."""
    told = replace(GOOD, policy=Policy(1, 3), created=5)
    assert Pass.decode(told.encode()) == told
    plain = decode(told.encode())
    del plain[13], plain[14]
    assert Pass.decode(encode(plain)) == GOOD


async def test_without_the_permission_the_keys_of_before_are_kept(
    home: Home, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was heard is still shown, and such a letter has no key but the oldest."""
    keys = (b"n" * 32, *GOOD.record_keys)

    async def letter(self: JoinedShard, before: Pass) -> Pass:
        return replace(GOOD, made=3, through=(7,))

    monkeypatch.setattr(JoinedShard, "letter", letter)
    async with home.open() as store, reading(store) as bob:
        with suppress(ZstorError):
            await bob.join(replace(GOOD, made=2, token="good", record_keys=keys, through=(5,)))  # noqa: S106
        await bob.joined()._read_letters()
        given = bob.joined().given
        assert (given.made, given.token, given.record_keys, given.through) == (3, "", keys, (5,))


async def test_a_letter_tells_of_another_policy(home: Home, shown: list[str]) -> None:
    async with home.open() as store, reading(store) as bob:
        with suppress(ZstorError):
            await bob.join(GOOD)
        joined = bob.joined()
        joined.renew(replace(GOOD, policy=Policy(1, 3), created=5))
        found = store.namespaces.get("photos")
        assert (found.policy, found.created, found.gate.read_only) == (Policy(1, 3), 5, True)
        await bob.joining.leave("photos")
        joined.renew(GOOD)
        assert store.namespaces.find("photos") is None
