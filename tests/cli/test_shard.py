"""`zstor shard` beside a daemon."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.test_end_to_end import done, zstor
from tests.shardserver.server import Issuer, Server
from zstor_local.cli.private_daemon import PrivateDaemon


def test_disks_are_added_listed_drained_and_replaced(daemon: PrivateDaemon) -> None:
    for number in range(5):
        done(zstor(daemon, "put", "-", f"object {number}", stdin=b"x" * 10_000 * number))
    spare = daemon.home / "spare"
    assert done(zstor(daemon, "shard", "add", "spare")).decode() == f"shard 6 is at {spare}: ok\n"
    shards = json.loads(done(zstor(daemon, "shard", "ls", "--json")))["shards"]
    assert [(each["id"], each["state"], each["draining"]) for each in shards] == [(str(n), "ok", False) for n in range(7)]
    assert str(spare) in done(zstor(daemon, "shard", "ls")).decode()

    removed = json.loads(done(zstor(daemon, "shard", "rm", "2", "--json")))
    assert (removed["shard"], removed["lacking"]) == ("2", 0)
    missing = zstor(daemon, "shard", "rm", "2")
    assert (missing.returncode, b"there is no shard '2'" in missing.stderr) == (1, True)

    shutil.rmtree(spare)
    assert done(zstor(daemon, "shard", "replace", "6")).startswith(b"replaced shard 6: 5 shares made anew")
    for number in range(5):
        assert done(zstor(daemon, "get", f"object {number}", "-")) == b"x" * 10_000 * number
        assert done(zstor(daemon, "check", f"object {number}")).startswith(b"optimal")
    status = json.loads(done(zstor(daemon, "status", "--json")))
    assert [each["id"] for each in status["shards"]] == ["0", "1", "3", "4", "5", "6"]
    refused = zstor(daemon, "shard", "rm", "0", "--json")
    assert json.loads(refused.stderr)["error"]["data"]["type"] == "not_enough_shards"


def test_a_shard_can_be_forgotten_by_force_and_another_be_in_its_place(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "a", stdin=b"value"))
    assert b"1 object" in done(zstor(daemon, "shard", "rm", "5", "--force"))
    done(zstor(daemon, "shard", "add", "other", "--group", "usb"))
    (group,) = [each["group"] for each in json.loads(done(zstor(daemon, "shard", "ls", "--json")))["shards"] if each["id"] == "6"]
    assert group == "usb"
    assert done(zstor(daemon, "repair", "a")).startswith(b"optimal")


@pytest.mark.parametrize(
    "url", ["ftp://server/disk", "https://", "http+unix:///", "https://server/disk", "http://[::1/x", "http://u:p@h:1/x"]
)
def test_a_url_that_is_none_of_a_shard_is_the_callers_mistake(daemon: PrivateDaemon, url: str) -> None:
    refused = zstor(daemon, "shard", "add", url, "--json")
    error = json.loads(refused.stderr)["error"]
    assert (refused.returncode, error["data"]["type"], error["data"]["retryable"]) == (1, "invalid_params", False)
    assert "mounted" not in error["data"]["hint"]


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http+unix://{home}/none.sock", ""),
        ("http://127.0.0.1:1", "; with TLS it is at https://"),
        ("https://127.0.0.1:1", "; a certificate that it signed itself goes into a file that SSL_CERT_FILE names for the daemon"),
    ],
)
def test_of_a_server_that_is_not_there_it_is_said_what_to_look_at(daemon: PrivateDaemon, url: str, hint: str) -> None:
    refused = zstor(daemon, "shard", "add", url.format(home=daemon.home), "--json")
    data = json.loads(refused.stderr)["error"]["data"]
    assert (data["type"], data["retryable"], data["hint"]) == ("unavailable", True, f"see whether its server runs there{hint}")


def test_of_a_server_that_trusts_other_stores_it_is_said_how_it_trusts_this_one(daemon: PrivateDaemon, tmp_path: Path) -> None:
    trust = tmp_path / "trust.json"
    trust.write_text(json.dumps(Issuer().document()))
    server = Server(tmp_path / "data", [trust], f"unix:{tmp_path}/s")
    try:
        refused = zstor(daemon, "shard", "add", server.url)
    finally:
        server.stop()
    assert refused.stderr.decode().splitlines() == [
        f"zstor: error: {server.url}: the token's issuer is not trusted here",
        "  hint: start its server with --trust and what `zstor shard trust` prints here",
    ]
