"""Shards on a shard server: the laws of all shards."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from tests.shards.conformance import ShardLaws
from tests.shards.ground import NAMESPACE, POLICY, STORE, entry, read_share, version, write_share
from tests.shards.http_ground import HttpGround
from tests.shardserver.server import LIMIT
from zstor_local.model.ids import ShardUid, ShareId
from zstor_local.network import open_network
from zstor_local.runtime import Network
from zstor_local.shards.base import Notices, ScannedEntry, ShardError, ShareMissing
from zstor_local.shards.http.ask import Ask, Deadlines, Reply
from zstor_local.shards.http.connections import CONNECTIONS, Connections
from zstor_local.shards.http.peer import Peer
from zstor_local.shards.http.server import Server
from zstor_local.shards.http.shard import HttpShard
from zstor_local.shards.http.wire import NEXT, Batch, digest, pack_batch
from zstor_local.system import real_runtime


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[HttpGround]:
    ground = HttpGround(tmp_path)
    yield ground
    ground.end()


class TestHttpShard(ShardLaws):
    pass


def test_what_was_sent_before_the_shard_was_lost_is_waited_for(ground: HttpGround) -> None:
    """A batch on its way may arrive: to call it untouched would leave records behind that nobody voids."""
    shard = ground.new()
    assert isinstance(shard, HttpShard)
    shard.append([entry(1, b"share", index=2)], 0)
    shard.start_flush()
    shard.failed(ShardError("failed", "another request met something"))
    shard.flush()
    assert [scanned.entry.envelope.sequence for scanned in shard.scan()] == [1]
    with pytest.raises(ShardError) as caught:
        shard.append([entry(2)], 0)
    assert caught.value.untouched


def test_what_was_not_sent_is_not_called_flushed(ground: HttpGround, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers lose a shard at any moment, also while it begins to flush."""
    shard = ground.new()
    assert isinstance(shard, HttpShard)
    look = shard._must_be_there

    def lost_after_the_look() -> None:
        look()
        shard.failed(ShardError("failed", "another request met something"))

    shard.append([entry(1, b"share", index=2)], 0)
    monkeypatch.setattr(shard, "_must_be_there", lost_after_the_look)
    shard.flush()
    assert [scanned.entry.envelope.sequence for scanned in shard.scan()] == [1]


@pytest.mark.parametrize("small", [True, False])
def test_a_share_is_not_said_to_lack_where_the_whole_shard_does(ground: HttpGround, *, small: bool) -> None:
    """As where the disk of a server that was started again is not mounted: its daemon has not noticed."""
    shard = ground.new()
    assert not shard.has(ShareId(version(1), 2), small=small)

    def lose() -> None:
        ground.server.volume.spaces.pop(ShardUid(bytes(STORE))).close()
        shutil.move(ground.root(), f"{ground.root()}.away")

    ground.server.do(lose)
    with pytest.raises(ShardError, match="not on this server"):
        shard.has(ShareId(version(1), 2), small=small)
    assert shard.check() == "missing"


@pytest.mark.parametrize("small", [True, False])
def test_a_share_that_the_servers_disk_cannot_read_is_missed_alone(ground: HttpGround, *, small: bool) -> None:
    """It is then made anew. The whole shard was taken for failed, each time that somebody asked for the share."""
    shard = ground.new()
    bad, good = (ShareId(version(number), 2) for number in (1, 2))
    shard.append([entry(number, b"share" * 2_000, index=2) for number in (1, 2)], 0)
    shard.flush()
    for share in (bad, good):
        write_share(shard, share, [b"share" * 2_000])
    shard = ground.reopen()
    path = ground.segment(1) if small else f"{ground.root()}/shares/{bad.version.hex()[:2]}/{bad.version.hex()}.2"
    ground.faults.ruin(path, 5_000)
    with pytest.raises(ShareMissing):
        read_share(shard, bad, small=small, length=10_000)
    assert shard.check() == "ok"
    assert read_share(shard, good, small=small, length=10_000) == b"share" * 2_000
    ground.faults.heal()  # as a new file is
    shard.append([entry(3, b"new", index=2)], 0)
    shard.flush()


def test_a_record_that_was_owed_tells_nothing_that_a_server_has_to_remember(ground: HttpGround) -> None:
    """It is older than what is committed by now: a server that was killed is not taken for one that lost something."""
    shard = ground.new()
    shard.append([entry(5, b"share", index=2)], 4)
    shard.flush()
    shard.append([entry(3)], 9)
    shard.flush()
    killed = ground.server.do(lambda: ground.server.volume.spaces.pop(ShardUid(bytes(STORE))))
    assert shard.capacity().total > 0
    assert shard.check() == "ok"
    killed.close()


