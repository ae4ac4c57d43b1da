"""A nearly full disk is told of in time, takes no writes in the end, and lets deletes go on."""

from __future__ import annotations

import errno
import math
import os
import threading
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.daemon.client import SAFETY_NET_SECONDS
from tests.simulation.world import Mount, World
from tests.store.home import CHUNK, Home, content, delete, freed, get, name, put, share_place
from tests.troubled_files import TroubledFiles
from zstor_local.errors import NoSpace, NotFound
from zstor_local.metastore.base import (
    CommitRefused,
    Garbage,
    Intent,
    MetastoreDamaged,
    MetastoreNotOpened,
    Owed,
    StoreState,
    Transaction,
)
from zstor_local.metastore.reserve import Reserve
from zstor_local.metastore.sqlite import SqliteMetastore
from zstor_local.model.ids import ShareId, StoreId, Version
from zstor_local.model.policy import Policy
from zstor_local.shards.base import Capacity
from zstor_local.shards.directory import DirectoryShard
from zstor_local.store import engines, mending
from zstor_local.store.caller import Caller, Nobody
from zstor_local.store.engines import RESERVE, SqliteEngines
from zstor_local.store.free_space import FreeSpace, kept_free
from zstor_local.store.mending import MANY_IN_VAIN
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.system import RealFiles

GIB = 1 << 30
A_MOMENT = 0.2  # in which what is not held up gets done; a machine that takes longer notices less
PLENTY, NEARLY, FULL = Capacity(100 * GIB, 50 * GIB), Capacity(100 * GIB, 5 * GIB), Capacity(100 * GIB, 20 << 20)


def with_free_space(store: Store, metastore: Capacity, shards: dict[int, Capacity]) -> FreeSpace:
    """The disks are as full as this from now on."""
    store.free_space._looked = math.inf
    store.free_space._note(metastore, shards)
    return store.free_space


def test_a_small_disk_keeps_a_part_and_a_large_one_a_few_segments() -> None:
    assert kept_free(Capacity(100 * GIB, 0)) == 32 << 20
    assert kept_free(Capacity(50 << 20, 0)) == 1 << 20


async def test_a_disk_with_less_than_a_tenth_free_is_told_of_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        monkeypatch.setattr(store.pool, "group", str)
        assert with_free_space(store, PLENTY, dict.fromkeys(range(3), PLENTY)).warnings() == []
        told = with_free_space(store, NEARLY, {0: PLENTY, 1: NEARLY, 2: FULL}).warnings()
        assert [line.split(" has ")[0].split(" is ")[0] for line in told] == [
            "the disk of the metastore",
            "the disk of shard 1",
            "the disk of shard 2",
        ]
        assert "5 % free" in told[0]
        assert "takes no writes" in told[2]
        assert set(told) <= set(store.warnings())
        monkeypatch.setattr(store.pool, "group", lambda number: "one disk")
        assert [line.split(" is full")[0] for line in with_free_space(store, PLENTY, dict.fromkeys(range(3), FULL)).warnings()] == [
            "the disk of shard 0, 1, 2"
        ]
        with_free_space(store, NEARLY, dict.fromkeys(range(3), NEARLY))
        await put(store, "a", content(1, 10_000))  # a warning stops nothing


async def test_a_full_server_is_told_of_and_sent_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectoryShard, "on_disk", None)
    monkeypatch.setattr(DirectoryShard, "capacity", lambda shard: FULL if shard.number == 1 else PLENTY)
    home.policy = Policy(2, 4, chunk_size=CHUNK)
    async with home.open() as store:
        monkeypatch.setattr(store.pool, "group", str)
        await store.presence.look()
        store.free_space._looked = -math.inf
        assert store.free_space.full_shards() == {1}
        assert store.health == "degraded"
        (told,) = (line for line in store.warnings() if "shard 1" in line)
        assert "the disk of shard 1 is full" in told
        stored = await put(store, "a", content(1, 3 * CHUNK))
        assert stored.owed == 1
        assert not share_place(store, stored, stored.record.placement.index(1)).path.exists()
        assert await get(store, "a") == content(1, 3 * CHUNK)


