"""Paths and descriptors that a client should not give: typed errors, no blocking, nothing read that is ours, nothing half written."""

from __future__ import annotations

import array
import fcntl
import os
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import blake3
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.daemon.client import Client, close, error_type, message, pipe
from tests.daemon.conftest import unharmed
from tests.daemon.process import Daemon
from tests.lacking import lacking
from zstor_local import limits

OLD = b"what was there before"
LARGE = os.urandom(300_000)

as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")


@pytest.fixture
def place(tmp_path: Path, daemon: Daemon) -> Path:
    """A directory of the test's own on the store's file system."""
    directory = daemon.home / tmp_path.name
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture
def objects(client: Client) -> Iterator[None]:
    """`small` and `large`, which nothing here may change."""
    if "large" not in client.stored():
        client.write("small", b"small")
        client.write("large", LARGE)
    versions = [client.result("object.stat", key=key)["metadata"]["version"] for key in ("small", "large")]
    yield
    assert [client.result("object.stat", key=key)["metadata"]["version"] for key in ("small", "large")] == versions
    assert client.stored() == {"bystander", "small", "large"}


def made(path: Path, make: Callable[[str], object]) -> str:
    make(str(path))
    return str(path)


def listening(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def log_segment(daemon: Daemon) -> str:
    return str(next(daemon.store.glob("shards/0/log/*.log")))


def share_file(daemon: Daemon) -> str:
    return str(next(daemon.store.glob("shards/0/shares/*/*")))


# --- Paths to read from ---

PATHS: dict[str, tuple[Callable[[Daemon, Path], str], str]] = {
    "relative": (lambda daemon, place: "etc/passwd", "path_refused"),
    "empty": (lambda daemon, place: "", "path_refused"),
    "with a NUL": (lambda daemon, place: "/etc/passwd\0.txt", "path_refused"),
    "missing": (lambda daemon, place: str(place / "missing"), "io_error"),
    "beneath a file": (lambda daemon, place: "/etc/passwd/x", "io_error"),
    "too long": (lambda daemon, place: "/" + "x" * 5_000, "io_error"),
    "a loop of links": (lambda daemon, place: made(place / "loop", lambda path: os.symlink(path, path)), "io_error"),
    "a directory": (lambda daemon, place: str(place), "path_refused"),
    "a FIFO": (lambda daemon, place: made(place / "fifo", os.mkfifo), "path_refused"),
    "a socket": (lambda daemon, place: made(place / "socket", listening), "path_refused"),
    "an endless device": (lambda daemon, place: "/dev/zero", "path_refused"),
    "a terminal": (lambda daemon, place: "/dev/tty", "path_refused"),
    "the daemon's environment": (lambda daemon, place: "/proc/self/environ", "path_refused"),
    "the daemon's descriptor": (lambda daemon, place: "/proc/self/fd/0", "path_refused"),
    "procfs": (lambda daemon, place: "/proc/version", "path_refused"),
    "sysfs": (lambda daemon, place: "/sys/kernel/notes", "path_refused"),
    "the key": (lambda daemon, place: str(daemon.key_file), "path_refused"),
    "a link to the key": (lambda daemon, place: made(place / "link", lambda path: os.symlink(daemon.key_file, path)), "path_refused"),
    "a hard link to the key": (lambda daemon, place: made(place / "hard", lambda path: os.link(daemon.key_file, path)), "path_refused"),
    "a way round to the key": (lambda daemon, place: f"{daemon.store}/../../config/zstor/master.key", "path_refused"),
    "the metastore": (lambda daemon, place: str(daemon.store / "metastore.sqlite"), "path_refused"),
    "a hard link to the metastore": (
        lambda daemon, place: made(place / "hard", lambda path: os.link(daemon.store / "metastore.sqlite", path)),
        "path_refused",
    ),
    "the index": (lambda daemon, place: str(daemon.store / "index.sqlite"), "path_refused"),
    "a log segment": (lambda daemon, place: log_segment(daemon), "path_refused"),
    "a share": (lambda daemon, place: share_file(daemon), "path_refused"),
    "a marker": (lambda daemon, place: str(daemon.store / "shards/0/marker"), "path_refused"),
    "the socket": (lambda daemon, place: daemon.socket, "path_refused"),
    "the socket's lock": (lambda daemon, place: daemon.socket + ".lock", "path_refused"),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_is_no_file_to_store_is_refused(objects: None, daemon: Daemon, client: Client, place: Path, name: str) -> None:
    make, error = PATHS[name]
    reply = client.call("object.write_file", {"key": "stolen", "path": make(daemon, place)})
    assert error_type(reply) == error
    assert reply["error"]["data"]["hint"]


def test_forty_fifos_block_nobody(objects: None, client: Client, place: Path) -> None:
    os.mkfifo(place / "fifo")
    for number in range(60):  # more than there are threads
        client.request("object.write_file", {"key": f"{number}", "path": str(place / "fifo")})
    assert {error_type(client.reply()) for _ in range(60)} == {"path_refused"}


@as_user
def test_a_file_that_may_not_be_read(objects: None, client: Client, place: Path) -> None:
    (place / "unreadable").write_bytes(b"x")
    (place / "unreadable").chmod(0)
    assert client.refusal("object.write_file", key="k", path=str(place / "unreadable")) == "io_error"


def test_an_absurdly_large_sparse_file_that_is_announced_smaller(objects: None, client: Client, place: Path) -> None:
    with (place / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    assert client.refusal("object.write_file", key="k", path=str(place / "sparse"), expected_size=17) == "incomplete"


@pytest.mark.parametrize("change", ["cut to nothing", "cut by one byte", "longer by one byte", "another byte"])
@pytest.mark.parametrize("by", ["path", "fd"])
def test_a_file_that_changes_while_it_is_read_is_refused(objects: None, client: Client, place: Path, change: str, by: str) -> None:
    size = 1 << 28
    with (place / "file").open("w+b") as file:
        file.truncate(size)
        told: dict[str, object] = {"fd": 0} if by == "fd" else {"path": str(place / "file")}
        fds = [file.fileno()] if by == "fd" else []
        client.request("object.write_file", {"key": "small", **told, "_meta": {"progressToken": 1}}, fds=fds)
        assert client.reply()["method"] == "notifications/progress"
        if change == "another byte":
            os.pwrite(file.fileno(), b"x", 0)
        else:
            file.truncate({"cut to nothing": 0, "cut by one byte": size - 1, "longer by one byte": size + 1}[change])
        while "method" in (reply := client.reply()):
            pass
    assert error_type(reply) == "path_refused"
    assert client.read("small") == b"small"


# --- Paths to write to ---


def test_a_destination_is_replaced_whole_and_keeps_its_mode(objects: None, client: Client, place: Path) -> None:
    target = place / "file"
    target.write_bytes(OLD)
    target.chmod(0o640)
    before = target.stat().st_ino
    client.result("object.read_file", key="large", path=str(target))
    assert target.read_bytes() == LARGE
    assert target.stat().st_mode & 0o7777 == 0o640
    assert target.stat().st_ino != before
    (place / "new").unlink(missing_ok=True)
    client.result("object.read_file", key="small", path=str(place / "new"))
    assert (place / "new").stat().st_mode & 0o7777 == 0o600
    assert sorted(path.name for path in place.iterdir()) == ["file", "new"]


def test_a_link_in_the_destinations_place_is_replaced_and_not_followed(objects: None, client: Client, place: Path) -> None:
    (place / "precious").write_bytes(OLD)
    (place / "link").symlink_to(place / "precious")
    client.result("object.read_file", key="small", path=str(place / "link"))
    assert (place / "precious").read_bytes() == OLD
    assert not (place / "link").is_symlink()
    assert (place / "link").read_bytes() == b"small"


@pytest.mark.parametrize("existing", ["a file", "a link", "a dangling link"])
def test_exclusive_writes_over_nothing(objects: None, client: Client, place: Path, existing: str) -> None:
    target = place / "file"
    if existing == "a file":
        target.write_bytes(OLD)
    else:
        if existing == "a link":
            (place / "precious").write_bytes(OLD)
        target.symlink_to(place / "precious")
    before = {path: os.lstat(path) for path in place.iterdir()}
    assert client.refusal("object.read_file", key="large", path=str(target), mode="exclusive") == "already_exists"
    assert {path: os.lstat(path) for path in place.iterdir()} == before


def test_append_adds_to_what_is_there(objects: None, client: Client, place: Path) -> None:
    target = place / "file"
    for _ in range(2):
        client.result("object.read_file", key="small", path=str(target), mode="append")
    client.result("object.read_file", key="large", path=str(target), mode="append")
    assert target.read_bytes() == b"smallsmall" + LARGE
    (place / "other name").hardlink_to(target)
    assert client.refusal("object.read_file", key="small", path=str(target), mode="append") == "path_refused"
    (place / "link").symlink_to(target)
    assert client.refusal("object.read_file", key="small", path=str(place / "link"), mode="append") == "io_error"
    assert target.read_bytes() == b"smallsmall" + LARGE


DESTINATIONS: dict[str, tuple[Callable[[Daemon, Path], str], str]] = {
    "relative": (lambda daemon, place: "file", "path_refused"),
    "the root": (lambda daemon, place: "/", "path_refused"),
    "dots": (lambda daemon, place: f"{place}/..", "path_refused"),
    "a directory": (lambda daemon, place: str(place), "path_refused"),
    "in no directory": (lambda daemon, place: str(place / "missing/file"), "io_error"),
    "in a file": (lambda daemon, place: "/etc/passwd/file", "io_error"),
    "a name too long": (lambda daemon, place: str(place / ("x" * 300)), "io_error"),
    "a FIFO": (lambda daemon, place: made(place / "fifo", os.mkfifo), "path_refused"),
    "a socket": (lambda daemon, place: made(place / "socket", listening), "path_refused"),
    "a device": (lambda daemon, place: "/dev/null", "path_refused"),
    "procfs": (lambda daemon, place: "/proc/self/oom_score_adj", "io_error"),
    "the key": (lambda daemon, place: str(daemon.key_file), "path_refused"),
    "the key by a hard link": (lambda daemon, place: made(place / "hard", lambda path: os.link(daemon.key_file, path)), "path_refused"),
    "a key to be": (lambda daemon, place: str(daemon.store / "new"), "path_refused"),
    "the metastore": (lambda daemon, place: str(daemon.store / "metastore.sqlite"), "path_refused"),
    "the metastore's log": (lambda daemon, place: str(daemon.store / "metastore.sqlite-wal"), "path_refused"),
    "a log segment": (lambda daemon, place: log_segment(daemon), "path_refused"),
    "a share": (lambda daemon, place: share_file(daemon), "path_refused"),
    "a new file in a shard": (lambda daemon, place: str(daemon.store / "shards/0/shares/file"), "path_refused"),
    "the store by a link": (
        lambda daemon, place: made(place / "link", lambda path: os.symlink(daemon.store, path)) + "/file",
        "path_refused",
    ),
    "the configuration, not there yet": (lambda daemon, place: str(daemon.config_file), "path_refused"),
    "the socket": (lambda daemon, place: daemon.socket, "path_refused"),
    "beside the socket": (lambda daemon, place: daemon.socket + ".new", "path_refused"),
}


@pytest.mark.parametrize("name", DESTINATIONS)
def test_a_destination_that_is_none_is_refused(objects: None, daemon: Daemon, client: Client, place: Path, name: str) -> None:
    make, error = DESTINATIONS[name]
    key = daemon.key_file.read_bytes()
    path = make(daemon, place)
    for mode in ("truncate", "append"):
        reply = client.call("object.read_file", {"key": "small", "path": path, "mode": mode})
        assert error_type(reply) == error, mode
        assert name != "relative" or reply["error"]["message"] == "'file' is not absolute"
    assert client.call("object.read_file", {"key": "small", "path": path, "mode": "exclusive"})["error"]["code"] > 0
    assert daemon.key_file.read_bytes() == key


@as_user
def test_a_directory_that_may_not_be_written(objects: None, client: Client, place: Path) -> None:
    place.chmod(0o500)
    assert client.refusal("object.read_file", key="small", path=str(place / "file")) == "io_error"
    place.chmod(0o700)


@pytest.mark.parametrize("mode", ["truncate", "append", "exclusive"])
def test_a_destination_without_room_stays_as_it_was(objects: None, daemon: Daemon, client: Client, place: Path, mode: str) -> None:
    target = place / "file"
    if mode != "exclusive":
        target.write_bytes(OLD)
    _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert client.refusal("object.read_file", key="large", path=str(target), mode=mode) == "io_error"
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert [path.read_bytes() for path in place.iterdir()] == ([OLD] if mode != "exclusive" else [])


# --- Allowed roots ---


ROOTED = """\
allowed_roots = ['~/root']

[authority]
kind = "itsyouonline"
url = "http://127.0.0.1:9"
credentials_file = "~/root/api-key"
keys_file = "~/root/service.pem"
"""


@pytest.fixture(scope="module")
def rooted_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("rooted") / "home"
    with Daemon(home) as daemon:
        for name in ("root", "root/inside", "outside"):
            (home / name).mkdir()
            (home / name / "file").write_bytes(name.encode())
        daemon.config_file.parent.mkdir(parents=True)
        daemon.config_file.write_text(ROOTED)
        (home / "root/api-key").write_text('client_id = "me"\nclient_secret = "open sesame"\n')
        (home / "root/api-key").chmod(0o600)
        public = ec.generate_private_key(ec.SECP384R1()).public_key()
        (home / "root/service.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        yield daemon.start()


@pytest.fixture
def rooted(rooted_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon that opens paths beneath `root` in its home only."""
    with unharmed(rooted_daemon):
        yield rooted_daemon


def test_beneath_a_root_paths_work(rooted: Daemon) -> None:
    with rooted.client() as client:
        for path in ("root/file", "root/inside/file", "root//inside/./file"):
            client.result("object.write_file", key="k", path=f"{rooted.home}/{path}")
        assert client.read("k") == b"root/inside"
        client.result("object.read_file", key="k", path=f"{rooted.home}/root/inside/new")
        assert (rooted.home / "root/inside/new").read_bytes() == b"root/inside"
        client.result("object.delete", key="k")


@pytest.mark.parametrize(
    "path",
    ["outside/file", "root/../outside/file", "root/link", "root/directory/file", "root/inside/../../outside/file", "rootfile", "root"],
)
def test_out_of_a_root_nothing_works(rooted: Daemon, path: str) -> None:
    links = {"link": "outside/file", "directory": "outside"}
    for name, target in links.items():
        if not (rooted.home / "root" / name).is_symlink():
            (rooted.home / "root" / name).symlink_to(rooted.home / target)
    with rooted.client() as client:
        assert client.refusal("object.write_file", key="k", path=f"{rooted.home}/{path}") == "path_refused"
        if path != "root/link":  # which would be replaced
            assert client.refusal("object.read_file", key="bystander", path=f"{rooted.home}/{path}") == "path_refused"
    assert (rooted.home / "outside/file").read_bytes() == b"outside"


def test_the_configuration_is_the_daemons_own(rooted: Daemon) -> None:
    with rooted.client() as client, rooted.config_file.open("r+b") as file:
        assert client.refusal("object.write_file", key="k", fd=0, fds=[file.fileno()]) == "path_refused"
        assert client.refusal("object.read_file", key="bystander", fd=0, fds=[file.fileno()]) == "path_refused"


@pytest.mark.parametrize("name", ["api-key", "service.pem"])
def test_the_files_that_the_configuration_names_are_the_daemons_own(rooted: Daemon, name: str) -> None:
    path = rooted.home / "root" / name
    before = path.read_bytes()
    with rooted.client() as client:
        assert client.refusal("object.write_file", key="k", path=str(path)) == "path_refused"
        assert client.refusal("object.read_file", key="bystander", path=str(path)) == "path_refused"
    assert path.read_bytes() == before


# Puts a link to `outside` and the directory `inside` in each other's place, without end.
EXCHANGE = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
os.chdir(sys.argv[1])
print("ready", flush=True)
while True:
    libc.renameat2(-100, b"inside", -100, b"swap", 2)
"""


def test_no_race_of_links_leads_out_of_a_root(rooted: Daemon) -> None:
    (rooted.home / "root/swap").symlink_to(rooted.home / "outside")
    stolen = "blake3:" + blake3.blake3(b"outside").hexdigest()
    path = f"{rooted.home}/root/inside/file"
    command = [sys.executable, "-c", EXCHANGE, str(rooted.home / "root")]
    outcomes: list[str] = []
    with rooted.client() as client, subprocess.Popen(command, stdout=subprocess.PIPE) as attacker:
        try:
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == b"ready\n"
            for _ in range(20):
                for _ in range(limits.CALLS_PER_CONNECTION):
                    client.request("object.write_file", {"key": "stolen", "path": path, "expected_digest": stolen})
                client.request("object.read_file", {"key": "bystander", "path": path, "sync": False})
                for _ in range(limits.CALLS_PER_CONNECTION + 1):
                    reply = client.reply()
                    outcomes.append("done" if "result" in reply else error_type(reply))
        finally:
            attacker.kill()
        assert "stolen" not in client.stored()
    assert (rooted.home / "outside/file").read_bytes() == b"outside"
    assert [name.name for name in (rooted.home / "outside").iterdir()] == ["file"]
    assert outcomes.count("incomplete") > 100  # opened inside
    assert outcomes.count("path_refused") > 100  # met the link


# --- Descriptors ---


def opened_at(path: str | Path, flags: int) -> Callable[[ExitStack], int]:
    """A way to open a file for one test."""

    def open_it(opened: ExitStack) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC)
        opened.callback(close, fd)
        return fd

    return open_it


def event_poll(opened: ExitStack) -> int:
    return opened.enter_context(select.epoll()).fileno()


def datagram_socket(opened: ExitStack) -> int:
    return opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).fileno()


def listening_socket(opened: ExitStack) -> int:
    listener = opened.enter_context(socket.socket(socket.AF_INET))
    listener.listen()
    return listener.fileno()


def unconnected_socket(opened: ExitStack) -> int:
    return opened.enter_context(socket.socket(socket.AF_UNIX)).fileno()


WRONG_KINDS: dict[str, Callable[[ExitStack], int]] = {
    "a directory": opened_at("/etc", os.O_RDONLY | os.O_DIRECTORY),
    "a directory by O_PATH": opened_at("/etc", os.O_PATH),
    "a file by O_PATH": opened_at("/etc/passwd", os.O_PATH),
    "/dev/null": opened_at("/dev/null", os.O_RDWR),
    "/dev/zero": opened_at("/dev/zero", os.O_RDWR),
    "/dev/full": opened_at("/dev/full", os.O_RDWR),
    "procfs": opened_at("/proc/self/oom_score_adj", os.O_RDWR),
    "a namespace, which has no offset": opened_at("/proc/self/ns/mnt", os.O_RDONLY),
    "epoll": event_poll,
    "a datagram socket": datagram_socket,
    "a listening socket": listening_socket,
    "a socket without a peer": unconnected_socket,
}
CALLS = ["write", "write_file", "write_stream", "read_file", "read_stream"]


@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_a_descriptor_of_a_kind_that_holds_no_bytes_is_refused(objects: None, client: Client, kind: str) -> None:
    with ExitStack() as opened:
        fd = WRONG_KINDS[kind](opened)
        for method in CALLS:
            key = "large" if method.startswith("read") else "new"
            assert client.refusal(f"object.{method}", key=key, fd=0, fds=[fd]) in ("path_refused", "io_error"), method


def test_a_descriptor_of_the_daemons_own_is_refused(objects: None, daemon: Daemon, client: Client) -> None:
    own = [daemon.key_file, daemon.store / "metastore.sqlite", daemon.store / "index.sqlite", daemon.store / "lock"]
    own += [daemon.store / "shards/0/marker", Path(log_segment(daemon)), Path(share_file(daemon)), Path(daemon.socket + ".lock")]
    for path in own:
        with ExitStack() as opened:
            fd = opened_at(path, os.O_RDWR)(opened)
            for method in CALLS:
                key = "large" if method.startswith("read") else "new"
                assert client.refusal(f"object.{method}", key=key, fd=0, fds=[fd]) == "path_refused", (path, method)


def test_a_descriptor_that_is_open_the_other_way_is_refused(objects: None, client: Client, place: Path) -> None:
    (place / "file").write_bytes(OLD)
    with ExitStack() as opened:
        for_writing, for_reading = (opened_at(place / "file", flags)(opened) for flags in (os.O_WRONLY, os.O_RDONLY))
        source, sink = pipe(opened)
        assert client.refusal("object.write_file", key="new", fd=0, fds=[for_writing]) == "path_refused"
        assert client.refusal("object.read_file", key="small", fd=0, fds=[for_reading]) == "path_refused"
        assert client.refusal("object.write_stream", key="new", fd=0, fds=[sink]) == "path_refused"
        assert client.refusal("object.read_stream", key="small", fd=0, fds=[source]) == "path_refused"
        assert client.refusal("object.write_file", key="new", fd=0, fds=[source]) == "path_refused"  # a pipe is no file
        assert client.refusal("object.read_file", key="small", fd=0, fds=[sink]) == "path_refused"
    assert (place / "file").read_bytes() == OLD


def test_an_index_that_no_descriptor_has_is_refused(objects: None, client: Client) -> None:
    with ExitStack() as opened:
        reader, _ = pipe(opened)
        assert client.refusal("object.write_stream", key="new", fd=0) == "invalid_params"
        for index in (-1, 1, 2, 253, 2**31):
            assert client.refusal("object.write_stream", key="new", fd=index, fds=[reader]) == "invalid_params"


@pytest.mark.parametrize("count", [3, 100, 253])
def test_more_descriptors_than_a_call_takes_are_refused(objects: None, client: Client, count: int) -> None:
    with ExitStack() as opened:
        reader, _ = pipe(opened)
        assert client.refusal("object.write_stream", key="new", fd=0, fds=[reader] * count) == "invalid_params"


def test_one_descriptor_serves_one_call_of_a_batch(objects: None, client: Client, place: Path) -> None:
    (place / "file").write_bytes(b"small")
    with (place / "file").open("rb") as file:
        members = [message("object.write_file", {"key": f"new {number}", "fd": 0}, identity=number).strip() for number in range(3)]
        client.send(f"[{','.join(members)}]\n", [file.fileno()])
        replies = client.reply()
    assert sorted("done" if "result" in reply else error_type(reply) for reply in replies) == [
        "done",
        "invalid_params",
        "invalid_params",
    ]
    (key,) = (reply["result"]["metadata"]["key"] for reply in replies if "result" in reply)
    assert client.read(key) == b"small"
    client.result("object.delete", key=key)


def test_descriptors_that_belong_to_nothing_are_closed_at_once(objects: None, daemon: Daemon, client: Client) -> None:
    before = daemon.descriptors()
    with ExitStack() as opened:
        reader, _ = pipe(opened)
        for line in ("rpc.ping", "object.stat", "no.such.method"):
            client.call(line, {}, fds=[reader, reader])
        client.send(" ", [reader])
        client.send("garbage\n", [reader] * 5)
        assert error_type(client.reply()) == "parse_error"
        client.send(message("object.write", {"value": 1}), [reader])
        assert error_type(client.reply()) == "invalid_params"
        with daemon.client() as gone:
            gone.result("rpc.ping")  # the daemon has accepted it: one that it accepts later looks like one left
            gone.send('{"jsonrpc": "2.0", ', [reader] * 2)
        for _ in range(3):
            client.send(" ", [reader] * 253)
        client.result("rpc.ping")
        for _ in range(10_000):  # the connection that is gone takes a moment
            if daemon.descriptors() == before:
                break
            client.result("rpc.ping")
        assert daemon.descriptors() == before


def test_descriptors_without_end_before_a_message_end_the_connection(objects: None, daemon: Daemon) -> None:
    with ExitStack() as opened, daemon.client() as flood:
        reader, _ = pipe(opened)
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(limits.JSON_DEPTH):
                flood.send("[", [reader] * 100)
        assert [reply["error"]["code"] for reply in flood.rest()] == [-32602]


def test_credentials_and_other_control_data_are_no_descriptors(objects: None, client: Client) -> None:
    line = message("object.write_stream", {"key": "new", "fd": 0}).encode()
    control = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, array.array("i", [os.getpid(), os.getuid(), os.getgid()]))]
    client.socket.sendmsg([line], control)
    assert error_type(client.reply()) == "invalid_params"


@pytest.mark.skipif(os.geteuid() != 0, reason="another's limits are root's to change, and only root sees how many there are")
def test_descriptors_that_the_daemon_has_no_room_for(objects: None, daemon: Daemon, client: Client) -> None:
    limit = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd")) + 1
    with ExitStack() as opened, daemon.client() as flood:
        reader, _ = pipe(opened)
        flood.result("rpc.ping")
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (used + 3, limit[1]))
        try:
            with suppress(BrokenPipeError):  # it may be closed behind the first byte already
                flood.send(message("rpc.ping"), [reader] * 100)
            replies = flood.rest()
        finally:
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limit)
        assert [error_type(reply) for reply in replies] == ["io_error"]
    assert client.result("rpc.ping") == "pong"


