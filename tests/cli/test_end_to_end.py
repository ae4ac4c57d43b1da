"""The command and the daemon together, as processes: files, pipes, terminals, signals, exit codes."""

from __future__ import annotations

import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from zstor_local.cli.private_daemon import DaemonEnded, PrivateDaemon

ZSTOR = [sys.executable, "-m", "zstor_local"]
MEBIBYTE = 1024 * 1024


def zstor(
    daemon: PrivateDaemon, *arguments: str, stdin: bytes = b"", stdout: int | IO[bytes] = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """Run the command beside the daemon and wait for it."""
    return subprocess.run(
        [*ZSTOR, *arguments],
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=daemon.home,
        env=daemon.environment,
        check=False,
    )


def done(finished: subprocess.CompletedProcess[bytes]) -> bytes:
    """The output of a command that must have succeeded without a word on stderr."""
    assert (finished.returncode, finished.stderr) == (0, b"")
    return finished.stdout or b""


def shell(daemon: PrivateDaemon, script: str) -> bytes:
    """Run a script in which `zstor` is the command."""
    program = " ".join(ZSTOR)
    return done(
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f'zstor() {{ {program} "$@"; }}\n{script}'],
            cwd=daemon.home,
            env=daemon.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    )


def test_a_file_goes_in_and_comes_out(daemon: PrivateDaemon) -> None:
    content = random.Random(1).randbytes(3 * MEBIBYTE + 17)
    (daemon.home / "photo.raw").write_bytes(content)
    assert done(zstor(daemon, "put", "photo.raw")) == b"stored photo.raw: 3.0 MiB in 6 shares, any 4 give it back\n"
    assert done(zstor(daemon, "get", "photo.raw", "copy")) == b"wrote copy: 3.0 MiB\n"
    assert (daemon.home / "copy").read_bytes() == content
    assert done(zstor(daemon, "get", "photo.raw")) == content
    assert done(zstor(daemon, "get", "photo.raw", "-", "--offset", "1048570", "--length", "20")) == content[1_048_570:1_048_590]


@pytest.mark.parametrize("size", [0, 1, 65_536, MEBIBYTE, 5 * MEBIBYTE + 1])
def test_a_pipe_goes_in_and_comes_out(daemon: PrivateDaemon, size: int) -> None:
    content = random.Random(size).randbytes(size)
    done(zstor(daemon, "put", "-", "key", "--size", str(size), stdin=content))
    assert done(zstor(daemon, "get", "key", "-")) == content


def test_an_archive_through_pipes(daemon: PrivateDaemon) -> None:
    tree = daemon.home / "tree"
    shutil.copytree(Path(__file__).parent, tree, ignore=shutil.ignore_patterns("__pycache__"))
    shell(daemon, "tar c tree | zstor put - backup.tar; zstor get backup.tar | tar d")


def test_a_reader_that_has_enough_is_nothing_to_tell(daemon: PrivateDaemon) -> None:
    data = random.Random(0).randbytes(4 * MEBIBYTE)  # more than a pipe holds
    done(zstor(daemon, "put", "-", "large", stdin=data))
    assert shell(daemon, "{ zstor get large - || echo $? > code; } | head -c 10") == data[:10]  # and not a word on stderr
    assert (daemon.home / "code").read_text() == "141\n"


def test_redirected_files_are_used_from_where_they_stand(daemon: PrivateDaemon) -> None:
    (daemon.home / "f").write_bytes(b"first line\nsecond line\n")
    shell(daemon, "{ read -r; zstor put - rest; } < f")
    shell(daemon, "{ echo before; zstor get rest; zstor get rest; echo after; } > out")
    assert (daemon.home / "out").read_bytes() == b"before\nsecond line\nsecond line\nafter\n"
    shell(daemon, "zstor get rest >> out")
    assert (daemon.home / "out").read_bytes().endswith(b"after\nsecond line\n")


