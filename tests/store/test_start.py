"""Opening a store: made on the very first start, refused where a part is missing or wrong, read-only where it was rolled back."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.store.home import SMALL_AND_LARGE, Home, content, delete, get, put
from zstor_local.config import ShardConfig
from zstor_local.errors import CorruptRecord, NotFound, Unavailable
from zstor_local.metastore.base import CommitRefused
from zstor_local.model.ids import StoreId
from zstor_local.model.masterkey import MasterKey
from zstor_local.model.policy import Policy
from zstor_local.store import create
from zstor_local.store.faults import StoreFault, StoreInUse


def everything(home: Home) -> dict[str, bytes | None]:
    """Every path of the home with its bytes (None: a directory), but for what SQLite keeps while it runs."""
    found = {}
    for path in sorted(home.path.rglob("*")):
        if not path.name.endswith(("-shm", "-wal")):
            found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


async def refused(home: Home) -> StoreFault:
    """Why the store does not open; nothing may be created or changed by the attempt."""
    before = everything(home)
    with pytest.raises(StoreFault) as caught:
        async with home.open():
            pass
    assert everything(home) == before
    assert caught.value.hint
    return caught.value


async def made(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        await put(store, "b", content(2, 700_000))


async def check(home: Home) -> None:
    async with home.open() as store:
        assert store.health == "ok"
        assert await get(store, "a") == content(1, 10_000)
        assert await get(store, "b") == content(2, 700_000)


# --- The first start ---


async def test_the_first_start_makes_everything(home: Home) -> None:
    async with home.open() as store:
        assert store.health == "ok"
        assert len(store.pool.numbers) == home.policy.m
    names = {path.name for path in Path(home.store).iterdir()}
    assert {"metastore.sqlite", "lock", "shards"} <= names
    assert stat.S_IMODE(home.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.key_file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(home.store).stat().st_mode) == 0o700
    assert not home.key_file.with_suffix(".key.new").exists()


async def test_a_store_is_there_for_the_next_start(home: Home) -> None:
    await made(home)
    await check(home)
    await check(home)


async def test_two_homes_have_different_keys(home: Home, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Home(tmp_path / "other")
    for each in (home, other):
        async with each.open():
            pass
    keys = [MasterKey.from_text(each.key_file.read_text()) for each in (home, other)]
    assert keys[0].key != keys[1].key
    assert keys[0].store_id != keys[1].store_id


async def test_too_few_shards_for_the_policy_make_no_store(home: Home) -> None:
    home.shards = 2
    config = home.config()
    assert len(config.shards) == 2
    fault = await refused(home)
    assert "m = 3" in fault.message


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"shards": ("red", "red/blue", "green")}, "shard 1 .* within the directory of shard 0"),
        ({"shards": ("red/blue", "green", "red")}, "shard 0 .* within the directory of shard 2"),
        ({"store": "red/zstor"}, "the store .* within the directory of shard 0"),
        ({"master_key_file": "red/master.key"}, "the master key .* within the directory of shard 0"),
        ({"master_key_file": "store/master.key"}, "the master key .* within the store"),
    ],
)
async def test_a_new_store_has_its_parts_apart(home: Home, wrong: Mapping[str, Any], named: str) -> None:
    """Who deletes what a removed shard has left, or gives a copy of the store away, means nothing else."""
    names = wrong.get("shards", ("red", "blue", "green"))
    shards = tuple(ShardConfig(str(number), f"{home.path}/{name}") for number, name in enumerate(names))
    moved: dict[str, Any] = {name: f"{home.path}/{place}" for name, place in wrong.items() if name != "shards"}
    (home.path / "red").mkdir()
    before = everything(home)
    with pytest.raises(StoreFault, match=named):
        create.look(home.runtime(), home.engines, replace(home.config(), shards=shards, **moved))
    assert everything(home) == before


async def test_a_store_that_is_there_opens_as_it_was_made(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions let the key lie in it."""
    config = replace(home.config(), master_key_file=f"{home.store}/master.key")
    monkeypatch.setattr(home, "config", lambda: config)
    with monkeypatch.context() as earlier:
        earlier.setattr(create, "_check_apart", lambda config, places: None)
        await made(home)
    await check(home)


class Stopped(BaseException):
    """The process died here."""


