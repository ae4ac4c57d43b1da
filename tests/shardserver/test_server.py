"""What a shard server does when it is asked, over real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from tests.shardserver.server import (
    LIMIT,
    MARKER,
    NAMESPACE,
    SESSION,
    SPACE,
    Issuer,
    Server,
    append,
    make_space,
    scanned,
    send,
    serving,
    share_file,
    upload,
    version,
)
from zstor_local.access.verify import TokenVerifier
from zstor_local.model.ids import NamespaceId, ShardUid, ShareId, StoreId
from zstor_local.shards.base import ScannedEntry
from zstor_local.shards.http.wire import (
    BATCH_ENTRIES_MAX,
    COUNT_MAX,
    PART_BYTES_MAX,
    SUPERSEDED_MAX,
    BadWire,
    Batch,
    pack_batch,
    pack_sequences,
    parse_batch,
)
from zstor_local.shardserver import serve
from zstor_local.shardserver.trusting import TrustKeeper
from zstor_local.system import real_runtime

OTHER = NamespaceId(b"another name 16b")
SHARE = ShareId(version(1), 2)


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def stranger() -> Issuer:
    """Another daemon's store, trusted too."""
    return Issuer(StoreId(b"another store16b"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer, stranger: Issuer) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("shard") / "data", issuer, stranger) as running:
        yield running


@pytest.fixture
def owner(server: Server, issuer: Issuer) -> Iterator[httpx.Client]:
    """The daemon of the store, its space new."""
    with server.client(issuer.owner()) as client:
        client.delete(f"/v1/{SPACE}")
        make_space(client)
        yield client


def kind(answer: httpx.Response) -> str:
    return str(answer.json()["type"])


# --- Who may ---


def test_health_is_told_to_everybody_and_nothing_else(server: Server) -> None:
    with server.client(None) as client:
        assert client.get("/health").json() == {"status": "ok"}
        for method, path in (("GET", "/metrics"), ("GET", f"/v1/{SPACE}"), ("PUT", f"/v1/{SPACE}"), ("GET", f"/v1/{SPACE}/log")):
            answer = client.request(method, path)
            assert (answer.status_code, kind(answer)) == (401, "unauthenticated")


def test_a_bad_token_is_refused_and_not_repeated(server: Server, issuer: Issuer) -> None:
    expired = issuer.token("photos", "read", seconds=-100)
    for token in ("nonsense", expired, Issuer().owner()):
        with server.client(token) as client:
            answer = client.get(f"/v1/{SPACE}")
            assert answer.status_code == 401
            assert token not in answer.text


REQUESTS = [
    ("GET", f"/v1/{SPACE}", None),
    ("DELETE", f"/v1/{SPACE}", None),
    ("POST", f"/v1/{SPACE}/writer", None),
    ("GET", f"/v1/{SPACE}/unsettled", None),
    ("POST", f"/v1/{SPACE}/superseded?namespace={NAMESPACE.hex()}", None),
    ("PUT", f"/v1/{SPACE}/letters", None),
    ("GET", f"/v1/{SPACE}/shares", None),
    ("PUT", f"/v1/{SPACE}/namespaces/{NAMESPACE.hex()}", None),
    ("DELETE", f"/v1/{SPACE}/namespaces/{NAMESPACE.hex()}", None),
    ("GET", f"/v1/{SPACE}/log?namespace={NAMESPACE.hex()}", "read"),
    ("GET", f"/v1/{SPACE}/shares/{version(9).hex()}.0?namespace={NAMESPACE.hex()}", "read"),
    ("PUT", f"/v1/{SPACE}/uploads/{version(9).hex()}.0?namespace={NAMESPACE.hex()}&offset=0", "write"),
    ("POST", f"/v1/{SPACE}/uploads/{version(9).hex()}.0?namespace={NAMESPACE.hex()}&length=0", "write"),
    ("DELETE", f"/v1/{SPACE}/uploads/{version(9).hex()}.0?namespace={NAMESPACE.hex()}", "write"),
    ("POST", f"/v1/{SPACE}/free?namespace={NAMESPACE.hex()}", "delete"),
]