def test_devices_are_bridged(daemon: PrivateDaemon) -> None:
    shell(daemon, "zstor put - empty < /dev/null; head -c 200000 /dev/zero | zstor put - zeros; zstor get zeros > /dev/null")
    assert json.loads(done(zstor(daemon, "stat", "empty", "--json")))["metadata"]["size"] == 0


@pytest.mark.parametrize("arguments", [["get", "f"], ["cas", "get"], ["log", "export"]])
def test_standard_output_by_its_name_is_no_file_to_replace(daemon: PrivateDaemon, arguments: list[str]) -> None:
    done(zstor(daemon, "put", "-", "f", stdin=b"content"))
    if arguments[0] == "cas":
        arguments = [*arguments, done(zstor(daemon, "cas", "put", "-", stdin=b"content")).decode().strip()]
    want = done(zstor(daemon, *arguments, "-"))
    with (daemon.home / "out").open("w+b") as out:
        out.write(b"before ")
        out.flush()
        done(zstor(daemon, *arguments, "/dev/stdout", stdout=out))
    assert (daemon.home / "out").read_bytes() == b"before " + want
    assert done(zstor(daemon, *arguments, "/dev/fd/1")) == want


def test_get_never_overwrites_without_force(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "f", stdin=b"new"))
    (daemon.home / "f").write_bytes(b"old")
    refused = zstor(daemon, "get", "f", "f")
    assert refused.returncode == 1
    assert refused.stderr == b"zstor: error: f is there already\n  hint: -f replaces it\n"
    assert (daemon.home / "f").read_bytes() == b"old"
    done(zstor(daemon, "get", "-f", "f", "f"))
    assert (daemon.home / "f").read_bytes() == b"new"


def test_on_a_terminal_get_writes_to_the_last_name(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "photos/a.raw", stdin=b"bytes"))
    controller, terminal = pty.openpty()
    with open(terminal, "wb", buffering=0) as screen:
        assert zstor(daemon, "get", "photos/a.raw", stdout=screen).returncode == 0
    assert os.read(controller, 1024) == b"wrote a.raw: 5 B\r\n"
    os.close(controller)
    assert (daemon.home / "a.raw").read_bytes() == b"bytes"


def test_a_missing_key_leaves_no_file(daemon: PrivateDaemon) -> None:
    finished = zstor(daemon, "get", "missing", "f")
    assert finished.returncode == 1
    assert finished.stderr.startswith(b"zstor: error: ")
    assert not [path for path in daemon.home.iterdir() if path.name.startswith((".f", "f"))]


def test_a_missing_directory_is_what_is_missing(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "a/b", stdin=b"1"))
    for arguments in (["get", "a/b", "gone/f"], ["get", "-r", "a", "gone/a"]):
        assert zstor(daemon, *arguments).stderr == b"zstor: error: there is no directory gone\n"


def test_rm_ls_and_stat(daemon: PrivateDaemon) -> None:
    for key in ("b", "a/2", "a/1"):
        done(zstor(daemon, "put", "-", key, stdin=key.encode()))
    assert done(zstor(daemon, "ls")) == b"a/1\na/2\nb\n"
    assert done(zstor(daemon, "ls", "a/")) == b"a/1\na/2\n"
    assert done(zstor(daemon, "rm", "a/1", "b")) == b"deleted a/1\ndeleted b\n"
    assert [json.loads(line)["key"] for line in done(zstor(daemon, "ls", "--json")).splitlines()] == ["a/2"]
    assert b"size       3 B\n" in done(zstor(daemon, "stat", "a/2"))
    gone = zstor(daemon, "rm", "b", "--json")
    assert gone.returncode == 1
    assert json.loads(gone.stderr)["error"]["data"]["type"] == "not_found"


def test_conditions_of_a_write(daemon: PrivateDaemon) -> None:
    first = json.loads(done(zstor(daemon, "put", "-", "k", "--json", stdin=b"1")))["metadata"]["version"]
    assert b"already_exists" in zstor(daemon, "put", "-", "k", "--exclusive", "--json", stdin=b"2").stderr
    done(zstor(daemon, "put", "-", "k", "--if-version", first, stdin=b"2"))
    assert b"conflict" in zstor(daemon, "put", "-", "k", "--if-version", first, "--json", stdin=b"3").stderr
    assert b"incomplete" in zstor(daemon, "put", "-", "k", "--size", "2", "--json", stdin=b"3").stderr
    assert done(zstor(daemon, "get", "k")) == b"2"


