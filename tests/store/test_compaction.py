"""Compaction of the logs while they are used: what goes, what stays, and that nobody notices."""

from __future__ import annotations

import errno
import math
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.daemon.client import SAFETY_NET_SECONDS
from tests.store.home import CHUNK, Home, content, delete, freed, get, keys, name, put, small_shares
from tests.store.test_renaming import copy
from zstor_local import limits
from zstor_local.errors import IoError, NoSpace, NotFound, Unreadable
from zstor_local.metastore.base import CommitRefused, Garbage
from zstor_local.model.ids import KeyHash, ShareId
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE, Envelope, Kind
from zstor_local.shards.base import Capacity, Entry
from zstor_local.shards.directory import DirectoryShard
from zstor_local.shards.log import Log
from zstor_local.shards.segment import Located
from zstor_local.store import compaction
from zstor_local.store.caller import Nobody
from zstor_local.store.compaction import Compaction
from zstor_local.store.engines import INDEX
from zstor_local.store.pace import Spend, unpaced
from zstor_local.store.placing import Placing
from zstor_local.store.reading import stretch
from zstor_local.store.store import Store
from zstor_local.store.stored import open_void


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEGMENT_BYTES", 1 << 16)


def log_bytes(home: Home, number: int = 0) -> int:
    return sum(path.stat().st_size for path in (home.root(number) / "log").iterdir())


def entries(store: Store, number: int, kind: Kind) -> int:
    shard = store.pool.get(number)
    assert shard is not None
    return sum(scanned.entry.envelope.kind is kind for scanned in shard.scan())


async def compact(store: Store, least: float = 0.3) -> int:
    """Until there is nothing more to do."""
    removed = 0
    while count := await store.compaction.compact(unpaced, least=least):
        removed += count
    return removed


async def many_rows(store: Store) -> None:
    """So that most of every log's segment is dead."""
    for turn in range(2 * compaction.BATCH):
        await store.rows.put("table", "row", b"%d" % turn)


async def test_overwritten_objects_leave_their_room(home: Home) -> None:
    async with home.open() as store:
        for turn in range(20):
            for key in range(10):
                await put(store, f"{key}", content(turn * 10 + key, 4_000))
        await freed(store)
        before = log_bytes(home)
        assert await compact(store) > 10
        assert log_bytes(home) < before / 3
        for key in range(10):
            assert await get(store, f"{key}") == content(190 + key, 4_000)
    async with home.open() as store:
        for key in range(10):
            assert await get(store, f"{key}") == content(190 + key, 4_000)
            checked = await store.shares_health.check(store.objects.find(name(f"{key}")), Nobody())
            assert checked.status == "optimal"


