"""Check tells each share's state; repair makes the bad ones anew, bit by bit, and touches nothing else."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.daemon.client import SAFETY_NET_SECONDS
from tests.store.home import (
    SMALL_AND_LARGE,
    Home,
    content,
    delete,
    freed,
    get,
    keys,
    name,
    put,
    share_place,
    share_places,
    small_shares,
)
from tests.store.test_renaming import copy
from zstor_local import limits
from zstor_local.errors import Conflict, Unavailable, Unreadable
from zstor_local.metastore.base import Debt, Garbage, Owed, Transaction
from zstor_local.model.ids import NamespaceId, ShareId, Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE
from zstor_local.runtime import Buffer, Runtime
from zstor_local.shards.pool import ShardPool
from zstor_local.shards.share_files import TEMPORARY
from zstor_local.store.caller import Nobody
from zstor_local.store.change import Committed, Decision
from zstor_local.store.checking import CHUNKS_AT_ONCE
from zstor_local.store.health import Health
from zstor_local.store.later import Later
from zstor_local.store.pace import unpaced
from zstor_local.store.placing import Placing
from zstor_local.store.remaking import Remaking
from zstor_local.store.several import SEVERAL
from zstor_local.store.shares import VersionShares
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.turns import Turns

KIB = 1024


async def check(store: Store, stored: Stored, *, fast: bool = False) -> tuple[str, list[str]]:
    checked = await store.shares_health.check(stored, Nobody(), fast=fast)
    return checked.status, list(checked.states)


async def repair(store: Store, stored: Stored) -> Stored:
    return (await store.shares_health.repair(stored, Nobody())).stored


@pytest.fixture
def four_of_six(tmp_path: Path) -> Home:
    return Home(tmp_path, Policy(4, 6, chunk_size=256 * KIB))


def lose(store: Store, stored: Stored, index: int) -> None:
    """The share is gone from its shard, as if somebody had deleted it there."""
    if not stored.record.small:
        share_place(store, stored, index).path.unlink()
        return
    place = share_place(store, stored, index)
    place.overwrite(bytes(place.length))


@pytest.mark.parametrize("size", [0, 1, *SMALL_AND_LARGE])
async def test_a_fresh_object_is_optimal(home: Home, size: int) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        assert await check(store, stored) == ("optimal", ["ok"] * 3)
        assert await check(store, stored, fast=True) == ("optimal", ["ok"] * 3)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_each_share_has_its_state(home: Home, size: int) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        share_place(store, stored, 1).flip(share_place(store, stored, 1).length - 1)
        assert await check(store, stored) == ("valid", ["ok", "corrupt", "ok"])
        assert await check(store, stored, fast=True) == ("optimal", ["ok"] * 3)  # its promise: presence and length only
        home.take_away(stored.record.placement[2])
        assert await check(store, stored) == ("invalid", ["ok", "corrupt", "unreachable"])


async def test_a_missing_and_a_cut_share_are_seen_without_opening_blocks(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        share_place(store, stored, 0).path.unlink()
        cut = share_place(store, stored, 1).path
        cut.write_bytes(cut.read_bytes()[:1_000])
        assert await check(store, stored, fast=True) == ("invalid", ["missing", "corrupt", "ok"])


async def test_a_share_that_its_disk_cannot_read_is_corrupt_and_made_anew(home: Home) -> None:
    """A bad sector: the disk is well otherwise, and nobody else will bring the share back."""
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        bad = str(share_place(store, stored, 0).path)
        home.files.fail("pread", lambda path: path == bad, errno.EIO, times=None)
        for fast in (True, False):
            assert await check(store, stored, fast=fast) == ("valid", ["corrupt", "ok", "ok"])
        await repair(store, stored)
        home.files.heal()  # the new file lies elsewhere
        assert await check(store, stored) == ("optimal", ["ok"] * 3)


async def test_another_versions_share_is_stale(home: Home) -> None:
    async with home.open() as store:
        old = await put(store, "old", content(1, 700_000))
        stored = await put(store, "a", content(2, 700_000))
        share_place(store, stored, 1).path.write_bytes(share_place(store, old, 1).path.read_bytes())
        assert await check(store, stored) == ("valid", ["ok", "stale", "ok"])


@pytest.mark.parametrize("size", [0, 1, *SMALL_AND_LARGE])
@pytest.mark.parametrize("bad", [(0,), (5,), (0, 1), (0, 5), (4, 5), (2, 3)])
async def test_a_repair_makes_bit_by_bit_what_was_lost(four_of_six: Home, size: int, bad: tuple[int, ...]) -> None:
    home = four_of_six
    if size == 0 and not bad:
        return
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        before = [place.read() for place in share_places(store, stored)]
        for index in bad:
            if size:
                lose(store, stored, index)
        if size:
            assert (await check(store, stored))[0] == "valid"
        repaired = await repair(store, stored)
        assert repaired.version == stored.version
        assert repaired.record == stored.record
        assert await check(store, repaired) == ("optimal", ["ok"] * 6)
        assert [place.read() for place in share_places(store, repaired)] == before
    async with home.open() as store:
        assert await get(store, "a") == content(1, size)


async def test_a_repair_of_a_good_object_changes_nothing(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        files = {path: Path(path).stat().st_mtime_ns for path in home.share_files()}
        assert (await repair(store, stored)).envelope == stored.envelope
        assert {path: Path(path).stat().st_mtime_ns for path in home.share_files()} == files


async def test_only_bad_shares_are_written(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        lose(store, stored, 1)
        inodes = {path: Path(path).stat().st_ino for path in home.share_files()}
        await repair(store, stored)
        after = {path: Path(path).stat().st_ino for path in home.share_files()}
        assert {path: after[path] for path in inodes} == inodes
        assert len(after) == 3


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_share_that_is_made_where_it_was_is_nothing_to_other_shards(home: Home, size: int) -> None:
    """A disk that was replaced gets what it lacks; the record stays as it is, and so do the logs of the other disks."""
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        copied = await copy(store, "a", "b")
        number = stored.record.placement[1]
        others = [shard for shard in store.pool.opened() if shard.number != number]
        before = [list(shard.scan()) for shard in others]
        lose(store, stored, 1)
        assert (await repair(store, stored)).envelope == stored.envelope
        assert await check(store, stored) == ("optimal", ["ok"] * 3)
        assert [list(shard.scan()) for shard in others] == before
        shard = store.pool.get(number)
        assert shard is not None
        told = [scanned.entry.envelope for scanned in shard.scan()]
        assert told[-2:] == [stored.envelope, copied.envelope]


async def test_a_repair_pays_what_the_shard_was_owed_of_the_version(four_of_six: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home = four_of_six
    async with home.open() as store:
        monkeypatch.setattr(store.mending, "wake", lambda: None)
        await put(store, "other", b"x")
        home.take_away(0)
        stored = await put(store, "a", content(1, 10_000))
        await copy(store, "a", "b")
        assert owed_records(store, 0) == ["a", "b"]
        await home.return_to(store, 0)
        assert (await repair(store, stored)).owed == 0
        assert store.metastore.debts_count() == 0


@pytest.mark.parametrize("failing", [(0,), (0, 1)], ids=["one", "both"])
async def test_a_shard_that_fails_keeps_no_other_from_its_share(four_of_six: Home, failing: tuple[int, ...]) -> None:
    home = four_of_six
    async with home.open() as store:
        stored = await put(store, "a", content(1, 10_000))
        for index in (0, 1):
            lose(store, stored, index)
        logs = [f"/shards/{stored.record.placement[index]}/log/" for index in failing]
        home.files.fail("pwritev", lambda path: any(log in path for log in logs), errno.EIO, times=None)
        if len(failing) == 2:
            with pytest.raises(Unavailable, match="went away"):
                await repair(store, stored)
        else:
            repaired = await store.shares_health.repair(stored, Nobody())
            assert (repaired.made, repaired.lacking) == (1, 1)
        assert (await check(store, stored))[1].count("ok") == 6 - len(failing)
        assert await get(store, "a") == content(1, 10_000)


async def test_too_few_good_shares_cannot_be_repaired_and_stay_as_they_are(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 10_000))
        for index in (0, 1):
            share_place(store, stored, index).flip(20)
        before = [place.read() for place in share_places(store, stored)]
        with pytest.raises(Unreadable) as caught:
            await repair(store, stored)
        shares = caught.value.data["shares"]
        assert isinstance(shares, list)
        assert [share["state"] for share in shares] == ["corrupt", "corrupt", "ok"]
        assert [place.read() for place in share_places(store, stored)] == before


async def test_a_version_that_the_key_has_left_behind_is_a_conflict(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 10_000))
        with store.freeing.lease(stored.version):
            await put(store, "a", content(2, 10_000))
            lose(store, stored, 0)
            with pytest.raises(Conflict):
                await repair(store, stored)
        assert await get(store, "a") == content(2, 10_000)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_share_that_is_owed_is_made_although_it_seems_to_be_there(home: Home, size: int) -> None:
    """Its flush failed: the next start reads it from the kernel's memory, and a power loss takes it away."""
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        before = share_place(store, stored, 0)
        made = before.path.stat().st_ino, before.offset
        debt = Debt(stored.record.placement[0], Owed.SHARE, stored.envelope.namespace, "a", stored.version, 0)
        await store.committer.commit(stored.envelope.namespace, "", lambda _: Decision(debts=[debt]))
        for fast in (True, False):
            checked = await store.shares_health.check(stored, Nobody(), fast=fast)
            assert (checked.status, [*checked.states]) == ("valid", ["missing", "ok", "ok"])
        await mended(store)
        assert (await store.shares_health.check(stored, Nobody())).status == "optimal"
        assert store.metastore.debts_count() == 0
        after = share_place(store, stored, 0)
        assert (after.path.stat().st_ino, after.offset) != made


