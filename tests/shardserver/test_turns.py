"""What is taken away is not taken from under whoever reads it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.shardserver.inside import Inside
from tests.shardserver.server import LIMIT, NAMESPACE, SESSION, SPACE, STORE, Issuer, append, make_space, scanned, send, version
from zstor_local.model.ids import ShardUid, ShareId
from zstor_local.shards.http import wire
from zstor_local.shards.http.wire import Fence, pack_sequences, parse_batch, share_name
from zstor_local.shards.log import Log
from zstor_local.shardserver.rooms import Room, Rooms
from zstor_local.system import real_runtime

SMALL = f"/v1/{SPACE}/shares/{share_name(ShareId(version(1), 0))}?small=1"
A_MOMENT = 0.2  # in which what is not held up gets done; a machine that takes longer notices less


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[tuple[Inside, httpx.Client]]:
    issuer = Issuer()
    server = Inside(real_runtime(), tmp_path / "data", issuer)
    headers = {"authorization": f"Bearer {issuer.owner()}", "zstor-writer": f"1:1:{'5' * 32}"}
    transport = httpx.HTTPTransport(uds=server.url.removeprefix("http+unix://"))
    with httpx.Client(base_url="http://shard", transport=transport, headers=headers, timeout=LIMIT) as owner:
        make_space(owner)
        assert append(owner, 1, scanned(1, b"read to its end")).status_code == 204
        yield server, owner
    server.close()


def while_it_is_read(patch: pytest.MonkeyPatch, work: Callable[[], object]) -> threading.Thread:
    """Begin it when somebody has found a log and is about to read it."""
    thread = threading.Thread(target=work)
    find = Rooms.log

    def log(self: Rooms, room: Room) -> Log:
        found = find(self, room)
        if thread.ident is None:
            thread.start()
            thread.join(A_MOMENT)
        return found

    patch.setattr(Rooms, "log", log)
    return thread


def page(owner: httpx.Client) -> list[bytes]:
    return [each.entry.share for each in parse_batch(owner.get(f"/v1/{SPACE}/log").content).entries]


def test_a_namespace_is_retired_when_nobody_reads_it(inside: tuple[Inside, httpx.Client], monkeypatch: pytest.MonkeyPatch) -> None:
    server, owner = inside
    space = server.volume.spaces[ShardUid(bytes(STORE))]
    retiring = while_it_is_read(monkeypatch, lambda: space.retire(NAMESPACE))
    assert page(owner) == [b"read to its end"]
    retiring.join(LIMIT)
    gone = owner.get(SMALL)
    assert (gone.status_code, gone.json()["type"]) == (404, "not_found")
    assert append(owner, 2, scanned(2, b"begun anew")).status_code == 204


def test_a_space_is_removed_when_nobody_reads_it(inside: tuple[Inside, httpx.Client], monkeypatch: pytest.MonkeyPatch) -> None:
    server, owner = inside
    removing = while_it_is_read(monkeypatch, lambda: server.volume.remove(ShardUid(bytes(STORE))))
    assert page(owner) == [b"read to its end"]
    removing.join(LIMIT)
    gone = owner.get(SMALL)
    assert (gone.status_code, gone.json()["type"]) == (404, "no_space_here")
    make_space(owner)  # the same again
    assert owner.get(SMALL).json()["type"] == "not_found"


def test_an_older_daemon_names_nothing_once_a_later_one_has_taken_over(
    inside: tuple[Inside, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request was let in before."""
    server, owner = inside
    space = server.volume.spaces[ShardUid(bytes(STORE))]
    parse = wire.parse_sequences

    def slowly(data: bytes) -> Sequence[int]:
        space.raise_fence(Fence(2, 1, SESSION))
        return parse(data)

    monkeypatch.setattr(wire, "parse_sequences", slowly)
    answer = send(owner, "POST", f"/v1/{SPACE}/superseded?namespace={NAMESPACE.hex()}", pack_sequences([1]))
    assert (answer.status_code, answer.json()["type"]) == (409, "fenced")
    assert [room.superseded for room in space.rooms] == [frozenset()]
