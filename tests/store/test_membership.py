"""Adding, replacing and removing shards while the store is used, with restarts in between."""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.daemon.client import SAFETY_NET_SECONDS
from tests.store.home import CHUNK, Home, content, delete, freed, get, name, put, share_place, small_shares
from tests.store.test_scrub import scrubbed
from zstor_local import limits
from zstor_local.errors import (
    AlreadyExists,
    Busy,
    Conflict,
    InvalidParams,
    IoError,
    NotEnoughShards,
    NotFound,
    OutcomeUnknown,
    ShuttingDown,
    Unavailable,
)
from zstor_local.metastore.base import CommitUnknown, Garbage, Metastore, Row, Transaction
from zstor_local.model.ids import NamespaceId
from zstor_local.model.policy import Policy
from zstor_local.model.storewide import ShardsRecord
from zstor_local.shards.marker import Marker
from zstor_local.shards.share_files import TEMPORARY
from zstor_local.store import mending
from zstor_local.store.caller import Caller, Nobody
from zstor_local.store.departures import Departures
from zstor_local.store.draining import Drain, Drained, _Cursor
from zstor_local.store.health import Health, Repaired
from zstor_local.store.jobs import Job
from zstor_local.store.shard_list import ShardList
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored

OBJECTS = {"small": 10_000, "large": 700_000, "tiny": 1, "empty": 0}


@pytest.fixture(autouse=True)
def two_of_three(home: Home) -> None:
    home.policy = Policy(2, 3, chunk_size=CHUNK)


async def fill(store: Store) -> None:
    for seed, (key, size) in enumerate(OBJECTS.items()):
        await put(store, key, content(seed, size))


async def check_objects(store: Store, *, without: str | None = None) -> None:
    """All are exact and optimal, and have no share on the shard."""
    for seed, (key, size) in enumerate(OBJECTS.items()):
        assert await get(store, key) == content(seed, size)
        stored = store.objects.find(name(key))
        checked = await store.shares_health.check(stored, Nobody())
        assert (key, checked.status) == (key, "optimal")
        assert without not in {store.pool.name(number) for number in stored.record.placement}


def spare(home: Home, what: str = "spare") -> Path:
    return home.path / what


# --- Add ---