async def test_the_event_loop_opens_no_record_and_asks_for_none(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment has thousands of them."""
    for _ in range(3):  # so that there is a void in a segment of which most is dead
        async with home.open() as store:
            for key in range(20):
                await put(store, f"{key}", content(key, 4_000))
            await freed(store)
    async with home.open() as store:
        threads: dict[str, set[threading.Thread]] = {"void": set(), "newest": set()}

        def noting(what: str, ask: Callable[..., object]) -> Callable[..., object]:
            def noted(*given: object) -> object:
                threads[what].add(threading.current_thread())
                return ask(*given)

            return noted

        monkeypatch.setattr(compaction, "open_void", noting("void", open_void))
        monkeypatch.setattr(store.metastore, "newest", noting("newest", store.metastore.newest))
        assert await store.compaction.compact(unpaced, least=0.1) > 0
        for met in threads.values():
            assert met
            assert threading.main_thread() not in met


async def test_deleted_objects_leave_nothing_and_do_not_come_back(home: Home) -> None:
    async with home.open() as store:
        for key in range(40):
            await put(store, f"{key}", content(key, 4_000))
        for key in range(40):
            await delete(store, f"{key}")
        await put(store, "kept", b"kept")
        await freed(store)
    for _ in range(3):  # what the open segment holds is looked at in the next life
        async with home.open() as store:
            await compact(store, 0.01)
    async with home.open() as store:
        assert [entries(store, number, Kind.TOMBSTONE) for number in range(3)] == [0, 0, 0]
        assert [entries(store, number, Kind.OBJECT) for number in range(3)] == [1, 1, 1]
        assert entries(store, 0, Kind.VOID) <= 2
        assert await keys(store) == ["kept"]
    report = home.rebuild()
    assert (report.objects, report.deleted) == (1, 0)
    async with home.open() as store:
        assert await get(store, "kept") == b"kept"
        with pytest.raises(NotFound):
            await get(store, "7")


@pytest.mark.parametrize("third", ["has heard", "was full when it was told", "is away"])
async def test_voids_go_once_every_log_has_heard_of_what_they_void(home: Home, third: str) -> None:
    for life in range(3):  # each begins with a void of what the one before may have used
        async with home.open() as store:
            for key in range(20):
                await put(store, f"{key}", content(life * 20 + key, 4_000))
            await freed(store)
    if third == "is away":
        home.take_away(2)
    async with home.open() as store:
        if third == "was full when it was told":
            store.committer._publisher._untold[2] = {STORE_WIDE: [(1, 1)]}
        before = entries(store, 0, Kind.VOID)
        assert await compact(store, 0.01) > 0
        assert (entries(store, 0, Kind.VOID) < before) is (third == "has heard")


async def test_what_was_refused_is_void_wherever_compaction_puts_it(home: Home) -> None:
    """It stays, as nothing later of its key came, and with it what says that it never came to be."""
    async with home.open() as store:
        await put(store, "a", b"old")
        home.fail_commits(CommitRefused("refused", no_space=False))
        with pytest.raises(IoError):
            await put(store, "a", b"new")
        home.heal_commits()
        for turn in range(10):
            await put(store, "often", content(turn, 4_000))
        await freed(store)
    async with home.open() as store:
        assert await compact(store) == 3
    home.rebuild()
    async with home.open() as store:
        assert await get(store, "a") == b"old"


async def test_a_share_that_was_made_elsewhere_stays_until_it_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the last: that is looked at where it is freed."""
    home = Home(tmp_path, Policy(2, 3, chunk_size=CHUNK), shards=4)

    async def is_needless(row: Garbage) -> bool:
        return False

    async with home.open() as store:
        monkeypatch.setattr(store.shares_health, "is_needless", is_needless)
        stored = await put(store, "a", content(1, 4_000))
        first = stored.record.placement[0]
        home.take_away(first)
        await store.shares_health.repair(stored, Nobody())
        await home.return_to(store, first)
        await compact(store, 0.01)
        shard = store.pool.get(first)
        assert shard is not None
        with closing(shard.open_share(ShareId(stored.version, 0), small=True)) as share:
            assert len(share.read(0, stored.record.share_bytes)) == stored.record.share_bytes


async def test_while_a_shard_is_owed_something_tombstones_stay_and_bury(home: Home) -> None:
    async with home.open() as store:
        for key in range(30):
            await put(store, f"{key}", content(key, 4_000))
        await put(store, "kept", b"kept")
    home.take_away(2)
    async with home.open() as store:
        for key in range(30):
            await delete(store, f"{key}")
        await freed(store)
    for _ in range(2):
        async with home.open() as store:
            await compact(store)
    async with home.open() as store:
        assert entries(store, 0, Kind.TOMBSTONE) == 30
    home.bring_back(2)
    report = home.rebuild()
    assert (report.objects, report.deleted) == (1, 30)


async def test_while_a_shard_is_owed_a_deletion_it_buries_the_versions_before_the_one_that_was_deleted(tmp_path: Path) -> None:
    """Of the one that was deleted nothing is left to be freed: it never lay on that shard."""
    home = Home(tmp_path, Policy(1, 2, chunk_size=256 * limits.KIB), shards=3)
    async with home.open() as store:
        for key in range(30):
            await put(store, f"{key}", content(key, 4_000))
    home.take_away(2)
    async with home.open() as store:
        for key in range(30):
            await put(store, f"{key}", content(key + 1, 4_000))
            await delete(store, f"{key}")
        await freed(store)
    for _ in range(2):
        async with home.open() as store:
            await compact(store, 0.001)
    home.bring_back(2)
    report = home.rebuild()
    assert report.objects == 0


async def test_a_log_that_never_heard_of_a_newer_record_gets_it_in_place_of_the_old(home: Home) -> None:
    """A shard that an object left two versions ago holds the last record that it was told."""
    home.shards = 6
    async with home.open() as store:
        for turn in range(30):
            for key in range(6):
                await put(store, f"{key}", content(turn, 4_000))
        await freed(store)
        await compact(store)
        for number in range(6):
            shard = store.pool.get(number)
            assert shard is not None
            newest: dict[bytes, int] = {}
            for scanned in shard.scan():
                envelope = scanned.entry.envelope
                newest[envelope.key_hash] = max(newest.get(envelope.key_hash, 0), envelope.sequence)
            assert newest
        for key in range(6):
            assert await get(store, f"{key}") == content(29, 4_000)
    report = home.rebuild()
    assert report.objects == 6


async def test_a_damaged_segment_stays(home: Home) -> None:
    async with home.open() as store:
        for turn in range(30):
            await put(store, "a", content(turn, 4_000))
        await freed(store)
    first = sorted((home.root(0) / "log").iterdir())[1]
    with first.open("r+b") as file:
        file.seek(300)
        file.write(b"\xff")
    async with home.open() as store:
        await compact(store)
        assert first.exists()
        assert not sorted((home.root(1) / "log").iterdir())[0].name.startswith("0000000002")
        assert await get(store, "a") == content(29, 4_000)


async def test_a_bad_sector_keeps_its_segment_and_what_may_bury_something_there(home: Home) -> None:
    async with home.open() as store:
        for key in range(40):
            await put(store, f"{key}", content(key, 4_000))
    ruined, other = sorted((home.root(0) / "log").iterdir())[1:3]
    home.files.ruin(str(ruined), 30_000)
    async with home.open() as store:
        for key in range(40):
            await delete(store, f"{key}")
        await freed(store)
    for _ in range(3):
        async with home.open() as store:
            await compact(store, 0.01)
    async with home.open() as store:
        assert [entries(store, number, Kind.TOMBSTONE) for number in range(3)] == [40, 0, 0]
        assert (ruined.exists(), other.exists()) == (True, False)
        assert [entries(store, number, Kind.VOID) > 1 for number in range(3)] == [True] * 3  # of what may lie there no log forgets it
    home.files.heal()
    (Path(home.store) / INDEX).unlink()
    async with home.open() as store:
        assert small_shares(store) == 0
    for _ in range(2):
        async with home.open() as store:
            await compact(store, 0.01)
    async with home.open() as store:
        assert [entries(store, 0, kind) for kind in (Kind.TOMBSTONE, Kind.OBJECT)] == [0, 0]


@pytest.mark.parametrize(
    ("operation", "code"),
    [("list", errno.ENODEV), ("pread", errno.ENODEV), ("pwritev", errno.EIO), ("fdatasync", errno.EIO), ("unlink", errno.EACCES)],
)
async def test_a_disk_that_fails_in_it_keeps_its_log_and_no_other(home: Home, operation: str, code: int) -> None:
    async with home.open() as store:
        for turn in range(20):
            for key in range(5):
                await put(store, f"{key}", content(turn * 5 + key, 4_000))
        await freed(store)
        before = log_bytes(home)
        home.files.fail(operation, lambda path: path.startswith(str(home.root(0) / "log")), code, times=None)
        assert await store.compaction.compact(unpaced, least=0.3) > 0
        assert log_bytes(home) > before / 2 > log_bytes(home, 1)
        home.files.heal()
    async with home.open() as store:
        for key in range(5):
            checked = await store.shares_health.check(store.objects.find(name(f"{key}")), Nobody())
            assert checked.status == "optimal"


async def lose_index_while_logs_are_unread(home: Home) -> None:
    """Twenty objects, and an index that is made anew at the next start, when the disks cannot read where the shares lie."""
    async with home.open() as store:
        for key in range(20):
            await put(store, f"{key}", content(key, 4_000))
    Path(home.store, INDEX).unlink()
    for log in Path(home.store).glob("shards/*/log"):
        for segment in sorted(log.iterdir())[1:]:
            home.files.ruin(str(segment), 0)


async def test_a_share_that_the_index_missed_stays_and_is_found_again(home: Home) -> None:
    await lose_index_while_logs_are_unread(home)
    async with home.open() as store:
        with pytest.raises(Unreadable):
            await get(store, "0")
        home.files.heal()
        for key in range(0, 20, 2):
            await delete(store, f"{key}")
        await freed(store)
        assert await compact(store)
        for key in range(1, 20, 2):
            assert await get(store, f"{key}") == content(key, 4_000)


@pytest.mark.parametrize("writes", [0, 3])
async def test_a_share_that_the_index_missed_is_found_at_a_start_when_its_disk_can_be_read(home: Home, writes: int) -> None:
    await lose_index_while_logs_are_unread(home)
    async with home.open() as store:
        for key in range(writes):
            await put(store, f"new {key}", content(key, 4_000))
    home.files.heal()
    async with home.open() as store:
        for key in range(20):
            assert await get(store, f"{key}") == content(key, 4_000)


async def test_starts_that_come_past_the_same_entries_again_leave_the_index_as_it_is(home: Home) -> None:
    """Each does where a disk cannot read a part of its log, for as long as that is so."""
    async with home.open() as store:
        await put(store, "unread", content(0, 4_000))
    for segment in sorted(Path(home.store, "shards", "0", "log").iterdir())[1:]:
        home.files.ruin(str(segment), 0)
    async with home.open() as store:
        for key in range(5):
            await put(store, f"{key}", content(key, 4_000))
    indexed = []
    for _ in range(3):
        with closing(sqlite3.connect(Path(home.store, INDEX))) as index:
            indexed.append(index.execute("select version, places from entry").fetchall())
        async with home.open():
            pass
    assert len(indexed[0]) == 6
    assert indexed[0] == indexed[1] == indexed[2]


async def test_where_the_index_does_not_tell_what_lies_there_everything_stays(home: Home) -> None:
    async with home.open() as store:
        kept = await put(store, "kept", content(0, 4_000))
        for turn in range(30):
            await put(store, "a", content(turn, 4_000))
        await freed(store)
        store.index.flush()
        with closing(sqlite3.connect(f"{home.store}/{INDEX}", isolation_level=None)) as index:
            index.execute("update entry set places=x'00' where version=?", (kept.version,))
        await compact(store)
    async with home.open() as store:
        assert (await store.shares_health.check(kept, Nobody())).status == "optimal"


async def test_what_says_that_an_object_is_gone_stays_as_long_as_its_entry_lies_elsewhere_in_the_log(home: Home) -> None:
    """Else its share would be there again once the index is made anew, and its key after a rebuild."""
    async with home.open() as store:
        for key in ("gone", "1", "2", "3", "4", "5"):
            await put(store, key, content(1, 4_000))
    async with home.open() as store:
        await delete(store, "gone")
        for turn in range(10):
            await put(store, "often", content(turn, 4_000))
        await freed(store)
    async with home.open() as store:
        assert await compact(store) == 3
        assert small_shares(store) == 3 * 6
    (Path(home.store) / INDEX).unlink()
    async with home.open() as store:
        assert small_shares(store) == 3 * 6
    home.rebuild()
    async with home.open() as store:
        assert await keys(store) == ["1", "2", "3", "4", "5", "often"]


async def test_a_deleted_key_stays_deleted_where_a_copy_needs_its_share(home: Home) -> None:
    """The share lies behind the record of the key that was deleted."""
    async with home.open() as store:
        await put(store, "a", content(1, 4_000))
        await copy(store, "a", "b")
        await delete(store, "a")
        for turn in range(10):
            await put(store, "often", content(turn, 4_000))
        await freed(store)
    async with home.open() as store:
        assert await compact(store) == 3
    home.rebuild()
    async with home.open() as store:
        assert await keys(store) == ["b", "often"]
        assert await get(store, "b") == content(1, 4_000)


async def test_a_row_that_was_deleted_stays_so_when_an_older_copy_of_a_shard_is_put_back(home: Home) -> None:
    """One copy is enough to bring back what the store's own rows say, as whom a namespace lets in."""
    async with home.open() as store:
        await store.rows.put("table", "gone", b"value")
    shutil.copytree(home.root(2), home.path / "older")
    async with home.open() as store:
        await store.rows.remove("table", "gone")
        await many_rows(store)
    async with home.open() as store:
        assert await compact(store) > 0
    shutil.rmtree(home.root(2))
    (home.path / "older").rename(home.root(2))
    home.rebuild()
    async with home.open() as store:
        assert store.rows.get("table", "gone") is None


async def test_a_record_that_does_not_open_stays(home: Home) -> None:
    """Nobody can tell what it says, and of which row."""
    async with home.open() as store:
        stored = await put(store, "a", content(1, 4_000))
        closed = replace(stored.envelope, sequence=2, key_hash=KeyHash(bytes(16)), sealed=bytes(300))
        for shard in store.pool.opened():
            shard.append([Entry(closed)], store.committer.state.sequence)
        for turn in range(10):
            await put(store, "often", content(turn, 4_000))
        await freed(store)
    async with home.open() as store:
        assert await compact(store) == 3
        assert all(closed in [each.entry.envelope for each in shard.scan()] for shard in store.pool.opened())


async def test_a_share_that_is_here_again_is_not_said_to_be_freed(tmp_path: Path) -> None:
    home = Home(tmp_path, Policy(2, 3, chunk_size=CHUNK), shards=4)
    async with home.open() as store:
        first = (await put(store, "a", content(1, 4_000))).record.placement[0]
    for _ in ("moves away", "comes back"):
        async with home.open() as store:
            before = store.objects.find(name("a"))
            home.take_away(before.record.placement[0])
            await store.shares_health.repair(before, Nobody())
            await home.return_to(store, before.record.placement[0])
            await store.mending.mend()
            await freed(store)
    async with home.open() as store:
        stored = store.objects.find(name("a"))
        assert stored.record.placement[0] == first
        assert await compact(store) > 0
        assert (await store.shares_health.check(stored, Nobody())).status == "optimal"


async def test_readers_and_writers_do_not_notice(home: Home) -> None:
    async with home.open() as store:
        for key in range(20):
            await put(store, f"{key}", content(key, 4_000))
        done = trio.Event()

        async def write() -> None:
            for turn in range(60):
                await put(store, f"{turn % 10}", content(turn % 10, 4_000))
            done.set()

        async def read() -> None:
            while not done.is_set():
                for key in range(10, 20):  # those that are not written anew meanwhile
                    assert await get(store, f"{key}") == content(key, 4_000)

        async def compact_all_the_time() -> None:
            while not done.is_set():
                await store.compaction.compact(unpaced, least=0.05)

        async with trio.open_nursery() as nursery:
            for task in (write, read, compact_all_the_time):
                nursery.start_soon(task)
        assert store.health == "ok"
        for key in range(20):
            checked = await store.shares_health.check(store.objects.find(name(f"{key}")), Nobody())
            assert (key, checked.states) == (key, ["ok", "ok", "ok"])
    assert home.suspects == set()
    async with home.open() as store:
        for key in range(20):
            assert await get(store, f"{key}") == content(key, 4_000)


async def test_a_reader_that_looked_before_a_share_was_moved_finds_it(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 4_000))
        shard = store.pool.get(stored.record.placement[0])
        assert shard is not None
        reader = shard.open_share(ShareId(stored.version, 0), small=True)
        before = bytes(reader.read(0, 100))
        for turn in range(30):
            await put(store, "b", content(turn, 4_000))
        await freed(store)
        assert await compact(store, 0.01) > 0
        peeked = shard.peek(ShareId(stored.version, 0), 0, 100)
        assert peeked is None or bytes(peeked) == before
        assert bytes(reader.read(0, 100)) == before
        reader.close()