# --- Descriptors that are right ---


def test_a_file_is_read_from_its_offset_on_which_ends_behind_it(objects: None, client: Client, place: Path) -> None:
    (place / "file").write_bytes(b"head" + LARGE)
    with (place / "file").open("rb", buffering=0) as file:
        file.seek(4)
        for key in ("new", "rest"):
            client.result("object.write_file", key=key, fd=0, fds=[file.fileno()])
        assert file.tell() == 4 + len(LARGE)
    assert client.read("new") == LARGE
    assert client.read("rest") == b""
    for key in ("new", "rest"):
        client.result("object.delete", key=key)


@pytest.mark.parametrize("flags", [0, os.O_APPEND])
@pytest.mark.parametrize("method", ["object.read_file", "object.read_stream"])
def test_two_reads_into_one_file_stand_one_behind_the_other(
    objects: None, client: Client, place: Path, method: str, flags: int
) -> None:
    with ExitStack() as opened:
        fd = opened_at(made(place / "file", lambda path: Path(path).write_bytes(b"")), os.O_WRONLY | flags)(opened)
        os.write(fd, b"head")
        for key in ("large", "small", "large"):
            client.result(method, key=key, fd=0, fds=[fd])
        os.write(fd, b"tail")
    assert (place / "file").read_bytes() == b"head" + LARGE + b"small" + LARGE + b"tail"


