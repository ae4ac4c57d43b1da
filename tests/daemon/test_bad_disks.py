"""Shards that go away, are full or read-only, and files that rot: exact bytes while k good shares are left, else a typed error."""

from __future__ import annotations

import base64
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.client import Client, error_type
from tests.daemon.conftest import unharmed
from tests.daemon.process import Daemon, Ended
from tests.lacking import lacking

OBJECTS = {
    f"{kind} {number}": random.Random(f"{kind} {number}").randbytes(size)
    for kind, size in {"empty": 0, "small": 3_000, "middle": 200_000, "large": 2_500_000}.items()
    for number in range(3)
}
K, M = 4, 6


@pytest.fixture(scope="module")
def filled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a daemon that stored the objects, each twice, and was stopped."""
    home = tmp_path_factory.mktemp("filled") / "home"
    with Daemon(home) as daemon:
        daemon.start()
        with daemon.client() as client:
            for key, value in OBJECTS.items():
                client.write(key, b"an old version")
                client.write(key, value)
        assert daemon.stop() == 0
    return home


@pytest.fixture
def filled(filled_home: Path, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon, not started, that has the objects."""
    home = tmp_path / "home"
    shutil.copytree(filled_home, home)
    # The shards' places are in the store's records: the copy names its own.
    (home / "config/zstor/config.toml").write_text(
        "".join(f"[[shard]]\nid = '{number}'\nurl = '{home}/data/zstor/shards/{number}'\n" for number in range(M))
    )
    with Daemon(home) as daemon:
        yield daemon


def shard(daemon: Daemon, number: int) -> Path:
    return daemon.store / "shards" / str(number)


def states(client: Client) -> list[str]:
    return [found["state"] for found in client.result("daemon.status")["shards"]]


def everything_is_exact(client: Client) -> None:
    for key, value in OBJECTS.items():
        assert client.read(key) == value, key


def everything_is_exact_or_typed(client: Client) -> set[str]:
    """The types of the errors that there were."""
    found = set()
    for key, value in OBJECTS.items():
        reply = client.call("object.read", {"key": key})
        if "error" in reply:
            found.add(error_type(reply))
        else:
            assert client.read(key) == value
    return found


# --- Shards that go away while the daemon runs ---


def remove(directory: Path) -> None:
    shutil.rmtree(directory)


def empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


def put_another_in_its_place(directory: Path) -> None:
    number = int(directory.name)
    shutil.rmtree(directory)
    shutil.copytree(directory.parent / str((number + 1) % M), directory)


def move_away(directory: Path) -> None:
    directory.rename(directory.parent.parent / f"away {directory.name}")


LOSSES = [remove, empty, put_another_in_its_place, move_away]


@pytest.mark.parametrize("lose", LOSSES)
def test_two_shards_lost_while_it_runs_are_missing_and_nothing_else_is(filled: Daemon, lose: Callable[[Path], None]) -> None:
    filled.start()
    with filled.client() as client, filled.client() as bystander:
        everything_is_exact(client)
        for number in (1, 3):
            lose(shard(filled, number))
        everything_is_exact(client)
        found = states(client)
        assert [found[number] for number in (1, 3)] == ["missing", "missing"]
        assert client.result("daemon.status")["state"] == "degraded"
        assert client.refusal("object.write", key="new", value="x") == "not_enough_shards"  # five of six are the least
        assert "new" not in client.stored()
        assert bystander.silent
    for number in (1, 3):
        assert not (shard(filled, number) / "shares").exists() or lose is put_another_in_its_place  # never filled again by itself


def test_with_one_shard_lost_writes_are_valid(filled: Daemon) -> None:
    filled.start()
    with filled.client() as client:
        remove(shard(filled, 2))
        for key, value in {"small new": b"x", "large new": os.urandom(1_500_000)}.items():
            metadata = client.write(key, value)
            assert (metadata["health"], metadata["owed"] > 0) == ("valid", True)
            assert client.read(key) == value
    assert not shard(filled, 2).exists()


