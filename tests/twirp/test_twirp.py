"""The original wire: what the first clients send, byte for byte, and everything else that may come."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from tests.formats.vectors import VECTORS
from tests.store.home import Home
from zstor_local import limits
from zstor_local.content.cas import Cas
from zstor_local.content.contents import Content, content_id
from zstor_local.content.names import Names
from zstor_local.errors import Busy, Conflict, Internal, NoSpace, NotFound, Unreadable, ZstorError
from zstor_local.formats import cid as cids
from zstor_local.formats.protobuf import FIELDS_MAX
from zstor_local.rpc import http1
from zstor_local.store.faults import StoreFault
from zstor_local.store.sources import BytesSource
from zstor_local.system import RealFiles
from zstor_local.twirp import http, listening
from zstor_local.twirp.listening import serving
from zstor_local.twirp.refusals import STATUS, refusal_of
from zstor_local.twirp.services import routes

ADD, GET = "/twirp/vac.cas.CAS/Add", "/twirp/vac.cas.CAS/Get"
UPDATE, FETCH = "/twirp/vac.ns.NS/Update", "/twirp/vac.ns.NS/Fetch"
PROTOBUF, JSON = "application/protobuf", "application/json"


@dataclass
class Served:
    """A store whose content and names are served."""

    client: httpx.AsyncClient
    port: int
    cas: Cas
    names: Names

    async def post(self, path: str, body: bytes, kind: str = PROTOBUF, **headers: str) -> httpx.Response:
        return await self.client.post(path, content=body, headers={"content-type": kind, **headers})

    async def raw(self, data: bytes) -> bytes:
        """What comes back for these bytes until the server closes."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            answer = b""
            with suppress(trio.BrokenResourceError):  # a server that closes unread is met in many ways
                await stream.send_all(data)
                async for piece in stream:
                    answer += piece
            return answer


@asynccontextmanager
async def served(tmp_path: Path, place: str = "127.0.0.1:0") -> AsyncIterator[Served]:
    home = Home(tmp_path)
    async with home.open() as store:
        cas, names = Cas(store), Names(store.rows)
        async with serving(home.files, [place], routes(cas, names)) as (shown,):
            if shown.startswith("unix:"):
                transport, base, port = httpx.AsyncHTTPTransport(uds=shown.removeprefix("unix:")), "http://cas", 0
            else:
                transport, base, port = httpx.AsyncHTTPTransport(), f"http://{shown}", int(shown.rpartition(":")[2])
            async with httpx.AsyncClient(transport=transport, base_url=base, timeout=60) as client:
                yield Served(client, port, cas, names)


async def test_an_address_that_is_taken_is_named_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.RaisesGroup(StoreFault) as refused:
            async with serving(RealFiles(), [place], {}):
                pass
    assert str(refused.value.exceptions[0]) == f"Twirp cannot be served at {place}: Address already in use"


def vector(name: str) -> dict[str, Any]:
    return next(dict(each) for each in VECTORS if each["name"] == name)


def error(response: httpx.Response) -> tuple[int, str]:
    """The status and code of an error, which is JSON whatever was sent."""
    assert response.headers["content-type"] == JSON
    body = response.json()
    assert set(body) <= {"code", "msg", "meta"}
    assert STATUS[body["code"]] == response.status_code
    return response.status_code, body["code"]


async def test_one_round_of_alice_and_bob_byte_for_byte(tmp_path: Path) -> None:
    flow = vector("flow-alice-bob")
    async with served(tmp_path) as here:
        for path, request, answer in (
            (ADD, flow["cas_add_request_hex"], flow["cas_add_response_hex"]),
            (UPDATE, flow["ns_update_request_hex"], "0a026f6b"),
            (FETCH, flow["ns_fetch_request_hex"], flow["ns_fetch_response_hex"]),
            (GET, flow["cas_add_response_hex"], flow["cas_add_request_hex"]),  # Address in, Content out
        ):
            response = await here.post(path, bytes.fromhex(request))
            assert (response.status_code, response.headers["content-type"]) == (200, PROTOBUF)
            assert response.content.hex() == answer, path