def test_reads_into_one_file_at_the_same_time_do_not_meet(objects: None, client: Client, place: Path) -> None:
    """As what others write there: a shell's log, say."""
    with (place / "file").open("wb", buffering=0) as file:
        file.write(b"head")
        for key in ("large", "small"):
            client.request("object.read_file", {"key": key, "fd": 0}, fds=[file.fileno()])
        assert all("result" in client.reply() for _ in range(2))
        file.write(b"tail")
    assert (place / "file").read_bytes() in (b"head" + LARGE + b"small" + b"tail", b"head" + b"small" + LARGE + b"tail")


def test_a_read_that_fails_leaves_a_files_offset_where_it_was(objects: None, client: Client) -> None:
    with ExitStack() as opened:
        memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        opened.callback(close, memory)
        os.write(memory, b"head")
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        assert client.refusal("object.read_file", key="large", fd=0, fds=[memory]) == "io_error"
        assert os.lseek(memory, 0, os.SEEK_CUR) == 4


def test_a_file_whose_offset_has_no_room_behind_it(objects: None, client: Client) -> None:
    with ExitStack() as opened:
        memory = os.memfd_create("test")
        opened.callback(close, memory)
        os.lseek(memory, (1 << 63) - 2, os.SEEK_SET)
        for method in ("object.read_file", "object.read_stream"):
            assert client.refusal(method, key="large", fd=0, fds=[memory]) == "io_error"
        assert os.lseek(memory, 0, os.SEEK_CUR) == (1 << 63) - 2