STEPS = ["write_unfinished_key", "_fill", "finish_key"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_an_interrupted_init_is_taken_up_again(home: Home, monkeypatch: pytest.MonkeyPatch, step: str, moment: str) -> None:
    original = getattr(create, step)

    def stop(*args: object) -> None:
        if moment == "after":
            original(*args)
        raise Stopped

    monkeypatch.setattr(create, step, stop)
    with pytest.raises(Stopped):
        async with home.open():
            pass
    monkeypatch.undo()
    unfinished = home.key_file.with_suffix(".key.new")
    begun = unfinished.read_text() if unfinished.exists() else None
    await made(home)
    await check(home)
    if begun is not None:
        assert home.key_file.read_text() == begun


@pytest.mark.parametrize(
    ("operation", "where"),
    [("allocate", "/shards/1/"), ("fsync", "master.key"), ("mkdir", "/shards/2"), ("pwritev", "/marker"), ("rename", "metastore")],
)
async def test_an_init_that_found_a_full_disk_is_taken_up_again(home: Home, operation: str, where: str) -> None:
    home.files.fail(operation, lambda path: where in path, errno.ENOSPC, times=2)
    with pytest.raises(StoreFault, match="cannot be made"):
        async with home.open():
            pass
    assert not home.key_file.exists()
    home.files.heal()
    await made(home)
    await check(home)


async def test_an_init_that_misses_a_disk_says_so_and_is_taken_up_when_it_is_mounted(home: Home) -> None:
    home.files.fail("mkdir", lambda path: path.endswith("/shards/2"), errno.ENOENT)
    with pytest.raises(StoreFault, match=f"/shards/2: there is no {home.store}/shards; its disk may not be mounted"):
        async with home.open():
            pass
    home.files.heal()
    await made(home)
    await check(home)


# --- Parts without the others ---


async def test_a_key_without_its_store_is_a_disk_that_is_not_mounted(home: Home) -> None:
    await made(home)
    shutil.rmtree(home.store)
    fault = await refused(home)
    assert "no store at" in fault.message
    assert "mount" in fault.hint


async def test_an_empty_mount_point_in_place_of_the_store_stays_empty(home: Home) -> None:
    await made(home)
    shutil.rmtree(home.store)
    Path(home.store).mkdir()
    await refused(home)


async def test_a_store_without_its_key_is_refused(home: Home) -> None:
    await made(home)
    home.key_file.unlink()
    fault = await refused(home)
    assert "no master key" in fault.message
    assert "zstor key" in fault.hint


async def test_a_shard_without_key_and_store_is_refused(home: Home) -> None:
    await made(home)
    home.key_file.unlink()
    home.metastore.unlink()
    (Path(home.store) / "index.sqlite").unlink()
    fault = await refused(home)
    assert "is a shard of store" in fault.message


# --- The key file ---


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
async def test_a_key_that_others_may_touch_is_refused(home: Home, mode: int) -> None:
    await made(home)
    home.key_file.chmod(mode)
    fault = await refused(home)
    assert f"mode {mode:o}" in fault.message
    assert "chmod 600" in fault.hint


async def test_a_key_of_another_user_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    await made(home)
    status = home.files.status
    for owner, good in ((home.files.own_uid(), True), (0, True), (4_321, False)):
        monkeypatch.setattr(home.files, "status", lambda fd, owner=owner: replace(status(fd), uid=owner))
        if good:
            await made(home)
        else:
            fault = await refused(home)
            assert "uid 4321" in fault.message
            assert f"chown {home.files.own_uid()} " in fault.hint


@pytest.mark.parametrize(("mode", "good"), [(0o777, False), (0o702, False), (0o775, True), (0o755, True), (0o1777, True)])
async def test_a_key_that_anybody_may_replace_is_refused(home: Home, mode: int, *, good: bool) -> None:
    await made(home)
    home.key_file.parent.chmod(mode)
    if good:
        await made(home)
    else:
        fault = await refused(home)
        assert f"mode {mode:o}" in fault.message
        assert fault.hint == f"chmod o-w {home.key_file.parent}"


@pytest.mark.parametrize("text", ["", "garbage", "zstor master key 1\n", "zstor master key 2\nstore 00\nkey 00\n", "\0" * 100])
async def test_a_key_file_of_something_else_is_refused(home: Home, text: str) -> None:
    await made(home)
    home.key_file.write_text(text)
    fault = await refused(home)
    assert "is not a master key" in fault.message


async def test_a_key_file_that_is_no_file_is_refused(home: Home) -> None:
    await made(home)
    home.key_file.unlink()
    os.mkfifo(home.key_file, 0o600)
    before = sorted(os.listdir(home.store))
    with pytest.raises(StoreFault, match="not a regular file"):
        async with home.open():
            pass
    assert sorted(os.listdir(home.store)) == before


async def test_another_stores_key_is_refused_by_name(home: Home) -> None:
    await made(home)
    home.key_file.write_text(MasterKey(StoreId(b"another store 16"), bytes(32)).to_text())
    fault = await refused(home)
    assert b"another store 16".hex() in fault.message


async def test_a_wrong_key_with_the_right_store_is_refused(home: Home) -> None:
    await made(home)
    right = MasterKey.from_text(home.key_file.read_text())
    home.key_file.write_text(MasterKey(right.store_id, bytes(32)).to_text())
    fault = await refused(home)
    assert "does not open with the master key" in fault.message
    home.key_file.write_text(right.to_text())
    await check(home)


# --- The metastore ---


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "first page"])
async def test_a_corrupt_metastore_is_refused_and_rebuild_named(home: Home, damage: str) -> None:
    await made(home)
    data = home.metastore.read_bytes()
    changed = {"garbage": b"garbage" * 1_000, "cut": data[:5_000], "empty": b"", "first page": b"\xff" * 4_096 + data[4_096:]}
    home.metastore.write_bytes(changed[damage])
    fault = await refused(home)
    assert "zstor rebuild" in fault.hint


