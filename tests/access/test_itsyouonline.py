"""The client of ItsYou.Online: the laws, and every call with every answer that the service gives, the awkward ones included."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
import trio.testing

from tests.access.conformance import AuthorityLaws, Subject
from tests.access.itsyouonline_server import DROP, DROP_AFTER, ItsYouOnlineServer, Organization
from zstor_local.access.authority import Revoked
from zstor_local.access.itsyouonline import ItsYouOnline
from zstor_local.access.itsyouonline_http import Credentials, Service, http_transport
from zstor_local.errors import (
    AlreadyExists,
    InvalidParams,
    NotFound,
    NotSupported,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
    Unavailable,
    ZstorError,
)
from zstor_local.model.permission import STORE_NAMESPACE, Rights
from zstor_local.runtime import Runtime
from zstor_local.system import real_runtime

LOGIN = ("POST", "/v1/oauth/access_token")
ROOT = "/api/organizations/acme.0stor"


class SetClock:
    seconds = 1_700_000_000

    def now(self) -> int:
        return self.seconds * 1_000_000


class World:
    """The server, and the client of one of its users."""

    def __init__(self, server: ItsYouOnlineServer, clock: SetClock, authority: ItsYouOnline) -> None:
        self.server = server
        self.clock = clock
        self.authority = authority

    def organizations(self) -> list[str]:
        return sorted(self.server.organizations)


@asynccontextmanager
async def opened(user: str = "alice", secret: str | None = None) -> AsyncIterator[World]:
    clock = SetClock()
    server = ItsYouOnlineServer(lambda: clock.seconds)
    server.organizations["acme"] = Organization(owners={"alice"})
    real = real_runtime()
    runtime = Runtime(real.files, clock, real.randomness, real.threads, real.readiness)
    async with trio.open_nursery() as nursery, http_transport() as transport:
        await nursery.start(server.serve)
        service = Service(runtime, transport, server.url, Credentials(f"{user}-id", secret or f"{user}-secret"))
        yield World(server, clock, ItsYouOnline(service, "acme", [server.signing.jwk()]))
        nursery.cancel_scope.cancel()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened() as world:
        yield world


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """It jumps where nothing has happened for a moment: what one end has sent may still be on its way to the other."""
    return trio.testing.MockClock(autojump_threshold=0.05)


class TestLaws(AuthorityLaws):
    @pytest.fixture
    async def subject(self, world: World) -> Subject:
        async def accept(user: str) -> None:
            world.server.accept(user)

        return Subject(world.authority, accept, None, lambda: world.clock.seconds)


# --- Namespaces ---

WHOLE = ["acme", "acme.0stor", "acme.0stor.photos", *(f"acme.0stor.photos.{verb}" for verb in ("delete", "read", "write"))]


async def test_a_namespace_is_five_organizations(world: World) -> None:
    await world.authority.create("photos")
    assert world.organizations() == WHOLE
    await world.authority.delete("photos")
    assert world.organizations() == WHOLE[:2]


async def test_an_organization_that_nobody_has_is_made(world: World) -> None:
    del world.server.organizations["acme"]
    await world.authority.create("photos")
    assert world.organizations() == WHOLE


async def test_an_organization_of_somebody_else_is_not_taken(world: World) -> None:
    world.server.organizations["acme"] = Organization(owners={"eve"})
    with pytest.raises(PermissionDenied):
        await world.authority.create("photos")
    world.server.organizations["acme"].members.add("alice")
    with pytest.raises(PermissionDenied):
        await world.authority.create("photos")
    assert world.organizations() == ["acme"]


@pytest.mark.parametrize("made", [WHOLE[:2], WHOLE[:3], WHOLE[:4], WHOLE[:5]])
async def test_one_that_is_half_made_is_completed(world: World, made: list[str]) -> None:
    world.server.organizations.update({name: Organization(owners={"alice"}) for name in made})
    await world.authority.create("photos")
    assert world.organizations() == WHOLE


STEPS = [ROOT, f"{ROOT}.photos"]


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, InvalidParams), (403, PermissionDenied), (404, NotFound), (422, TooLarge), (401, Unauthenticated), (418, Unavailable)],
)
@pytest.mark.parametrize("skip", [0, 1, 2])
async def test_one_whose_creation_fails_midway_is_undone(world: World, status: int, error: type[ZstorError], skip: int) -> None:
    await world.authority.create("other")
    before = world.organizations()
    path = ROOT if skip == 0 else f"{ROOT}.photos"
    world.server.answers["POST", path] = [*["as it is" for _ in range(max(0, skip - 1))], status, status]
    with pytest.raises(error):
        await world.authority.create("photos")
    assert world.organizations() == before
    world.server.answers.clear()
    await world.authority.create("photos")


async def test_what_was_there_before_is_not_undone(world: World) -> None:
    world.server.organizations.update({name: Organization(owners={"alice"}) for name in WHOLE[:4]})
    world.server.answers["POST", f"{ROOT}.photos"] = [422]
    with pytest.raises(TooLarge):
        await world.authority.create("photos")
    assert world.organizations() == WHOLE[:4]


@pytest.mark.parametrize("fault", [DROP, DROP_AFTER, 500, 503])
@pytest.mark.parametrize("path", ["/api/organizations/acme", ROOT, f"{ROOT}.photos"])
async def test_a_creation_that_was_broken_off_is_tried_again(
    world: World, path: str, fault: str | int, autojump_clock: trio.testing.MockClock
) -> None:
    world.server.answers["POST", path] = [fault]
    await world.authority.create("photos")
    assert world.organizations() == WHOLE


@pytest.mark.parametrize(
    ("status", "error"),
    [(204, None), (404, None), (403, PermissionDenied), (400, InvalidParams), (500, Unavailable), (401, Unauthenticated)],
)
async def test_a_deletion_says_what_came_of_it(
    world: World, status: int, error: type[ZstorError] | None, autojump_clock: trio.testing.MockClock
) -> None:
    await world.authority.create("photos")
    world.server.answers["DELETE", f"{ROOT}.photos"] = [status] * 3
    if error is None:
        await world.authority.delete("photos")
    else:
        with pytest.raises(error):
            await world.authority.delete("photos")


@pytest.mark.parametrize(
    "tree", [b"[]", b"", b"null", b"<html>", b'{"children": 5}', b'{"children": [5, {"globalid": 7}, {"globalid": "acme.0stor.a.b"}]}']
)
async def test_a_tree_that_makes_no_sense_names_no_namespace(world: World, tree: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(tree), tree)
    world.server.answers["GET", f"{ROOT}/tree"] = [answer]
    try:
        assert await world.authority.namespaces() == []
    except Unavailable:
        return


# --- Rights ---


async def test_what_is_given_is_pending_until_it_is_accepted(world: World) -> None:
    await world.authority.create("photos")
    both = Rights(read=True, write=True)
    given = await world.authority.give("photos", "bob", both)
    assert (given.rights, given.pending) == (Rights(), both)
    world.server.accept("bob")
    given = await world.authority.give("photos", "bob", both)
    assert (given.rights, given.pending) == (both, Rights())
    assert world.server.calls("POST", f"{ROOT}.photos.read/members") == 1


async def test_removing_drops_an_invitation_too(world: World) -> None:
    await world.authority.create("photos")
    await world.authority.give("photos", "bob", Rights(admin=True))
    await world.authority.remove("photos", "bob", Rights(admin=True))
    world.server.accept("bob")
    assert await world.authority.get("photos", "bob") == Rights()


@pytest.mark.parametrize(
    ("method", "status", "error"),
    [
        ("POST", 400, InvalidParams),
        ("POST", 403, PermissionDenied),
        ("POST", 404, NotFound),
        ("POST", 409, None),
        ("POST", 422, TooLarge),
        ("POST", 500, Unavailable),
        ("POST", 401, Unauthenticated),
        ("DELETE", 204, None),
        ("DELETE", 404, None),
        ("DELETE", 403, PermissionDenied),
        ("DELETE", 500, Unavailable),
        ("DELETE", 401, Unauthenticated),
        ("GET", 403, PermissionDenied),
        ("GET", 404, Unavailable),
        ("GET", 500, Unavailable),
        ("GET", 302, Unavailable),
        ("GET", 401, Unauthenticated),
    ],
)
async def test_every_answer_about_members_means_something(
    world: World, method: str, status: int, error: type[ZstorError] | None, autojump_clock: trio.testing.MockClock
) -> None:
    await world.authority.create("photos")
    calls: dict[str, tuple[str, Callable[[], Awaitable[object]]]] = {
        "POST": (f"{ROOT}.photos.read/members", lambda: world.authority.give("photos", "bob", Rights(read=True))),
        "DELETE": (f"{ROOT}.photos.read/members/bob", lambda: world.authority.remove("photos", "bob", Rights(read=True))),
        "GET": (f"{ROOT}.photos.read/users", lambda: world.authority.get("photos", "bob")),
    }
    path, call = calls[method]
    world.server.answers[method, path] = [status] * 3
    if error is None:
        await call()
    else:
        with pytest.raises(error):
            await call()


async def test_an_invitation_is_not_sent_twice(world: World) -> None:
    """It is a mail to a person: where nobody knows whether it went out, the caller decides."""
    await world.authority.create("photos")
    world.server.answers["POST", f"{ROOT}.photos.read/members"] = [DROP_AFTER]
    with pytest.raises(Unavailable):
        await world.authority.give("photos", "bob", Rights(read=True))
    assert world.server.calls("POST", f"{ROOT}.photos.read/members") == 1


async def test_a_user_that_the_service_does_not_know_is_told(world: World) -> None:
    await world.authority.create("photos")
    with pytest.raises(NotFound, match="no user nobody"):
        await world.authority.give("photos", "nobody", Rights(read=True))


# --- Tokens ---


async def test_scopes_that_were_dropped_in_silence_are_a_refusal() -> None:
    async with opened("bob") as world:
        world.server.organizations.update({name: Organization(owners={"alice"}) for name in WHOLE})
        with pytest.raises(PermissionDenied, match="left out"):
            await world.authority.token("photos", ["read"], None, 300)
        world.server.organizations["acme.0stor.photos.read"].members.add("bob")
        token = await world.authority.token("photos", ["read"], "bob", 300)
        assert token.scopes == ("user:memberof:acme.0stor.photos.read",)
        with pytest.raises(PermissionDenied, match="left out"):
            await world.authority.token("photos", ["read", "write"], None, 300)


async def test_nobody_gets_a_token_of_somebody_else(world: World) -> None:
    await world.authority.create("photos")
    with pytest.raises(NotSupported):
        await world.authority.token("photos", ["read"], "bob", 300)


async def test_the_daemons_own_token_makes_the_organization_that_it_needs(world: World) -> None:
    token = await world.authority.token(STORE_NAMESPACE, ["admin"], None, 300)
    assert token.scopes == ("user:memberof:acme.0stor._store",)
    await world.authority.token(STORE_NAMESPACE, ["admin"], None, 300)
    assert await world.authority.namespaces() == []


@pytest.mark.parametrize("status", [400, 401, 403, 500])
async def test_a_token_that_is_not_signed_says_why(world: World, status: int, autojump_clock: trio.testing.MockClock) -> None:
    world.server.answers[LOGIN] = [status] * 3
    wanted = {400: Unauthenticated, 401: PermissionDenied, 403: PermissionDenied, 500: Unavailable}
    with pytest.raises(wanted[status]):
        await world.authority.token("photos", ["read"], None, 300)


@pytest.mark.parametrize("body", [b"", b"nonsense", b"a.b.c", b"x" * 5_000_000])
async def test_a_token_that_is_none_is_nonsense(world: World, body: bytes) -> None:
    world.server.answers[LOGIN] = [b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)]
    with pytest.raises(Unavailable, match="does not know"):
        await world.authority.token("photos", ["read"], None, 300)


async def test_what_the_service_cannot_do_is_said(world: World) -> None:
    for attempt in (
        world.authority.rotate(signs_in_seconds=1),
        world.authority.revoke(Revoked(user="bob")),
    ):
        with pytest.raises(NotSupported):
            await attempt


# --- Login ---


async def test_one_login_serves_until_30_seconds_before_it_ends(world: World) -> None:
    world.server.expires_in = 100
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(world.authority.namespaces)
    assert world.server.calls(*LOGIN) == 1
    world.clock.seconds += 69
    await world.authority.namespaces()
    assert world.server.calls(*LOGIN) == 1
    world.clock.seconds += 1
    await world.authority.namespaces()
    assert world.server.calls(*LOGIN) == 2


async def test_a_login_that_ended_early_is_renewed(world: World) -> None:
    await world.authority.namespaces()
    world.server.tokens.clear()
    await world.authority.create("photos")
    assert world.organizations() == WHOLE


@pytest.mark.parametrize("status", [400, 401])
async def test_a_wrong_key_is_refused(world: World, status: int) -> None:
    world.server.answers[LOGIN] = [status]
    with pytest.raises(Unauthenticated):
        await world.authority.namespaces()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"access_token": 5, "expires_in": 1}', b'{"access_token": "a", "expires_in": "1"}']
)
async def test_a_login_that_makes_no_sense_is_told(world: World, body: bytes) -> None:
    world.server.answers[LOGIN] = [b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)]
    with pytest.raises(Unavailable):
        await world.authority.namespaces()


@pytest.mark.parametrize("fault", [DROP, 500, 502])
async def test_it_is_tried_three_times_and_then_told(world: World, fault: str | int, autojump_clock: trio.testing.MockClock) -> None:
    world.server.answers[LOGIN] = [fault] * 2
    await world.authority.namespaces()
    world.server.answers["GET", f"{ROOT}/tree"] = [fault] * 3
    with pytest.raises(Unavailable):
        await world.authority.namespaces()


async def test_a_redirect_is_not_followed(world: World) -> None:
    """It would carry the secret to wherever it points."""
    world.server.answers[LOGIN] = [b"HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"]
    with pytest.raises(Unavailable):
        await world.authority.namespaces()


async def test_a_service_that_is_silent_is_given_up(world: World, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def silent(stream: trio.SocketStream) -> None:
            await trio.sleep_forever()

        nursery.start_soon(trio.serve_listeners, silent, listeners)
        world.authority._service._url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        with pytest.raises(Unavailable):
            await world.authority.namespaces()
        nursery.cancel_scope.cancel()


async def test_no_secret_is_logged_or_told(
    world: World, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    caplog.set_level(logging.DEBUG)
    await world.authority.create("photos")
    world.server.answers[LOGIN] = [DROP] * 3
    with pytest.raises(Unavailable) as caught:
        await world.authority.token("photos", ["read"], None, 300)
    assert caught.value.__cause__ is None
    told = f"{caught.value} {caught.value.hint} {caught.value.data} {caught.getrepr(chain=False, showlocals=False)}"
    assert "alice-secret" not in told + caplog.text


@pytest.mark.parametrize("where", [b"http://xn--a.b/", b"http://[::1", b"http://a:b/"])
async def test_a_redirect_is_not_looked_at(world: World, where: bytes) -> None:
    world.server.answers[LOGIN] = [b"HTTP/1.1 307 Moved\r\nlocation: " + where + b"\r\ncontent-length: 0\r\n\r\n"]
    with pytest.raises(Unavailable, match="failed with 307"):
        await world.authority.namespaces()


async def test_what_can_be_no_host_is_not_reached(world: World, autojump_clock: trio.testing.MockClock) -> None:
    world.authority._service._url = "https://a..b"
    with pytest.raises(Unavailable, match="cannot be reached"):
        await world.authority.namespaces()


async def test_two_who_create_the_same_at_once_leave_it_whole(world: World) -> None:
    async def create() -> None:
        try:
            await world.authority.create("photos")
        except AlreadyExists:
            return

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(create)
    assert world.organizations() == WHOLE


def login(token: str, *headers: tuple[str, str], pack: Callable[[bytes], bytes] = bytes) -> httpx.Response:
    body = json.dumps({"access_token": token, "expires_in": 300, "info": {"username": "alice"}})
    return httpx.Response(200, headers=headers, stream=httpx.ByteStream(pack(body.encode())))


@pytest.mark.parametrize(
    "answer",
    [
        lambda: login("gr\u00fcn"),
        lambda: login("a\r\nx: y"),
        lambda: login("token", ("content-encoding", "gzip"), pack=gzip.compress),
    ],
    ids=["a token beyond ASCII", "a token with a header behind it", "an encoding that was not asked for"],
)
async def test_what_a_service_should_not_say_is_nonsense(answer: Callable[[], httpx.Response]) -> None:
    service = Service(real_runtime(), httpx.MockTransport(lambda _: answer()), "https://service", Credentials("id", "secret"))
    with pytest.raises(Unavailable, match="something that its API does not know"):
        await service.call("GET", "/users")
