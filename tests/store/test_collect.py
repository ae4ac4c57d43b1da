"""Collect frees what is left behind, and nothing that somebody might want: that is told and kept."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.store.home import SMALL_AND_LARGE, Home, content, delete, freed, get, name, put, share_place, small_shares, strays
from tests.store.test_damaged_rows import row, spoil
from tests.store.test_scrub import scrubbed
from zstor_local.errors import NotFound
from zstor_local.metastore.base import CommitRefused, Garbage, Intent
from zstor_local.metastore.sqlite_lookups import SqliteLookups
from zstor_local.model.ids import ShareId, Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE
from zstor_local.model.storewide import NamespaceRecord
from zstor_local.store.caller import Nobody
from zstor_local.store.change import Decision
from zstor_local.store.collect import Collected
from zstor_local.store.namespaces import Namespace, Namespaces
from zstor_local.store.pace import unpaced
from zstor_local.store.renaming import Renaming
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.strays import Stray


async def collect(store: Store, *, dry_run: bool = False, accept_loss: bool = False) -> Collected:
    return await store.collect.everything(Nobody(), dry_run=dry_run, accept_loss=accept_loss, spend=unpaced)


def reasons(report: Collected) -> list[str]:
    return sorted(each.reason for each in report.found)


def shares(home: Home, store: Store) -> int:
    return len(home.share_files()) + small_shares(store)


async def forget_row(home: Home, store: Store, key: str) -> None:
    """The metastore loses a key: neither its record nor a tombstone is left, as in a file that was restored or damaged."""
    metastore = store.metastore
    metastore._writer.execute("delete from record where name=?", (key.encode(),))  # type: ignore[attr-defined]


async def test_what_is_to_be_freed_anyway_is_looked_up_and_not_read_as_a_whole(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a namespace was deleted there may be millions of rows that free its shares."""
    looks: list[tuple[int | None, bool]] = []
    garbage = SqliteLookups.garbage

    def noted(self: SqliteLookups, shard: int, limit: int | None = None, first: ShareId | None = None) -> Sequence[Garbage]:
        looks.append((limit, threading.current_thread() is threading.main_thread()))
        return garbage(self, shard, limit, first)

    async with home.open() as store:
        await strays(home, store)
        await put(store, "read", content(1, 10_000))
        with store.freeing.lease(store.objects.find(name("read")).version):
            await delete(store, "read")
            monkeypatch.setattr(SqliteLookups, "garbage", noted)
            report = Collected()
            shard = store.pool.get(0)
            assert shard is not None
            await store.collect.shard(shard, Nobody(), report, dry_run=True, accept_loss=False, spend=unpaced)
        assert (report.looked_at, report.left_behind) == (2, 1)
    assert (1, False) in looks
    assert None not in {limit for limit, _ in looks}


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_store_without_strays_keeps_every_share(home: Home, dry_run: bool) -> None:
    async with home.open() as store:
        for number, size in enumerate((0, 1, *SMALL_AND_LARGE)):
            await put(store, str(number), content(number, size))
        before = shares(home, store)
        report = await collect(store, dry_run=dry_run)
        assert (report.freed, report.waiting, report.kept, report.unseen) == (0, 0, 0, [])
        assert report.looked_at == before == shares(home, store)