async def test_nothing_is_done_in_vain_twice(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that hold less that is dead than it seems."""
    seems, tried, compact_segment = 0.5, 0, Compaction._compact_segment

    async def counting(self: Compaction, *args: Any) -> bool:
        nonlocal tried
        tried += 1
        return await compact_segment(self, *args)

    monkeypatch.setattr(Compaction, "_compact_segment", counting)
    monkeypatch.setattr(Compaction, "_survey", lambda *_: (seems, 1))
    async with home.open() as store:
        for key in range(60):
            await put(store, f"{key}", content(key, 4_000))
        assert await store.compaction.compact(unpaced) == 0
        before, sealed = home.files.calls["pwritev"], tried
        assert sealed > 0
        assert await store.compaction.compact(unpaced) == 0
        assert tried == sealed
        seems = 0.6
        assert await store.compaction.compact(unpaced) == 0
        assert tried == 2 * sealed
        assert home.files.calls["pwritev"] == before


def no_room(log: Log, shares: Sequence[ShareId]) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_what_is_to_be_freed_leaves_a_log_that_has_no_room_to_say_so(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        monkeypatch.setattr(store.freeing, "wake", lambda: None)  # the test frees
        for key in range(60):
            await put(store, f"{key}", content(key, 4_000))
        for key in range(50):
            await delete(store, f"{key}")
        with monkeypatch.context() as full:
            full.setattr(Log, "free", no_room)
            assert await store.freeing.free_some() == 0
            waiting, before = store.metastore.garbage_count(), log_bytes(home)
            assert waiting == 150
            assert await store.compaction.compact(unpaced) == 3 * 2
            assert log_bytes(home) <= before - limits.SEGMENT_BYTES
        await freed(store)  # the room that was made is there for what has to be said
        assert store.metastore.garbage_count() == 0
        await compact(store)
    async with home.open() as store:
        assert small_shares(store) == 3 * 10
        assert await keys(store) == sorted(f"{key}" for key in range(50, 60))
    home.metastore.unlink()
    home.rebuild()
    async with home.open() as store:
        assert await keys(store) == sorted(f"{key}" for key in range(50, 60))
        for key in range(50, 60):
            assert await get(store, f"{key}") == content(key, 4_000)


async def test_what_left_a_log_unsaid_is_not_looked_for_there_when_the_metastore_is_lost_before_it_was_freed(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home.open() as store:
        monkeypatch.setattr(store.freeing, "wake", lambda: None)
        for key in range(60):
            await put(store, f"{key}", content(key, 4_000))
        for key in range(50):
            await delete(store, f"{key}")
        assert await store.compaction.compact(unpaced) == 3 * 2
        assert store.metastore.garbage_count() == 150
    home.metastore.unlink()
    home.rebuild()
    async with home.open() as store:
        for number in store.pool.numbers:
            shard = store.pool.get(number)
            assert shard is not None
            for share in shard.held(small=True):
                with closing(shard.open_share(share, small=True)) as reader:
                    assert len(reader.read(0, 100)) == 100
        assert await keys(store) == sorted(f"{key}" for key in range(50, 60))


async def test_what_is_read_stays_in_a_log_until_it_was_read(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        monkeypatch.setattr(store.freeing, "wake", lambda: None)
        for key in range(30):
            await put(store, f"{key}", content(key, 4_000))
        stored = store.objects.find(name("0"))
        with store.freeing.lease(stored.version):
            for key in range(30):
                await delete(store, f"{key}")
            await compact(store)
            assert await store.objects.read(stored, stretch(stored.record, None, None)) == content(0, 4_000)


async def test_a_write_that_a_full_disk_refuses_makes_room_for_the_next(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        for turn in range(20):
            for key in range(10):
                await put(store, f"{key}", content(turn * 10 + key, 4_000))
        await freed(store)
        before = log_bytes(home)
        kept = before // 2

        def capacity(shard: DirectoryShard) -> Capacity:
            return Capacity(50 * kept, max(0, 2 * kept - log_bytes(home, shard.number)))

        monkeypatch.setattr(DirectoryShard, "capacity", capacity)
        compacted = trio.Event()
        compact_all = store.compaction.compact

        async def watched(spend: Spend) -> int:
            removed = await compact_all(spend)
            compacted.set()
            return removed

        monkeypatch.setattr(store.compaction, "compact", watched)
        store.free_space._looked = -math.inf
        with pytest.raises(NoSpace):
            await put(store, "new", content(1, 4_000))
        with trio.fail_after(SAFETY_NET_SECONDS):
            await compacted.wait()
        assert log_bytes(home) < kept
        store.free_space._looked = -math.inf
        await put(store, "new", content(1, 4_000))
        assert await get(store, "9") == content(199, 4_000)


# --- Keys that wander over more shards than they have shares ---


@pytest.fixture
def wandering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """2 of 3 over six shards; the first five objects go to the first three, later ones to the others."""
    placements = [(0, 1, 2)] * 5 + [(3, 4, 5)] * 6
    monkeypatch.setattr(Placing, "place", lambda *_: (placements.pop(0), {}))
    return Home(tmp_path, Policy(2, 3, chunk_size=CHUNK), shards=6)


async def come_and_go(store: Store, *, coming: Sequence[str] = (), going: Sequence[str] = ()) -> None:
    for key in coming:
        await put(store, key, content(7, 10_000))
    for key in going:
        await delete(store, key)


async def compacted_in_several_lives(home: Home) -> None:
    for _ in range(4):
        async with home.open() as store:
            await store.mending.mend()
            await freed(store)
            await compact(store, 0.5)
    home.rebuild()


@pytest.mark.parametrize("copied", [False, True])
async def test_a_deleted_key_stays_deleted_on_shards_that_only_older_versions_used(wandering: Home, *, copied: bool) -> None:
    others = [f"x{number}" for number in range(4)]
    passing = [f"y{number}" for number in range(4)]
    async with wandering.open() as store:
        await come_and_go(store, coming=[*others, "a"])
        if copied:
            await copy(store, "a", "b")
        await put(store, "a", content(2, 10_000))
        await put(store, "a", content(3, 10_000))
        await come_and_go(store, coming=passing, going=["a", *passing])
        await store.rows.put("table", "row", b"no log ends with something older of the key, of which a start would tell it")
        await freed(store)
    await compacted_in_several_lives(wandering)
    async with wandering.open() as store:
        assert await keys(store) == [*(["b"] if copied else []), *others]


@pytest.mark.parametrize("together", [False, True])
async def test_a_shard_that_missed_a_row_written_twice_hears_that_it_was_deleted(wandering: Home, *, together: bool) -> None:
    others = [f"x{number}" for number in range(4)]
    passing = [f"y{number}" for number in range(4)]
    async with wandering.open() as store:
        await come_and_go(store, coming=[*others, "a"])
        await copy(store, "a", "b")
        wandering.take_away(0)
        if together:
            async with trio.open_nursery() as nursery:
                for seed in (2, 3):
                    nursery.start_soon(put, store, "a", content(seed, 10_000))
        else:
            for seed in (2, 3):
                await put(store, "a", content(seed, 10_000))
        owed = {debt.shard for debt in store.metastore.debts_of(store.objects.find(name("a")).version)}
        assert owed == {0}
        await come_and_go(store, coming=passing, going=["a", *passing])
        await wandering.return_to(store, 0)
        await store.mending.mend()
        await freed(store)
    await compacted_in_several_lives(wandering)
    async with wandering.open() as store:
        assert await keys(store) == ["b", *others]


async def test_a_deletion_at_the_end_of_a_log_buries_after_a_restart_too(wandering: Home) -> None:
    """What was written since lies on other shards: the start must not take that deletion for one that never came to be."""
    async with wandering.open() as store:
        await come_and_go(store, coming=[*(f"x{number}" for number in range(4)), "a"])
        await copy(store, "a", "b")
        await delete(store, "a")
        await put(store, "a", content(2, 10_000))
    async with wandering.open():
        pass
    for number in (3, 4, 5):
        wandering.take_away(number)
    report = wandering.rebuild(accept_loss=True)
    assert (report.unreadable, report.older) == (["a"], [])


def heard(store: Store, number: int, envelope: Envelope) -> int:
    """The highest sequence that a shard's log has of a record's key."""
    shard = store.pool.get(number)
    assert shard is not None
    told = (scanned.entry.envelope for scanned in shard.scan())
    return max(each.sequence for each in told if each.key_hash == envelope.key_hash)


async def test_what_a_log_says_of_a_key_never_becomes_older(wandering: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third version is written while they are compacted, and only the shards of the second one are told, which it is on too."""
    async with wandering.open() as store:
        await come_and_go(store, coming=[*(f"x{number}" for number in range(4)), "a"])
        await copy(store, "a", "b")
    async with wandering.open() as store:
        await many_rows(store)
        second = (await put(store, "a", content(2, 10_000))).envelope
        await freed(store)
    carry, begun = compaction._Segment.carry, threading.Event()

    def noting(segment: compaction._Segment, batch: Sequence[Located]) -> None:
        carry(segment, batch)
        begun.set()

    async def meanwhile(size: int) -> None:
        if begun.is_set() and store.objects.find(name("a")).envelope == second:
            await put(store, "a", content(3, 10_000))

    monkeypatch.setattr(compaction._Segment, "carry", noting)
    async with wandering.open() as store:
        assert await store.compaction.compact(meanwhile, least=0.5) == 6
        assert heard(store, 0, second) >= second.sequence
        await many_rows(store)
    async with wandering.open() as store:
        assert await compact(store, 0.5) == 6
        third = store.objects.find(name("a")).envelope
        assert [heard(store, number, third) for number in range(3)] == [third.sequence] * 3