async def test_an_added_shard_is_used_at_once_and_knows_the_store(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        entry = await store.membership.add(str(spare(home)), None)
        assert (entry.id, entry.number) == ("3", 3)
        assert store.pool.states() == dict.fromkeys("0123", "ok")
        await store.mending.mend()
        assert store.metastore.debts_count() == 0
        for number in range(40):
            await put(store, f"new {number}", b"x")
        used = Counter(shard for number in range(40) for shard in store.objects.find(name(f"new {number}")).record.placement)
        assert set(used) == {0, 1, 2, 3}
    async with home.open() as store:
        assert store.pool.states() == dict.fromkeys("0123", "ok")
        await check_objects(store)
    for number in (1, 2):
        home.take_away(number)
    report = home.rebuild(accept_loss=True)
    assert (report.seen, report.unseen) == (["0", "3"], ["1", "2"])  # the new one is found by the list, and holds copies of it
    assert report.older == []


async def test_only_an_empty_place_becomes_a_shard(home: Home) -> None:
    async with home.open() as store:
        for place, error in (("relative", InvalidParams), ("/", InvalidParams), (f"{home.path}/no/such/parent", IoError)):
            with pytest.raises(error):
                await store.membership.add(place, None)
        full = spare(home, "full")
        full.mkdir()
        (full / "file").write_text("mine")
        with pytest.raises(IoError) as caught:
            await store.membership.add(str(full), None)
        assert "not empty" in caught.value.message
        assert [each.name for each in full.iterdir()] == ["file"]
        unmarked = spare(home, "a shard that has lost its marker")
        shutil.copytree(home.root(1), unmarked, ignore=shutil.ignore_patterns("marker"))
        with pytest.raises(IoError, match="not empty"):
            await store.membership.add(str(unmarked), None)
        assert not (unmarked / "marker").exists()
        with pytest.raises(AlreadyExists):
            await store.membership.add(str(home.root(1)), None)
        stranger = Home(home.path / "stranger", home.policy)
        async with stranger.open():
            pass
        with pytest.raises(Conflict) as other:
            await store.membership.add(str(stranger.root(0)), None)
        assert "another store" in other.value.message
        assert len(store.pool.numbers) == 3


async def test_no_shard_lies_within_anothers_directory(home: Home) -> None:
    """What a removed shard has left may be deleted: the other one would go with it."""
    async with home.open() as store:
        for within in (home.root(1) / "inner", home.root(1) / "shares" / "inner"):
            with pytest.raises(Conflict, match="lies in the directory of shard 1"):
                await store.membership.add(str(within), None)
            with pytest.raises(Conflict, match="lies in the directory of shard 1"):
                await store.membership.replace("0", f"file://{within}", Nobody())
            assert not within.exists()
        await store.membership.add(f"{home.root(1)}-beside", None)
        assert store.pool.states() == dict.fromkeys("0123", "ok")


async def test_what_an_interrupted_add_left_is_no_obstacle(home: Home) -> None:
    async with home.open() as store:
        await store.membership.add(str(spare(home)), None)
        marker = (spare(home) / "marker").read_bytes()
        await store.membership.remove("3", Nobody())
        left = spare(home, "left")
        for part in ("", "log", "shares", "tmp"):
            (left / part).mkdir()
        (left / "marker").write_bytes(marker)  # of this store, but of no shard that it has
        entry = await store.membership.add(str(left), None)
        assert entry.number == 4  # numbers are never given twice
        assert store.pool.state(4) == "ok"


async def test_a_place_whose_listing_is_in_doubt_keeps_its_marker(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a shard of the store after the next start, whatever was tried in this life."""
    async with home.open() as store:
        commit = type(store.metastore).commit

        def in_doubt(metastore: Metastore, transaction: Transaction) -> None:
            commit(metastore, transaction)
            raise CommitUnknown("the disk answered with an error")

        with monkeypatch.context() as patch:
            patch.setattr(type(store.metastore), "commit", in_doubt)
            with pytest.raises(OutcomeUnknown):
                await store.membership.add(str(spare(home)), None)
        for again in (store.membership.add(str(spare(home)), None), store.membership.replace("0", str(spare(home)), Nobody())):
            with pytest.raises(Unavailable):
                await again
    async with home.open() as store:
        assert store.pool.states() == dict.fromkeys("0123", "ok")


async def test_a_place_keeps_its_marker_when_it_is_tried_again(home: Home) -> None:
    """Where the metastore is lost before the logs hear that the first list never came to be, a rebuild believes that one."""
    async with home.open() as store:
        await fill(store)
        for operation in ("syncfs", "fdatasync"):
            home.files.fail(operation, lambda path: "/log/" in path, errno.EIO, times=None)
        with pytest.raises(OutcomeUnknown):
            await store.membership.replace("2", str(spare(home)), Nobody())
        for shard in ("1", "2"):
            with pytest.raises(NotEnoughShards):
                await store.membership.replace(shard, str(spare(home)), Nobody())
    home.files.heal()
    home.metastore.unlink()
    assert home.rebuild().seen == ["0", "1", "2", "2-replaced"]
    async with home.open() as store:
        await store.presence.look()
        assert store.pool.states()["2"] == "ok"
        await store.mending.mend()
        await check_objects(store)


async def test_a_shard_whose_disk_is_mounted_elsewhere_is_taken_back(home: Home) -> None:
    async with home.open() as store:
        await store.membership.add(str(spare(home)), None)
        await store.mending.mend()
        spare(home).rename(spare(home, "elsewhere"))
        await store.presence.look()
        assert store.pool.state(3) == "missing"
        entry = await store.membership.add(str(spare(home, "elsewhere")), None)
        assert entry.number == 3
        assert store.health == "ok"
    async with home.open() as store:
        assert store.health == "ok"


async def test_a_copy_of_a_store_misses_the_shards_that_were_added_to_the_original(home: Home) -> None:
    async with home.open() as store:
        await store.membership.add(str(spare(home)), None)
    copied = Home(home.path / "copy", home.policy)
    shutil.copytree(home.store, copied.store)
    shutil.copytree(home.key_file.parent, copied.key_file.parent)
    async with copied.open() as store:
        assert store.pool.states() == {"0": "ok", "1": "ok", "2": "ok", "3": "missing"}
        assert "if it was moved and not copied" in store.pool.reason(3)
        await store.membership.add(str(spare(home)), None)  # it was moved: somebody says so
        assert store.health == "ok"


# --- Remove ---


async def test_a_drain_ends_where_the_only_other_shard_has_no_room(tmp_path: Path) -> None:
    home = Home(tmp_path, Policy(2, 3, chunk_size=CHUNK), shards=4)
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        (other,) = {0, 1, 2, 3} - {*stored.record.placement}
        leaving = f"disk{stored.record.placement[0]}"
        home.files.fail("pwritev", lambda path: f"/disks/{other}/{TEMPORARY}/" in path, errno.ENOSPC, times=None)
        with trio.fail_after(SAFETY_NET_SECONDS), pytest.raises(NotEnoughShards) as caught:
            await store.membership.remove(leaving, Nobody())
        assert caught.value.data["objects"] == ["a"]
        home.files.heal()
        assert (await store.membership.remove(leaving, Nobody())).moved == 1
        assert store.objects.find(name("a")).record.placement == (other, *stored.record.placement[1:])
        assert await get(store, "a") == content(1, 700_000)


@pytest.mark.parametrize("state", ["there", "away"])
async def test_a_removed_shard_leaves_everything_whole(home: Home, state: str) -> None:
    async with home.open() as store:
        await fill(store)
        await store.membership.add(str(spare(home)), None)
        if state == "away":
            home.take_away(1)
            await delete(store, "tiny")
            await put(store, "tiny", content(2, 1))
        removed = await store.membership.remove("1", Nobody())
        assert (removed.shard, removed.lacking) == ("1", 0)
        assert removed.moved >= 3
        await freed(store)
        assert store.pool.states() == dict.fromkeys("023", "ok")
        assert (store.metastore.debts_count(), store.metastore.garbage_count(), store.health) == (0, 0, "ok")
        await check_objects(store, without="1")
        if state == "there":
            assert not (home.root(1) / "marker").exists()
            assert list(home.root(1).glob("shares/*/*")) == []
        assert small_shares(store) == 9
    async with home.open() as store:
        await check_objects(store, without="1")


async def test_without_room_elsewhere_nothing_is_removed(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        with pytest.raises(NotEnoughShards) as caught:
            await store.membership.remove("1", Nobody())
        assert "zstor shard add" in (caught.value.hint or "")
        assert not store.pool.draining
        with pytest.raises(NotFound):
            await store.membership.remove("9", Nobody())


async def test_force_forgets_a_shard_at_once_unless_objects_would_be_lost(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        home.take_away(0)
        with pytest.raises(NotEnoughShards) as caught:
            await store.membership.remove("1", Nobody(), force=True)
        assert caught.value.data["count"] == len(OBJECTS)
        assert "default/small" in str(caught.value.data["objects"])
        assert not store.pool.draining
        await home.return_to(store, 0)
        removed = await store.membership.remove("1", Nobody(), force=True)
        assert (removed.moved, removed.lacking) == (0, len(OBJECTS))
        assert store.pool.states() == {"0": "ok", "2": "ok"}
        assert store.metastore.debts_count() == 0
        for seed, (key, size) in enumerate(OBJECTS.items()):
            assert await get(store, key) == content(seed, size)
        await store.membership.add(str(spare(home)), None)
        for key in OBJECTS:
            await store.shares_health.repair(store.objects.find(name(key)), Nobody())
        await check_objects(store)


async def test_the_stores_own_records_are_read_a_few_at_a_time_for_a_new_shard(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    async with home.open() as store:
        for number in range(20):
            await store.rows.put("name", f"{number}", content(number, 3_000))
        scan = store.metastore.scan

        def measured(space: NamespaceId, prefix: str, after: str | None, limit: int | None) -> list[Row]:
            rows = scan(space, prefix, after, limit)
            read.append(sum(len(row.envelope.sealed) for row in rows))
            return rows

        monkeypatch.setattr(limits, "ROWS_BYTES", 10_000)
        monkeypatch.setattr(store.metastore, "scan", measured)
        added = await store.membership.add(str(spare(home)), None)
        await store.mending.mend()
        assert store.metastore.debts_count() == 0
        assert max(read) <= 14_000
        assert sum(store.pool.state(number) == "ok" for number in store.pool.numbers) == added.number + 1


async def test_what_a_removed_shard_was_owed_and_held_is_struck_out_in_small_changes(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    async with home.open() as store:
        for number in range(10):
            await put(store, f"{number}", content(number, 100))
        home.take_away(1)
        for number in range(10):
            await delete(store, f"{number}")
        assert (len(store.metastore.debts(1)), len(store.metastore.garbage(1))) == (10, 10)
        monkeypatch.setattr("zstor_local.store.departures.STRUCK_OUT", 3)
        home.engines.before_commit = lambda each: sizes.extend(
            sum(row.shard == 1 for row in rows) for rows in (each.debts_paid, each.garbage_freed)
        )
        await store.membership.remove("1", Nobody(), force=True)
        assert (store.metastore.debts(1), store.metastore.garbage(1)) == ([], [])
    assert max(sizes) == 3


async def test_where_force_is_refused_a_shard_that_is_drained_already_goes_on(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        await store.membership._shards.change(partial(_draining, "1"))
        home.take_away(0)
        await store.presence.look()
        with pytest.raises(NotEnoughShards, match="could not be read"):
            await store.membership.remove("1", Nobody(), force=True)
        assert store.pool.draining == {1}
        job = store.departures.job_of(1)
        assert job is not None
        while job.running:
            await job.news().wait()
        assert isinstance(job.error, NotEnoughShards)
        assert "still have shares" in job.error.message  # a drain's error


async def test_where_too_many_jobs_run_no_shard_is_drained_or_replaced(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the place for another one made."""
    async with home.open() as store:
        await fill(store)
        await store.membership.add(str(spare(home)), None)
        before = store.membership._shards.record
        monkeypatch.setattr(limits, "JOBS_RUNNING", 0)
        for force in (False, True):
            with pytest.raises(Busy):
                await store.membership.remove("1", Nobody(), force=force)
        with pytest.raises(Busy):
            await store.membership.replace("1", str(home.path / "another"), Nobody())
        assert (store.membership._shards.record, store.pool.draining) == (before, frozenset())
        assert not (home.path / "another").exists()


@pytest.mark.parametrize("refused", [True, False])
async def test_of_two_that_force_one_shard_the_second_counts(home: Home, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """It ends the job of the first, which leaves the shard as it was."""
    check_force = Drain.check_force
    begun = trio.Event()

    async def slow(self: Drain, number: int, job: Job) -> Drained:
        if not begun.is_set():
            begun.set()
            await trio.sleep_forever()
        return await check_force(self, number, job)

    monkeypatch.setattr(Drain, "check_force", slow)
    async with home.open() as store:
        await fill(store)
        if refused:
            home.take_away(0)
            await store.presence.look()

        async def first() -> None:
            with pytest.raises(Conflict, match="was cancelled"):
                await store.membership.remove("1", Nobody(), force=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await begun.wait()
            with pytest.raises(NotEnoughShards, match="could not be read") if refused else nullcontext():
                await store.membership.remove("1", Nobody(), force=True)
        assert not store.pool.draining
        assert store.departures.job_of(1) is None
        assert (store.pool.entry(1) is not None) is refused


async def test_a_shard_goes_by_force_though_another_is_away_and_is_owed_records(home: Home) -> None:
    """Its shares have nowhere to go: what is owed cannot be paid now, and is not tried again and again."""
    home.policy = Policy(2, 4, chunk_size=CHUNK)
    async with home.open() as store:
        await fill(store)
        home.take_away(3)
        await put(store, "small", content(0, 10_000))
        before = store.committer.state.sequence
        with trio.fail_after(SAFETY_NET_SECONDS):
            removed = await store.membership.remove("1", Nobody(), force=True)
        assert (removed.moved, removed.lacking) == (0, len(OBJECTS))
        assert store.committer.state.sequence - before < 10
        await home.return_to(store, 3)
        await store.mending.mend()
        assert store.metastore.debts_count() == 0


async def test_what_is_written_to_fewer_shards_than_it_has_shares_is_read_and_made_whole_when_there_are_more(home: Home) -> None:
    home.policy = Policy(2, 4, chunk_size=CHUNK)
    async with home.open() as store:
        assert not [line for line in store.warnings() if "shares, and there are" in line]
        await store.membership.remove("1", Nobody(), force=True)
        assert [line for line in store.warnings() if "4 shares, and 3 shards are there" in line]
        for seed, (key, size) in enumerate(OBJECTS.items()):
            stored = await put(store, key, content(seed, size))
            assert (len(set(stored.record.placement)), stored.owed) == (4, 0)
        assert store.metastore.debts_count() == 0
    async with home.open() as store:
        for seed, (key, size) in enumerate(OBJECTS.items()):
            assert await get(store, key) == content(seed, size)
            checked = await store.shares_health.check(store.objects.find(name(key)), Nobody())
            assert (checked.status, sorted(checked.states)) == ("valid", ["missing", "ok", "ok", "ok"])
        await store.membership.add(str(spare(home)), None)
        await scrubbed(store)
        await store.mending.mend()
        await check_objects(store)
        assert store.metastore.debts_count() == 0
    for file in Path(home.store).glob("metastore.sqlite*"):
        file.unlink()
    report = home.rebuild()
    assert (report.objects, report.loss) == (len(OBJECTS), [])


async def test_what_a_removed_shard_held_is_made_anew_by_a_scrub_once_there_is_room(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home.open() as store:
        await fill(store)
        while 1 not in (await put(store, "small", content(0, 10_000))).record.placement[:2]:
            pass  # until a read meets what it held
        await store.membership.remove("1", Nobody(), force=True)
    async with home.open() as store:
        store.on_bad_shares = store.mending.suspect
        assert (await scrubbed(store)).bad_shares == len(OBJECTS)
        await store.mending.mend()
        for again in (False, True):
            monkeypatch.setattr(store.mending, "_woken", trio.Event())  # it mends when it is asked to
            monkeypatch.setattr(mending, "AGAIN_SECONDS", 0.0 if again else 600.0)
            for seed, (key, size) in enumerate(OBJECTS.items()):
                assert await get(store, key) == content(seed, size)
            assert bool(store.mending.waiting) is again  # else each read would be followed by a repair that has no place for its share
        await store.membership.add(str(spare(home)), None)
        assert (await scrubbed(store)).bad_shares == len(OBJECTS)
        await store.mending.mend()
        await check_objects(store, without="1")


async def test_a_drain_moves_once_more_what_it_moved_to_a_shard_that_went_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another shard went with it: now the share that was moved is needed where it still lies."""
    home = Home(tmp_path, Policy(2, 3, chunk_size=CHUNK), shards=6)
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        leaving, other, _ = stored.record.placement
        is_needless, took_away = Health.is_needless, False

        async def late(self: Health, row: Garbage) -> bool:
            nonlocal took_away
            if not took_away:
                took_away = True
                home.take_away(store.objects.find(name("a")).record.placement[0])
                home.take_away(other)
                await store.presence.look()
            return await is_needless(self, row)

        monkeypatch.setattr(Health, "is_needless", late)
        await store.membership.remove(store.pool.name(leaving), Nobody())
        assert took_away
        assert await get(store, "a") == content(1, 700_000)
        assert leaving not in store.objects.find(name("a")).record.placement


async def test_a_drain_goes_on_after_a_restart_from_where_it_was(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short after four objects were moved: none of them is looked at again for a move."""
    monkeypatch.setattr("zstor_local.store.draining.PAGE", 2)
    repair, moved = Health.repair, []

    async def watched(self: Health, stored: Stored, caller: Caller, *, leaving: int | None = None) -> Repaired:
        result = await repair(self, stored, caller, leaving=leaving)
        if leaving is not None:
            moved.append(stored.record.key)
            if len(moved) == 4 and (job := store.departures.job_of(1)) is not None:
                job.cancel()
        return result

    monkeypatch.setattr(Health, "repair", watched)
    async with home.open() as store:
        for number in range(9):
            await put(store, f"{number}", content(number, 5_000))
        await store.membership.add(str(spare(home)), None)
        with pytest.raises(Conflict) as caught:
            await store.membership.remove("1", Nobody())
        assert "zstor shard rm 1" in (caught.value.hint or "")
        assert any("shard 1 is not drained yet" in warning for warning in store.warnings())
        assert 1 not in (await put(store, "meanwhile", b"")).record.placement
    assert len(moved) == 4
    async with home.open() as store:
        await drained(store, 1)
        assert store.pool.states() == dict.fromkeys("023", "ok")
        assert sorted(moved) == [f"{number}" for number in range(9)]
        for number in range(9):
            assert await get(store, f"{number}") == content(number, 5_000)
            assert 1 not in store.objects.find(name(f"{number}")).record.placement
        assert [*store.rows.scan("drain")] == []


async def test_a_replacement_whose_caller_went_away_is_waited_for_by_removing_the_old_one(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command says that is interrupted."""
    repair, begun, go_on = Health.repair, trio.Event(), trio.Event()

    async def held(self: Health, stored: Stored, caller: Caller, *, leaving: int | None = None) -> Repaired:
        begun.set()
        await go_on.wait()
        return await repair(self, stored, caller, leaving=leaving)

    monkeypatch.setattr(Health, "repair", held)
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.membership.replace, "1", str(spare(home)), Nobody())
            await begun.wait()
            nursery.cancel_scope.cancel()
        draining = {each.id: each.draining for each in store.membership._shards.record.shards}
        assert (draining["1-replaced"], draining["1"]) == (True, False)
        go_on.set()
        assert (await store.membership.remove("1-replaced", Nobody(), force=False)).moved == 1
        assert "1-replaced" not in [each.id for each in store.membership._shards.record.shards]


class Stuck:
    """A stream whose end comes when it is let go."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.reached = trio.Event()
        self.go = trio.Event()

    async def read_into(self, buffer: memoryview) -> int:
        if not self.left:
            self.reached.set()
            await self.go.wait()
        count = min(self.left, len(buffer))
        self.left -= count
        return count


async def test_a_drain_waits_for_a_large_write_that_began_before_and_looks_at_nothing_meanwhile(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, rounds = Drain._pages, 0

    def counted(self: Drain, cursor: object) -> AsyncGenerator[list[Stored], None]:
        nonlocal rounds
        rounds += 1
        return pages(self, cursor)  # type: ignore[arg-type]

    monkeypatch.setattr(Drain, "_pages", counted)
    async with home.open() as store:
        await fill(store)
        await store.membership.add(str(spare(home)), None)
        stuck = Stuck(3 * CHUNK)
        placement: tuple[int, ...] = ()
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                nonlocal placement
                placement = (await put(store, "late", stuck)).record.placement

            nursery.start_soon(write)
            with trio.fail_after(SAFETY_NET_SECONDS):
                await stuck.reached.wait()
            (intent,) = store.metastore.intents()
            leaving = intent.shards[0]
            nursery.start_soon(store.membership.remove, store.pool.name(leaving), Nobody())
            with trio.fail_after(SAFETY_NET_SECONDS):
                while (draining := store.departures.job_of(leaving)) is None:
                    await store.committer.news().wait()
                while not any("waiting for large writes" in warning for warning in store.warnings()):
                    await draining.news().wait()
            before = rounds
            for number in range(20):
                await put(store, f"{number}", b"")
            assert rounds == before
            stuck.go.set()
        assert leaving in placement
        assert await get(store, "late") == bytes(3 * CHUNK)
        assert leaving not in store.objects.find(name("late")).record.placement
        await check_objects(store)


async def drained(store: Store, number: int) -> None:
    """Wait for the job that drains a shard."""
    job = store.departures.job_of(number)
    while job is not None and job.running:
        await job.news().wait()


class Stopping(Nobody):
    """A call of a daemon that was told to stop."""

    def long_poll(self) -> AbstractContextManager[None]:
        raise ShuttingDown("stopping", hint="")


async def test_a_drain_that_somebody_waits_for_holds_no_stop_up(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        await store.membership.add(str(spare(home)), None)
        with pytest.raises(ShuttingDown):
            await store.membership.remove("1", Stopping())
        await drained(store, 1)  # all the same
        assert "1" not in store.pool.states()


async def test_a_shard_that_is_being_drained_can_be_kept(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(self: Health, stored: Stored, caller: Caller, *, leaving: int | None = None) -> Repaired:
        await trio.sleep_forever()
        raise AssertionError

    async with home.open() as store:
        await fill(store)
        await store.membership.add(str(spare(home)), None)
        with monkeypatch.context() as patch:
            patch.setattr(Health, "repair", stuck)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_conflict, store)
                while store.departures.job_of(1) is None:
                    await trio.testing.wait_all_tasks_blocked()
                await store.membership.add(str(home.root(1)), None)
        assert not store.pool.draining
        assert store.health == "ok"
    async with home.open() as store:
        assert set(store.pool.states()) == {"0", "1", "2", "3"}
        await check_objects(store)


async def test_a_shard_whose_drain_goes_on_while_it_is_taken_back_is_kept(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another shard comes back at that moment, and then all drains go on."""
    move_all, change = Drain.move_all, ShardList.change
    kept = trio.Event()

    async def slow(self: Drain, number: int, job: Job) -> Drained:
        with trio.CancelScope(shield=True):
            await kept.wait()
            return await move_all(self, number, job)
        raise AssertionError

    async def beside(self: ShardList, *args: Any) -> None:
        store.departures.resume()
        await trio.testing.wait_all_tasks_blocked()
        await change(self, *args)
        kept.set()

    async with home.open() as store:
        await fill(store)
        await store.membership.add(str(spare(home)), None)
        await store.membership._shards.change(partial(_draining, "1"))
        monkeypatch.setattr(Drain, "move_all", slow)
        with monkeypatch.context() as patch:
            patch.setattr(ShardList, "change", beside)
            await store.membership.add(str(home.root(1)), None)
        assert store.departures.job_of(1) is None
        assert set(store.pool.states()) == {"0", "1", "2", "3"}
        await check_objects(store)


def _draining(shard: str, before: ShardsRecord) -> ShardsRecord:
    return replace(before, shards=tuple(replace(each, draining=each.id == shard) for each in before.shards))


async def test_a_shard_that_is_gone_when_it_is_taken_back_is_not_said_to_be_there(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Departures.stop

    async def late(self: Departures, number: int) -> None:
        await drained(store, number)  # it has come to its end just before
        await stop(self, number)

    async with home.open() as store:
        await fill(store)
        await store.membership.add(str(spare(home)), None)
        await store.membership._shards.change(partial(_draining, "1"))
        monkeypatch.setattr(Departures, "stop", late)
        store.departures.resume()
        with pytest.raises(Conflict, match="just been removed"):
            await store.membership.add(str(home.root(1)), None)
        assert set(store.pool.states()) == {"0", "2", "3"}
        await check_objects(store)


async def expect_conflict(store: Store) -> None:
    with pytest.raises(Conflict):
        await store.membership.remove("1", Nobody())


async def test_what_cannot_be_moved_is_named_and_moved_when_shards_are_back(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        for extra in ("four", "five", "six"):
            await store.membership.add(str(spare(home, extra)), None)
        for number in (0, 2):
            home.take_away(number)
        with pytest.raises(NotEnoughShards) as caught:  # of two of three shares one is left
            await store.membership.remove("1", Nobody())
        assert caught.value.data["count"] == len(OBJECTS)
        await home.return_to(store, 0)
        await home.return_to(store, 2)
        await drained(store, 1)
        assert set(store.pool.states()) == {"0", "2", "3", "4", "5"}
        await check_objects(store)


async def test_a_configuration_that_still_names_a_removed_shard_is_fine(home: Home) -> None:
    home.shards = 4
    async with home.open() as store:
        await fill(store)
        await store.membership.remove("disk1", Nobody())
    async with home.open() as store:
        assert set(store.pool.states()) == {"disk0", "disk2", "disk3"}
        await check_objects(store)


# --- Replace ---


@pytest.mark.parametrize("where", ["same place", "another place"])
async def test_a_dead_shard_is_replaced_and_all_it_held_is_made_anew(home: Home, where: str) -> None:
    async with home.open() as store:
        await fill(store)
        shutil.rmtree(home.root(1))
        url = None if where == "same place" else str(spare(home))
        replaced = await store.membership.replace("1", url, Nobody())
        assert replaced.lacking == 0
        assert store.pool.states() == dict.fromkeys("012", "ok")
        assert [entry.number for entry in store.places.record.shards] == [0, 3, 2]
        assert [shard.id for shard in store.shard_statuses()] == ["0", "1", "2"]
        await store.mending.mend()
        assert store.metastore.debts_count() == 0
        await check_objects(store)
    async with home.open() as store:
        assert store.health == "ok"
        await check_objects(store)


async def test_a_shard_that_is_drained_during_the_look_at_its_successor_is_replaced(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home.open() as store:
        await fill(store)
        look = store.presence.look

        async def look_until_it_is_drained() -> None:
            await look()
            while (job := store.departures.job_of(1)) is not None:
                await job.news().wait()

        monkeypatch.setattr(store.presence, "look", look_until_it_is_drained)
        replaced = await store.membership.replace("1", str(spare(home)), Nobody())
        assert (replaced.shard, replaced.lacking) == ("1", 0)
        await check_objects(store)


async def test_of_two_dead_shards_each_can_be_replaced_first(home: Home) -> None:
    home.policy = Policy(2, 4, chunk_size=CHUNK)
    async with home.open() as store:
        await fill(store)
        for number in (0, 1):
            shutil.rmtree(home.root(number))
        for dead in ("1", "0"):
            assert (await store.membership.replace(dead, None, Nobody())).lacking == 0
        assert store.pool.states() == dict.fromkeys("0123", "ok")
        await store.mending.mend()
        await check_objects(store)


async def test_a_shard_that_is_there_is_not_replaced_where_it_is(home: Home) -> None:
    async with home.open() as store:
        with pytest.raises(Conflict):
            await store.membership.replace("1", None, Nobody())
        assert store.health == "ok"


async def test_a_replaced_disk_that_comes_back_is_not_taken_for_the_new_one(home: Home) -> None:
    """Neither by the store nor by a rebuild: what was deleted meanwhile stays deleted."""
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        home.take_away(1)
        home.take_away(2)
        await delete(store, "a")
        for number in (1, 2):
            await store.membership.replace(str(number), str(spare(home, f"new{number}")), Nobody())
        await store.mending.mend()
        home.bring_back(1)
        home.bring_back(2)
        await store.presence.look()
        assert store.pool.states() == dict.fromkeys("012", "ok")
        with pytest.raises(NotFound):
            await get(store, "a")
    report = home.rebuild()
    assert report.objects == 0
    async with home.open() as store:
        assert store.health == "ok"
        with pytest.raises(NotFound):
            await get(store, "a")


async def test_by_force_no_shard_goes_that_holds_the_last_good_shares(home: Home) -> None:
    """A share that is there and rotten is none."""
    async with home.open() as store:
        await store.membership.add(str(spare(home)), None)
        for key, size in (("small", 10_000), ("large", 700_000)):
            stored = await put(store, key, content(1, size))
            share_place(store, stored, 0).flip(100)
            good = store.pool.name(stored.record.placement[1])
            with pytest.raises(NotEnoughShards) as caught:
                await store.membership.remove(good, Nobody(), force=True)
            assert caught.value.data["objects"] == [f"default/{key}"]
            await delete(store, key)


async def test_of_shards_removed_by_force_at_once_each_sees_the_others_gone(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        refused = 0

        async def remove(shard: str) -> None:
            nonlocal refused
            try:
                await store.membership.remove(shard, Nobody(), force=True)
            except NotEnoughShards:
                refused += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove, "1")
            nursery.start_soon(remove, "2")
        assert refused == 1
        for seed, (key, size) in enumerate(OBJECTS.items()):
            assert await get(store, key) == content(seed, size)


@pytest.mark.parametrize("size", [10_000, 700_000])
async def test_by_force_no_shard_goes_that_a_share_is_being_moved_to(home: Home, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    mend = Health._mend
    begun, go_on = trio.Event(), trio.Event()

    async def slowly(self: Health, *args: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await mend(self, *args)

    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        await store.membership.add(str(spare(home)), None)
        away, leaving, _ = stored.record.placement
        home.take_away(away)
        await store.presence.look()
        monkeypatch.setattr(Health, "_mend", slowly)
        store.pool.drain([leaving])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(store.shares_health.repair, stored, Nobody(), leaving=leaving))
            await begun.wait()

            async def remove() -> None:
                with pytest.raises(NotEnoughShards):
                    await store.membership.remove("3", Nobody(), force=True)

            nursery.start_soon(remove)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        await freed(store)
        assert await get(store, "a") == content(1, size)


async def test_a_place_that_could_not_be_made_durable_is_made_again(home: Home, tmp_path: Path) -> None:
    """After a sync that failed the next one says nothing of what that one was to sync."""
    place = spare(home)
    async with home.open() as store:
        for failing in (str(place), str(tmp_path)):
            home.files.fail("fsync", lambda path, failing=failing: path == failing, errno.EIO)  # type: ignore[misc]
            with pytest.raises(IoError):
                await store.membership.add(str(place), None)
            assert not place.exists()
            home.files.heal()
        await store.membership.add(str(place), None)
        assert store.pool.states()["3"] == "ok"


async def test_a_shard_may_be_gone_when_its_replacement_is_listed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        membership, create = store.membership, store.places.opener.create
        entry = next(each for each in store.places.record.shards if each.id == "1")

        async def drain() -> None:
            job = store.departures.start(entry)
            while job.running:
                await job.news().wait()

        def meanwhile(url: str, marker: Marker) -> None:
            trio.from_thread.run(drain)
            create(url, marker)

        monkeypatch.setattr(store.places.opener, "create", meanwhile)
        await membership.replace("1", str(spare(home)), Nobody())
        assert store.pool.states() == dict.fromkeys("012", "ok")
        await put(store, "a", b"goes on")


async def test_a_drain_that_goes_on_in_the_middle_looks_again_at_what_it_passed_over(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        await store.membership.add(str(spare(home)), None)
        home.take_away(0)
        await store.presence.look()
        space = store.namespaces.get("default").id
        await store.departures._drain._save(1, _Cursor(space, "z", moved=1, seen=4))  # and could not move the others
        await store.membership.remove("1", Nobody())
        for seed, (key, size) in enumerate(OBJECTS.items()):
            assert await get(store, key) == content(seed, size)
