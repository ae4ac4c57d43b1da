"""The built-in authority: the laws, and keys, revocations and rights that outlive restarts and a lost metastore."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import jwt
import pytest
import trio

from tests.access.conformance import AuthorityLaws, Subject
from tests.store.home import Home
from tests.store.test_rebuild import lose_metastore, rebuilt
from zstor_local.access.authority import Revoked
from zstor_local.access.builtin import BuiltInAuthority
from zstor_local.access.owner import Owner
from zstor_local.access.signing_keys import REVOCATIONS_MAX, SigningKeys
from zstor_local.access.trust import LEEWAY_SECONDS, Revocation, parse_trust
from zstor_local.access.verify import TRUST_BYTES, TokenRefused, Verified, verify, verify_trust
from zstor_local.errors import AlreadyExists, InvalidParams, NotFound
from zstor_local.model.permission import OWNER, Rights
from zstor_local.runtime import Runtime
from zstor_local.store.namespaces import PERMISSIONS_TABLE
from zstor_local.store.store import Store

DAY = 86_400


class SetClock:
    def __init__(self) -> None:
        self.seconds = 1_700_000_000

    def now(self) -> int:
        return self.seconds * 1_000_000


class World:
    """An authority of an open store, with a clock that stands."""

    def __init__(self, store: Store, clock: SetClock) -> None:
        self.clock = clock
        self.rows = store.rows
        real = store.runtime
        runtime = Runtime(real.files, clock, real.randomness, real.threads, real.readiness)
        self.owner = Owner(store)
        self.authority = BuiltInAuthority(
            runtime,
            store.rows,
            store.sealer.store_id,
            self.owner,
            organization="local",
            exists=lambda name: store.rows.get(PERMISSIONS_TABLE, name) is not None,
            must_be_free=self.must_be_free,
        )

    def must_be_free(self, namespace: str) -> None:
        if self.rows.is_there(PERMISSIONS_TABLE, namespace):
            raise AlreadyExists(f"there is a namespace {namespace}")

    async def check(self, text: str) -> Verified:
        """What a shard server makes of a token that gets the trust document anew for each."""
        trust = parse_trust(json.dumps(await self.authority.trust()))
        return verify(text, {trust.issuer: trust}, self.clock.seconds)

    async def signed_trust(self) -> str:
        """As a shard server is told of it."""
        return self.owner.sign(await self.authority.trust())[0]

    async def refused(self, text: str) -> bool:
        try:
            return not (await self.check(text)).rights
        except TokenRefused:
            return True

    async def token(self, user: str | None = None, namespace: str = "photos") -> str:
        return (await self.authority.token(namespace, ["read"], user, 300)).text


@pytest.fixture
async def world(home: Home) -> AsyncIterator[World]:
    async with home.open() as store:
        world = World(store, SetClock())
        for namespace in ("photos", "music"):
            await world.authority.create(namespace)
            for user in ("bob", "eve"):
                await world.authority.give(namespace, user, Rights(read=True))
        yield world


class TestLaws(AuthorityLaws):
    @pytest.fixture
    async def subject(self, home: Home) -> AsyncIterator[Subject]:
        async with home.open() as store:
            world = World(store, SetClock())

            async def accept(user: str) -> None:
                """What is given is given."""

            yield Subject(world.authority, accept, "bob", lambda: world.clock.seconds)


# --- Keys ---


async def test_the_key_is_made_once_and_kept(home: Home) -> None:
    async with home.open() as store:
        first = await World(store, SetClock()).authority.trust()
    async with home.open() as store:
        assert await World(store, SetClock()).authority.trust() == first


async def test_keys_and_rights_come_back_by_a_rebuild(home: Home) -> None:
    async with home.open() as store:
        world = World(store, SetClock())
        await world.authority.create("photos")
        await world.authority.give("photos", "bob", Rights(read=True))
        before = await world.authority.trust()
        token = await world.token("bob")
    lose_metastore(home)
    rebuilt(home.config())
    async with home.open() as store:
        world = World(store, SetClock())
        assert await world.authority.trust() == before
        assert (await world.check(token)).user == "bob"
        assert await world.authority.get("photos", "bob") == Rights(read=True)


async def test_no_key_lies_about_in_clear(home: Home, tmp_path: Path) -> None:
    async with home.open() as store:
        await World(store, SetClock()).authority.trust()
        row = store.rows.get("authority", "keys")
        assert row is not None
        secret = row.value[row.value.index(b"\x58\x30") + 2 :][:48]  # CBOR: 48 bytes follow
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not any(secret in path.read_bytes() for path in files)


async def test_a_new_key_is_known_before_it_signs_and_the_old_one_until_its_last_token_has_expired(world: World) -> None:
    old = await world.token()
    kid = await world.authority.rotate(signs_in_seconds=3_600)
    owner, *keys = parse_trust(json.dumps(await world.authority.trust())).keys
    assert keys[1:] == [kid]
    assert _kid(await world.token()) == _kid(old) == keys[0]
    world.clock.seconds += 3_600
    assert _kid(await world.token()) == kid
    world.clock.seconds += DAY
    assert [*parse_trust(json.dumps(await world.authority.trust())).keys] == [owner, *keys]
    world.clock.seconds += 60
    assert [*parse_trust(json.dumps(await world.authority.trust())).keys] == [owner, kid]


async def test_a_key_that_was_to_follow_gives_way_to_one_that_signs_earlier(world: World) -> None:
    late = await world.authority.rotate(signs_in_seconds=3_600)
    soon = await world.authority.rotate(signs_in_seconds=0)
    assert _kid(await world.token()) == soon
    assert late not in parse_trust(json.dumps(await world.authority.trust())).keys


async def test_a_shard_server_takes_a_signed_document_from_who_has_a_key_that_it_knows(world: World) -> None:
    known = parse_trust(json.dumps(await world.authority.trust()))
    await world.authority.rotate(signs_in_seconds=3_600)
    newer = verify_trust(await world.signed_trust(), known)
    assert len(newer.keys) == 3
    with pytest.raises(TokenRefused, match="not newer"):
        verify_trust(await world.signed_trust(), newer)


async def test_a_revoked_key_counts_no_more_and_another_takes_its_place(world: World) -> None:
    token = await world.token()
    await world.authority.revoke(Revoked(kid=_kid(token)))
    assert await world.refused(token)
    assert not await world.refused(await world.token())
    with pytest.raises(NotFound):
        await world.authority.revoke(Revoked(kid="unknown"))


# --- Revocation ---


async def test_no_number_of_revocations_is_too_much_for_a_server(world: World) -> None:
    """Servers that refuse the document would be shards that are away, and nothing more would be revoked there."""
    token = await world.token("bob")
    row = world.rows.get("authority", "keys")
    assert row is not None
    many = tuple(Revocation(world.clock.seconds + DAY, jti=f"{number:0255}") for number in range(REVOCATIONS_MAX))
    await world.rows.put("authority", "keys", replace(SigningKeys.decode(row.value), revoked=many).encode())
    document = await world.signed_trust()
    assert len(document) <= TRUST_BYTES
    assert not await world.refused(token)
    await world.authority.revoke(Revoked(jti="one more"))
    assert len(await world.signed_trust()) < len(document)
    assert await world.refused(token)
    assert not await world.refused(await world.token("bob"))


async def test_one_token_is_revoked_by_its_id(world: World) -> None:
    one, other = await world.token("bob"), await world.token("bob")
    await world.authority.revoke(Revoked(jti=jwt.decode(one, options={"verify_signature": False})["jti"]))
    assert await world.refused(one)
    assert not await world.refused(other)


@pytest.mark.parametrize(
    ("what", "left"),
    [
        (Revoked(user="bob", namespace="photos"), {("bob", "music"), ("eve", "photos"), ("eve", "music")}),
        (Revoked(user="bob"), {("eve", "photos"), ("eve", "music")}),
        (Revoked(namespace="photos"), {("bob", "music"), ("eve", "music")}),
        (Revoked(), set()),
    ],
)
async def test_tokens_are_revoked_by_user_and_namespace(world: World, what: Revoked, left: set[tuple[str, str]]) -> None:
    tokens = {(user, space): await world.token(user, space) for user in ("bob", "eve") for space in ("photos", "music")}
    await world.authority.revoke(what)
    assert {whose for whose, text in tokens.items() if not await world.refused(text)} == left
    # In the same second: what is asked for after the revocation counts again.
    for user, namespace in tokens:
        assert not await world.refused(await world.token(user, namespace))


@pytest.mark.parametrize("first", [Revoked(user="bob"), Revoked(namespace="photos"), Revoked()], ids=["user", "namespace", "all"])
@pytest.mark.parametrize("second", [Revoked(user="bob"), Revoked(namespace="photos"), Revoked()], ids=["user", "namespace", "all"])
async def test_a_token_of_the_second_of_a_revocation_is_revoked_by_the_next_one(world: World, first: Revoked, second: Revoked) -> None:
    """It claims the second behind the one that the first covers."""
    for _ in range(3):
        await world.authority.revoke(first)
        token = await world.token("bob", "photos")
        assert not await world.refused(token)
        await world.authority.revoke(second)
        assert await world.refused(token)


async def test_revocations_go_when_no_token_that_they_mean_can_run(world: World) -> None:
    await world.authority.revoke(Revoked(user="bob"))
    assert parse_trust(json.dumps(await world.authority.trust())).revoked
    world.clock.seconds += DAY + 60
    assert not parse_trust(json.dumps(await world.authority.trust())).revoked


@pytest.mark.parametrize("by", ["user", "jti"])
async def test_they_stay_as_long_where_tokens_claim_to_be_issued_later(world: World, by: str) -> None:
    """Each of several in one second has the next token claim a later one, and so expire later."""
    for _ in range(30):
        await world.authority.revoke(Revoked(user="bob"))
    token = (await world.authority.token("photos", ["read"], "bob", DAY)).text
    told = jwt.decode(token, options={"verify_signature": False})
    await world.authority.revoke(Revoked(user="bob") if by == "user" else Revoked(jti=told["jti"]))
    for second in (told["iat"], told["exp"] - 1, told["exp"] + LEEWAY_SECONDS - 1):
        world.clock.seconds = second
        assert await world.refused(token)


async def test_each_change_makes_the_document_newer(world: World) -> None:
    seen = [parse_trust(json.dumps(await world.authority.trust())).updated]
    for change in (world.authority.rotate(signs_in_seconds=5), world.authority.revoke(Revoked(user="bob"))):
        await change
        seen.append(parse_trust(json.dumps(await world.authority.trust())).updated)
    assert seen == sorted(set(seen))


# --- Users ---


async def test_nobody_is_made_owner(world: World) -> None:
    with pytest.raises(InvalidParams):
        await world.authority.give("photos", OWNER, Rights(read=True))
    assert (await world.check(await world.token(OWNER))).user == OWNER


async def test_rights_given_at_once_by_many_are_all_there(world: World) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(world.authority.give, "photos", f"user{number}", Rights(write=True))
    assert len(await world.authority.users("photos")) == 52


def _kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])