async def test_files_that_a_power_loss_brought_back_are_freed(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        kept = {path: Path(path).read_bytes() for path in home.share_files()}
        await put(store, "a", content(2, 10_000))
        await freed(store)
        for path, data in kept.items():
            Path(path).write_bytes(data)
        report = await collect(store, dry_run=True)
        assert (report.freed, report.waiting, report.kept) == (0, 3, 0)
        assert len(home.share_files()) == 3
        report = await collect(store)
        assert (report.freed, report.waiting, report.kept) == (3, 0, 0)
        assert home.share_files() == []
        assert store.objects.find(name("a")).version != stored.version
        assert await get(store, "a") == content(2, 10_000)


async def test_of_a_deleted_object_too(home: Home) -> None:
    async with home.open() as store:
        await strays(home, store)
        assert (await collect(store)).freed == 3
        assert home.share_files() == []


async def test_small_shares_of_a_write_that_was_voided_are_freed(home: Home) -> None:
    async with home.open() as store:
        await put(store, "other", content(2, 5_000))
        home.fail_commits(CommitRefused("the disk of the metastore is full", no_space=True))
        with pytest.raises(Exception, match="full"):
            await put(store, "a", content(1, 10_000))
        home.heal_commits()
        assert small_shares(store) == 6
        report = await collect(store)
        assert (report.freed, report.kept) == (3, 0)
        assert small_shares(store) == 3
        assert await get(store, "other") == content(2, 5_000)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_shares_whose_record_the_metastore_lost_are_told_and_kept(home: Home, size: int) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        await forget_row(home, store, "a")
        report = await collect(store)
        assert (report.freed, report.waiting, report.kept) == (0, 0, 3)
        assert {(each.reason, each.key) for each in report.found} == {("unknown", "a")}
        assert await store.objects.read(store.objects.from_seal(stored.envelope.pack())) == content(1, size)
        report = await collect(store, dry_run=True, accept_loss=True)
        assert (report.freed, report.waiting) == (0, 3)
        report = await collect(store, accept_loss=True)
        assert (report.freed, report.waiting, report.kept) == (3, 0, 0)
        assert shares(home, store) == 0


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_shares_whose_row_does_not_open_are_no_strays(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, size))
        spoil(store, row(store, "a"))
        report = await collect(store, accept_loss=True)
        assert (report.looked_at, report.left_behind, report.freed, report.waiting, report.kept) == (3, 0, 0, 0, 0)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_shares_whose_row_names_another_version_by_damage_are_kept_until_it_is_mended(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, size))
        spoil(store, row(store, "a"), "version = zeroblob(16)")
        report = await collect(store)
        assert (report.freed, report.waiting, report.kept) == (0, 0, 3)
        assert {(each.reason, each.key) for each in report.found} == {("unknown", "a")}
        assert (await scrubbed(store)).records_mended == 1
        assert await get(store, "a") == content(1, size)
        assert (await collect(store)).kept == 0


