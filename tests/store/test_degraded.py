"""Stores with shards away: what still works, what is owed, and what is refused with which words."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.store.home import CHUNK, SMALL_AND_LARGE, Home, content, delete, freed, get, name, put, share_place, small_shares
from zstor_local import limits
from zstor_local.errors import NoSpace, NotEnoughShards, NotFound, OutcomeUnknown, Unreadable
from zstor_local.metastore.base import Debt, Owed
from zstor_local.model.policy import Policy
from zstor_local.shards.share_files import TEMPORARY
from zstor_local.store.store import Store
from zstor_local.store.writes import WriteOptions


@pytest.fixture(autouse=True)
def two_of_four(home: Home) -> None:
    """2 of 4: a write needs three shards, a read two."""
    home.policy = Policy(2, 4, chunk_size=CHUNK)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
@pytest.mark.parametrize("when", ["before the start", "while it runs"])
async def test_with_one_shard_away_everything_works_and_its_share_is_owed(home: Home, size: int, when: str) -> None:
    async with home.open() as store:
        await put(store, "old", content(1, size))
        if when == "while it runs":
            home.take_away(3)
            await check_with_one_away(home, store, size)
    if when == "before the start":
        home.take_away(3)
        async with home.open() as store:
            await check_with_one_away(home, store, size)


async def check_with_one_away(home: Home, store: Store, size: int) -> None:
    assert store.health == "degraded"
    assert store.pool.states()["3"] == "missing"
    assert await get(store, "old") == content(1, size)
    new = await put(store, "new", content(2, size))
    assert (new.owed, new.shares_owed) == (1, 1)
    index = new.record.placement.index(3)
    debts = {(debt.kind, debt.shard, debt.index) for debt in store.metastore.debts_of(new.version)}
    assert (Owed.SHARE, 3, index) in debts
    assert await get(store, "new") == content(2, size)
    found = store.objects.find(name("new"))
    assert (found.version, found.owed, found.shares_owed) == (new.version, 1, 1)
    assert await delete(store, "old") == 1
    with pytest.raises(NotFound):
        await get(store, "old")
    assert not home.root(3).exists()


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_with_two_shards_away_reads_and_deletes_go_on_and_writes_say_what_to_do(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, size))
        await put(store, "b", content(2, size))
        home.take_away(0)
        home.take_away(1)
        assert await get(store, "a") == content(1, size)
        with pytest.raises(NotEnoughShards) as caught:
            await put(store, "a", content(3, size))
        assert "zstor shard replace" in (caught.value.hint or "")
        shards = caught.value.data["shards"]
        assert isinstance(shards, dict)
        assert {each: shard["state"] for each, shard in shards.items()} == {"0": "missing", "1": "missing"}
        assert await get(store, "a") == content(1, size)
        assert await delete(store, "b") == 2
    async with home.open() as store:
        assert await get(store, "a") == content(1, size)
        with pytest.raises(NotFound):
            await get(store, "b")


async def test_with_three_shards_away_reads_say_which_shares_they_miss(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        for number in (0, 1, 2):
            home.take_away(number)
        assert store.health == "degraded"
    async with home.open() as store:
        with pytest.raises(Unreadable) as caught:
            await get(store, "a")
        shares = caught.value.data["shares"]
        assert isinstance(shares, list)
        assert sum(share["state"] != "ok" for share in shares) == 3


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_refused_write_leaves_nothing(home: Home, size: int) -> None:
    async with home.open() as store:
        home.take_away(0)
        home.take_away(1)
        with pytest.raises(NotEnoughShards):
            await put(store, "a", content(1, size))
        assert store.metastore.intents() == []
        await freed(store)
        assert store.metastore.garbage_count() == 0
        assert small_shares(store) == 0
    assert home.share_files() == []


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_higher_quorum_can_be_asked_for(home: Home, size: int) -> None:
    home.write_quorum = 4
    async with home.open() as store:
        await put(store, "a", content(1, size))
        home.take_away(2)
        with pytest.raises(NotEnoughShards):
            await put(store, "a", content(2, size))
        assert await get(store, "a") == content(1, size)


@pytest.mark.parametrize("quorum", [None, 3])
async def test_the_quorum_is_never_lower_than_the_policys(home: Home, quorum: int | None) -> None:
    home.policy = Policy(3, 4, chunk_size=CHUNK)
    home.write_quorum = quorum
    async with home.open() as store:
        home.take_away(2)
        with pytest.raises(NotEnoughShards):
            await put(store, "a", b"1")


async def test_a_spare_shard_takes_the_share_of_one_that_is_away(home: Home) -> None:
    home.shards = 6
    async with home.open() as store:
        home.take_away(0)
        home.take_away(1)
        for number in range(8):
            stored = await put(store, str(number), content(number, 10_000))
            assert stored.owed == 0
            assert not {0, 1} & set(stored.record.placement)


async def test_a_shard_that_comes_back_while_the_daemon_runs_is_used_again(home: Home) -> None:
    async with home.open() as store:
        home.take_away(2)
        assert (await put(store, "a", b"1")).owed == 1
        await home.return_to(store, 2)
        assert store.health == "ok"
        assert (await put(store, "b", b"2")).owed == 0


async def test_what_a_shard_is_owed_after_a_long_absence_is_never_held_all_at_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    async with home.open() as store:
        home.take_away(2)
        for number in range(20):
            await put(store, f"{number}", content(number, 100))
        debts = store.metastore.debts

        def counted(shard: int | None = None, limit: int | None = None, after: Debt | None = None) -> Sequence[Debt]:
            found = debts(shard, limit, after)
            read.append(len(found))
            return found

        monkeypatch.setattr("zstor_local.store.mending.PAGE", 7)
        monkeypatch.setattr(store.metastore, "debts", counted)
        await home.return_to(store, 2)
        await store.mending.mend()
        assert store.metastore.debts_count() == 0
        assert (max(read), sum(read) >= 20) == (7, True)


async def test_large_records_are_told_a_few_in_a_commit(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    async with home.open() as store:
        home.take_away(2)
        for number in range(20):
            await store.rows.put("name", f"{number}", content(number, 3_000))
        monkeypatch.setattr(limits, "GROUP_BYTES", 10_000)
        monkeypatch.setattr(store.mending, "wake", lambda: None)  # the test mends
        home.engines.before_commit = lambda each: told.append(len(each.debts_paid))
        await home.return_to(store, 2)
        await store.mending.mend()
        assert store.metastore.debts_count() == 0
        assert max(told) <= 4


async def test_an_overwrite_pays_the_debts_of_the_version_it_replaces(home: Home) -> None:
    async with home.open() as store:
        await put(store, "another", b"")
        home.take_away(2)
        await put(store, "a", content(1, 10_000))
        assert store.metastore.debts_count() > 0
        await home.return_to(store, 2)
        await put(store, "a", content(2, 10_000))
        assert store.metastore.debts_count() == 0


async def test_a_shard_whose_log_fails_is_dropped_and_owed(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        home.files.fail("pwritev", lambda path: "/shards/1/log" in path, errno.EIO)
        stored = await put(store, "a", content(2, 10_000))
        assert (stored.owed, stored.shares_owed) == (1, 1)
        assert store.pool.states()["1"] == "failed"
        assert await get(store, "a") == content(2, 10_000)
    async with home.open() as store:
        assert store.health == "ok"
        assert await get(store, "a") == content(2, 10_000)


async def test_a_failed_flush_of_the_one_file_system_acknowledges_nothing(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        home.files.fail("syncfs", lambda path: True, errno.EIO)
        home.files.fail("fdatasync", lambda path: True, errno.EIO, times=4)
        with pytest.raises((NotEnoughShards, OutcomeUnknown)):
            await put(store, "a", content(2, 10_000))
        home.files.heal()
        assert await get(store, "a") == content(1, 10_000)
        with pytest.raises(NotEnoughShards):
            await put(store, "a", content(3, 10_000))
    async with home.open() as store:
        assert await get(store, "a") == content(1, 10_000)
        await put(store, "a", content(4, 10_000))
        assert await get(store, "a") == content(4, 10_000)


def is_unfinished(path: str) -> bool:
    """Whether it is the file of a large share that is on its way in."""
    return Path(path).parent.name == TEMPORARY


async def test_full_disks_are_told_as_such(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        home.files.fail("pwritev", is_unfinished, errno.ENOSPC, times=None)
        with pytest.raises(NoSpace) as caught:
            await put(store, "a", content(2, 700_000))
        assert caught.value.data["shard"] == "0"
        assert "`zstor rm`" in str(caught.value.hint)
        assert await get(store, "a") == content(1, 700_000)
        assert await delete(store, "a") == 0
        await freed(store)
    assert home.share_files() == []


async def test_a_full_metastore_is_told_as_such_and_later_writes_work(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1")
        writer = store.metastore._writer  # type: ignore[attr-defined]
        writer.execute(f"pragma max_page_count={writer.execute('pragma page_count').fetchone()[0]}")
        with pytest.raises(NoSpace) as caught:
            await put(store, "new", b"2", WriteOptions(user={"note": "x" * 16_000}))
        assert "`zstor rm`" in str(caught.value.hint)
        assert await get(store, "a") == b"1"
        writer.execute("pragma max_page_count=100000")
        await put(store, "a", b"2")
        assert store.health == "ok"
    async with home.open() as store:
        assert await get(store, "a") == b"2"


async def test_an_emptied_shard_directory_stays_empty(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
    shutil.rmtree(home.root(1))
    home.root(1).mkdir()
    async with home.open() as store:
        assert store.pool.states()["1"] == "missing"
        assert (await put(store, "a", content(2, 10_000))).owed == 1
        assert await get(store, "a") == content(2, 10_000)
    assert list(home.root(1).iterdir()) == []


async def test_the_status_of_every_shard_is_told(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
    home.take_away(1)
    async with home.open() as store:
        home.take_away(2)
        statuses = {status.id: status for status in store.shard_statuses()}
        assert [statuses[str(number)].state for number in range(4)] == ["ok", "missing", "missing", "ok"]
        assert "may not be mounted" in (statuses["1"].last_error or "")
        assert "unmounted or emptied" in (statuses["2"].last_error or "")
        assert statuses["0"].used is not None
        assert statuses["0"].free is not None
        assert statuses["1"].used is None


async def test_a_bad_share_of_a_shard_away_and_one_damaged_one_are_both_survived(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 10_000))
        place = share_place(store, stored, 0)
        home.take_away(stored.record.placement[1])
        place.flip(40)
        assert await get(store, "a") == content(1, 10_000)