def test_namespaces_keep_keys_apart(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "namespace", "create", "photos"))
    done(zstor(daemon, "put", "-", "k", "-n", "photos", stdin=b"photo"))
    assert zstor(daemon, "get", "k").returncode == 1
    assert done(zstor(daemon, "get", "k", "--namespace", "photos")) == b"photo"


def test_who_makes_a_namespace_by_a_write_is_told_so(daemon: PrivateDaemon) -> None:
    (daemon.home / "album").mkdir()
    for name, arguments in [("photso", ["-", "k"]), ("phtos", ["-r", "album"])]:
        refused = zstor(daemon, "put", *arguments, "-n", name, "--exclusive", "--socket", "none")
        assert b"no namespace" not in refused.stderr
        made = zstor(daemon, "put", *arguments, "-n", name)
        told = f"zstor: warning: there was no namespace {name}: it was made; `zstor namespace ls` lists all\n".encode()
        assert (made.returncode, made.stderr) == (0, told)
        done(zstor(daemon, "put", *arguments, "-n", name))
        done(zstor(daemon, "namespace", "rm", "--force", name))
    done(zstor(daemon, "put", "-", "k", "-n", "photso", "--json"))  # a program knows what it asked for
    done(zstor(daemon, "namespace", "rm", "--force", "photso"))


def test_ctrl_c_stores_nothing(daemon: PrivateDaemon) -> None:
    command = [*ZSTOR, "put", "-", "endless"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=daemon.home, env=daemon.environment) as put:
        assert put.stdin is not None
        assert put.stderr is not None
        put.stdin.write(bytes(4 * MEBIBYTE))  # more than a pipe holds: when it is written, the daemon reads
        put.stdin.flush()
        put.send_signal(signal.SIGINT)
        assert put.wait() == 130
        assert put.stderr.read() == b"zstor: error: interrupted; the running call changed nothing\n"
        put.stdin.close()
    assert zstor(daemon, "stat", "endless").returncode == 1


def test_a_terminal_gets_a_progress_bar_and_a_pipe_none(daemon: PrivateDaemon) -> None:
    controller, terminal = pty.openpty()
    command = [*ZSTOR, "put", "-", "films/one", "--size", str(9 * MEBIBYTE)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=terminal, cwd=daemon.home, env=daemon.environment
    ) as put:
        os.close(terminal)
        assert put.stdin is not None
        assert put.stdout is not None
        put.stdin.write(bytes(8 * MEBIBYTE))
        put.stdin.flush()
        shown = b""
        while b"films/one" not in shown or (b"/9.4 MB" not in shown and b"/9.0 MiB" not in shown):
            shown += os.read(controller, 4096)
        put.stdin.write(bytes(MEBIBYTE))
        put.stdin.close()
        assert put.stdout.read() == b"stored films/one: 9.0 MiB in 6 shares, any 4 give it back\n"
    os.close(controller)


def test_two_lost_shards_are_borne_and_told(daemon: PrivateDaemon) -> None:
    content = random.Random(2).randbytes(2 * MEBIBYTE)
    done(zstor(daemon, "put", "-", "k", stdin=content))
    assert zstor(daemon, "status", "--check").returncode == 0
    daemon.kill()
    for number in (1, 4):
        shutil.rmtree(daemon.home / "data" / "zstor" / "shards" / str(number))
    daemon.start()
    assert done(zstor(daemon, "get", "k")) == content
    assert zstor(daemon, "status", "--check").returncode == 1
    status = json.loads(zstor(daemon, "status", "--json").stdout)
    assert status["state"] == "degraded"
    assert [shard["state"] for shard in status["shards"]].count("missing") == 2
    refused = zstor(daemon, "put", "-", "k", "--json", stdin=b"x")
    assert json.loads(refused.stderr)["error"]["data"]["type"] == "not_enough_shards"