def test_a_batch_is_packed_and_hashed_outside_the_event_loop(ground: HttpGround, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def noticing(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def done(given: object) -> object:
            threads.append(threading.current_thread())
            return work(given)

        return done

    shard = ground.new()
    for name, work in (("pack_batch", pack_batch), ("digest", digest)):
        monkeypatch.setattr(f"zstor_local.shards.http.outgoing.{name}", noticing(work))
    shard.append([entry(1, b"share", index=2)], 0)
    shard.flush()
    assert threads == [threading.current_thread()] * 2


def test_a_share_is_given_up_behind_what_was_sent_of_it(ground: HttpGround, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that comes to the server later would begin the share anew, and nobody would give that up."""
    shard = ground.new()
    assert isinstance(shard, HttpShard)
    events: list[str] = []

    class Sent:
        def wait(self, seconds: float | None = None) -> Reply:
            events.append("answered")
            return Reply(204, {}, b"")

        def cancel(self) -> None:
            events.append("cancelled")

    monkeypatch.setattr(shard.network, "start", lambda ask: Sent())
    monkeypatch.setattr(shard.network, "run", lambda ask: events.append("given up"))
    writer = shard.begin(ShareId(version(1), 0), NAMESPACE, POLICY)
    writer.write(0, [b"block"])
    writer.abort()
    assert events == ["answered", "answered", "given up"]


@pytest.mark.parametrize("following", [["0.1.9", "0.1.5", "0.1.9"], ["nowhere"], ["0.2.1", ""]])
def test_a_server_that_sends_its_log_in_circles_is_not_followed(ground: HttpGround, following: list[str]) -> None:
    shard = ground.new()
    assert isinstance(shard, HttpShard)
    page = pack_batch(Batch([ScannedEntry(entry(1), 0)]))
    answers = iter([*following, *following])
    shard._run = lambda work: Reply(200, {NEXT: next(answers)}, page)  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ShardError, match="in circles"):
        list(shard.scan())
    assert shard.check() == "failed"


def test_a_share_that_arrives_while_it_is_opened_is_read_from_its_server(ground: HttpGround) -> None:
    """Readers look for what is on its way in threads of their own."""

    class Arriving(dict[ShareId, bytes]):
        def __contains__(self, share: object) -> bool:
            found = super().__contains__(share)
            self.clear()
            return found

    shard = ground.new()
    assert isinstance(shard, HttpShard)
    shard.append([entry(1, b"share", index=2)], 0)
    shard.flush()
    shard._outgoing._fresh = Arriving({ShareId(version(1), 2): b"share"})
    reader = shard.open_share(ShareId(version(1), 2), small=True)
    assert bytes(reader.read(0, 100)) == b"share"
    reader.close()


def test_what_one_server_is_shown_is_of_no_use_at_another(ground: HttpGround, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, set[str]] = {}
    send = Connections.exchange

    async def overheard(self: Connections, ask: Ask, token: str) -> Reply:
        shown.setdefault(ask.path.split("?")[0].split("/")[2], set()).add(token)
        return await send(self, ask, token)

    monkeypatch.setattr(Connections, "exchange", overheard)
    shards = [ground.new(number) for number in range(2)]
    for shard in shards:
        shard.append([entry(1, b"share", index=2)], 0)
        shard.flush()
    one, other = (shard for shard in shards if isinstance(shard, HttpShard))
    transport = httpx.HTTPTransport(uds=ground.server.url.removeprefix("http+unix://"))
    with httpx.Client(base_url="http://shard", transport=transport, timeout=LIMIT) as client:
        for token in shown[one.space.rpartition("/")[2]]:
            headers = {"authorization": f"Bearer {token}", **other.fenced()}
            assert client.delete(other.space, headers=headers).status_code == 403
    assert other.has(ShareId(version(1), 2), small=True)


def told(ground: HttpGround, monkeypatch: pytest.MonkeyPatch, lie: Exception | Reply) -> HttpShard:
    """A shard whose server answers so from now on."""
    shard = ground.new()
    assert isinstance(shard, HttpShard)

    async def lying(self: Connections, ask: Ask, token: str) -> Reply:
        if isinstance(lie, Exception):
            raise lie
        return lie

    monkeypatch.setattr(Connections, "exchange", lying)
    return shard


def test_a_server_that_knows_no_trust_is_away(ground: HttpGround, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks for a share there, and whoever tells it something expects nothing but a shard's error."""
    shard = told(ground, monkeypatch, ShareMissing())
    with pytest.raises(ShardError):
        shard.tell(Notices(["a document"], 1, ()))
    assert shard.check() == "failed"


@pytest.mark.parametrize("shares", [{f"{version(1).hex()}.0": 1}, [f"{version(1).hex()}.0"], "abc", 5, None, [5], ["../x"], [[]]])
def test_a_server_that_lists_nonsense_is_away(ground: HttpGround, monkeypatch: pytest.MonkeyPatch, shares: object) -> None:
    shard = told(ground, monkeypatch, Reply(200, {}, json.dumps({"shares": shares}).encode()))
    with pytest.raises(ShardError):
        list(shard.held(small=True))


@pytest.mark.parametrize(
    "url",
    [
        *("http://[", "http://a b:1", "http://h:1\n", "http://h", "http://h:99999"),
        *("http://u:secret@h:1", "http://:secret@h:1", "http://h:1?secret"),
    ],
)
def test_what_is_no_url_of_a_server_is_told_so(ground: HttpGround, url: str) -> None:
    with pytest.raises(ShardError, match="that is no URL") as caught:
        ground.engine.identify(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 64, "xn--a.b", "256.1.1.1"])
def test_what_can_be_no_host_is_told_so(ground: HttpGround, host: str) -> None:
    with pytest.raises(ShardError, match="is no address of a server"):
        ground.engine.identify(f"http://{host}:1")


def answer(status: int, members: dict[str, str] | None = None) -> httpx.Response:
    body = b"" if members is None else json.dumps(members).encode()
    return httpx.Response(status, headers={"content-type": "application/json"}, stream=httpx.ByteStream(body))


class Script:
    """Answers of a server, one for each request."""

    def __init__(self, *answers: Exception | httpx.Response) -> None:
        self._answers = [*answers]
        self.asked: list[str] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url.path}")
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class MockTransport(httpx.MockTransport, httpx.AsyncHTTPTransport):
    """Answers of a function."""

    async def aclose(self) -> None:
        pass


class NoTokens:
    behind = False

    async def token(self, refused: int = 0) -> str | None:
        return None if refused > 1 else "new" if refused else "old"


def talking_to(answers: Callable[[httpx.Request], Coroutine[None, None, httpx.Response]], network: Network) -> Peer:
    server = Server("http://shard", network, real_runtime().randomness, Deadlines())
    server._connections._transport = MockTransport(answers)
    network.at_end(server._connections.close)
    return Peer(server, NoTokens())


async def asked(script: Script, ask: Ask) -> ShardError | Reply:
    async with open_network() as network:
        peer = talking_to(script, network)
        try:
            return await peer.ask(ask)
        except ShardError as error:
            return error


async def test_only_what_was_never_sent_is_untouched() -> None:
    refused, broke = httpx.ConnectError("refused"), httpx.ReadError("broke")
    for answers, untouched in (
        ((refused, refused), True),
        ((broke, refused), False),
        ((refused, broke), False),
        ((broke, broke), False),
    ):
        error = await asked(Script(*answers), Ask("POST", "/v1/log"))
        assert isinstance(error, ShardError)
        assert (error.state, error.untouched) == ("missing", untouched)


async def test_only_safe_requests_are_sent_twice() -> None:
    for safe, times in ((True, 2), (False, 1)):
        script = Script(httpx.ReadError("broke"), answer(204))
        await asked(script, Ask("POST", "/v1/x", safe=safe))
        assert len(script.asked) == times


async def test_who_waits_for_a_connection_does_not_wait_for_a_server_that_does_not_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Reads may have taken all of them: a commit that waits behind these is not to wait for its own deadline too."""

    async def server(request: httpx.Request) -> httpx.Response:
        return await trio.sleep_forever()

    untouched: list[bool] = []
    async with open_network() as network:
        peer = talking_to(server, network)

        async def asks() -> None:
            with pytest.raises(ShardError) as caught:
                await peer.ask(Ask("GET", "/v1/x"))
            untouched.append(caught.value.untouched)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(3 * CONNECTIONS):
                nursery.start_soon(asks)
        assert trio.current_time() - began < 15
    assert sorted(untouched) == [False] * CONNECTIONS + [True] * 2 * CONNECTIONS


async def test_a_refused_token_is_renewed_once() -> None:
    def no() -> httpx.Response:
        return answer(401, {"type": "unauthenticated", "message": "expired"})

    assert isinstance(await asked(Script(no(), answer(204)), Ask("PUT", "/v1/x")), Reply)
    error = await asked(Script(no(), no()), Ask("PUT", "/v1/x"))
    assert isinstance(error, ShardError)
    assert error.code == "unauthenticated"


def busy() -> httpx.Response:
    return answer(503, {"type": "busy", "message": "ask again"})


async def test_a_busy_server_is_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    """It has done nothing: that is no reason to take it for lost, nor to ask it for something twice at once."""
    script = Script(busy(), busy(), busy(), answer(201))
    assert isinstance(await asked(script, Ask("POST", "/v1/x", expect=(201,), safe=False)), Reply)
    assert len(script.asked) == 4


@pytest.mark.parametrize("durable", [True, False])
async def test_a_server_that_stays_busy_is_late_where_commits_wait_for_it(
    autojump_clock: trio.testing.MockClock, durable: bool
) -> None:
    times: list[float] = []

    async def server(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health":
            return answer(200)
        times.append(trio.current_time())
        return busy()

    async with open_network() as network:
        peer = talking_to(server, network)
        with pytest.raises(ShardError, match="ask again") as caught:
            await peer.ask(Ask("POST", "/v1/x", durable=durable))
        assert not caught.value.untouched
        assert 8 < times[-1] - times[0] <= 10
        assert len(times) < 30
        assert peer.broken == ("http://shard was busy for 10 seconds" if durable else None)


async def test_a_server_that_is_late_again_and_again_is_asked_less_and_less(autojump_clock: trio.testing.MockClock) -> None:
    """It answers probes, but its disk hangs: each time commits wait for it."""
    hangs = True

    async def server(request: httpx.Request) -> httpx.Response:
        if hangs and request.url.path != "/health":
            await trio.sleep_forever()
        return answer(200)

    async with open_network() as network:
        peer = talking_to(server, network)

        async def waited(seconds: float) -> float:
            """How long it is waited for, of so many seconds."""
            began, waited = trio.current_time(), 0.0
            while trio.current_time() < began + seconds:
                if peer.broken is not None:
                    await trio.sleep(1)
                    continue
                asked = trio.current_time()
                with suppress(ShardError):
                    await peer.ask(Ask("POST", "/v1/x", expect=(200,)))
                    await trio.sleep(1)
                waited += trio.current_time() - asked
            return waited

        assert await waited(3_600) < 150
        assert await waited(3_600) < 70
        hangs = False
        await waited(3_600)
        assert peer.broken is None
        hangs = True
        with pytest.raises(ShardError):
            await peer.ask(Ask("POST", "/v1/x"))
        await trio.sleep(2)
        assert peer.broken is None  # as if it were the first time


async def test_a_server_that_nobody_asks_for_is_probed_no_more(autojump_clock: trio.testing.MockClock) -> None:
    """A shard was to be added there, and its URL was wrong."""
    script = Script(*[httpx.ConnectError("refused") for _ in range(1_000)])
    async with open_network() as network:
        peer = talking_to(script, network)

        async def asks(seconds: float) -> int:
            """How often the server is asked in so many seconds."""
            before = len(script.asked)
            await trio.sleep(seconds)
            return len(script.asked) - before

        with pytest.raises(ShardError):
            await peer.ask(Ask("GET", "/v1/x"))
        for _ in range(100):  # as a shard's presence is looked at
            assert peer.broken is not None
            await trio.sleep(5)
        assert await asks(100) >= 3
        assert await asks(3_600) == 0
        with pytest.raises(ShardError, match="cannot be reached"):  # it is asked itself, and probed again
            await peer.ask(Ask("GET", "/v1/x"))
        assert await asks(60) > 5


async def test_what_is_long_may_take_longer(autojump_clock: trio.testing.MockClock) -> None:
    """A share of gigabytes is flushed at its end: a disk that writes 50 MB a second is slow, and well."""

    async def server(request: httpx.Request) -> httpx.Response:
        await trio.sleep(int(request.url.params["length"]) / 50_000_000 + 1)
        return answer(201)

    def finish(length: int) -> Ask:
        return Ask("POST", f"/v1/x?length={length}", expect=(201,), durable=True, settles=length, safe=False)

    async with open_network() as network:
        peer = talking_to(server, network)
        assert (await peer.ask(finish(2_500_000_000))).status == 201
        with pytest.raises(ShardError, match="within 10 seconds"):
            await peer.ask(replace(finish(2_500_000_000), settles=0))


def test_a_share_is_waited_for_as_long_as_it_is(ground: HttpGround, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer tells how long it is."""
    asked: list[Ask] = []
    send = Connections.exchange

    async def noted(self: Connections, ask: Ask, token: str) -> Reply:
        asked.append(ask)
        return await send(self, ask, token)

    monkeypatch.setattr(Connections, "exchange", noted)
    shard = ground.new()
    written = shard.begin(ShareId(version(1), 0), NAMESPACE, POLICY)
    written.write(0, [b"block" * 100_000])
    written.finish(b"index", 500_000, b"table")
    (finish,) = (ask for ask in asked if "length=" in ask.path)
    assert finish.path.endswith(f"length={finish.settles}")
    assert finish.settles > 500_000


async def test_a_servers_words_do_no_harm_where_they_are_shown() -> None:
    bad = answer(500, {"type": "failed", "message": "\x1b[31mred\x00" + "x" * 2_000})
    error = await asked(Script(bad), Ask("PUT", "/v1/x"))
    assert str(error).isprintable()
    assert len(str(error)) < 300
