"""A rebuild brings everything back from the shards and the master key alone, and says what it cannot know."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.home import SMALL_AND_LARGE, Home, content, delete, freed, get, keys, name, put, share_place, share_places
from tests.store.test_renaming import copy, rename
from zstor_local.config import Config
from zstor_local.errors import NotFound
from zstor_local.metastore.base import CommitRefused
from zstor_local.metastore.sqlite import SqliteMetastore
from zstor_local.model.ids import NamespaceId
from zstor_local.model.policy import Policy
from zstor_local.shards.base import Entry, ShardError
from zstor_local.shards.directory import DirectoryShard
from zstor_local.store.caller import Nobody
from zstor_local.store.engines import SqliteEngines
from zstor_local.store.faults import StoreFault, StoreInUse
from zstor_local.store.opening import open_store
from zstor_local.store.rebuild import Report, rebuild
from zstor_local.store.rebuild.scratch import Scratch
from zstor_local.store.store import Store
from zstor_local.store.writes import WriteOptions
from zstor_local.system import real_runtime


def rebuilt(config: Config, *, accept_loss: bool = False) -> Report:
    runtime = real_runtime()
    return rebuild(runtime, SqliteEngines(runtime.files), config, accept_loss=accept_loss, progress=lambda what, count: None)


def lose_metastore(home: Home, *, index: bool = True) -> None:
    for file in Path(home.store).iterdir():
        if file.name.startswith("metastore.sqlite") or (index and file.name.startswith("index.sqlite")):
            file.unlink()


@pytest.mark.parametrize("index", [True, False], ids=["index lost", "index kept"])
async def test_everything_comes_back(home: Home, index: bool) -> None:
    async with home.open() as store:
        for number, size in enumerate([0, 1, *SMALL_AND_LARGE]):
            await put(store, f"key {number}", content(number, size))
        options = WriteOptions(references=("a", "b"), user={"mode": "0644"})
        stored = await put(store, "with all", content(9, 500), options, namespace="photos")
        await put(store, "twice", content(1, 100))
        await put(store, "twice", content(2, 300_000))
        await put(store, "gone", content(3, 100))
        await delete(store, "gone")
        before = store.committer.state
    lose_metastore(home, index=index)
    report = rebuilt(home.config())
    assert report.loss == []
    assert (report.objects, report.bytes, report.deleted) == (before.objects, before.bytes, 1)
    async with home.open() as store:
        assert store.health == "ok"
        for number, size in enumerate([0, 1, *SMALL_AND_LARGE]):
            assert await get(store, f"key {number}") == content(number, size)
        found = store.objects.find(name("with all", "photos"))
        assert (found.version, found.record) == (stored.version, stored.record)
        assert await get(store, "twice") == content(2, 300_000)
        with pytest.raises(NotFound):
            store.objects.find(name("gone"))
        assert store.committer.state.objects == before.objects
        assert await keys(store) == ["key 0", "key 1", "key 2", "key 3", "twice"]
        await put(store, "new", b"life goes on")
        assert await get(store, "new") == b"life goes on"


async def test_on_another_machine_with_nothing_but_key_and_shards(home: Home, tmp_path: Path) -> None:
    async with home.open() as store:
        await put(store, "small", content(1, 5_000))
        await put(store, "large", content(2, 700_000))
    (tmp_path / "other").mkdir()
    other = Home(tmp_path / "other")
    other.key_file.parent.mkdir()
    shutil.copy(home.key_file, other.key_file)
    shutil.copytree(Path(home.store) / "shards", Path(other.store) / "shards")
    shutil.rmtree(home.store)
    assert rebuilt(other.config()).objects == 2
    async with other.open() as store:
        assert store.health == "ok"
        assert await get(store, "small") == content(1, 5_000)
        assert await get(store, "large") == content(2, 700_000)


async def test_a_shard_that_was_away_during_a_delete_brings_nothing_back(tmp_path: Path) -> None:
    home = Home(tmp_path, Policy(4, 6, chunk_size=256 * 1024))
    async with home.open() as store:
        await put(store, "a", content(1, 5_000))
        await put(store, "b", content(1, 5_000))
    home.take_away(0)
    async with home.open() as store:
        await delete(store, "a")
        await put(store, "b", content(2, 5_000), WriteOptions())
    home.bring_back(0)
    lose_metastore(home)
    assert rebuilt(home.config()).loss == []
    async with home.open() as store:
        assert await keys(store) == ["b"]
        assert await get(store, "b") == content(2, 5_000)


async def test_what_was_never_committed_does_not_come_back(home: Home) -> None:
    """A write that too few shards took is void: its entries in the logs of the others do not count."""
    async with home.open() as store:
        await put(store, "a", content(1, 5_000))
        for number in (0, 1):
            home.take_away(number)
        with pytest.raises(Exception, match="shards"):
            await put(store, "a", content(2, 5_000))
    for number in (0, 1):
        home.bring_back(number)
    lose_metastore(home)
    rebuilt(home.config())
    async with home.open() as store:
        assert await get(store, "a") == content(1, 5_000)


async def test_a_metastore_that_this_version_does_not_have_is_told_so(home: Home) -> None:
    """As at a start: what was made instead would not be used."""
    async with home.open() as store:
        await put(store, "a", b"a")
    elsewhere = replace(home.config(), metastore_url="http://127.0.0.1:2379")
    with pytest.raises(StoreFault, match="keeps its records in the store"):
        rebuilt(elsewhere)
    with pytest.raises(StoreFault, match="keeps its records in the store"):
        async with open_store(home.runtime(), home.engines, elsewhere):
            pass


async def test_a_shard_that_is_not_seen_must_be_accepted(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 5_000))
    home.take_away(2)
    lose_metastore(home)
    with pytest.raises(StoreFault, match="not seen: shard 2"):
        rebuilt(home.config())
    assert not home.metastore.exists()
    assert rebuilt(home.config(), accept_loss=True).unseen == ["2"]
    async with home.open() as store:
        assert await get(store, "a") == content(1, 5_000)


async def test_an_object_with_too_few_shares_is_reported_and_kept(tmp_path: Path) -> None:
    home = Home(tmp_path, Policy(2, 3, chunk_size=256 * 1024))
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        await put(store, "b", b"well")
        for index in (0, 1):
            share_place(store, stored, index).path.unlink()
    lose_metastore(home)
    with pytest.raises(StoreFault, match="1 object has too few shares: 'a'"):
        rebuilt(home.config())
    report = rebuilt(home.config(), accept_loss=True)
    assert report.unreadable == ["a"]
    assert report.objects == 2


async def test_a_share_that_is_missing_is_owed_and_made_again(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        share_place(store, stored, 1).path.unlink()
    lose_metastore(home)
    assert rebuilt(home.config()).loss == []
    async with home.open() as store:
        await store.mending.mend()
        assert (await store.shares_health.check(store.objects.find(name("a")), Nobody())).status == "optimal"
        assert store.metastore.debts_count() == 0


async def test_with_a_part_of_the_index_unreadable_the_rest_is_seen(home: Home) -> None:
    async with home.open() as store:
        hidden = await put(store, "hidden", content(1, 100))
        for number in range(20):
            await put(store, f"key {number}", content(number, 100))
    with closing(sqlite3.connect(f"{home.store}/index.sqlite", isolation_level=None)) as db:
        db.execute("update entry set places=x'00' where version=?", (hidden.version,))
    lose_metastore(home, index=False)
    report = rebuilt(home.config(), accept_loss=True)
    assert (report.objects, report.unreadable) == (21, ["hidden"])
    lose_metastore(home, index=False)
    assert rebuilt(home.config()).loss == []  # for then the index was made anew


async def test_a_bad_sector_of_a_log_keeps_nothing_from_coming_back(home: Home) -> None:
    async with home.open() as store:
        for key in range(20):
            stored = await put(store, f"{key}", content(key, 4_000))
        place = share_place(store, stored, 1)
    lose_metastore(home)
    home.files.ruin(str(place.path), place.offset)
    report = home.rebuild()
    assert (report.objects, report.loss) == (20, [])
    async with home.open() as store:
        for key in range(20):
            assert await get(store, f"{key}") == content(key, 4_000)


async def test_what_no_disk_can_read_just_now_is_no_loss_without_a_word(home: Home) -> None:
    """All shards may lie on one disk. The sequences behind those that were read would be said to have never come to be."""
    async with home.open() as store:
        await put(store, "read", content(1, 10_000))
        places = share_places(store, await put(store, "hidden", content(2, 10_000)))
    lose_metastore(home)
    for place in places:
        home.files.ruin(str(place.path), place.offset + place.length - 1)  # the entry is whole, or not there
    with pytest.raises(StoreFault, match="cannot read"):
        rebuild(home.runtime(), home.engines, home.config(), accept_loss=False, progress=lambda what, count: None)
    report = rebuild(home.runtime(), home.engines, home.config(), accept_loss=True, progress=lambda what, count: None)
    assert (report.objects, report.unread) == (1, ["0", "1", "2"])
    home.files.heal()
    lose_metastore(home)
    assert rebuilt(home.config()).objects == 2


async def test_a_shard_that_fails_while_it_is_read_counts_as_not_seen(home: Home) -> None:
    async with home.open() as store:
        for key in range(100):
            stored = await put(store, f"{key}", content(key, 4_000))
        place = share_place(store, stored, 1)
        shard = stored.record.placement[1]
    lose_metastore(home, index=False)
    home.files.ruin(str(place.path), 4_096, place.offset)  # the index knows all that lies there, so it is opened
    with pytest.raises(StoreFault, match=f"not seen: shard {shard}"):
        home.rebuild()
    report = home.rebuild(accept_loss=True)
    assert (report.objects, report.unseen, report.unreadable) == (100, [str(shard)], [])


async def test_a_shard_whose_segments_cannot_be_listed_counts_as_not_seen(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await put(store, "a", b"value")
    newest = DirectoryShard.newest_writer

    def newest_writer(shard: DirectoryShard) -> int:
        if shard.number == 1:
            raise ShardError("failed", "EIO: Input/output error")
        return newest(shard)

    monkeypatch.setattr(DirectoryShard, "newest_writer", newest_writer)
    with pytest.raises(StoreFault, match="not seen: shard 1"):
        rebuilt(home.config())


@pytest.mark.parametrize(
    "error", [CommitRefused("the disk is full", no_space=True), OSError(errno.ENOSPC, "No space left on device")], ids=repr
)
async def test_a_new_metastore_that_cannot_be_made_leaves_the_old_one_where_it_is(
    home: Home, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with home.open() as store:
        await put(store, "a", b"value")

    def refuse(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(SqliteMetastore, "create", refuse)
        with pytest.raises(StoreFault, match="cannot be made: "):
            rebuilt(home.config())
    async with home.open() as store:
        assert await get(store, "a") == b"value"


async def test_where_there_is_no_room_for_tables_on_the_side_it_says_so(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await put(store, "a", b"value")

    def refuse(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Scratch, "put", refuse)
    with pytest.raises(StoreFault, match="database or disk is full") as caught:
        rebuilt(home.config())
    assert "/var/tmp" in caught.value.hint  # noqa: S108 (nothing is put there)


async def test_an_old_metastore_is_put_aside_with_all_its_bytes(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"value")
    old = home.metastore.read_bytes()
    rebuilt(home.config())
    rebuilt(home.config())
    assert (Path(home.store) / "metastore.sqlite.before-rebuild-1").read_bytes() == old
    assert (Path(home.store) / "metastore.sqlite.before-rebuild-2").exists()


async def test_a_rolled_back_store_is_writable_again_after_a_rebuild(home: Home, tmp_path: Path) -> None:
    async with home.open() as store:
        await put(store, "old", b"1")
    home.copy_metastore(tmp_path / "backup")
    async with home.open() as store:
        await put(store, "new", b"2")
    home.restore_metastore(tmp_path / "backup")
    async with home.open() as store:
        assert store.health == "readonly"
    rebuilt(home.config())
    async with home.open() as store:
        assert store.health == "ok"
        assert await keys(store) == ["new", "old"]
        await put(store, "newer", b"3")


async def test_a_store_in_use_is_not_rebuilt(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"value")
        with pytest.raises(StoreInUse):
            rebuilt(home.config())


async def test_without_a_shard_there_is_nothing_to_rebuild(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"value")
        await freed(store)
    shutil.rmtree(Path(home.store) / "shards")
    with pytest.raises(StoreFault, match="there is no shard"):
        rebuilt(home.config())
    assert home.metastore.exists()


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "not seen"])
async def test_a_shard_that_has_yet_to_hear_of_a_deletion_is_told_though_the_metastore_was_lost(tmp_path: Path, *, seen: bool) -> None:
    """Else the deletion is forgotten where nothing older lies, and that shard brings the key back."""
    home = Home(tmp_path, Policy(2, 4))
    async with home.open() as store:
        await put(store, "gone", b"gone")
        await put(store, "kept", b"old")
        await put(store, "other", b"other")
    home.take_away(3)
    async with home.open() as store:
        await delete(store, "gone")
        await put(store, "kept", b"new")
        newest = {store.metastore.tombstone(*at) or store.metastore.get(*at) for at in _rows(store, "gone", "kept")}
    lose_metastore(home)
    if seen:
        home.bring_back(3)
    rebuilt(home.config(), accept_loss=not seen)
    if not seen:
        home.bring_back(3)
    async with home.open() as store:
        await store.mending.mend()
        shard = store.pool.get(3)
        assert shard is not None
        heard = {scanned.entry.envelope for scanned in shard.scan()}
        assert newest <= heard
        assert store.metastore.debts_count() == 0


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "not seen"])
async def test_a_shard_that_lacks_a_row_of_the_store_is_told_though_the_metastore_was_lost(home: Home, *, seen: bool) -> None:
    """Else a namespace that was deleted comes back some day, when that shard is all there is."""
    async with home.open() as store:
        await put(store, "a", b"value", namespace="gone")
        await store.rows.put("table", "row", b"old")
    home.take_away(2)
    async with home.open() as store:
        await store.removal.remove("gone", Nobody())
        await store.rows.put("table", "row", b"new")
        await store.rows.put("table", "fresh", b"new")
    lose_metastore(home)
    if seen:
        home.bring_back(2)
    rebuilt(home.config(), accept_loss=not seen)
    if not seen:
        home.bring_back(2)
    async with home.open() as store:
        await store.mending.mend()
        assert store.metastore.debts_count() == 0
    for number in (0, 1):
        home.take_away(number)
    lose_metastore(home)
    rebuilt(home.config(), accept_loss=True)
    for number in (0, 1):
        home.bring_back(number)
    async with home.open() as store:
        assert store.namespaces.find("gone") is None
        assert [(row.name, row.value) for row in store.rows.scan("table")] == [("fresh", b"new"), ("row", b"new")]


async def test_a_shard_that_has_yet_to_hear_of_a_key_is_told_though_the_metastore_was_lost(tmp_path: Path) -> None:
    """It holds the share since before the rename or copy, and may be one of the last that do: it has to know whose that is."""
    home = Home(tmp_path, Policy(2, 4))
    async with home.open() as store:
        await put(store, "old", b"old")
        await put(store, "other", b"other")
    home.take_away(3)
    async with home.open() as store:
        await rename(store, "old", "renamed")
        await copy(store, "other", "copied")
        newest = {store.metastore.get(*at) for at in _rows(store, "renamed", "copied")}
    lose_metastore(home)
    home.bring_back(3)
    rebuilt(home.config())
    async with home.open() as store:
        await store.mending.mend()
        shard = store.pool.get(3)
        assert shard is not None
        assert newest <= {scanned.entry.envelope for scanned in shard.scan()}
        assert store.metastore.debts_count() == 0


def _rows(store: Store, *keys: str) -> list[tuple[NamespaceId, str]]:
    namespace = store.namespaces.get("default")
    return [(namespace.id, key) for key in keys]


async def test_a_rebuilt_metastore_is_no_older_than_what_a_log_says_is_committed(home: Home) -> None:
    """A change that no log took used up a sequence, and then a log was told again what it had missed before."""
    async with home.open() as store:
        stored = await put(store, "a", b"first")
        for shard in store.pool.opened()[:2]:
            shard.append([Entry(stored.envelope)], committed=store.committer.state.reserved)
            shard.flush()
    lose_metastore(home, index=False)
    assert rebuilt(home.config()).loss == []
    async with home.open() as store:
        assert store.read_only is None
        await put(store, "b", b"goes on")
        assert await get(store, "a") == b"first"