@pytest.mark.parametrize(("method", "path", "permission"), REQUESTS)
def test_each_request_needs_its_permission(
    owner: httpx.Client, server: Server, issuer: Issuer, stranger: Issuer, method: str, path: str, permission: str | None
) -> None:
    name(owner, NAMESPACE, "photos")
    for right in ("read", "write", "delete", "admin"):
        with server.client(issuer.token("photos", right)) as guest:
            answer = send(guest, method, path)
            allowed = permission is not None and right in (permission, "admin")
            assert (answer.status_code == 403) is not allowed, (right, answer.text)
    for token in (issuer.token("mail", "admin"), stranger.token("photos", "admin"), stranger.owner()):
        with server.client(token) as guest:
            assert send(guest, method, path).status_code == 403


@pytest.mark.parametrize("shard", [None, ShardUid(b"another of these")])
def test_the_owner_can_do_nothing_with_what_another_shard_was_shown(
    owner: httpx.Client, server: Server, issuer: Issuer, shard: ShardUid | None
) -> None:
    """A server that plays the owner at others would be able to empty the whole store."""
    assert append(owner, 1, scanned(1, b"small")).status_code == 204
    with server.client(issuer.owner(shard)) as other:
        for method, path, _ in REQUESTS:
            if (method, path) != ("GET", f"/v1/{SPACE}"):  # who lies where has to be found out first
                assert send(other, method, path).status_code == 403, (method, path)
        assert append(other, 2, freed=[ShareId(version(1), 0)]).status_code == 403
        assert other.get(f"/v1/{SPACE}").json()["marker"] == MARKER.hex()
        assert send(other, "PUT", f"/v1/{'f' * 32}", MARKER).status_code == 403
    assert owner.get(f"/v1/{SPACE}/shares?small=1").json() == {"shares": [f"{version(1).hex()}.0"]}


def name(owner: httpx.Client, namespace: NamespaceId, text: str, **more: object) -> None:
    body = json.dumps({"namespace": text, **more}).encode()
    assert send(owner, "PUT", f"/v1/{SPACE}/namespaces/{namespace.hex()}", body).status_code == 204


def test_a_guest_reads_its_namespace_and_no_other(owner: httpx.Client, server: Server, issuer: Issuer) -> None:
    name(owner, NAMESPACE, "photos")
    name(owner, OTHER, "mail")
    assert append(owner, 1, scanned(1, b"ours"), scanned(2, b"theirs", namespace=OTHER)).status_code == 204
    assert upload(owner, ShareId(version(3), 0), b"blocks" * 100).status_code == 201
    assert upload(owner, ShareId(version(4), 0), b"blocks" * 100, namespace=OTHER).status_code == 201
    with server.client(issuer.token("photos", "read")) as guest:
        page = guest.get(f"/v1/{SPACE}/log?namespace={NAMESPACE.hex()}")
        assert [each.entry.share for each in parse_batch(page.content).entries] == [b"ours"]
        own = f"namespace={NAMESPACE.hex()}"
        assert guest.get(f"/v1/{SPACE}/shares/{version(1).hex()}.0?small=1&{own}").content == b"ours"
        assert guest.get(f"/v1/{SPACE}/shares/{version(2).hex()}.0?small=1&{own}").status_code == 404
        assert guest.get(f"/v1/{SPACE}/shares/{version(3).hex()}.0?{own}").status_code == 200
        assert guest.get(f"/v1/{SPACE}/shares/{version(4).hex()}.0?{own}").status_code == 404
        for path in (f"log?namespace={OTHER.hex()}", "log", f"shares/{version(1).hex()}.0?small=1"):
            assert guest.get(f"/v1/{SPACE}/{path}").status_code == 403
        assert append(guest, 2, scanned(5)).status_code == 403


def test_stores_do_not_see_each_other(owner: httpx.Client, server: Server, stranger: Issuer) -> None:
    assert append(owner, 1, scanned(1, b"ours")).status_code == 204
    with server.client(stranger.owner()) as other:
        assert send(other, "PUT", f"/v1/{SPACE}", MARKER).status_code == 409
        assert other.get(f"/v1/{SPACE}").status_code == 403
        assert other.get(f"/v1/{SPACE}/log").status_code == 403


# --- Logs ---


