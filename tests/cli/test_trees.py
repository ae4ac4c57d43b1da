"""Directories as objects and back: everything kept, nothing escapes, nothing is left half done."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
from contextlib import closing, nullcontext
from pathlib import Path
from time import monotonic

import pytest

from tests.cli.fake_daemon import FakeDaemon, Message, Peer
from tests.cli.test_end_to_end import ZSTOR, done, zstor
from tests.daemon.client import Client
from zstor_local.cli import main
from zstor_local.cli.local_tree import Tree
from zstor_local.cli.private_daemon import PrivateDaemon
from zstor_local.errors import PathRefused
from zstor_local.store.protected import Protected

OLD = 1_500_000_000_123_456_789  # nanoseconds


@pytest.fixture
def tree(daemon: PrivateDaemon) -> Path:
    """A directory with one of each."""
    top = daemon.home / "tree"
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "small").write_bytes(b"small")
    (top / "sub" / "large").write_bytes(bytes(range(256)) * 8_000)
    (top / "sub" / "deep" / "ü run").write_bytes(b"#!/bin/sh\n")
    (top / "sub" / "deep" / "ü run").chmod(0o750)
    (top / "nothing").touch()
    (top / "link").symlink_to("sub/large")
    (top / "up").symlink_to("sub/../small")
    for path in (top / "small", top / "sub" / "large"):
        os.utime(path, ns=(OLD, OLD))
    (top / "empty").chmod(0o700)
    os.utime(top / "sub", ns=(OLD, OLD))
    return top


def look(top: Path) -> dict[str, object]:
    """All there is to see of a tree: type, mode, time and content of each thing."""
    found: dict[str, object] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        status = path.lstat()
        if path.is_symlink():
            content: object = os.readlink(path)
        else:
            content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(top))] = (oct(status.st_mode), status.st_mtime_ns, content)
    return found


def remove(top: Path) -> None:
    subprocess.run(["rm", "-rf", str(top)], check=True)


def client(daemon: PrivateDaemon) -> Client:
    return Client(str(daemon.socket))


def test_a_tree_comes_back_as_it_was(daemon: PrivateDaemon, tree: Path) -> None:
    before = look(tree)
    assert done(zstor(daemon, "put", "-r", "tree")).startswith(b"stored tree/: 10 objects, 2.0 MiB")
    assert done(zstor(daemon, "get", "-r", "tree", "back")).startswith(b"wrote back/: 10 objects")
    assert look(daemon.home / "back") == before
    remove(daemon.home / "back")
    remove(tree)
    done(zstor(daemon, "get", "-r", "tree/"))
    assert look(tree) == before
    remove(tree)


def test_what_names_targets_and_times_can_be_comes_back(daemon: PrivateDaemon) -> None:
    top = daemon.home / "rare"
    top.mkdir()
    for name in ("\U0001d11e" * 63, "€" * 85, "new\nline", "-f", "tab\t\x1b[31m"):
        (top / name).write_text(name)
    os.symlink(b"not \xff utf-8", os.fsencode(top / "link"))
    os.symlink("\U0001d11e" * 63, top / ("ü" * 127))
    (top / "before 1970").touch()
    (top / "after 2262").touch()
    os.utime(top / "before 1970", ns=(-(10**18), -(10**18) - 5))
    os.utime(top / "after 2262", ns=(10**19, 10**19))
    os.utime(top, ns=(-(10**17), -(10**17)))
    before = look(top)
    done(zstor(daemon, "put", "-r", "rare"))
    lines = [json.loads(line) for line in done(zstor(daemon, "get", "-r", "rare", "back", "--json")).splitlines()]
    assert look(daemon.home / "back") == before
    assert {line["path"] for line in lines[:-1]} == {"back", *(f"back/{name}" for name in os.listdir(top))}
    done(zstor(daemon, "get", "-f", "rare/" + "\U0001d11e" * 63, "back"))
    remove(top)
    remove(daemon.home / "back")
    done(zstor(daemon, "rm", "-r", "--yes", "rare"))


def test_directories_that_no_object_tells_of_are_as_any_other_and_those_that_are_there_stay_as_they_are(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "logs/new/1", stdin=b"1"))
    done(zstor(daemon, "put", "-", "logs/private/1", stdin=b"1"))
    (daemon.home / "logs" / "private").mkdir(mode=0o700, parents=True)
    (daemon.home / "logs").chmod(0o710)
    umask = os.umask(0o027)
    try:
        done(zstor(daemon, "get", "-r", "logs"))
    finally:
        os.umask(umask)
    made = ("logs", "logs/private", "logs/new")
    assert [oct((daemon.home / place).stat().st_mode & 0o777) for place in made] == ["0o710", "0o700", "0o750"]
    remove(daemon.home / "logs")
    done(zstor(daemon, "rm", "-r", "--yes", "logs"))


def test_each_thing_is_an_object_of_its_own(daemon: PrivateDaemon, tree: Path) -> None:
    lines = [json.loads(line) for line in done(zstor(daemon, "put", "-r", "--json", "tree", "a/b")).splitlines()]
    assert lines[-1] == {"done": 10, "bytes": 2_048_036, "failed": 0}
    assert {line["key"] for line in lines[:-1]} >= {"a/b/", "a/b/empty/", "a/b/sub/large", "a/b/link"}
    assert done(zstor(daemon, "get", "a/b/small", "-")) == b"small"
    user = json.loads(done(zstor(daemon, "stat", "a/b/small", "--json")))["metadata"]["user"]
    assert user == {"type": "file", "mode": "0644", "mtime": str(OLD)}
    remove(tree)


def test_again_it_becomes_new_versions_and_files_that_are_there_stay(daemon: PrivateDaemon, tree: Path) -> None:
    done(zstor(daemon, "put", "-r", "tree", "twice"))
    (tree / "small").write_bytes(b"newer")
    done(zstor(daemon, "put", "-r", "tree", "twice"))
    assert done(zstor(daemon, "get", "twice/small", "-")) == b"newer"
    (tree / "small").write_bytes(b"mine")
    top = daemon.home / "twice"
    tree.rename(top)
    refused = zstor(daemon, "get", "-r", "twice")
    assert refused.returncode == 1
    assert b"is there already" in refused.stderr
    assert (top / "small").read_bytes() == b"mine"
    done(zstor(daemon, "get", "-r", "-f", "twice"))
    assert (top / "small").read_bytes() == b"newer"
    remove(top)


def test_what_cannot_be_stored_is_named_and_the_rest_goes_on(daemon: PrivateDaemon) -> None:
    top = daemon.home / "odd"
    top.mkdir()
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(top / "socket"))
    (top / os.fsdecode(b"not \xff utf-8")).write_bytes(b"1")
    (top / "good").write_bytes(b"1")
    ended = zstor(daemon, "put", "-r", "odd")
    assert ended.returncode == 1
    assert ended.stderr.count(b"passed over") == 2
    assert b"not \\xff utf-8" in ended.stderr
    assert b"left out: 3 things" in ended.stderr
    assert done(zstor(daemon, "get", "odd/good", "-")) == b"1"
    remove(top)


EVIL = [
    "evil/../escaped",
    "evil//absolute",
    "evil/a/../../escaped",
    "evil/./dot",
    "evil/ends/",
    "evil/nul\u0001/..",
]


def test_nothing_escapes(daemon: PrivateDaemon) -> None:
    outside = daemon.home / "outside"
    outside.mkdir()
    with client(daemon) as wire:
        for key in EVIL:
            wire.write(key, b"evil")
        wire.write("evil/out", str(outside).encode(), user={"type": "symlink"})
        wire.write("evil/out/escaped", b"evil")
        wire.write("evil/up", b"../outside", user={"type": "symlink"})
        wire.write("evil/nul", b"a\0b", user={"type": "symlink"})
        wire.write("evil/through/x", b"evil")
        wire.write("evil/../", b"", user={"type": "directory", "mode": "0777"})
        wire.write("evil/set id", b"harmless", user={"mode": "6755", "mtime": "-5", "type": ["odd"]})
    top = daemon.home / "evil"
    top.mkdir()
    (top / "through").symlink_to(outside)
    ended = zstor(daemon, "get", "-r", "evil")
    assert ended.returncode == 1
    assert ended.stderr.count(b"names no place below") == len(EVIL) + 1
    assert b"leads through a file or a symbolic link" in ended.stderr
    assert b"would lead out of the tree" in ended.stderr
    assert b"would lead to a name with a NUL" in ended.stderr
    assert list(outside.iterdir()) == []
    assert not (daemon.home / "escaped").exists()
    assert sorted(path.name for path in top.iterdir()) == ["out", "set id", "through"]
    assert (top / "out").is_dir()
    assert not (top / "out").is_symlink()
    assert (top / "set id").stat().st_mode & 0o7777 == 0o755
    again = zstor(daemon, "get", "-r", "-f", "--links-outside", "evil")
    assert os.readlink(top / "up") == "../outside"
    assert again.returncode == 1
    assert list(outside.iterdir()) == []
    remove(top)
    remove(outside)


def test_no_link_leads_out_by_way_of_another(daemon: PrivateDaemon) -> None:
    (daemon.home / "secret").write_bytes(b"theirs")
    links = {
        "chain/a": b"d/e/up/../secret",  # made before the link in it
        "chain/d/e/up": b"../..",
        "chain/z": b"d/e/up/../secret",  # and after
        "chain/gone": b"missing/../d",
        "chain/d/fine": b"../d/e/../e/file",
    }
    with client(daemon) as wire:
        wire.write("chain/d/e/file", b"ours")
        for key, target in links.items():
            wire.write(key, target, user={"type": "symlink"})
    ended = zstor(daemon, "get", "-r", "chain")
    assert ended.returncode == 1
    assert ended.stderr.count(b"could lead out of the tree") == 3
    top = daemon.home / "chain"
    assert sorted(path.name for path in top.iterdir()) == ["d"]
    assert (top / "d/fine").read_bytes() == b"ours"
    assert (top / "d/e/up").resolve() == top.resolve()
    again = zstor(daemon, "get", "-r", "-f", "--links-outside", "chain")
    assert again.returncode == 0
    assert os.readlink(top / "gone") == "missing/../d"
    remove(top)
    (daemon.home / "secret").unlink()


def test_one_file_and_one_object_are_no_trees_and_r_is_to_be_left_out(daemon: PrivateDaemon, tree: Path) -> None:
    refused = zstor(daemon, "put", "-r", "tree/small")
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (3, b"zstor: error: tree/small is no directory: leave -r out")
    done(zstor(daemon, "put", "-", "single", stdin=b"1"))
    refused = zstor(daemon, "get", "-r", "single")
    assert (refused.returncode, b"hint: 'single' is one object: leave -r out" in refused.stderr) == (1, True)
    remove(tree)


def test_rm_r_asks_and_takes_no_neighbour(daemon: PrivateDaemon, tree: Path) -> None:
    done(zstor(daemon, "put", "-r", "tree", "gone"))
    for key in ("gone", "gone-not", "go"):
        done(zstor(daemon, "put", "-", key, stdin=b"1"))
    refused = zstor(daemon, "rm", "-r", "gone")
    assert refused.returncode == 3
    assert b"--yes" in refused.stderr
    assert zstor(daemon, "rm", "-r", "--yes", "/").returncode == 3
    assert done(zstor(daemon, "rm", "-r", "--yes", "gone")) == b"deleted 11 objects\n"
    kept = done(zstor(daemon, "ls", "go")).split()
    assert kept == [b"go", b"gone-not"]
    remove(tree)


def test_rm_r_takes_what_is_named_twice_once_and_with_a_slash_no_object_beside_the_tree(daemon: PrivateDaemon) -> None:
    for key in ("twice", "twice/a", "twice/a/b", "twice/c"):
        done(zstor(daemon, "put", "-", key, stdin=b"1"))
    assert done(zstor(daemon, "rm", "-r", "--yes", "twice/a", "twice/", "twice/", "twice/a/")) == b"deleted 3 objects\n"
    assert done(zstor(daemon, "ls", "twice")) == b"twice\n"
    assert done(zstor(daemon, "rm", "-r", "--yes", "twice", "twice")) == b"deleted 1 object\n"


def test_what_does_not_open_is_named_and_the_rest_comes_back_and_goes(daemon: PrivateDaemon, tree: Path) -> None:
    done(zstor(daemon, "put", "-r", "tree"))
    before = look(tree)
    del before["small"]
    daemon.stop()
    with closing(sqlite3.connect(daemon.home / "data" / "zstor" / "metastore.sqlite", isolation_level=None)) as db:
        change = (
            "update record set sealed = zeroblob(200), sequence = sequence + 1000 where name = cast(? as blob)"  # like no copy of it
        )
        assert db.execute(change, ["tree/small"]).rowcount == 1
    daemon.start()
    got = zstor(daemon, "get", "-r", "tree", "back")
    assert (got.returncode, got.stderr.count(b"'tree/small'")) == (1, 1)
    assert got.stdout.startswith(b"wrote back/: 9 objects")
    assert look(daemon.home / "back") == before
    removed = zstor(daemon, "rm", "-r", "--yes", "tree")
    assert (removed.returncode, removed.stdout, removed.stderr.count(b"'tree/small'")) == (1, b"deleted 9 objects\n", 1)


def test_a_tree_that_is_not_there_is_an_error_that_names_what_may_be_meant(daemon: PrivateDaemon, tree: Path) -> None:
    done(zstor(daemon, "put", "-r", "tree", "photos"))
    for arguments in (["get", "-r", "phots"], ["rm", "-r", "--yes", "phots"], ["rm", "-r", "--yes", "photos", "phots"]):
        refused = zstor(daemon, *arguments)
        assert refused.returncode == 1
        assert b"phots" in refused.stderr
        assert b"did you mean 'photos/'?" in refused.stderr
    for missing in ("photos", "photos/sub", "photos/sub//"):
        assert b"hint: there are keys below it, as 'photos/" in zstor(daemon, "get", missing, "-").stderr
    assert b"and no pipe" in zstor(daemon, "get", "-r", "photos", "-").stderr
    assert b"photos/\n" in done(zstor(daemon, "ls"))  # nothing was deleted
    assert json.loads(zstor(daemon, "rm", "-r", "--yes", "phots", "--json").stderr)["error"]["data"]["type"] == "not_found"
    remove(tree)


def interrupted(daemon: PrivateDaemon, number: signal.Signals, *command: str) -> None:
    """Run a command, send it the signal when it has told of the first thing; the last one takes it seconds."""
    running = subprocess.Popen(
        [*ZSTOR, *command, "--json"], cwd=daemon.home, env=daemon.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout is not None
    running.stdout.readline()
    running.send_signal(number)
    _, complaint = running.communicate(timeout=120)
    assert running.returncode in (130, 128 + number), complaint


@pytest.fixture
def many(daemon: PrivateDaemon) -> Path:
    top = daemon.home / "many"
    top.mkdir()
    for each in range(10):
        (top / f"{each:03}").write_bytes(bytes(300_000))
    with (top / "last").open("wb") as file:
        file.truncate(256 * 1024 * 1024)
    return top


def test_the_daemons_own_files_are_no_part_of_a_tree(daemon: PrivateDaemon) -> None:
    store, key = daemon.home / "data" / "zstor", daemon.home / "config" / "zstor" / "master.key"
    secret = key.read_bytes()
    (daemon.home / "data" / "other").write_bytes(b"other")
    put = zstor(daemon, "put", "-r", "data", "own")
    assert (put.returncode, put.stdout) == (1, b"stored own/: 2 objects, 5 B\n")
    assert put.stderr.splitlines()[0] == b"zstor: warning: data/zstor: the daemon's own store; passed over"
    (daemon.home / "data" / "other").unlink()
    refused = zstor(daemon, "put", "-r", str(store))
    assert f"{store} lies in the daemon's own store".encode() in refused.stderr
    for name in ("master.key", "zstor/master.key.next", "config.toml"):
        done(zstor(daemon, "put", "-", f"own/{name}", stdin=b"none"))
    got = zstor(daemon, "get", "-rf", "own", str(key.parent))
    assert (got.returncode, got.stdout) == (0, f"wrote {key.parent}/own/: 5 objects, 17 B\n".encode())
    done(zstor(daemon, "put", "-", "zstor/master.key", stdin=b"none"))
    done(zstor(daemon, "put", "-", "zstor/plain", stdin=b"plain"))
    got = zstor(daemon, "get", "-rf", "zstor", str(key.parents[1]))
    assert (got.returncode, key.read_bytes()) == (1, secret)
    assert f"{key} is one of the daemon's own files".encode() in got.stderr
    assert (key.parent / "plain").read_bytes() == b"plain"
    got = zstor(daemon, "get", "-r", "own", str(store / "shards"))
    assert got.returncode == 1
    assert not (store / "shards" / "own").exists()
    remove(key.parent / "own")
    (key.parent / "plain").unlink()
    done(zstor(daemon, "rm", "-r", "--yes", "own", "zstor"))


def test_nothing_is_written_into_an_added_shard_or_taken_from_it(private_daemon: PrivateDaemon) -> None:
    private_daemon.start()
    disks = private_daemon.home / "disks"
    disks.mkdir()
    done(zstor(private_daemon, "shard", "add", str(disks / "usb")))
    with client(private_daemon) as wire:
        wire.write("log/", b"", user={"type": "directory"})
        wire.write("log/small", b"small")
        wire.write("disks/usb/log/empty/", b"", user={"type": "directory"})
        wire.write("disks/usb/log/small", b"small")
        wire.write("disks/usb/log/link", b"small", user={"type": "symlink"})
    before = sorted(disks.rglob("*"))
    got = zstor(private_daemon, "get", "-r", "log", str(disks / "usb"))
    assert (got.returncode, got.stdout) == (1, b"")
    assert f"{disks / 'usb' / 'log'} lies in the daemon's own store".encode() in got.stderr
    got = zstor(private_daemon, "get", "-r", "disks")
    assert (got.returncode, got.stderr.count(b"lies in the daemon's own store")) == (1, 3)
    assert sorted(disks.rglob("*")) == before
    put = zstor(private_daemon, "put", "-r", "disks", "taken")
    assert (put.returncode, put.stdout) == (1, b"stored taken/: 1 object, 0 B\n")


def test_what_could_not_be_taken_along_is_named_with_the_way_out(daemon: PrivateDaemon) -> None:
    top = daemon.home / "odd"
    deep = "/".join(["d" * 250] * 5)
    (top / deep).mkdir(parents=True)
    os.mkfifo(top / "a")
    (top / "b").write_bytes(b"b")
    put = zstor(daemon, "put", "-r", "odd")
    assert b"zstor: warning: odd/a: no file, directory or symbolic link; passed over\n" in put.stderr
    assert f"odd/{deep}: the key has 1259 bytes; use at most 1024 bytes\n".encode() in put.stderr
    failed = {
        line["path"]: line["error"]
        for line in map(json.loads, zstor(daemon, "put", "-r", "odd", "--json").stdout.splitlines())
        if "error" in line
    }
    assert failed["a"]["message"] == "no file, directory or symbolic link; passed over"
    assert failed[deep]["hint"] == "use at most 1024 bytes"
    got = zstor(daemon, "get", "-r", "odd")
    assert b"zstor: warning: odd/b is there already; -f replaces it\n" in got.stderr
    done(zstor(daemon, "rm", "-r", "--yes", "odd"))
    remove(top)


def test_a_file_where_the_directory_is_to_be_is_named_as_one(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "top/f", stdin=b"f"))
    for name in ("top", "dangling"):
        (daemon.home / "top").write_bytes(b"a file")
        (daemon.home / "dangling").symlink_to("nowhere")
        got = zstor(daemon, "get", "-rf", "top", name)
        assert got.stderr.startswith(f"zstor: error: {name} is there already and no directory\n".encode())
        assert (daemon.home / "top").read_bytes() == b"a file"
        remove(daemon.home / "top")
        (daemon.home / "dangling").unlink()
    done(zstor(daemon, "rm", "top/f"))


def test_a_file_that_is_refused_is_named(daemon: PrivateDaemon) -> None:
    key = daemon.home / "config" / "zstor" / "master.key"
    for file in (key, Path("/proc/cpuinfo"), daemon.home / "data" / "zstor" / "lock"):
        put = zstor(daemon, "put", str(file))
        assert put.returncode == 1
        assert put.stderr.startswith(f"zstor: error: {file} ".encode())
    get = zstor(daemon, "get", "-f", "small", str(key))
    assert (get.returncode, get.stderr.splitlines()[0]) == (1, f"zstor: error: {key} is one of the daemon's own files".encode())


@pytest.mark.parametrize("size", [0, 5, 100_000])
@pytest.mark.parametrize("change", [b"", b"more"])
def test_a_file_that_changes_while_it_is_read_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, change: bytes
) -> None:
    (tmp_path / "f").write_bytes(bytes(size))
    read = os.read

    def read_and_change(fd: int, count: int) -> bytes:
        got = read(fd, count // 2 + 1)
        if change:
            with (tmp_path / "f").open("ab") as file:
                file.write(change)
        return got

    with Tree(str(tmp_path), own=Protected([], [])) as tree, tree.reading("f") as fd:
        monkeypatch.setattr(os, "read", read_and_change)
        with pytest.raises(PathRefused, match="f changed while it was read") if change else nullcontext():
            assert tree.content(fd, "f") == bytes(size)


def test_what_has_grown_since_it_was_listed_comes_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZSTOR_SOCKET", str(tmp_path / "s"))
    monkeypatch.chdir(tmp_path)

    def serve(peer: Peer) -> None:
        while request := peer.receive():
            if request["method"] == "object.list":
                peer.answer(request, {"items": [{"key": "t/f", "metadata": {"size": 5, "user": {}}}], "cursor": None})
            elif request["method"] == "object.read":
                error: Message = {"code": 501, "message": "large", "data": {"type": "too_large", "retryable": False, "limit": 8}}
                peer.send({"id": request["id"], "error": error})
            elif request["method"] == "daemon.status":
                peer.answer(request, {"shards": []})
            else:
                os.write(peer.fds[0], b"grown")
                peer.answer(request, {"bytes": 5, "metadata": {}})

    with FakeDaemon(tmp_path / "s", serve):
        assert main(["get", "-r", "t"]) == 0
    assert (tmp_path / "t" / "f").read_bytes() == b"grown"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_put_interrupted_leaves_whole_objects_only(daemon: PrivateDaemon, many: Path, number: signal.Signals) -> None:
    interrupted(daemon, number, "put", "-r", "many")
    shards = daemon.home / "data" / "zstor" / "shards"
    with client(daemon) as wire:
        items = wire.result("object.list", prefix="many/")["items"]
        assert all(item["metadata"]["size"] in (0, 300_000) for item in items)
        assert "many/last" not in {item["key"] for item in items}
        deadline = monotonic() + 120
        while wire.result("daemon.status")["queues"]["collect"] or list(shards.glob("*/tmp/*")):  # what it had of the last one goes
            assert monotonic() < deadline, list(shards.glob("*/tmp/*"))
    remove(many)


def test_get_interrupted_leaves_whole_files_only(daemon: PrivateDaemon, many: Path) -> None:
    done(zstor(daemon, "put", "-r", "many"))
    interrupted(daemon, signal.SIGINT, "get", "-r", "many", "back")
    back = daemon.home / "back"
    assert {path.stat().st_size for path in back.iterdir()} <= {300_000}
    assert not [path for path in back.iterdir() if path.name.endswith(".part")]
    done(zstor(daemon, "rm", "-r", "--yes", "many"))
    remove(many)
    remove(back)