def test_memory_files_are_files(objects: None, client: Client) -> None:
    with ExitStack() as opened:
        memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        opened.callback(close, memory)
        client.result("object.read_file", key="large", fd=0, fds=[memory])
        os.lseek(memory, 0, os.SEEK_SET)
        client.result("object.write_file", key="new", fd=0, fds=[memory])
        assert client.read("new") == LARGE
        client.result("object.delete", key="new")
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        assert client.refusal("object.read_file", key="large", fd=0, fds=[memory]) == "io_error"


def test_pipes_whose_other_end_is_closed(objects: None, client: Client) -> None:
    with ExitStack() as opened:
        reader, writer = pipe(opened)
        close(writer)
        client.result("object.write_stream", key="new", fd=0, fds=[reader])  # an empty pipe is an empty object
        assert client.read("new") == b""
        client.result("object.delete", key="new")
        reader, writer = pipe(opened)
        close(reader)
        assert client.refusal("object.read_stream", key="large", fd=0, fds=[writer]) == "io_error"
        ours, theirs = (opened.enter_context(end) for end in socket.socketpair())
        ours.close()
        assert client.refusal("object.read_stream", key="large", fd=0, fds=[theirs.fileno()]) == "io_error"


def test_the_clients_own_flags_stay(objects: None, client: Client) -> None:
    """O_NONBLOCK belongs to the open file, which both have."""
    with ExitStack() as opened:
        reader, writer = pipe(opened)
        client.result("object.read_stream", key="small", fd=0, fds=[writer])
        assert os.get_blocking(writer)
        os.set_blocking(reader, False)
        close(writer)
        client.result("object.write_stream", key="new", fd=0, fds=[reader])
        assert not os.get_blocking(reader)
        client.result("object.delete", key="new")