def test_what_was_appended_is_scanned_in_pages(owner: httpx.Client) -> None:
    entries = [scanned(number, b"x" * 1_000, committed=number - 1) for number in range(1, 21)]
    assert append(owner, 1, *entries[:10]).status_code == 204
    assert append(owner, 2, *entries[10:]).status_code == 204
    found: list[ScannedEntry] = []
    after = "0.0.0"
    while True:
        page = owner.get(f"/v1/{SPACE}/log?after={after}&limit=4000")
        batch = parse_batch(page.content)
        if not batch.entries:
            break
        assert len(batch.entries) <= 4
        found += batch.entries
        after = page.headers["zstor-next"]
    assert found == entries


def test_a_batch_that_is_sent_again_is_not_appended_twice(owner: httpx.Client) -> None:
    for _ in range(2):
        assert append(owner, 1, scanned(1)).status_code == 204
    assert len(parse_batch(owner.get(f"/v1/{SPACE}/log").content).entries) == 1


def test_a_reader_waits_for_what_comes(owner: httpx.Client, server: Server, issuer: Issuer) -> None:
    import threading

    name(owner, NAMESPACE, "photos")
    answers: list[httpx.Response] = []
    with server.client(issuer.token("photos", "read")) as guest:
        waiting = threading.Thread(target=lambda: answers.append(guest.get(f"/v1/{SPACE}/log?namespace={NAMESPACE.hex()}&wait=50")))
        waiting.start()
        assert append(owner, 1, scanned(1, b"news")).status_code == 204
        waiting.join(LIMIT)
    assert [each.entry.share for each in parse_batch(answers[0].content).entries] == [b"news"]


def test_a_freed_small_share_is_gone(owner: httpx.Client) -> None:
    append(owner, 1, scanned(1, b"one"), scanned(2, b"two"))
    assert append(owner, 2, freed=[ShareId(version(1), 0)]).status_code == 204
    assert owner.get(f"/v1/{SPACE}/shares/{version(1).hex()}.0?small=1").status_code == 404
    assert owner.get(f"/v1/{SPACE}/shares/{version(2).hex()}.0?small=1").content == b"two"


def test_what_no_entry_says_was_committed_is_told(owner: httpx.Client) -> None:
    append(owner, 1, scanned(1), scanned(2))
    append(owner, 2, scanned(3, committed=2))
    unsettled = parse_batch(owner.get(f"/v1/{SPACE}/unsettled").content)
    assert [each.entry.envelope.sequence for each in unsettled.entries] == [3]


def test_superseded_records_are_named_by_the_writer_alone_in_whole_numbers(owner: httpx.Client, server: Server, issuer: Issuer) -> None:
    path = f"/v1/{SPACE}/superseded?namespace={NAMESPACE.hex()}"
    append(owner, 1, scanned(1))
    assert send(owner, "POST", path, pack_sequences([1, COUNT_MAX])).status_code == 204
    assert kind(send(owner, "POST", path, b"seven b")) == "bad_request"
    assert kind(send(owner, "POST", path, bytes(8 * SUPERSEDED_MAX + 8))) == "too_large"
    with server.client(issuer.owner(), writer=2) as other:
        assert kind(send(other, "POST", path, pack_sequences([1]))) == "fenced"


# --- Large shares ---


def test_a_large_share_is_read_by_ranges(owner: httpx.Client) -> None:
    data = share_file(SHARE, bytes(range(256)) * 10)
    assert upload(owner, SHARE, bytes(range(256)) * 10).status_code == 201
    path = f"/v1/{SPACE}/shares/{SHARE.version.hex()}.{SHARE.index}"
    assert owner.get(path).content == data
    part = owner.get(path, headers={"range": "bytes=64-73"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, data[64:74], f"bytes 64-73/{len(data)}")
    assert owner.get(path, headers={"range": "bytes=-5"}).content == data[-5:]
    assert owner.get(path, headers={"range": f"bytes={len(data) - 3}-{len(data) + 9}"}).content == data[-3:]
    assert owner.get(path, headers={"range": f"bytes={len(data)}-"}).status_code == 416
    for bad in ("bytes=a-b", "lines=1-2", "bytes=5", "bytes=-"):
        assert owner.get(path, headers={"range": bad}).status_code == 400
    assert owner.get(f"/v1/{SPACE}/shares").json() == {"shares": [f"{SHARE.version.hex()}.2"]}


def test_a_long_share_is_read_whole_and_told_without_reading(owner: httpx.Client) -> None:
    blocks = bytes(range(256)) * 40_000  # longer than any part
    assert len(blocks) > PART_BYTES_MAX
    data = share_file(SHARE, blocks)
    at = f"/v1/{SPACE}/uploads/{SHARE.version.hex()}.{SHARE.index}?namespace={NAMESPACE.hex()}"
    for offset in range(0, len(data), PART_BYTES_MAX):
        assert send(owner, "PUT", f"{at}&offset={offset}", data[offset : offset + PART_BYTES_MAX]).status_code == 204
    assert owner.post(f"{at}&length={len(data)}").status_code == 201
    path = f"/v1/{SPACE}/shares/{SHARE.version.hex()}.{SHARE.index}"
    assert owner.get(path).content == data
    head = owner.head(path)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(data)), b"")
    assert owner.head(f"{path}1").status_code == 404