async def test_a_copy_keeps_the_shares_of_its_version(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        renaming = Renaming(store.core, store.namespaces, store.freeing)
        await renaming.copy(name("a"), "b", None, Nobody(), exclusive=False)
        await delete(store, "a")
        assert (await collect(store)).freed == 0
        assert await get(store, "b") == content(1, 700_000)


async def test_shares_of_another_store_are_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = Home(tmp_path / "ours"), Home(tmp_path / "theirs")
    for home in (ours, theirs):
        home.path.mkdir()
    async with theirs.open() as store:
        await put(store, "a", content(1, 700_000))
        (path, *_) = theirs.share_files()
    async with ours.open() as store:
        await put(store, "b", content(2, 700_000))
        place = Path(f"{ours.store}/shards/0/shares") / Path(path).parent.name
        place.mkdir(exist_ok=True)
        shutil.copy(path, place)
        remember, threads = Namespaces._remember, set()

        def noticed(self: Namespaces, record: NamespaceRecord, **more: bool) -> Namespace:
            threads.add(threading.current_thread())
            return remember(self, record, **more)

        monkeypatch.setattr(Namespaces, "_remember", noticed)
        report = await collect(store, accept_loss=True)
        assert (report.freed, report.kept, reasons(report)) == (0, 1, ["foreign"])
        assert threads == {threading.current_thread()}  # two would make a namespace twice, and a write pass a gate that nobody closes
        assert len(ours.share_files()) == 4


@pytest.mark.parametrize("data", [b"", bytes(1_000)])
async def test_a_file_that_has_but_the_name_of_a_share_is_not_touched(home: Home, data: bytes) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        (path, *_) = home.share_files()
        strange = Path(path).with_name(f"{Path(path).name[:2]}{'5' * 30}.0")
        strange.write_bytes(data)
        report = await collect(store, accept_loss=True)
        assert (report.freed, report.kept, reasons(report)) == (0, 1, ["foreign"])
        assert strange.exists()


async def test_a_share_of_ours_without_any_record_needs_an_accepted_loss(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        (path, *_) = home.share_files()
        strange = Path(path).with_name(f"{Path(path).name[:2]}{'5' * 30}.0")
        shutil.copy(path, strange)
        report = await collect(store)
        assert (report.freed, report.kept, reasons(report)) == (0, 1, ["no_record"])
        assert (await collect(store, accept_loss=True)).freed == 1
        assert not strange.exists()
        assert await get(store, "a") == content(1, 700_000)


async def test_a_large_write_on_its_way_is_left_alone(home: Home) -> None:
    """Its intent names it; and a share that is in place before the write commits is no stray."""
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        (path, *_) = home.share_files()
        version = Version(b"\x77" * 16)
        number = stored.record.placement[0]
        await store.committer.commit(STORE_WIDE, "", lambda _: Decision(intents=[Intent(version, (number,))]))
        place = Path(f"{home.store}/shards/{number}/shares/77")
        place.mkdir(exist_ok=True)
        shutil.copy(path, place / f"{version.hex()}.0")
        report = await collect(store, accept_loss=True)
        assert (report.freed, report.kept, report.waiting) == (0, 0, 0)
        assert (place / f"{version.hex()}.0").exists()


async def test_what_is_being_read_waits(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        with store.freeing.lease(stored.version):
            await delete(store, "a")
            report = await collect(store)
            assert (report.freed, report.waiting, report.kept) == (0, 3, 0)
            assert await store.objects.read(stored) == content(1, 700_000)
        assert (await collect(store)).waiting == 0


async def test_writers_go_on_while_everything_is_looked_at(home: Home) -> None:
    async with home.open() as store:
        for number in range(20):
            await put(store, f"old{number}", content(number, 3_000))

        async def write() -> None:
            for number in range(20):
                await put(store, f"new{number}", content(number, 3_000 if number % 4 else 300_000))
                await put(store, f"old{number}", content(number + 100, 3_000))
                await delete(store, f"old{number}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for _ in range(5):
                report = await collect(store, accept_loss=True)
                assert report.kept == 0
        for number in range(20):
            assert await get(store, f"new{number}") == content(number, 3_000 if number % 4 else 300_000)
            with pytest.raises(NotFound):
                await get(store, f"old{number}")
        await collect(store)
        assert shares(home, store) == 60


async def test_a_shard_that_is_away_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path, Policy(2, 3, chunk_size=256 * 1024), shards=4)
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        home.take_away(1)
        assert (await collect(store)).unseen == ["disk1"]


async def test_a_repair_beside_a_collect_keeps_what_it_makes(tmp_path: Path) -> None:
    """A share that a repair has made on a spare shard and not yet committed lies there by its row: nobody takes it for a stray."""
    home = Home(tmp_path, Policy(2, 3, chunk_size=256 * 1024), shards=4)
    async with home.open() as store:
        for number in range(6):
            await put(store, str(number), content(number, 700_000 if number % 2 else 9_000))
        home.take_away(0)

        async def repair() -> None:
            for number in range(6):
                await store.shares_health.repair(store.objects.find(name(str(number))), Nobody())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(repair)
            for _ in range(6):
                await collect(store, accept_loss=True)
        for number in range(6):
            stored = store.objects.find(name(str(number)))
            assert 0 not in stored.record.placement
            assert (await store.shares_health.check(stored, Nobody())).status == "optimal"


async def test_a_share_on_the_wrong_shard_is_left_behind_when_its_record_names_another(home: Home) -> None:
    async with home.open() as store:
        stored: Stored = await put(store, "a", content(1, 700_000))
        own = share_place(store, stored, 0).path
        number = stored.record.placement[1]
        wrong = Path(f"{home.store}/shards/{number}/shares") / own.parent.name / own.name
        shutil.copy(own, wrong)
        assert (await collect(store)).freed == 1
        assert not wrong.exists()
        assert own.exists()


async def test_what_a_record_names_by_then_is_not_freed(home: Home) -> None:
    """Nor what a row that does not open may name."""
    async with home.open() as store:
        good, bad = [await put(store, key, content(1, 700_000)) for key in "ab"]
        spoil(store, row(store, "b"))
        await put(store, "c", b"")  # as the next change sees it
        there, elsewhere = (Stray(number, ShareId(good.version, 0), small=False) for number in good.record.placement[:2])
        unknown = Stray(bad.record.placement[1], ShareId(bad.version, 0), small=False)
        assert [row.shard for row in store.collect._still_stray([there, elsewhere, unknown])] == [elsewhere.shard]
        begun = Intent(good.version, (elsewhere.shard,))  # a repair is about to make it there
        await store.committer.commit(STORE_WIDE, "", lambda _: Decision(intents=[begun]))
        assert store.collect._still_stray([elsewhere]) == []
