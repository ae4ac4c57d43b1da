"""Which paths a client may name, told by who it is and what lies there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.store.test_destination import Random, fill
from zstor_local.config import Config, ShardConfig
from zstor_local.errors import IoError, PathRefused
from zstor_local.sandbox import Mount, Sandbox
from zstor_local.store.paths import Paths
from zstor_local.store.protected import Protected
from zstor_local.system import RealClientFiles, RealFiles


def paths_of(protected: Protected, roots: tuple[str, ...] = ()) -> Paths:
    return Paths(RealFiles(), RealClientFiles(), Random(), protected, roots)


def ours() -> str | None:
    return RealClientFiles().mount_namespace(os.getpid())


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    yield file
    assert file.read_bytes() == b"content"


def ended() -> int:
    """The id of a process that is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def refused(paths: Paths, path: Path | str, mounts: str | None) -> None:
    with pytest.raises(PathRefused):
        paths.open_input(str(path), mounts)
    with pytest.raises(PathRefused), paths.destination(str(path), mounts, "truncate", sync=False):
        pass
    paths.close()


def test_who_connected_and_ended_may_have_done_so_for_somebody_in_a_sandbox(file: Path) -> None:
    refused(paths_of(Protected([], [])), file, RealClientFiles().mount_namespace(ended()))


def test_who_is_elsewhere_has_the_allowed_roots_alone(file: Path) -> None:
    refused(paths_of(Protected([], [])), file, "mnt:[1]")
    with pytest.raises(PathRefused, match="may be another file for this client"):
        paths_of(Protected([], [])).open_input(str(file), "mnt:[1]")
    for mounts, roots in (("mnt:[1]", (str(file.parent),)), (ours(), ()), (None, ())):
        paths = paths_of(Protected([], []), roots)
        os.close(paths.open_input(str(file), mounts))
        paths.close()


class OpeningSlowly(RealClientFiles):
    """Something happens while a file is opened."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self._meanwhile = meanwhile

    def open_beneath(self, root: int, path: str, flags: int, mode: int = 0o600) -> int:
        self._meanwhile()
        return super().open_beneath(root, path, flags, mode)


def test_roots_that_change_while_a_file_is_opened_are_those_of_before(file: Path) -> None:
    """A thread opens it, the event loop reads the configuration again: the number of the root's was another file's by then."""
    others = os.open("/", os.O_PATH)

    def change() -> None:
        paths.allow([str(file.parent), "/usr"])
        numbers.append(os.dup(others))

    numbers: list[int] = []
    paths = Paths(RealFiles(), OpeningSlowly(change), Random(), Protected([], []), [str(file.parent)])
    fd = paths.open_input(str(file), None)
    assert os.path.samestat(os.fstat(fd), file.stat())
    before = len(os.listdir("/proc/self/fd"))
    paths.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    for each in (others, fd, *numbers):
        os.close(each)


def test_a_descriptor_is_promised_only_where_the_client_may_open_it(tmp_path: Path) -> None:
    """A disk that is mounted read-only, a name that is too long: for the client too."""
    paths = paths_of(Protected([], []))
    with pytest.raises(IoError) as caught, paths.destination(str(tmp_path / ("x" * 300)), ours(), "truncate", sync=False):
        pass
    assert caught.value.hint == "open it yourself, where you may, and hand the descriptor over (`fd`)"
    mount = Mount(str(tmp_path), hides=False, read_only=True)
    assert (Sandbox("zstor.service", [mount]).advice(str(tmp_path), write=True) or "").startswith(f"{caught.value.hint}; or ")
    paths.close()


def test_a_shard_that_was_added_meanwhile_is_nobodys(file: Path) -> None:
    added: list[str] = []
    paths = paths_of(Protected([], [], lambda: added))
    os.close(paths.open_input(str(file), None))
    added.append(str(file.parent))
    refused(paths, file, None)


def test_a_shard_whose_disk_hung_at_first_is_nobodys_by_its_other_name_too(file: Path, tmp_path: Path) -> None:
    """The way to it cannot be told before its disk answers."""
    links: dict[str, str] = {}
    shard = ShardConfig("0", "/link/to/it")
    config = Config(store="/store", socket="/s", master_key_file="/key", shards=(shard,))
    paths = paths_of(Protected.of(config, lambda path: links.get(path, path)))
    os.close(paths.open_input(str(file), None))
    links[shard.url] = str(tmp_path)
    refused(paths, file, None)


def test_a_name_that_the_daemon_looks_for_is_not_given_to_a_clients_file(tmp_path: Path) -> None:
    next_key = tmp_path / "master.key.next"
    paths = paths_of(Protected([], [str(next_key)]))
    with pytest.raises(PathRefused, match="daemon's own"), paths.destination(str(next_key), None, "exclusive", sync=False):
        pass
    assert not next_key.exists()
    paths.close()


def test_beside_the_socket_and_the_key_there_may_be_others_files(tmp_path: Path) -> None:
    for name in ("key", "socket", "real"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "config").symlink_to(tmp_path / "real")
    beneath = str(tmp_path / "link")
    twirp = (f"unix:{beneath}/twirp", "127.0.0.1:8001")
    config = Config(f"{beneath}/store", f"{beneath}/socket", f"{beneath}/key", twirp=twirp, file=f"{beneath}/config")
    own = Protected.of(config, os.path.realpath)
    own.check_new(str(tmp_path / "other"), "other")
    for name in ("store/f", "key", "key.new", "key.next", "socket", "socket.lock", "twirp", "twirp.lock", "config", "real"):
        with pytest.raises(PathRefused, match=f"^{name} "):
            own.check_new(str(tmp_path / name), name)


def test_what_took_the_files_place_is_not_appended_to(tmp_path: Path) -> None:
    key, target = tmp_path / "key", tmp_path / "target"
    key.write_bytes(b"secret")
    target.write_bytes(b"old")
    paths = paths_of(Protected([], [str(key)]))

    def takes_its_place(fd: int) -> None:
        os.write(fd, b"new")
        key.rename(target)
        key.symlink_to(target)

    with pytest.raises(PathRefused, match="replaced"):
        fill(paths, target, "append", takes_its_place)
    assert target.read_bytes() == b"secret"
    paths.close()