def test_a_second_daemon_refuses_with_75(daemon: PrivateDaemon) -> None:
    second = zstor(daemon, "daemon")
    assert second.returncode == 75
    assert done(zstor(daemon, "call", "rpc.ping"))


def test_a_daemon_stops_with_0_and_starts_again(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "k", stdin=b"kept"))
    assert daemon.stop() == 0
    assert zstor(daemon, "get", "k").returncode == 2
    daemon.start()
    assert done(zstor(daemon, "get", "k")) == b"kept"


def test_a_store_without_its_key_is_refused_with_78(daemon: PrivateDaemon) -> None:
    daemon.kill()
    (daemon.home / "config" / "zstor" / "master.key").rename(daemon.home / "away")
    with pytest.raises(DaemonEnded) as caught:
        daemon.start()
    assert caught.value.code == 78


def test_init_makes_what_the_daemon_then_uses(private_daemon: PrivateDaemon) -> None:
    key = private_daemon.home / "config" / "zstor" / "master.key"
    made = zstor(private_daemon, "init")
    assert made.returncode == 0
    assert str(key).encode() in made.stderr
    assert b"zstor key backup" in made.stderr
    before = key.read_bytes()
    assert b"it stays as it is" in zstor(private_daemon, "init").stderr
    private_daemon.start()
    assert key.read_bytes() == before


# --- Lists, references, other keys ---


def lines(output: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines()]


def test_objects_are_put_behind_each_other_and_walked(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "list 1", stdin=b"one"))
    done(zstor(daemon, "put", "-", "list 2", "--previous", "list 1", stdin=b"two"))
    done(zstor(daemon, "put", "-", "list 3", "--previous", "list 2", stdin=b"three"))
    assert [line[-6:] for line in done(zstor(daemon, "walk", "list 1")).splitlines()] == [b"list 1", b"list 2", b"list 3"]
    items = lines(done(zstor(daemon, "walk", "list 3", "--backward", "--json", "--values")))
    assert [(item["key"], item["value_b64"]) for item in items] == [("list 3", "dGhyZWU="), ("list 2", "dHdv"), ("list 1", "b25l")]
    created = json.loads(done(zstor(daemon, "stat", "list 2", "--json")))["metadata"]["created_epoch"]
    later = lines(done(zstor(daemon, "walk", "list 1", "--start", str(created), "--json")))
    assert [item["key"] for item in later] == ["list 2", "list 3"]
    assert done(zstor(daemon, "walk", "list 1", "--end", "1999-12-31T00:00:00Z")) == b""
    told = done(zstor(daemon, "stat", "list 2"))
    assert b"previous   list 1\nnext       list 3\n" in told
    forked = zstor(daemon, "put", "-", "list 4", "--previous", "list 1", stdin=b"")
    assert (forked.returncode, b"followed by 'list 2' already" in forked.stderr) == (1, True)
    assert zstor(daemon, "walk", "list 1", "--values").returncode == 3
    assert b"start_epoch is not a time" in zstor(daemon, "walk", "list 1", "--start", "9" * 5_000).stderr


def test_references_are_kept_and_found(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "tagged", "--reference", "red", stdin=b""))
    assert done(zstor(daemon, "ref", "add", "tagged", "blue", "red")) == b"tagged has 2 references\n"
    assert done(zstor(daemon, "ref", "ls", "tagged")) == b"red\nblue\n"
    assert done(zstor(daemon, "ref", "find", "blue")) == b"tagged\n"
    assert lines(done(zstor(daemon, "ref", "find", "blue", "--json"))) == [{"key": "tagged"}]
    assert json.loads(done(zstor(daemon, "ref", "rm", "tagged", "red", "--json"))) == {"references": ["blue"], "remaining": 1}
    assert done(zstor(daemon, "ref", "find", "red")) == b""
    assert json.loads(done(zstor(daemon, "ref", "ls", "tagged", "--json"))) == {"references": ["blue"]}