def test_a_large_share_is_not_visible_before_all_of_it_came(owner: httpx.Client) -> None:
    data = share_file(SHARE, b"blocks" * 100)
    at = f"/v1/{SPACE}/uploads/{SHARE.version.hex()}.{SHARE.index}?namespace={NAMESPACE.hex()}"
    read = f"/v1/{SPACE}/shares/{SHARE.version.hex()}.{SHARE.index}"
    assert send(owner, "PUT", f"{at}&offset=100", data[100:]).status_code == 204
    assert kind(owner.post(f"{at}&length={len(data)}")) == "unfinished"
    assert owner.get(read).status_code == 404
    assert send(owner, "PUT", f"{at}&offset=0", data[:100]).status_code == 204
    assert kind(owner.post(f"{at}&length={len(data) + 1}")) == "unfinished"
    assert owner.post(f"{at}&length={len(data)}").status_code == 201
    assert owner.get(read).content == data


def test_a_share_that_says_it_is_another_is_refused(owner: httpx.Client) -> None:
    at = f"/v1/{SPACE}/uploads/{SHARE.version.hex()}.{SHARE.index}?namespace={NAMESPACE.hex()}"
    for data in (share_file(SHARE, b"x" * 100, OTHER), share_file(ShareId(version(2), 2), b"x" * 100), b"x" * 200):
        assert send(owner, "PUT", f"{at}&offset=0", data).status_code == 204
        assert owner.post(f"{at}&length={len(data)}").status_code == 400
    assert owner.get(f"/v1/{SPACE}/shares/{SHARE.version.hex()}.{SHARE.index}").status_code == 404


def test_an_abort_leaves_what_was_there(owner: httpx.Client) -> None:
    upload(owner, SHARE, b"good" * 100)
    at = f"/v1/{SPACE}/uploads/{SHARE.version.hex()}.{SHARE.index}?namespace={NAMESPACE.hex()}"
    assert send(owner, "PUT", f"{at}&offset=0", b"anew").status_code == 204
    assert owner.delete(at).status_code == 204
    assert kind(owner.post(f"{at}&length=4")) == "unfinished"
    assert owner.get(f"/v1/{SPACE}/shares/{SHARE.version.hex()}.2").content == share_file(SHARE, b"good" * 100)


def test_a_freed_large_share_is_gone(owner: httpx.Client) -> None:
    upload(owner, SHARE, b"good" * 100)
    for _ in range(2):
        assert send(owner, "POST", f"/v1/{SPACE}/free", pack_batch(Batch([], [SHARE]))).status_code == 204
    assert owner.get(f"/v1/{SPACE}/shares/{SHARE.version.hex()}.2").status_code == 404


# --- Bodies ---


@pytest.mark.parametrize(
    "body", [b"", b"photos", b"[]", b"{}", b'{"namespace": 1}', b'{"namespace": "a", "quota_bytes": -1}', b"[" * 2_000]
)
def test_a_namespace_is_named_by_an_object_that_says_how(owner: httpx.Client, body: bytes) -> None:
    assert kind(send(owner, "PUT", f"/v1/{SPACE}/namespaces/{NAMESPACE.hex()}", body)) == "bad_request"


def test_a_body_must_be_what_its_digest_names(owner: httpx.Client) -> None:
    body = b"not what was meant"
    path = f"/v1/{SPACE}/uploads/{SHARE.version.hex()}.2?namespace={NAMESPACE.hex()}&offset=0"
    assert kind(owner.put(path, content=body)) == "bad_digest"
    assert kind(send(owner, "PUT", path, body, content_digest="sha-256=:AAAA:")) == "bad_digest"
    assert kind(send(owner, "PUT", path, body, content_encoding="gzip")) == "bad_request"
    assert owner.put(path, content=iter([body])).status_code == 400  # without a length
    assert kind(send(owner, "PUT", path, b"x" * (9 * 1024 * 1024))) == "too_large"