async def test_a_metastore_whose_own_records_are_damaged_is_refused(home: Home) -> None:
    await made(home)
    async with home.open() as store:
        store.metastore._writer.execute("update record set sealed=zeroblob(200) where name=x'73746f7265'")  # type: ignore[attr-defined]
    with pytest.raises(StoreFault, match="does not open"):
        async with home.open():
            pass


async def test_damage_in_the_metastore_hurts_only_what_lies_there(home: Home) -> None:
    await made(home)
    async with home.open() as store:
        for number in range(50):
            await put(store, f"key {number}", content(number, 1_000))
        store.metastore._writer.execute("update record set kind=99 where name=x'61'")  # type: ignore[attr-defined]
        for attempt in (get(store, "a"), put(store, "a", b"new"), delete(store, "a")):
            with pytest.raises(CorruptRecord) as caught:
                await attempt
            assert "zstor rebuild" in (caught.value.hint or "")
        assert await get(store, "b") == content(2, 700_000)
        await put(store, "b", b"new")
        assert await get(store, "key 7") == content(7, 1_000)
        assert store.health == "ok"


async def test_a_metastore_in_which_the_namespaces_cannot_be_read_is_refused_and_rebuild_named(home: Home) -> None:
    await made(home)
    with closing(sqlite3.connect(home.metastore, isolation_level=None)) as db:
        db.execute("update record set name = x'6e616d6573706163652fff' where cast(name as text) like 'namespace/%'")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with home.open():
            pass
    (fault,) = caught.value.exceptions
    assert isinstance(fault, StoreFault)
    assert "zstor rebuild" in fault.hint


async def test_a_metastore_whose_counters_cannot_be_is_only_read(home: Home) -> None:
    """With a flipped bit in the last sequence that may be used: what came next was below what it replaced, for a rebuild."""
    async with home.open() as store:
        await put(store, "a", content(1, 100))
        reserved = store.metastore.state().sequence - 1
    with closing(sqlite3.connect(home.metastore)) as db, db:
        db.execute("update store set reserved=?", (reserved,))
    async with home.open() as store:
        assert "zstor rebuild" in (store.read_only or "")
        with pytest.raises(Unavailable):
            await put(store, "a", content(2, 100))
        assert await get(store, "a") == content(1, 100)
    home.rebuild()
    async with home.open() as store:
        await put(store, "a", content(3, 100))
    home.rebuild()
    async with home.open() as store:
        assert await get(store, "a") == content(3, 100)