def test_objects_get_other_keys(daemon: PrivateDaemon) -> None:
    done(zstor(daemon, "put", "-", "first name", stdin=b"content"))
    assert done(zstor(daemon, "mv", "first name", "second name")) == b"renamed first name to second name\n"
    assert done(zstor(daemon, "cp", "second name", "third name")) == b"copied second name to third name\n"
    done(zstor(daemon, "rm", "second name"))
    assert done(zstor(daemon, "get", "third name", "-")) == b"content"
    done(zstor(daemon, "put", "-", "first name", stdin=b""))
    refused = zstor(daemon, "cp", "third name", "first name", "--exclusive", "--json")
    assert (refused.returncode, json.loads(refused.stderr)["error"]["data"]["type"]) == (1, "already_exists")
    copied = json.loads(done(zstor(daemon, "cp", "third name", "first name", "--json")))["metadata"]
    assert copied["key"] == "first name"


def test_a_key_with_a_slash_at_its_end_is_a_directory_to_go_into(daemon: PrivateDaemon) -> None:
    (daemon.home / "box").mkdir()
    (daemon.home / "one").write_bytes(b"1")
    done(zstor(daemon, "put", "-r", "box"))
    assert done(zstor(daemon, "put", "one", "box/")).startswith(b"stored box/one: ")
    assert done(zstor(daemon, "cp", "box/one", "box/deep/")) == b"copied box/one to box/deep/one\n"
    assert done(zstor(daemon, "mv", "box/deep/one", "other/")) == b"renamed box/deep/one to other/one\n"
    assert done(zstor(daemon, "ls", "box")) == b"box/\nbox/one\n"
    assert done(zstor(daemon, "mv", "box/", "case/")) == b"renamed box/ to case/\n"  # the entry itself, by its whole key
    refused = zstor(daemon, "put", "-", "box/", stdin=b"1")
    assert refused.returncode == 3
    assert refused.stderr.startswith(b"zstor: error: - has no name of its own: give a KEY\n")


@pytest.fixture(scope="module")
def named(shared_daemon: PrivateDaemon) -> PrivateDaemon:
    """A daemon with something of each kind that has a name."""
    done(zstor(shared_daemon, "put", "-", "notes.txt", stdin=b"1"))
    assert zstor(shared_daemon, "put", "-", "holiday", "-n", "photos", stdin=b"1").returncode == 0
    done(zstor(shared_daemon, "log", "create", "messages"))
    done(zstor(shared_daemon, "ns", "set", "latest", "1"))
    return shared_daemon


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["stat", "nots.txt"], "notes.txt"),
        (["rm", "note.txt"], "notes.txt"),
        (["check", "notes.tx"], "notes.txt"),
        (["stat", "-n", "photos", "holday"], "holiday"),
        (["stat", "-n", "photo", "notes.txt"], "photos"),
        (["ls", "-n", "photo"], "photos"),
        (["ls", "-l", "hol", "-n", "photo"], "photos"),
        (["ref", "find", "r", "-n", "photo"], "photos"),
        (["namespace", "get", "photo"], "photos"),
        (["token", "create", "phots", "read"], "photos"),
        (["log", "head", "--log", "mesages"], "messages"),
        (["ns", "get", "lates"], "latest"),
    ],
)
def test_what_may_have_been_meant_is_named(named: PrivateDaemon, arguments: list[str], meant: str) -> None:
    missed = zstor(named, *arguments)
    assert missed.returncode == 1
    assert f"\n  hint: did you mean '{meant}'? `zstor ".encode() in missed.stderr
    json_error = json.loads(zstor(named, *arguments, "--json").stderr)["error"]
    assert "did you mean" not in json_error["data"]["hint"]  # nobody is asked again for a program


def test_what_is_like_nothing_is_not_guessed_at(named: PrivateDaemon) -> None:
    assert zstor(named, "stat", "xyzzy").stderr.endswith(b"\n  hint: `zstor ls` lists the keys\n")
    assert zstor(named, "stat", "notes.txt", "-n", "other").stderr.endswith(b"\n  hint: `zstor ls -n other` lists the keys\n")