@pytest.mark.parametrize("body", [b"", b"ZSTBATCH", b"x" * 24, b"ZSTBATCH\1\0\0\0\xff\xff\xff\xff" + bytes(8)])
def test_a_batch_that_is_none_is_refused(owner: httpx.Client, body: bytes) -> None:
    assert kind(send(owner, "POST", f"/v1/{SPACE}/log?batch=1", body)) == "bad_request"


def test_a_batch_of_more_entries_than_fit_into_memory_is_refused() -> None:
    for most, fits in ((BATCH_ENTRIES_MAX, True), (BATCH_ENTRIES_MAX + 1, False)):
        data = pack_batch(Batch([], [SHARE] * most))
        if fits:
            assert len(parse_batch(data).freed) == most
        else:
            with pytest.raises(BadWire):
                parse_batch(data)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2",
        "/v1/../../etc/passwd",
        f"/v1/{SPACE}/shares/..%2f..%2fmarker",
        f"/v1/{SPACE}/shares/{version(1).hex()}.300",
        f"/v1/{SPACE}/shares/{version(1).hex().upper()}x.1",
        "/v1/nothing",
        f"/v1/{SPACE}/log?after=x",
        f"/v1/{SPACE}/log?namespace=x",
    ],
)
def test_names_that_are_none_are_refused(owner: httpx.Client, path: str) -> None:
    assert owner.get(path).status_code in (400, 404, 405)


# --- Fencing ---


def test_an_older_daemon_is_fenced_off(owner: httpx.Client, server: Server, issuer: Issuer) -> None:
    with server.client(issuer.owner(), writer=2) as later:
        assert later.post(f"/v1/{SPACE}/writer").json()["writer"] == 2
        assert append(later, 1, scanned(1)).status_code == 204
    assert kind(owner.post(f"/v1/{SPACE}/writer")) == "fenced"
    assert kind(append(owner, 2, scanned(2))) == "fenced"
    assert kind(upload(owner, SHARE, b"late")) == "fenced"
    assert kind(owner.delete(f"/v1/{SPACE}")) == "fenced"
    with server.client(issuer.owner(), writer=2, opening=2) as again:
        assert again.post(f"/v1/{SPACE}/writer").status_code == 200
        again.headers["zstor-writer"] = f"2:1:{SESSION}"
        assert kind(append(again, 3, scanned(3))) == "fenced"
        again.headers["zstor-writer"] = f"2:9:{'6' * 32}"
        assert kind(again.post(f"/v1/{SPACE}/writer")) == "fenced"
        again.headers["zstor-writer"] = f"2:2:{SESSION}"
        assert again.delete(f"/v1/{SPACE}").status_code == 204


# --- Namespaces ---


def test_a_quota_is_kept_and_records_alone_go_on(owner: httpx.Client) -> None:
    name(owner, NAMESPACE, "photos", quota_bytes=10_000)
    assert upload(owner, SHARE, b"x" * 5_000).status_code == 201
    over = upload(owner, ShareId(version(2), 0), b"x" * 6_000)
    assert (over.status_code, kind(over)) == (507, "quota")
    assert append(owner, 1, scanned(3, b"x" * 6_000)).status_code == 507
    assert append(owner, 1, scanned(3)).status_code == 204
    assert append(owner, 2, scanned(4, b"x" * 6_000, namespace=OTHER)).status_code == 204