@pytest.mark.parametrize("lose", [remove, empty, move_away])
def test_two_shards_lost_before_a_start(filled: Daemon, lose: Callable[[Path], None]) -> None:
    for number in (0, 5):
        lose(shard(filled, number))
    filled.start()
    with filled.client() as client:
        assert [states(client)[number] for number in (0, 5)] == ["missing", "missing"]
        everything_is_exact(client)


def test_of_two_shards_with_one_identity_neither_is_used(filled: Daemon) -> None:
    put_another_in_its_place(shard(filled, 2))
    filled.start()
    with filled.client() as client:
        shards = client.result("daemon.status")["shards"]
        assert [each["state"] for each in shards] == ["ok", "ok", "missing", "failed", "ok", "ok"]
        assert "one is a copy" in shards[3]["last_error"]
        everything_is_exact(client)


def test_a_shard_that_comes_back_counts_again_after_a_start(filled: Daemon) -> None:
    filled.start()
    with filled.client() as client:
        move_away(shard(filled, 4))
        client.write("new", b"while it was away")
    (filled.store / "away 4").rename(shard(filled, 4))
    filled.kill()
    filled.start()
    with filled.client() as client:
        assert states(client) == ["ok"] * M
        everything_is_exact(client)
        assert client.read("new") == b"while it was away"


def test_three_shards_lost_are_too_many_and_say_so(filled: Daemon) -> None:
    filled.start()
    with filled.client() as client:
        for number in (0, 1, 2):
            remove(shard(filled, number))
        assert everything_is_exact_or_typed(client) == {"unreadable"}
        for key in OBJECTS:
            if key.startswith("large"):
                reply = client.call("object.read", {"key": key})
                assert error_type(reply) == "unreadable", key
                assert len(reply["error"]["data"]["shares"]) >= 3
        assert client.result("rpc.ping") == "pong"
        assert client.stored() >= OBJECTS.keys()


# --- Files that rot ---