async def test_a_disk_that_takes_no_writes_degrades_the_store(home: Home) -> None:
    async with home.open() as store:
        with_free_space(store, NEARLY, dict.fromkeys(range(3), NEARLY))
        assert (store.health, {shard.state for shard in store.shard_statuses()}) == ("ok", {"ok"})
        with_free_space(store, FULL, dict.fromkeys(range(3), PLENTY))
        assert store.health == "degraded"
        with_free_space(store, PLENTY, {0: PLENTY, 1: FULL, 2: PLENTY})
        assert (store.health, [shard.state for shard in store.shard_statuses()]) == ("degraded", ["ok", "full", "ok"])


async def test_writes_stop_at_the_reserve_and_reads_and_deletes_go_on(home: Home) -> None:
    async with home.open() as store:
        for size in (10_000, 700_000):
            await put(store, str(size), content(1, size))
        for rooms in ((FULL, dict.fromkeys(range(3), PLENTY)), (PLENTY, dict.fromkeys(range(3), FULL))):
            with_free_space(store, *rooms)
            for size in (100, 10_000, 700_000):
                with pytest.raises(NoSpace):
                    await put(store, "new", content(2, size))
            assert await get(store, "10000") == content(1, 10_000)
        await delete(store, "10000")
        await delete(store, "700000")
        await freed(store)
        assert home.share_files() == []
        with pytest.raises(NotFound):
            await get(store, "10000")


async def test_a_full_shard_is_passed_over_while_others_have_room(tmp_path: Path) -> None:
    home = Home(tmp_path, Policy(2, 3, chunk_size=256 * 1024), shards=4)
    async with home.open() as store:
        with_free_space(store, PLENTY, {0: PLENTY, 1: FULL, 2: PLENTY, 3: PLENTY})
        for number in range(8):
            stored = await put(store, str(number), content(number, 10_000))
            assert 1 not in stored.record.placement
            assert (stored.owed, stored.shares_owed) == (0, 0)
        assert store.objects.find(name("0")).record.size == 10_000


@pytest.mark.parametrize("size", [10_000, 700_000])
async def test_where_there_is_no_other_a_full_shard_is_owed_its_shares_and_keeps_its_reserve(tmp_path: Path, size: int) -> None:
    home = Home(tmp_path, Policy(2, 4, chunk_size=256 * 1024))
    async with home.open() as store:
        old = await put(store, "old", content(1, size))
        full = store.pool.get(0)
        assert full is not None
        with_free_space(store, PLENTY, {0: FULL, 1: PLENTY, 2: PLENTY, 3: PLENTY})
        stored = await put(store, "new", content(2, size))
        assert (stored.owed, stored.shares_owed) == (1, 1)
        share = ShareId(stored.version, stored.record.placement.index(0))
        await store.mending.mend()
        await store.repair_all.run(Nobody())
        assert not full.has(share, small=stored.record.small)
        assert [(debt.shard, debt.kind) for debt in store.metastore.debts()] == [(0, Owed.SHARE)]
        assert await get(store, "new") == content(2, size)
        place = share_place(store, old, old.record.placement.index(0))
        place.flip(50)  # what it has had it has room for
        await store.shares_health.repair(old, Nobody())
        assert (await store.shares_health.check(store.objects.find(name("old")), Nobody())).status == "optimal"
        await delete(store, "old")
        with_free_space(store, PLENTY, dict.fromkeys(range(4), PLENTY))
        await store.mending.mend()
        assert full.has(share, small=stored.record.small)
        assert store.metastore.debts_count() == 0


async def test_a_full_shard_is_not_offered_what_it_is_owed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.policy = Policy(2, 4, chunk_size=256 * 1024)
    async with home.open() as store:
        with_free_space(store, PLENTY, {0: FULL, 1: PLENTY, 2: PLENTY, 3: PLENTY})
        assert (await put(store, "a", content(1, 10_000))).owed == 1
        offered: list[Stored] = []

        async def note(stored: Stored, caller: Caller) -> None:
            offered.append(stored)

        monkeypatch.setattr(store.shares_health, "repair", note)  # which would read all other shares first
        await store.mending.mend()
        assert not offered
        with_free_space(store, PLENTY, dict.fromkeys(range(4), PLENTY))
        await store.mending.mend()
        assert len(offered) == 1