def test_a_retired_namespace_is_removed(owner: httpx.Client, server: Server) -> None:
    append(owner, 1, scanned(1, b"ours"), scanned(2, b"kept", namespace=OTHER))
    upload(owner, SHARE, b"x" * 5_000)
    upload(owner, ShareId(version(9), 0), b"y" * 5_000, namespace=OTHER)
    assert owner.delete(f"/v1/{SPACE}/namespaces/{NAMESPACE.hex()}").status_code == 204
    assert owner.get(f"/v1/{SPACE}/shares/{SHARE.version.hex()}.2").status_code == 404
    assert owner.get(f"/v1/{SPACE}/shares/{version(1).hex()}.0?small=1").status_code == 404
    assert owner.get(f"/v1/{SPACE}/shares/{version(2).hex()}.0?small=1").content == b"kept"
    assert [each.entry.share for each in parse_batch(owner.get(f"/v1/{SPACE}/log").content).entries] == [b"kept"]
    used = {each["id"]: each["used_bytes"] for each in owner.get(f"/v1/{SPACE}").json()["namespaces"]}
    assert used[NAMESPACE.hex()] == 0
    assert append(owner, 2, scanned(5, b"anew")).status_code == 204
    assert owner.get(f"/v1/{SPACE}/shares/{version(5).hex()}.0?small=1").content == b"anew"


# --- Trust ---


def test_a_revoked_token_is_refused_at_once_and_after_a_restart(tmp_path: Path) -> None:
    issuer = Issuer()
    token = issuer.token("photos", "read")
    with serving(tmp_path / "data", issuer) as server, server.client(token) as guest, server.client(issuer.owner()) as owner:
        make_space(owner)
        assert guest.get(f"/v1/{SPACE}").status_code == 403
        revoked = [{"until": 4_000_000_000, "issued_until": 4_000_000_000, "sub": "alice"}]
        document = issuer.signed_document(updated=1, revoked=revoked).encode()
        assert send(owner, "PUT", "/v1/trust", issuer.signed_document(updated=0).encode()).status_code == 400
        assert send(owner, "PUT", "/v1/trust", document[:-8] + b"AAAAAAAA").status_code == 400
        assert send(owner, "PUT", "/v1/trust", document).status_code == 204
        name(owner, NAMESPACE, "photos")
        assert guest.get(f"/v1/{SPACE}/log?namespace={NAMESPACE.hex()}").status_code == 401
    with serving(tmp_path / "data", issuer) as server, server.client(token) as guest:
        assert guest.get(f"/v1/{SPACE}/log?namespace={NAMESPACE.hex()}").status_code == 401


def test_a_shard_tells_of_itself_without_its_namespaces(owner: httpx.Client) -> None:
    """There may be thousands, and whoever opens the shard needs none."""
    name(owner, NAMESPACE, "photos")
    about = owner.get(f"/v1/{SPACE}").json()
    assert [each["name"] for each in about["namespaces"]] == ["photos"]
    assert owner.get(f"/v1/{SPACE}?namespaces=0").json() | {"free_bytes": 0} == {**about, "namespaces": [], "free_bytes": 0}


# --- The process ---


def test_everything_is_there_after_a_kill(tmp_path: Path) -> None:
    issuer = Issuer()
    with serving(tmp_path / "data", issuer) as server, server.client(issuer.owner()) as owner:
        make_space(owner)
        name(owner, NAMESPACE, "photos", quota_bytes=100_000)
        append(owner, 1, scanned(1, b"small"))
        upload(owner, SHARE, b"large" * 1_000)
        at = f"/v1/{SPACE}/uploads/{version(7).hex()}.0?namespace={NAMESPACE.hex()}&offset=0"
        assert send(owner, "PUT", at, b"on its way").status_code == 204
        before = owner.get(f"/v1/{SPACE}").json()
        server.kill()
    with serving(tmp_path / "data", issuer) as server, server.client(issuer.owner(), writer=2) as owner:
        assert owner.get(f"/v1/{SPACE}/shares/{version(1).hex()}.0?small=1").content == b"small"
        assert owner.get(f"/v1/{SPACE}/shares/{SHARE.version.hex()}.2").content == share_file(SHARE, b"large" * 1_000)
        after = owner.get(f"/v1/{SPACE}").json()
        assert after["namespaces"][0]["name"] == "photos"
        assert after["namespaces"][0]["large_shares"] == 1
        assert (after["writer"], before["writer"]) == (1, 1)
        assert owner.post(f"/v1/{SPACE}/writer").status_code == 200
        assert not list((tmp_path / "data" / "spaces" / SPACE / "tmp").iterdir())


def test_sigterm_ends_it_gently(tmp_path: Path) -> None:
    with serving(tmp_path / "data", Issuer()) as server:
        assert server.stop() == 0
        assert not (tmp_path / "data.sock").exists()


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zstor_local", "shard", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)