async def test_a_repair_that_waited_for_the_freeing_of_its_version_makes_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        monkeypatch.setattr(store.freeing, "wake", lambda: None)  # the test frees
        stored = await put(store, "a", content(1, 700_000))
        refused = False

        async def late() -> None:
            nonlocal refused
            try:
                await repair(store, stored)
            except Conflict:
                refused = True

        async with trio.open_nursery() as nursery, store.freeing.lock:
            nursery.start_soon(late)
            await trio.testing.wait_all_tasks_blocked()
            await delete(store, "a")
            first = store.pool.opened()[0]
            with monkeypatch.context() as patch:
                patch.setattr(store.pool, "opened", lambda: [first])
                assert await store.freeing._free_batch({*await store.freeing._needless(first)}) == 1
        assert refused
        await freed(store)
    assert home.share_files() == []


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_share_of_a_shard_that_is_away_goes_to_a_spare_one(tmp_path: Path, size: int) -> None:
    home = Home(tmp_path, Policy(2, 3, chunk_size=256 * KIB), shards=4)
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        lost = stored.record.placement[0]
        (spare,) = {0, 1, 2, 3} - set(stored.record.placement)
        home.take_away(lost)
        repaired = await repair(store, stored)
        assert repaired.record.placement == (spare, *stored.record.placement[1:])
        assert repaired.version == stored.version
        assert await check(store, repaired) == ("optimal", ["ok"] * 3)
        # The other two may now be lost as well as any.
        home.take_away(stored.record.placement[1])
        assert await get(store, "a") == content(1, size)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_repairing_everything_calls_nothing_repaired_that_no_shard_could_take(tmp_path: Path, size: int) -> None:
    home = Home(tmp_path, Policy(2, 3, chunk_size=256 * KIB), shards=3)
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        await put(store, "b", b"")
        home.take_away(stored.record.placement[0])
        report = await store.repair_all.run(Nobody())
        assert (report.objects, report.repaired, report.failed, report.lacking) == (2, 0, 0, 2)
        await store.membership.replace(store.pool.name(stored.record.placement[0]), str(tmp_path / "new"), Nobody())
        report = await store.repair_all.run(Nobody())
        assert (report.objects, report.repaired, report.failed, report.lacking) == (2, 0, 0, 0)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_what_a_repair_replaced_is_freed_when_its_shard_is_back(tmp_path: Path, size: int) -> None:
    home = Home(tmp_path, Policy(2, 3, chunk_size=256 * KIB), shards=4)
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        home.take_away(stored.record.placement[0])
        await repair(store, stored)
    home.bring_back(stored.record.placement[0])
    async with home.open() as store:
        await freed(store)
        assert store.metastore.garbage_count() == 0
        assert len(home.share_files()) + small_shares(store) == 3
        assert await get(store, "a") == content(1, size)
        await delete(store, "a")
        await freed(store)
        assert len(home.share_files()) + small_shares(store) == 0