@pytest.mark.parametrize("size", [10_000, 700_000])
async def test_a_share_whose_shard_is_away_does_not_go_to_a_full_one(tmp_path: Path, size: int) -> None:
    home = Home(tmp_path, Policy(2, 3, chunk_size=256 * 1024), shards=4)
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        (spare,) = {0, 1, 2, 3} - set(stored.record.placement)
        home.take_away(stored.record.placement[0])
        with_free_space(store, PLENTY, {**dict.fromkeys(range(4), PLENTY), spare: FULL})
        repaired = await store.shares_health.repair(stored, Nobody())
        assert (repaired.lacking, repaired.stored.record.placement) == (1, stored.record.placement)
        with_free_space(store, PLENTY, dict.fromkeys(range(4), PLENTY))
        repaired = await store.shares_health.repair(stored, Nobody())
        assert (repaired.lacking, repaired.stored.record.placement) == (0, (spare, *stored.record.placement[1:]))


async def test_a_shard_that_takes_nothing_is_not_offered_all_that_it_is_owed(home: Home) -> None:
    home.policy = Policy(2, 4, chunk_size=256 * 1024)
    async with home.open() as store:
        home.files.fail("fsync", lambda path: "/shards/1/" in path, errno.ENOSPC, times=None)
        for number in range(MANY_IN_VAIN + 5):
            assert (await put(store, f"{number}", content(number, 300_000))).owed == 1
        calls = home.files.calls["fsync"]
        await store.mending.mend()
        assert home.files.calls["fsync"] - calls == MANY_IN_VAIN  # each costs a reading of all other shares


async def test_what_a_shard_is_owed_it_gets_by_itself_once_it_takes_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mending, "AGAIN_SECONDS", 0.0)
    home.policy = Policy(2, 4, chunk_size=256 * 1024)
    async with home.open() as store:
        home.files.fail("fsync", lambda path: "/shards/1/" in path, errno.ENOSPC, times=None)
        assert (await put(store, "a", content(1, 700_000))).owed == 1
        home.files.heal()
        with trio.fail_after(SAFETY_NET_SECONDS):
            while True:
                news = store.committer.news()
                if not store.metastore.debts_count():
                    break
                await news.wait()
        assert (await store.shares_health.check(store.objects.find(name("a")), Nobody())).status == "optimal"


# --- The metastore's reserve ---


def adding(objects: int, **more: object) -> Transaction:
    transaction = Transaction(StoreState(1, 1, 1, objects, objects))
    for member, value in more.items():
        setattr(transaction, member, value)
    return transaction