def test_it_does_not_listen_beyond_this_machine_in_the_clear(tmp_path: Path) -> None:
    trust = tmp_path / "trust.json"
    trust.write_text(json.dumps(Issuer().document()))
    ended = refused("--listen", "0.0.0.0:0", "--data", str(tmp_path / "data"), "--trust", str(trust))
    assert ended.returncode == 78
    assert "--tls-cert" in ended.stderr


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("unix:{here}/gone/s", "{listen}: No such file or directory"),
        ("unix:{here}/file", "{here}/file is there already, and no socket"),
        ("127.0.0.1:{taken}", "{listen}: Address already in use"),
        ("localhost:x", "{listen} is no place to listen on"),
        ("localhost:{long}", "{listen} is no place to listen on"),
        ("unix:", "{listen} is no place to listen on"),
        ("no..host:0", "{listen}: no host can have such a name"),
    ],
)
def test_where_it_cannot_listen_it_says_why(tmp_path: Path, listen: str, said: str) -> None:
    trust = tmp_path / "trust.json"
    trust.write_text(json.dumps(Issuer().document()))
    (tmp_path / "file").write_text("a user's")
    with socket.create_server(("127.0.0.1", 0)) as other:
        words = {"here": tmp_path, "taken": other.getsockname()[1], "long": "1" * 5_000}
        listen = listen.format_map(words)
        ended = refused("--listen", listen, "--plaintext", "--data", str(tmp_path / "data"), "--trust", str(trust))
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (78, "zstor: error: " + said.format_map({**words, "listen": listen}))
    assert (tmp_path / "file").read_text() == "a user's"


def test_what_is_no_certificate_and_no_trust_document_is_told_before_it_listens(tmp_path: Path) -> None:
    trust = tmp_path / "trust.json"
    trust.write_text(json.dumps(Issuer().document()))
    arguments = ["--listen", "127.0.0.1:0", "--data", str(tmp_path / "data"), "--trust"]
    ended = refused(*arguments, str(trust), "--tls-cert", str(trust), "--tls-key", str(trust))
    assert (ended.returncode, ended.stdout) == (78, "")
    assert "are no certificate and its key" in ended.stderr
    assert "Traceback" not in ended.stderr
    ended = refused(*arguments, "/gone")
    assert ended.stderr.splitlines()[0] == "zstor: error: /gone: No such file or directory"


def test_a_newer_trust_document_that_is_damaged_is_no_silent_return_to_the_one_given(tmp_path: Path) -> None:
    """What it revokes would count again."""
    trust, kept, issuer = tmp_path / "trust.json", tmp_path / "data" / "trust", Issuer()
    trust.write_text(json.dumps(issuer.document()))
    kept.mkdir(parents=True)
    TrustKeeper(real_runtime(), str(kept)).keep(str(issuer.document()["issuer"]), b"\0" * 500)
    ended = refused("--listen", "127.0.0.1:0", "--data", str(tmp_path / "data"), "--trust", str(trust))
    assert ended.returncode == 78
    assert "trust.json: the newer one that is kept in" in ended.stderr
    assert "hint: bring that file back, or delete it" in ended.stderr


async def test_a_trust_url_that_never_ends_stops_no_server_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def too_slow(url: str) -> bytes:
        raise trio.TooSlowError

    monkeypatch.setattr(serve, "_fetch", too_slow)
    keeper, verifier = TrustKeeper(real_runtime(), str(tmp_path)), TokenVerifier([])
    with pytest.raises(serve.ServerFault, match="took longer than 10 s"):
        await serve._load_trust(["http://slow/"], keeper, verifier, must=True)
    await serve._load_trust(["http://slow/"], keeper, verifier, must=False)
    assert not verifier.trusts


@pytest.mark.parametrize("where", [b"http://xn--a.b/", b"http://[::1", b"http://127.0.0.1/"])
async def test_a_trust_url_that_leads_elsewhere_stops_no_server_that_runs(tmp_path: Path, where: bytes) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 302 Found\r\nlocation: " + where + b"\r\ncontent-length: 0\r\n\r\n")

    keeper, verifier = TrustKeeper(real_runtime(), str(tmp_path)), TokenVerifier([])
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/trust"
        with pytest.raises(serve.ServerFault, match="302"):
            await serve._load_trust([url], keeper, verifier, must=True)
        await serve._load_trust([url], keeper, verifier, must=False)
        nursery.cancel_scope.cancel()
    assert not verifier.trusts