FULL = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.daemon.client import Client
import os
with Client(sys.argv[2]) as client:
    fd = os.open(sys.argv[3] + "/file", os.O_RDWR | os.O_CREAT)
    print(client.refusal("object.read_file", key="large", fd=0, fds=[fd]))
    print(client.refusal("object.read_stream", key="large", fd=0, fds=[fd]))
"""


def test_a_full_disk_behind_a_descriptor(objects: None, daemon: Daemon, place: Path) -> None:
    root = str(Path(__file__).parents[2])
    script = 'mount -t tmpfs -o size=64k tmpfs "$1" && exec "$2" -c "$3" "$4" "$5" "$1"'
    users: list[str] = [] if os.geteuid() == 0 else ["-Ur"]
    command: list[Any] = ["unshare", *users, "-m", "sh", "-c", script, "sh", place, sys.executable, FULL, root, daemon.socket]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.stderr.startswith(("mount:", "unshare:")):
        lacking("no file system can be mounted here")
    assert child.stdout.split() == ["no_space", "no_space"], child.stderr


def test_a_shard_that_was_added_is_the_daemons_own(objects: None, client: Client, tmp_path: Path) -> None:
    added = tmp_path / "added"
    shard = client.result("shard.add", url=str(added))["id"]
    marker = added / "marker"
    before = marker.read_bytes()
    assert client.refusal("object.read_file", key="small", path=str(marker)) == "path_refused"
    assert client.refusal("object.write_file", key="new", path=str(marker)) == "path_refused"
    assert marker.read_bytes() == before
    client.result("shard.remove", shard=shard, force=True)