async def test_the_request_of_the_first_client(tmp_path: Path) -> None:
    """Nim's client: `Connection: Keep-Alive`, lower-case headers, two requests on one connection."""
    async with served(tmp_path) as here:
        request = (
            f"POST {ADD} HTTP/1.1\r\nHost: localhost:8001\r\nConnection: Keep-Alive\r\ncontent-length: 5\r\n"
            "content-type: application/protobuf\r\n\r\n"
        ).encode()
        last = request.replace(b"Keep-Alive", b"close")
        answer = await here.raw(request + bytes.fromhex("0a03666f6f") + last + bytes.fromhex("0a03666f6f"))
        assert answer.count(b"HTTP/1.1 200") == 2
        assert answer.count(cids.raw(b"foo").binary) == 2
        update = bytes.fromhex("0a07666f6f2e636f6d120c666f6f206e7320656e747279")
        assert (await here.post(UPDATE, update)).content.hex() == "0a026f6b"
        assert here.names.fetch("foo.com").value == b"foo ns entry"


async def test_json_speaks_of_the_same(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        added = await here.post(ADD, b'{"data": "Zm9v", "of": "later times"}', "application/json; charset=utf-8")
        assert (added.status_code, added.headers["content-type"]) == (200, JSON)
        got = await here.post(GET, added.content, JSON)
        assert got.json() == {"data": "Zm9v"}
        assert (await here.post(UPDATE, b'{"name": "n", "content": null}', JSON)).json() == {"data": "b2s="}
        assert (await here.post(FETCH, b'{"name": "n"}', JSON)).json() == {}


async def test_ids_are_understood_in_three_forms(tmp_path: Path) -> None:
    cid = cids.raw(b"foo")
    async with served(tmp_path) as here:
        await here.post(ADD, bytes.fromhex("0a03666f6f"))
        for form in (cid.binary, cid.digest, str(cid).encode()):
            got = await here.post(GET, b"\x0a" + bytes([len(form)]) + form)
            assert got.content.hex() == "0a03666f6f"
        assert [pin.owner for pin in here.cas.contents.find(content_id(str(cid))).pins] == ["user"]


async def test_it_is_served_on_a_unix_socket_too(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    async with served(tmp_path, f"unix:{directory}/twirp.sock") as here:
        assert (await here.post(ADD, bytes.fromhex("0a03666f6f"))).status_code == 200
        assert oct((directory / "twirp.sock").stat().st_mode)[-3:] == "600"
    assert not (directory / "twirp.sock").exists()


async def test_answers_that_nobody_takes_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REPLY_BUDGET_BYTES", 1_500_000)
    value = os.urandom(1_000_000)  # more than the kernel keeps
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    place = f"{directory}/twirp.sock"
    held: list[int] = []
    read = Cas.read

    async def noted(cas: Cas, content: Content) -> bytes:
        held.append(content.size)
        return await read(cas, content)

    monkeypatch.setattr(Cas, "read", noted)
    async with served(tmp_path, f"unix:{place}") as here:
        cid = (await here.cas.upload(BytesSource(value))).id
        body = b"\x0a" + bytes([len(cid.binary)]) + cid.binary
        head = f"POST {GET} HTTP/1.1\r\nHost: h\r\nconnection: close\r\ncontent-type: {PROTOBUF}\r\ncontent-length: {len(body)}\r\n\r\n"
        async with AsyncExitStack() as opened:
            clients = [await opened.enter_async_context(await trio.open_unix_socket(place)) for _ in range(3)]
            await clients[0].send_all(head.encode() + body)
            assert await clients[0].receive_some(1)
            for client in clients[1:]:
                await client.send_all(head.encode() + body)
            await trio.testing.wait_all_tasks_blocked()
            assert held == [len(value)]
            await clients[1].aclose()  # while it waits for room
            for client in (clients[0], clients[2]):
                answer = bytearray()
                async for piece in client:
                    answer += piece
                assert answer.endswith(value)


async def test_errors_are_twirps(tmp_path: Path) -> None:
    unknown = b"\x0a\x24" + cids.raw(b"unknown").binary
    async with served(tmp_path) as here:
        assert error(await here.post(GET, unknown)) == (404, "not_found")
        assert error(await here.post(FETCH, b"\x0a\x01n")) == (404, "not_found")
        assert error(await here.post(FETCH, b"")) == (400, "invalid_argument")
        assert error(await here.post(GET, b"\x0a\x03\xff\xfe\xfd")) == (400, "invalid_argument")
        assert error(await here.post(GET, b"\x0a\x05hello")) == (400, "invalid_argument")
        assert error(await here.post(UPDATE, b"\x0a\x05log/a")) == (400, "invalid_argument")
        assert error(await here.post(ADD, b"\x0a\x09short")) == (400, "malformed")
        assert error(await here.post(FETCH, b"\x0a\x02\xff\xfe")) == (400, "malformed")
        assert error(await here.post(ADD, b"\x10\x01" * (FIELDS_MAX + 1))) == (400, "malformed")
        many = b'{"unknown": [' + b"[]," * limits.MESSAGE_VALUES + b'[]], "data": ""}'  # which take 25 times as much memory
        for body in (b"", b"{", b"[]", b'{"data": 5}', b'{"data": "%"}', b"\xff", b"[" * 100_000, many):
            assert error(await here.post(ADD, body, JSON)) == (400, "malformed")
        assert error(await here.post(ADD, b"", "text/plain")) == (404, "bad_route")
        assert error(await here.post("/twirp/vac.cas.CAS/Remove", b"")) == (404, "bad_route")
        missing = await here.client.get(ADD, headers={"content-type": PROTOBUF})
        assert error(missing) == (404, "bad_route")
        assert missing.json()["meta"] == {"twirp_invalid_route": f"GET {ADD}"}
        head = await here.client.head(ADD)
        assert (head.status_code, head.content) == (404, b"")
        assert (await here.post(ADD, bytes.fromhex("0a03666f6f"))).status_code == 200


async def test_web_pages_may_not_ask(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        assert error(await here.post(ADD, b"", origin="https://example.org")) == (403, "permission_denied")
        assert error(await here.post(ADD, b"", host="example.org:8001")) == (403, "permission_denied")
        assert (await here.post(ADD, b"", host="localhost")).status_code == 200


async def test_other_users_may_not_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(tmp_path) as here:
        mine = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
        assert await here.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        monkeypatch.undo()
        assert (await here.post(ADD, b"")).status_code == 200


async def test_one_that_is_gone_before_it_can_be_asked_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a scanner of ports: each left a traceback in the log."""
    async with served(tmp_path) as here:
        gone = socket.create_connection(("127.0.0.1", here.port))
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # to be reset as it is closed
        gone.close()
        assert (await here.post(ADD, b"")).status_code == 200
    assert [record for record in caplog.records if record.name == "zstor.twirp"] == []


async def test_nor_may_a_user_from_outside_our_user_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unmapped users all show as 65534, so that id proves nothing, not even to a daemon that has it."""
    nobody, real = 65534, listening._lines

    def lines(path: str) -> list[str]:
        return [" ".join([*fields[:7], str(nobody), *fields[8:]]) for fields in map(str.split, real(path))]

    async with served(tmp_path) as here:
        monkeypatch.setattr(os, "geteuid", lambda: nobody)
        monkeypatch.setattr(listening, "_lines", lines)
        assert await here.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",  # no Host
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * http1.HEADERS_BYTES,
    ],
)
async def test_what_is_not_http_is_refused(tmp_path: Path, data: bytes) -> None:
    async with served(tmp_path) as here:
        answer = await here.raw(data)
        assert answer.startswith(b"HTTP/1.1 4")
        assert b'"code":"malformed"' in answer
        assert (await here.post(ADD, b"")).status_code == 200


async def test_a_refusal_of_what_asks_for_a_head_alone_has_no_body(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        answer = await here.raw(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.endswith(b"\r\n\r\n")


async def test_a_blank_line_between_requests_is_read_over(tmp_path: Path) -> None:
    lines = [f"POST {ADD} HTTP/1.1", "Host: localhost", "content-type: application/protobuf", "content-length: 0"]
    first, last = ("\r\n".join([*lines, *more, "", ""]).encode() for more in ([], ["connection: close"]))
    async with served(tmp_path) as here:
        assert (await here.raw(first + b"\r\n" + last)).count(b"HTTP/1.1 200") == 2


async def test_a_body_that_is_too_long_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_BYTES", 100_000)
    async with served(tmp_path) as here:
        assert error(await here.post(ADD, bytes(100_001))) == (429, "resource_exhausted")
    monkeypatch.undo()
    monkeypatch.setattr(limits, "INLINE_VALUE_BYTES", 2)
    async with served(tmp_path) as here:
        assert error(await here.post(ADD, bytes.fromhex("0a03666f6f"))) == (429, "resource_exhausted")


async def test_a_body_may_be_waited_for(tmp_path: Path) -> None:
    """`Expect: 100-continue`, as curl sends for large bodies, and a body in chunks."""
    async with served(tmp_path) as here, await trio.open_tcp_stream("127.0.0.1", here.port) as stream:
        await stream.send_all(
            f"POST {ADD} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\ntransfer-encoding: chunked\r\n"
            "content-type: application/protobuf\r\n\r\n".encode()
        )
        assert (await stream.receive_some(1_000)).startswith(b"HTTP/1.1 100")
        await stream.send_all(b"5\r\n\x0a\x03foo\r\n0\r\n\r\n")
        assert (await stream.receive_some(1_000)).startswith(b"HTTP/1.1 200")


async def test_a_fault_of_ours_is_internal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(tmp_path) as here:
        monkeypatch.setattr(here.names, "fetch", lambda name: 1 / 0)
        response = await here.post(FETCH, b"\x0a\x01n")
        assert error(response) == (500, "internal")
        assert "division" not in response.text


@pytest.mark.parametrize(
    ("ours", "code"),
    [
        (NotFound("x"), "not_found"),
        (Conflict("x", current=1), "aborted"),
        (Busy("x", hint="wait"), "unavailable"),
        (NoSpace("x"), "resource_exhausted"),
        (Unreadable("x"), "data_loss"),
        (Internal("x"), "internal"),
    ],
)
def test_our_errors_have_a_code_there(ours: ZstorError, code: str) -> None:
    refusal = refusal_of(ours)
    assert refusal.code == code
    assert json.dumps(refusal.to_json())
    assert refusal.meta.get("hint") == ours.hint


def test_every_error_of_ours_has_a_code_there() -> None:
    def below(kind: type[ZstorError]) -> set[type[ZstorError]]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    ours = {kind for kind in below(ZstorError) if kind.__module__.startswith("zstor_local.")}  # and not those that tests define
    named = {kind.type for kind in ours if hasattr(kind, "type")}
    internal = {kind for kind in named if refusal_of_type(kind) == "internal"}
    assert internal <= {"internal", "key_missing", "io_error", "not_supported", "parse_error", "invalid_request", "method_not_found",
                        "bad_encoding", "incomplete", "not_empty"}  # fmt: skip


def refusal_of_type(name: str) -> str:
    class Some(ZstorError):
        code, type = 1, name

    return refusal_of(Some("x")).code