@pytest.mark.parametrize("url", ["http://a..b/", "http://127.0.0.1:x/", "https://127.0.0.1/\x7f"])
async def test_a_trust_url_that_is_none_is_told_so(tmp_path: Path, url: str) -> None:
    keeper, verifier = TrustKeeper(real_runtime(), str(tmp_path)), TokenVerifier([])
    with pytest.raises(serve.ServerFault):
        await serve._load_trust([url], keeper, verifier, must=True)


def test_a_directory_with_something_else_in_it_is_no_place_for_shares(tmp_path: Path) -> None:
    trust = tmp_path / "trust.json"
    trust.write_text(json.dumps(Issuer().document()))
    mine = tmp_path / "home" / "spaces" / "v1.0" / "letter"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (tmp_path / "home" / "other").touch()
    ended = refused("--listen", "127.0.0.1:0", "--data", str(tmp_path / "home"), "--trust", str(trust))
    assert ended.returncode == 78
    assert "is not empty" in ended.stderr
    assert mine.read_text() == "mine"
    ended = refused("--listen", "127.0.0.1:0", "--data", "/proc/nowhere", "--trust", str(trust))
    assert ended.stderr.splitlines()[0] == "zstor: error: /proc/nowhere: No such file or directory"


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    issuer, trust = Issuer(), tmp_path / "trust.json"
    trust.write_text(json.dumps(issuer.document()))
    command = [sys.executable, "-m", "zstor_local", "shard", "serve", "--listen", "unix:s", "--data", "data"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        subprocess.Popen(
            [*command, "--trust", str(trust)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        ) as server,
        socket.socket(socket.AF_UNIX) as unfinished,
    ):
        assert server.stdout is not None
        assert server.stderr is not None
        assert server.stdout.readline() == f"listening on http+unix://{tmp_path}/s\n"  # a URL to copy, from whatever directory
        unfinished.connect(f"{tmp_path}/s")
        lines = [
            "PUT /v1/trust HTTP/1.1",
            "Host: s",
            f"Authorization: Bearer {issuer.owner()}",
            "Expect: 100-continue",
            "Content-Length: 5",
        ]
        unfinished.sendall("\r\n".join([*lines, "", ""]).encode())
        assert unfinished.recv(4096).startswith(b"HTTP/1.1 100")  # it waits for the rest, as long as its grace lasts
        server.send_signal(signal.SIGINT)
        assert any("another signal stops at once" in line for line in server.stderr)
        server.send_signal(signal.SIGINT)
        assert server.wait(LIMIT) == 0
        assert unfinished.recv(4096) == b""


def test_two_servers_do_not_share_a_directory(tmp_path: Path) -> None:
    issuer = Issuer()
    with serving(tmp_path / "data", issuer):
        trust = str(tmp_path / "data.trust0.json")
        ended = refused("--listen", f"unix:{tmp_path}/other.sock", "--data", str(tmp_path / "data"), "--trust", trust)
        assert ended.returncode == 75


def test_metrics_are_told_to_bearers_of_a_token(owner: httpx.Client) -> None:
    append(owner, 1, scanned(1, b"x" * 1_000))
    text = owner.get("/metrics").text
    assert 'zstor_shard_requests_total{method="POST",status="204"}' in text
    assert "zstor_shard_disk_free_bytes" in text


def test_stopping_waits_for_nobody_that_follows(tmp_path: Path) -> None:
    issuer = Issuer()
    with serving(tmp_path / "data", issuer) as server, server.client(issuer.owner()) as owner:
        make_space(owner)
        assert server.socket is not None
        with socket.socket(socket.AF_UNIX) as follower:
            follower.settimeout(LIMIT)
            follower.connect(server.socket)
            lines = [f"GET /v1/{SPACE}/log?wait=50 HTTP/1.1", "Host: shard", f"Authorization: Bearer {issuer.owner()}", "", ""]
            follower.sendall("\r\n".join(lines).encode())
            assert owner.get("/metrics").status_code == 200  # asked later, and so the follower's request has come
            server.signal(signal.SIGTERM)
            assert follower.recv(4096).startswith(b"HTTP/1.1 200")  # and not the end of its grace
            while follower.recv(4096):
                pass
