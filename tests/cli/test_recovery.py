"""Disaster: the machine is gone, the words and the disks are there."""

from __future__ import annotations

import json
import re
import shutil

from tests.cli.test_end_to_end import done, zstor
from zstor_local.cli.private_daemon import PrivateDaemon


def words_of(daemon: PrivateDaemon) -> bytes:
    """What `key backup` prints, as somebody would type it."""
    printed = done(zstor(daemon, "key", "backup", "--yes")).decode().partition(":\n")[2]
    return " ".join(re.findall(r"\d+ ([a-z]+)", printed)).encode()


def test_words_and_shards_bring_everything_back(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "note", stdin=b"buy milk"))
    done(zstor(daemon, "put", "-", "gone", stdin=b"old"))
    done(zstor(daemon, "rm", "gone"))
    words = words_of(daemon)
    daemon.stop()
    (daemon.home / "config" / "zstor" / "master.key").unlink()
    for file in (daemon.home / "data" / "zstor").iterdir():
        if file.name != "shards":
            file.unlink()

    assert b"restored the master key" in done(zstor(daemon, "key", "restore", stdin=words))
    assert (daemon.home / "config" / "zstor" / "master.key").stat().st_mode & 0o777 == 0o600
    report = json.loads(done(zstor(daemon, "rebuild", "--json")))
    assert (report["objects"], report["deleted"], report["loss"]) == (1, 1, [])
    daemon.start()
    assert done(zstor(daemon, "get", "note", "-")) == b"buy milk"
    assert done(zstor(daemon, "ls")) == b"note\n"


def test_after_a_rotation_the_new_words_bring_everything_back_and_the_old_ones_do_not(private_daemon: PrivateDaemon) -> None:
    daemon = private_daemon
    daemon.start()
    done(zstor(daemon, "put", "-", "note", stdin=b"buy milk"))
    old = words_of(daemon)
    refused = zstor(daemon, "key", "rotate")
    assert refused.returncode == 3  # secret words, and no terminal
    assert words_of(daemon) == old
    printed = done(zstor(daemon, "key", "rotate", "--yes")).decode().partition(":\n")[2]
    new = " ".join(re.findall(r"\d+ ([a-z]+)", printed)).encode()
    assert new == words_of(daemon) != old
    done(zstor(daemon, "put", "-", "later", stdin=b"bread"))
    daemon.stop()
    key = daemon.home / "config" / "zstor" / "master.key"
    for words, status in ((old, 78), (new, 0)):
        key.unlink()
        for file in (daemon.home / "data" / "zstor").iterdir():
            if file.name != "shards":
                file.unlink()
        done(zstor(daemon, "key", "restore", stdin=words))
        assert zstor(daemon, "rebuild").returncode == status
    daemon.start()
    assert done(zstor(daemon, "get", "note", "-")) == b"buy milk"
    assert done(zstor(daemon, "get", "later", "-")) == b"bread"


def test_a_key_that_is_there_is_never_replaced(daemon: PrivateDaemon) -> None:
    words = words_of(daemon)
    key = daemon.home / "config" / "zstor" / "master.key"
    before = key.read_bytes()
    refused = zstor(daemon, "key", "restore", stdin=words)
    assert refused.returncode == 1
    assert b"was not touched" in refused.stderr
    assert key.read_bytes() == before


def test_a_slip_of_the_pen_is_found(private_daemon: PrivateDaemon) -> None:
    private_daemon.start()
    words = words_of(private_daemon).split()
    private_daemon.stop()
    words[3], words[4] = words[4], words[3]
    shutil.rmtree(private_daemon.home / "config")
    refused = zstor(private_daemon, "key", "restore", stdin=b" ".join(words))
    assert refused.returncode == 1
    assert b"no backup of a master key" in refused.stderr
    assert not (private_daemon.home / "config" / "zstor" / "master.key").exists()


def test_what_may_be_missing_must_be_accepted(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "note", stdin=b"buy milk"))
    daemon.stop()
    shutil.rmtree(daemon.home / "data" / "zstor" / "shards" / "5")
    refused = zstor(daemon, "rebuild")
    assert refused.returncode == 78
    assert b"not seen: shard 5" in refused.stderr
    assert b"--accept-loss" in refused.stderr
    done(zstor(daemon, "rebuild", "--accept-loss"))
    daemon.start()
    assert done(zstor(daemon, "get", "note", "-")) == b"buy milk"


def test_a_running_daemon_keeps_its_store(daemon: PrivateDaemon) -> None:
    refused = zstor(daemon, "rebuild")
    assert refused.returncode == 75
    assert b"hint: stop that one first: " in refused.stderr


def test_check_and_repair(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "note", stdin=bytes(2_000_000)))
    assert done(zstor(daemon, "check", "note")) == b"optimal  note  6 of 6 shares are good\n"
    share = next((daemon.home / "data" / "zstor" / "shards" / "2" / "shares").glob("*/*"))
    share.unlink()
    checked = zstor(daemon, "check", "note")
    assert checked.returncode == 1
    assert checked.stdout == b"valid    note  5 of 6 shares are good: missing on shard 2\n"
    assert done(zstor(daemon, "repair", "note")) == b"optimal  note  6 of 6 shares are good\n"
    assert share.exists()


def test_where_a_shard_is_lost_those_that_are_left_are_all_that_is_named(private_daemon: PrivateDaemon) -> None:
    """Elsewhere, as on a new machine: there is no place to name for the one that is gone."""
    daemon = private_daemon
    daemon.start()
    done(zstor(daemon, "put", "-", "note", stdin=b"buy milk"))
    words = words_of(daemon)
    daemon.stop()
    shutil.copytree(daemon.home / "data" / "zstor" / "shards", daemon.home / "disks", ignore=shutil.ignore_patterns("3"))
    shutil.rmtree(daemon.home / "data")
    (daemon.home / "config" / "zstor" / "master.key").unlink()
    shards = [f'[[shard]]\nid = "{disk.name}"\nurl = "{disk}"\n' for disk in sorted((daemon.home / "disks").iterdir())]
    (daemon.home / "config" / "zstor" / "config.toml").write_text("".join(shards))

    refused = zstor(daemon, "daemon")
    assert (refused.returncode, b"there is neither its key nor its metastore" in refused.stderr) == (78, True)
    done(zstor(daemon, "key", "restore", stdin=words))
    assert b"not seen: shard 3" in done(zstor(daemon, "rebuild", "--accept-loss"))
    daemon.start()
    assert done(zstor(daemon, "get", "note", "-")) == b"buy milk"
    done(zstor(daemon, "shard", "replace", "3", str(daemon.home / "new")))
    assert done(zstor(daemon, "check", "note")).startswith(b"optimal")
    daemon.stop()
    daemon.start()
    assert json.loads(done(zstor(daemon, "status", "--json")))["state"] == "ok"
