"""`zstor cas` beside a daemon."""

from __future__ import annotations

import json

from tests.cli.test_end_to_end import done, shell, zstor
from tests.formats.samples import SAMPLES
from zstor_local.cli.private_daemon import PrivateDaemon

HELLO, FIVE = SAMPLES[1], SAMPLES[5]


def test_content_goes_in_and_comes_out_by_its_id(daemon: PrivateDaemon) -> None:
    (daemon.home / "five").write_bytes(FIVE.data)
    assert done(zstor(daemon, "cas", "put", "five")).decode() == FIVE.cid + "\n"
    assert done(zstor(daemon, "cas", "get", FIVE.cid)) == FIVE.data
    assert done(zstor(daemon, "cas", "get", FIVE.cid, "out", "--verify")) == b"wrote out: 5.0 MiB\n"
    assert (daemon.home / "out").read_bytes() == FIVE.data
    assert done(zstor(daemon, "cas", "get", FIVE.cid, "-", "--offset", "5", "--length", "3")) == FIVE.data[5:8]
    assert shell(daemon, "echo hello | zstor cas put -").decode() == HELLO.cid + "\n"
    lines = [json.loads(line) for line in done(zstor(daemon, "cas", "put", "five", "out", "--json")).splitlines()]
    assert [(line["file"], line["id"], line["new"]) for line in lines] == [("five", FIVE.cid, False), ("out", FIVE.cid, False)]
    assert done(zstor(daemon, "cas", "verify", FIVE.cid)).decode() == f"{FIVE.cid} is what its id says: 5.0 MiB\n"


def test_a_directory_is_refused_with_what_takes_its_place(daemon: PrivateDaemon) -> None:
    (daemon.home / "five").write_bytes(FIVE.data)
    done(zstor(daemon, "cas", "put", "five"))
    assert b"tar c DIRECTORY | zstor cas put -" in zstor(daemon, "cas", "put", ".").stderr
    assert b"zstor log export" in zstor(daemon, "log", "import", ".").stderr
    assert b"zstor put -r" in zstor(daemon, "put", ".", "key").stderr
    for arguments in (["cas", "get", FIVE.cid], ["log", "export"], ["get", "key"]):
        assert b"there is no directory missing/" in zstor(daemon, *arguments, "missing/").stderr
    assert not (daemon.home / "missing").exists()


def test_contents_are_kept_by_their_owners(daemon: PrivateDaemon) -> None:
    shell(daemon, "echo hello | zstor cas put - --owner alice --reason 'to greet'; echo bye | zstor cas put - --no-pin")
    assert done(zstor(daemon, "cas", "pin", HELLO.cid)).decode() == f"pinned {HELLO.cid}: kept by alice, user\n"
    listed = done(zstor(daemon, "cas", "ls")).decode()
    assert f"{HELLO.cid}         6 B  kept by alice, user\n" in listed
    assert "not pinned, kept until" in listed
    (line,) = done(zstor(daemon, "cas", "ls", "--owner", "alice", "--json")).splitlines()
    assert [pin["reason"] for pin in json.loads(line)["pins"]] == ["to greet", ""]
    told = done(zstor(daemon, "cas", "stat", HELLO.cid)).decode()
    assert f"id       {HELLO.cid}  (profile unixfs-v1-2025)\n" in told
    assert "by alice: to greet\n" in told
    assert done(zstor(daemon, "cas", "unpin", HELLO.cid, "--owner", "alice")).decode() == f"unpinned {HELLO.cid}: kept by user\n"
    assert done(zstor(daemon, "cas", "unpin", HELLO.cid, "--forget")).decode() == f"deleted {HELLO.cid}\n"
    assert done(zstor(daemon, "cas", "collect", "-n")) == b"would delete 0 of 1 content: 0 B\n"
    assert done(zstor(daemon, "cas", "collect")) == b"deleted 0 of 1 content: 0 B\n"
    gone = zstor(daemon, "cas", "get", HELLO.cid, "x")
    assert (gone.returncode, b"there is no content" in gone.stderr) == (1, True)
    assert zstor(daemon, "cas", "put", "-", "--no-pin", "--owner", "x").returncode == 3