async def test_a_rolled_back_metastore_is_only_read(home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await made(home)
    home.copy_metastore(tmp_path / "copy")
    async with home.open() as store:
        await put(store, "c", b"written later")
        await put(store, "d", b"and another")
    home.restore_metastore(tmp_path / "copy")
    async with home.open() as store:
        assert store.health == "readonly"
        assert "zstor rebuild" in (store.read_only or "")
        assert f"the store is read-only: {store.read_only}" in caplog.text  # who starts it sees why
        assert await get(store, "a") == content(1, 10_000)
        with pytest.raises(NotFound):
            await get(store, "c")
        for attempt in (put(store, "a", b"new"), put(store, "b", content(3, 700_000)), delete(store, "a")):
            with pytest.raises(Unavailable, match="rebuild"):
                await attempt
    async with home.open() as store:
        assert store.health == "readonly"
        assert await get(store, "a") == content(1, 10_000)


async def test_a_copy_that_was_made_while_the_daemon_ran_is_only_read(home: Home, tmp_path: Path) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        home.copy_metastore(tmp_path / "copy")
        for number in range(3):
            await put(store, "a", content(number, 10_000))
    home.restore_metastore(tmp_path / "copy")
    async with home.open() as store:
        assert store.health == "readonly"
        assert "older than shard" in (store.read_only or "")


async def test_a_shard_that_a_later_daemon_wrote_makes_the_store_read_only(home: Home, tmp_path: Path) -> None:
    await made(home)
    home.copy_metastore(tmp_path / "copy")
    async with home.open():
        pass  # a start alone, which writes nothing but its segments
    home.restore_metastore(tmp_path / "copy")
    async with home.open() as store:
        assert store.health == "readonly"
        assert "later daemon" in (store.read_only or "")


async def test_a_store_that_cannot_begin_its_life_is_only_read(home: Home) -> None:
    await made(home)
    home.fail_commits(CommitRefused("the disk of the metastore is full", no_space=True))
    async with home.open() as store:
        assert store.health == "readonly"
        assert await get(store, "b") == content(2, 700_000)
        with pytest.raises(Unavailable, match="full"):
            await put(store, "a", b"new")
    home.heal_commits()
    await check(home)


# --- The index of the logs ---


@pytest.mark.parametrize("content_", [None, b"", b"garbage" * 1_000], ids=["gone", "empty", "garbage"])
async def test_the_index_may_be_thrown_away(home: Home, content_: bytes | None) -> None:
    await made(home)
    index = Path(home.store) / "index.sqlite"
    index.unlink()
    if content_ is not None:
        index.write_bytes(content_)
    await check(home)


# --- One daemon, one configuration ---


async def test_a_second_daemon_is_refused(home: Home) -> None:
    async with home.open():
        with pytest.raises(StoreInUse):
            async with home.open():
                pass
    async with home.open():
        pass


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"


@pytest.mark.parametrize("first_start", [True, False])
async def test_a_store_that_another_process_holds_is_refused(home: Home, first_start: bool) -> None:
    if first_start:
        Path(home.store).mkdir()
    else:
        await made(home)
    lock = Path(home.store) / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(StoreInUse):
            async with home.open():
                pass
        process.communicate()
    assert home.key_file.exists() is not first_start
    async with home.open():
        pass


async def test_a_shard_may_move_where_the_configuration_says(home: Home) -> None:
    home.shards = 3
    await made(home)
    home.root(0).rename(home.path / "moved")
    (home.path / "moved").rename(home.path / "disks" / "zero")
    config = home.config()
    moved = replace(config.shards[0], url=f"file://{home.path}/disks/zero")
    home.config = lambda: replace(config, shards=(moved, *config.shards[1:]))  # type: ignore[method-assign]
    await check(home)


async def test_a_shard_that_the_store_does_not_have_is_refused(home: Home) -> None:
    home.shards = 3
    await made(home)
    home.shards = 4
    before = home.config()
    assert len(before.shards) == 4
    with pytest.raises(StoreFault, match="disk3"):
        async with home.open():
            pass


async def test_the_policy_of_a_namespace_outlives_the_configuration(home: Home) -> None:
    await made(home)
    home.policy = Policy(1, 3, chunk_size=home.policy.chunk_size)
    async with home.open() as store:
        assert (await put(store, "c", b"1")).record.policy.k == 2
        assert (await put(store, "c", b"1", namespace="new")).record.policy.k == 1
        for size in SMALL_AND_LARGE:
            await put(store, "c", content(1, size))
            assert await get(store, "c") == content(1, size)