async def test_what_can_be_read_can_be_repaired_though_no_share_is_whole(home: Home) -> None:
    """Each share has one bad chunk, another one than the others."""
    data = content(1, 700_000)
    async with home.open() as store:
        stored = await put(store, "a", data)
        for chunk, place in enumerate(share_places(store, stored)):
            place.flip(place.length * (2 * chunk + 1) // 6)
        assert await check(store, stored) == ("invalid", ["corrupt"] * 3)
        assert await get(store, "a") == data
        await repair(store, stored)
        assert await check(store, stored) == ("optimal", ["ok"] * 3)
        for index in (0, 1):
            share_place(store, stored, index).flip(100)
        with pytest.raises(Unreadable):
            await repair(store, stored)
        assert [place.read() for place in share_places(store, stored)].count(b"") == 0
        assert len(home.share_files()) == 3


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_share_that_was_made_elsewhere_is_not_freed_where_it_was_as_long_as_it_is_not_good_there(
    tmp_path: Path, size: int
) -> None:
    """Whoever cannot read an object is told to bring shards back: what lies on them may be the last that there is."""
    home = Home(tmp_path, Policy(2, 3, chunk_size=256 * KIB), shards=4)
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        first, second, third = stored.record.placement
        (spare,) = {0, 1, 2, 3} - set(stored.record.placement)
        home.take_away(first)
        await repair(store, stored)
        home.take_away(spare)
        home.take_away(second)
        await store.presence.look()
        with pytest.raises(Unreadable):
            await get(store, "a")
        await home.return_to(store, first)
        await freed(store)
        assert await get(store, "a") == content(1, size)
        assert store.objects.find(name("a")).record.placement == (first, second, third)
        await home.return_to(store, spare)
        await home.return_to(store, second)
        await freed(store)
        assert store.metastore.garbage_count() == 0
        assert len(home.share_files()) + small_shares(store) == 3
        assert await check(store, store.objects.find(name("a"))) == ("optimal", ["ok"] * 3)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_row_that_would_free_what_a_record_names_is_struck_out(home: Home, size: int) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        wrong = Garbage(stored.record.placement[0], ShareId(stored.version, 0), stored.record.small)
        await store.committer.commit(STORE_WIDE, "", lambda _: Decision(garbage=[wrong]))
        await freed(store)
        assert store.metastore.garbage_count() == 0
        assert await check(store, store.objects.find(name("a"))) == ("optimal", ["ok"] * 3)


async def mended(store: Store) -> None:
    """Wait until everything is mended that can be."""
    await store.mending.mend()
    await freed(store)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_shard_that_returns_gets_its_shares(four_of_six: Home, size: int) -> None:
    home = four_of_six
    async with home.open() as store:
        await put(store, "before", content(1, size))
    home.take_away(0)
    async with home.open() as store:
        stored = await put(store, "during", content(2, size))
        assert (stored.owed, stored.shares_owed) == (1, 1)
    home.bring_back(0)
    async with home.open() as store:
        await mended(store)
        assert store.metastore.debts_count() == 0
        found = store.objects.find(name("during"))
        assert (found.owed, found.shares_owed) == (0, 0)
        assert await check(store, found) == ("optimal", ["ok"] * 6)
        assert await get(store, "during") == content(2, size)


async def test_a_shard_that_returns_hears_of_deletes_and_overwrites(four_of_six: Home) -> None:
    home = four_of_six
    async with home.open() as store:
        for key in ("deleted", "replaced"):
            await put(store, key, content(1, 10_000))
    home.take_away(0)
    async with home.open() as store:
        await delete(store, "deleted")
        await put(store, "replaced", content(2, 10_000))
        assert store.metastore.debts_count() > 0
    home.bring_back(0)
    async with home.open() as store:
        await mended(store)
        assert store.metastore.debts_count() == 0
        shard = store.pool.get(0)
        assert shard is not None
        newest = {each.entry.envelope.key_hash: each.entry.envelope for each in shard.scan()}
        for space in [store.namespaces.find("default")]:
            assert space is not None
            tombstone = store.metastore.tombstone(space.id, "deleted")
            assert tombstone is not None
            assert newest[space.key_hash("deleted")] == tombstone
            assert newest[space.key_hash("replaced")].version == store.objects.find(name("replaced")).version


def owed_records(store: Store, number: int) -> list[str]:
    return sorted(debt.name for debt in store.metastore.debts(number) if debt.kind is Owed.RECORD and debt.name)


async def test_a_repair_tells_who_has_not_heard_of_the_record_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard holds the version before; a deletion later has to reach it too."""
    home = Home(tmp_path, Policy(2, 3, chunk_size=256 * KIB), shards=6)
    placements = [(0, 1, 2), (3, 4, 5)]
    monkeypatch.setattr(Placing, "place", lambda *_: (placements.pop(0), {}))
    async with home.open() as store:
        monkeypatch.setattr(store.mending, "wake", lambda: None)  # the repair alone tells
        await put(store, "a", content(1, 10_000))
        home.take_away(0)
        stored = await put(store, "a", content(2, 10_000))
        share_place(store, stored, 0).flip(40)
        await repair(store, stored)
        assert owed_records(store, 0) == ["a"]
        await home.return_to(store, 0)
        await repair(store, store.objects.find(name("a")))
        assert owed_records(store, 0) == []
        shard = store.pool.get(0)
        assert shard is not None
        assert store.objects.find(name("a")).envelope in [scanned.entry.envelope for scanned in shard.scan()]


async def test_a_copy_that_was_deleted_while_a_shard_was_away_does_not_come_back_after_a_repair_of_the_other(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shares are the other's: nothing but the tombstone keeps it away."""
    monkeypatch.setattr(limits, "SEGMENT_BYTES", 1 << 16)
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        await copy(store, "a", "b")
        home.take_away(0)
        await delete(store, "b")
        await repair(store, store.objects.find(name("a")))
        assert owed_records(store, 0) == ["a", "b"]
        await home.return_to(store, 0)
        await mended(store)
    for _ in range(3):  # tombstones that nobody needs leave the logs
        async with home.open() as store:
            await mended(store)
            await store.compaction.compact(unpaced, least=0.001)
    home.rebuild()
    async with home.open() as store:
        assert await keys(store) == ["a"]
        assert await get(store, "a") == content(1, 10_000)


async def test_a_share_whose_disk_is_full_keeps_no_other_from_being_made(four_of_six: Home) -> None:
    home = four_of_six
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        for index in (0, 1):
            lose(store, stored, index)
        full = stored.record.placement[0]
        home.files.fail("pwritev", lambda path: f"/shards/{full}/{TEMPORARY}/" in path, errno.ENOSPC, times=None)
        await repair(store, stored)
        assert await check(store, stored) == ("valid", ["missing", *["ok"] * 5])
        home.files.heal()
        await repair(store, stored)
        assert await check(store, stored) == ("optimal", ["ok"] * 6)


async def test_a_chunk_table_in_the_shares_is_made_again_where_the_first_share_goes_away_meanwhile(
    four_of_six: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = four_of_six
    monkeypatch.setattr(limits, "CHUNK_TABLE_INLINE_BYTES", 4)
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        assert stored.record.table_blob
        lost = share_place(store, stored, 5).path
        before = lost.read_bytes()
        lost.unlink()
        files = Remaking.files

        async def late(
            self: Remaking, runtime: Runtime, pool: ShardPool, namespace: NamespaceId, targets: Mapping[int, int]
        ) -> Mapping[int, int]:
            self._shares.close()
            home.take_away(stored.record.placement[self._sources[0]])
            return await files(self, runtime, pool, namespace, targets)

        monkeypatch.setattr(Remaking, "files", late)
        await repair(store, stored)
        assert lost.read_bytes() == before


async def test_a_repair_of_a_large_object_ends_when_it_is_cancelled(four_of_six: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home = four_of_six
    async with home.open() as store:
        chunks = 4 * CHUNKS_AT_ONCE
        stored = await put(store, "a", content(1, chunks * 256 * KIB))
        lost = share_place(store, stored, 0).path
        lost.unlink()
        scope, fetched = trio.CancelScope(), list[int]()
        fetch = VersionShares.fetch

        def fetch_and_cancel(self: VersionShares, chunk: int, among: Iterable[int] | None = None) -> dict[int, Buffer]:
            fetched.append(chunk)
            if chunk == 1:
                trio.from_thread.run_sync(scope.cancel)
            return fetch(self, chunk, among)

        with monkeypatch.context() as patched, scope:
            patched.setattr(VersionShares, "fetch", fetch_and_cancel)
            await repair(store, stored)
        assert scope.cancelled_caught
        assert fetched == [*range(CHUNKS_AT_ONCE)]  # those of one thread call
        assert not lost.exists()
        assert [*lost.parents[2].joinpath(TEMPORARY).iterdir()] == []
        await repair(store, stored)
        assert await check(store, stored) == ("optimal", ["ok"] * 6)


async def test_nobody_is_owed_a_share_of_a_version_that_is_gone(four_of_six: Home) -> None:
    home = four_of_six
    home_missing = 0
    async with home.open() as store:
        await put(store, "other", b"x")
    home.take_away(home_missing)
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        assert any(debt.kind is Owed.SHARE for debt in store.metastore.debts(0))
        await delete(store, "a")
        assert not [debt for debt in store.metastore.debts(0) if debt.kind is Owed.SHARE]


async def test_what_a_read_finds_bad_is_mended(home: Home) -> None:
    async with home.open() as store:
        store.on_bad_shares = store.mending.suspect
        stored = await put(store, "a", content(1, 700_000))
        share_place(store, stored, 0).flip(1_000)
        assert await get(store, "a") == content(1, 700_000)
        await store.mending.mend()
        assert store.mending.waiting == 0
        assert await check(store, store.objects.find(name("a"))) == ("optimal", ["ok"] * 3)


async def test_a_repair_that_was_in_vain_is_tried_again_when_a_shard_is_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        store.on_bad_shares = store.mending.suspect
        stored = await put(store, "a", content(1, 700_000))
        share_place(store, stored, 0).flip(1_000)
        monkeypatch.setattr(store.mending, "_woken", trio.Event())  # the test mends
        assert await get(store, "a") == content(1, 700_000)
        home.take_away(stored.record.placement[2])
        await mended(store)
        assert store.mending.waiting == 0
        store.mending.suspect(stored, {0: "corrupt"})
        assert store.mending.waiting == 0  # until something else is so
        await home.return_to(store, stored.record.placement[2])
        assert await get(store, "a") == content(1, 700_000)
        assert store.mending.waiting == 1
        await mended(store)
        assert await check(store, stored) == ("optimal", ["ok"] * 3)


async def test_a_share_whose_shard_is_away_is_not_put_on_the_repair_list(home: Home) -> None:
    async with home.open() as store:
        store.on_bad_shares = store.mending.suspect
        stored = await put(store, "a", content(1, 700_000))
        home.take_away(stored.record.placement[0])
        assert await get(store, "a") == content(1, 700_000)
        assert store.mending.waiting == 0


@pytest.mark.parametrize(
    "damage", [lose, lambda store, stored, index: share_place(store, stored, index).flip(40)], ids=["lost", "flipped"]
)
async def test_every_pattern_of_at_most_m_minus_k_losses_is_read_and_repaired(
    tmp_path: Path, damage: Callable[[Store, Stored, int], None]
) -> None:
    for k, m in [(1, 1), (1, 3), (2, 4), (3, 5)]:
        home = Home(tmp_path / f"{k}of{m}", Policy(k, m, chunk_size=256 * KIB))
        home.path.mkdir(exist_ok=True)
        async with home.open() as store:
            stored = await put(store, "a", content(1, 3_000))
            for count in range(m - k + 1):
                for bad in itertools.combinations(range(m), count):
                    for index in bad:
                        damage(store, stored, index)
                    assert await get(store, "a") == content(1, 3_000), (k, m, bad)
                    stored = await repair(store, stored)
                    assert (await check(store, stored))[0] == "optimal", (k, m, bad)


# --- Several at once ---


async def test_repairs_take_turns_where_they_would_write_the_same_files_or_take_long() -> None:
    turns = Turns()
    begun: list[str] = []
    first, second, third = (Version(bytes([number]) * 16) for number in range(3))

    async def repairing(what: str, version: Version, *, small: bool) -> None:
        async with turns.of(version, small=small):
            begun.append(what)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for what, version, small in (
            ("one", first, True),
            ("one again", first, True),
            ("large", second, False),
            ("other", third, True),
        ):
            nursery.start_soon(partial(repairing, what, version, small=small))
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(repairing, "large too", Version(bytes([9]) * 16), small=False))
        await trio.testing.wait_all_tasks_blocked()
        assert begun == ["one", "large", "other"]
        nursery.cancel_scope.cancel()
    async with turns.of(first, small=False), turns.of(third, small=True):
        pass
    await turns.wait()


async def test_what_is_under_way_is_waited_for_and_nothing_that_begins_later() -> None:
    turns, go_on, waited = Turns(), trio.Event(), trio.Event()
    version, later = Version(bytes(16)), Version(bytes([1]) * 16)

    async def wait() -> None:
        await turns.wait()
        waited.set()

    async def repairing() -> None:
        async with turns.of(version, small=True):
            await go_on.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(repairing)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not waited.is_set()
        async with turns.of(later, small=True):
            go_on.set()
            await waited.wait()


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_of_two_repairs_of_one_version_the_second_finds_nothing_to_do(home: Home, size: int) -> None:
    made: list[int] = []
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        lose(store, stored, 0)

        async def repair_it() -> None:
            made.append((await store.shares_health.repair(stored, Nobody())).made)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(repair_it)
            nursery.start_soon(repair_it)
        assert sorted(made) == [0, 1]
        assert await get(store, "a") == content(1, size)
        assert await check(store, stored) == ("optimal", ["ok"] * 3)


async def test_repairs_of_many_small_objects_share_commits(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk's share of a million objects takes hours where each waits for a flush of its own."""
    asked, several = itertools.count(1), threading.Event()

    def commit(*change: Any) -> Later[Committed]:
        if next(asked) == SEVERAL:
            several.set()
        return commits_of_store(*change)

    def held_up(transaction: Transaction) -> None:
        assert several.wait(SAFETY_NET_SECONDS)
        commits.append(transaction)

    async with home.open() as store:
        many = [await put(store, f"key{number}", content(number, 1_000)) for number in range(3 * SEVERAL)]
        for stored in many:
            lose(store, stored, 1)
        commits: list[Transaction] = []
        commits_of_store = store.committer.commit
        monkeypatch.setattr(store.committer, "commit", commit)
        home.engines.before_commit = held_up
        report = await store.repair_all.run(Nobody())
        assert (report.repaired, report.failed, report.lacking) == (len(many), 0, 0)
        assert len(commits) <= len(many) - (SEVERAL - 2)  # what comes while the first is under way is one
        for stored in many:
            assert (await check(store, stored))[0] == "optimal"


async def test_small_shares_that_wait_for_their_commit_are_bounded(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many shares each object has: all that is repaired at once is made anew in one thread call."""
    give, waiting, most = Health._give, 0, 0

    async def watched(self: Health, *args: Any) -> None:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await give(self, *args)
        waiting -= 1

    monkeypatch.setattr(Health, "_give", watched)
    monkeypatch.setattr("zstor_local.store.health.MADE_BYTES", 2_000)
    async with home.open() as store:
        many = [await put(store, f"key{number}", content(number, 1_500)) for number in range(9)]
        for stored in many:
            lose(store, stored, 1)
        assert (await store.repair_all.run(Nobody())).repaired == len(many)
        assert 1 <= most <= 2_000 // many[0].record.share_bytes


@pytest.mark.parametrize("work", ["repair_all", "replace"])
async def test_many_small_objects_share_thread_calls(home: Home, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    """A call costs more than looking at one of them."""
    monkeypatch.setattr("zstor_local.store.batches.BATCH_US", 10**12)  # however slow the machine is
    calls = 0
    async with home.open() as store:
        many = [await put(store, f"key{number}", content(number, 1_000)) for number in range(2 * SEVERAL)]
        run = store.runtime.threads.run

        async def counted(work: Callable[..., Any], *args: Any) -> Any:
            nonlocal calls
            calls += 1
            return await run(work, *args)

        monkeypatch.setattr(store.runtime.threads, "run", counted)
        if work == "repair_all":
            for stored in many:
                lose(store, stored, 1)
            assert (await store.repair_all.run(Nobody())).repaired == len(many)
        else:
            assert (await store.membership.replace("1", f"{home.path}/new", Nobody())).moved == len(many)
        assert calls < len(many)  # there were two for each, and three


async def test_what_is_being_deleted_with_its_namespace_is_no_failed_repair(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 100))
        await store.namespaces.change("default", lambda record: replace(record, deleting=True))
        assert (await store.repair_all.run(Nobody())).failed == 0