def test_the_reserve_is_made_and_given_up_once(tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    reserve = Reserve(RealFiles(), str(path), 1 << 16)
    assert not reserve.give_up()
    reserve.keep()
    assert path.stat().st_size == 1 << 16
    assert path.stat().st_blocks * 512 >= 1 << 16
    assert reserve.give_up()
    assert not path.exists()
    assert not reserve.give_up()
    with path.open("wb") as file:  # as it comes out of a backup
        file.truncate(1 << 16)
    reserve.keep()
    assert path.stat().st_blocks * 512 >= 1 << 16


def test_a_reserve_that_is_given_up_while_it_is_being_kept_is_not_taken_for_kept(tmp_path: Path) -> None:
    """As by the threads of two spaces of a shard server: the next one that needs it would be told that it was freed."""

    class GivingUp(TroubledFiles):
        def allocate(self, fd: int, offset: int, length: int) -> None:
            super().allocate(fd, offset, length)
            other.start()
            other.join(A_MOMENT)

    path = tmp_path / "reserve"
    reserve = Reserve(GivingUp(), str(path), 1 << 16)
    other = threading.Thread(target=reserve.give_up)
    reserve.keep()
    other.join()
    is_there = path.exists()
    assert reserve.give_up() == is_there


def test_the_reserve_is_none_of_the_last_room_and_is_there_when_that_is_used_up() -> None:
    files, size = World(mounts=[Mount("/d", capacity=4 << 16)]).files, 1 << 16
    reserve = Reserve(files, "/d/reserve", size)
    others = files.open("/d/others", os.O_CREAT | os.O_RDWR)
    files.allocate(others, 0, 5 * size // 2)
    reserve.keep()
    assert not reserve.give_up()
    files.truncate(others, size)
    reserve.keep()
    assert not reserve.is_needed()
    files.allocate(others, 0, 3 * size)
    assert reserve.is_needed()
    assert files.list("/d") == ["others", "reserve"]  # nothing is left of the trial
    assert reserve.give_up()
    assert not reserve.is_needed()
    reserve.keep()  # the next checkpoint leaves the room to those for whom it was given up
    assert not reserve.give_up()
    files.close(others)


@pytest.mark.parametrize(
    ("code", "needed"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False), (errno.EROFS, False), (errno.EMFILE, False)]
)
def test_a_disk_that_fails_is_not_taken_for_one_without_room(tmp_path: Path, code: int, *, needed: bool) -> None:
    """What could not be written for want of room is refused and tried again; of anything else nobody knows what became of it."""
    files = TroubledFiles()
    reserve = Reserve(files, str(tmp_path / "reserve"), 1 << 16)
    files.fail("*", lambda path: True, code, times=None)
    reserve.keep()
    assert reserve.is_needed() is needed
    assert not reserve.give_up()
    assert [path for path in tmp_path.iterdir() if path.stat().st_size] == []


def test_a_full_metastore_gives_it_up_for_deletes_and_not_for_writes(tmp_path: Path) -> None:
    """The file of the database may not grow any more, until the reserve is gone: as on a full disk."""
    path = str(tmp_path / "metastore.sqlite")
    SqliteMetastore.create(path, StoreId(bytes(16)))

    class Tight(Reserve):
        def give_up(self) -> bool:
            metastore._writer.execute("pragma max_page_count=1000000")
            return super().give_up()

    reserve = Tight(RealFiles(), str(tmp_path / "reserve"), 1 << 16)
    reserve.keep()
    garbage = [Garbage(0, ShareId(Version(number.to_bytes(16)), 0), small=False) for number in range(2_000)]
    with closing(SqliteMetastore(path, reserve=reserve)) as metastore:
        metastore.commit(adding(5))
        metastore._writer.execute("pragma max_page_count=1")
        for wanted in (adding(6, garbage=garbage), adding(5, garbage=garbage, intents=[Intent(Version(bytes(16)), (0,))])):
            with pytest.raises(CommitRefused):
                metastore.commit(wanted)
        assert (tmp_path / "reserve").exists()
        metastore.commit(adding(4, garbage=garbage))
        assert metastore.garbage_count() == 2_000
        assert metastore.state().objects == 4
        assert not (tmp_path / "reserve").exists()
        metastore.commit(adding(5))  # there is room again: a disk that is full once more before the next checkpoint finds it
        assert (tmp_path / "reserve").exists()


async def test_a_start_on_a_full_disk_gives_it_up(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
    held = Path(home.store) / RESERVE
    SqliteEngines(home.files).open_metastore(home.store).close()

    class Full(SqliteMetastore):
        def __init__(self, path: str, *, reserve: Reserve) -> None:
            if held.exists():
                raise MetastoreNotOpened(
                    "the metastore cannot be opened: disk I/O error", no_space=True
                )  # for want of room for its -shm file
            super().__init__(path, reserve=reserve)

    assert held.exists()
    monkeypatch.setattr(engines, "SqliteMetastore", Full)
    metastore = SqliteEngines(home.files).open_metastore(home.store)
    assert metastore.state().objects == 1
    metastore.close()
    monkeypatch.setattr(engines, "SqliteMetastore", SqliteMetastore)
    home.metastore.write_bytes(b"no metastore")
    with pytest.raises(MetastoreDamaged):
        SqliteEngines(home.files).open_metastore(home.store)
    assert held.exists()  # damage is no reason