def flip_bytes(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(20):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def cut(path: Path, dice: random.Random) -> None:
    os.truncate(path, dice.randrange(path.stat().st_size))


def empty_file(path: Path, dice: random.Random) -> None:
    path.write_bytes(b"")


def overwrite_with_garbage(path: Path, dice: random.Random) -> None:
    path.write_bytes(dice.randbytes(path.stat().st_size))


def add_garbage(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes() + dice.randbytes(10_000))


def zero(path: Path, dice: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


ROTS = [flip_bytes, cut, empty_file, overwrite_with_garbage, add_garbage, zero]


def rot_shards(daemon: Daemon, rot: Callable[[Path, random.Random], None], numbers: range) -> None:
    dice = random.Random(rot.__name__)
    for number in numbers:
        for path in [*shard(daemon, number).glob("log/*"), *shard(daemon, number).glob("shares/*/*")]:
            rot(path, dice)


@pytest.mark.parametrize(("rot", "when"), [*((rot, "before a start") for rot in ROTS), *((rot, "while it runs") for rot in ROTS[::2])])
def test_two_shards_whose_every_file_has_rotted_change_no_byte(
    filled: Daemon, rot: Callable[[Path, random.Random], None], when: str
) -> None:
    if when == "before a start":
        rot_shards(filled, rot, range(2))
    filled.start()
    if when == "while it runs":
        rot_shards(filled, rot, range(2))
    with filled.client() as client:
        everything_is_exact(client)
        client.result("daemon.status")
    assert "Traceback" not in filled.said


@pytest.mark.parametrize("rot", ROTS)
def test_more_rotten_shards_than_that_give_typed_errors_and_no_wrong_byte(
    filled: Daemon, rot: Callable[[Path, random.Random], None]
) -> None:
    rot_shards(filled, rot, range(3))
    filled.start()
    with filled.client() as client:
        assert everything_is_exact_or_typed(client) <= {"unreadable"}
        assert client.result("rpc.ping") == "pong"
    assert "Traceback" not in filled.said


def test_a_rotten_metastore_page_gives_typed_errors_and_no_wrong_byte(filled: Daemon) -> None:
    for seed in range(4):
        path = filled.store / "metastore.sqlite"
        original = path.read_bytes()
        flip_bytes(path, random.Random(seed))
        status = None
        try:
            filled.start()
        except Ended as ended:
            status = ended.status
        else:
            with filled.client() as client:
                assert everything_is_exact_or_typed(client) <= {"corrupt_record", "unreadable", "unavailable", "not_found", "io_error"}
        assert status in (None, 78)
        filled.kill()
        path.write_bytes(original)
        for left in filled.store.glob("metastore.sqlite-*"):
            left.unlink()


# --- Full and read-only disks ---

# Each shard on a small file system of its own, in a mount namespace that ends with the daemon.
MOUNTS = 'for shard in 0 1 2 3 4 5; do mount -t tmpfs -o size=20m tmpfs "$SHARDS/$shard" || exit 99; done; exec "$@"'


def mounted(daemon: Daemon, mounts: str) -> None:
    """Have the daemon run behind these mounts; without them the test says what is lacking."""
    for number in range(M):
        shard(daemon, number).mkdir(parents=True, exist_ok=True)
    daemon.environment["SHARDS"] = str(daemon.store / "shards")
    daemon.wrapper = ("unshare", *([] if os.geteuid() == 0 else ["-Ur"]), "-m", "sh", "-c", mounts, "sh")
    probe = subprocess.run([*daemon.wrapper, "true"], env=daemon.environment, capture_output=True, check=False)
    if probe.returncode != 0:
        lacking("no file system can be mounted here")


def test_full_disks_refuse_writes_and_go_on_serving(new_daemon: Daemon) -> None:
    mounted(new_daemon, MOUNTS)
    new_daemon.start()
    with new_daemon.client() as client:
        kept: dict[str, bytes] = {}
        types = set()
        for number in range(16):
            value = os.urandom(6_000_000)
            reply = client.call("object.write", {"key": f"{number}", "value_b64": base64.b64encode(value).decode()})
            if "error" in reply:
                types.add(error_type(reply))
            else:
                kept[f"{number}"] = value
        assert types
        assert types <= {"no_space", "not_enough_shards"}
        assert client.stored() == kept.keys()
        for key, value in kept.items():
            assert client.read(key) == value
        for key in kept:
            client.result("object.delete", key=key)
        assert client.stored() == set()
        assert client.result("rpc.ping") == "pong"


READ_ONLY = """
for place in "$SHARDS/0" "$SHARDS/1"; do mount --bind "$place" "$place" && mount -o remount,bind,ro "$place" || exit 99; done
exec "$@"
"""


def test_read_only_shards_are_readable_and_two_of_them_too_many_for_writes(filled: Daemon) -> None:
    mounted(filled, READ_ONLY)
    filled.start()
    with filled.client() as client:
        assert states(client) == ["readonly"] * 2 + ["ok"] * 4
        everything_is_exact(client)
        for value in ("eA==", base64.b64encode(bytes(500_000)).decode()):
            assert client.refusal("object.write", key="large 0", value_b64=value) == "not_enough_shards"
        everything_is_exact(client)


READ_ONLY_STORE = 'mount --bind "$SHARDS/.." "$SHARDS/.." && mount -o remount,bind,ro "$SHARDS/.." || exit 99; exec "$@"'


def test_a_read_only_store_is_told_with_what_may_have_made_it_so(filled: Daemon) -> None:
    mounted(filled, READ_ONLY_STORE)
    ended = filled.refuses_to_start()
    assert ended.status == 78
    assert "Read-only file system\n" in filled.said
    assert "copy the store to another one, and name that as `store` in the configuration" in filled.said


def test_nothing_is_left_of_a_quiet_life(filled: Daemon) -> None:
    filled.start()
    with unharmed(filled), filled.client() as client:
        everything_is_exact(client)
