"""Shards that go away and come back while the store is open: opened anew, fenced, told, filled."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from tests.store.home import CHUNK, SMALL_AND_LARGE, Home, content, delete, freed, get, keys, name, put, small_shares
from tests.store.test_references import use
from zstor_local import limits
from zstor_local.errors import IoError, NotFound, OutcomeUnknown, ZstorError
from zstor_local.metastore.base import CommitRefused, CommitUnknown, MetastoreDamaged, Transaction
from zstor_local.model.ids import NamespaceId
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE, Envelope, Kind
from zstor_local.model.storewide import VoidRecord
from zstor_local.shards import pool
from zstor_local.shards.base import Shard
from zstor_local.store.caller import Nobody
from zstor_local.store.pace import unpaced
from zstor_local.store.placing import Placing
from zstor_local.store.presence import Presence
from zstor_local.store.scrub import Scrub
from zstor_local.store.scrubrow import Found, ScrubRow
from zstor_local.store.store import Store


@pytest.fixture(autouse=True)
def two_of_four(home: Home) -> None:
    """2 of 4: a write needs three shards, a read two."""
    home.policy = Policy(2, 4, chunk_size=CHUNK)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_shard_that_was_away_at_the_start_is_opened_filled_and_told_when_it_comes(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "old", content(1, size))
    home.take_away(3)
    async with home.open() as store:
        await store.presence.look()
        assert store.pool.state(3) == "missing"
        await put(store, "new", content(2, size))
        await delete(store, "old")
        assert store.metastore.debts_count() > 0
        await home.return_to(store, 3)
        await store.mending.mend()
        await freed(store)
        assert (store.health, store.metastore.debts_count(), store.metastore.garbage_count()) == ("ok", 0, 0)
        assert small_shares(store) == (4 if size == SMALL_AND_LARGE[0] else 0)
        for number in (0, 1):
            home.take_away(number)
        assert await get(store, "new") == content(2, size)


async def test_the_log_tells_once_of_a_shard_that_goes_also_before_the_first_look(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    async with home.open() as store:
        home.take_away(3)
        for _ in range(3):
            await store.presence.look()
        assert [record.getMessage() for record in caplog.records if "shard 3 is" in record.getMessage()] == [
            "shard 3 is missing: the marker cannot be seen (ENOENT): unmounted or emptied"
        ]
        await home.return_to(store, 3)
        home.take_away(3)
        await store.presence.look()
    assert caplog.text.count("shard 3 is missing") == 2


async def test_a_shard_that_missed_a_delete_brings_nothing_back(home: Home) -> None:
    """Together with one other it would be enough to read the deleted object."""
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        home.take_away(2)
        home.take_away(3)
        await delete(store, "a")
        await home.return_to(store, 2)
        await home.return_to(store, 3)
        await store.mending.mend()
        await freed(store)
    report = home.rebuild()
    assert (report.objects, report.deleted) == (0, 1)
    async with home.open() as store:
        with pytest.raises(NotFound):
            await get(store, "a")


async def test_a_directory_without_its_marker_is_never_written(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1")
        home.take_away(1)
        home.root(1).mkdir()
        await store.presence.look()
        assert store.pool.state(1) == "missing"
        await put(store, "b", b"2")
        assert list(home.root(1).iterdir()) == []
        home.root(1).rmdir()
        await home.return_to(store, 1)
        assert store.health == "ok"


async def test_a_shard_that_another_daemon_wrote_to_meanwhile_is_refused(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1")
        home.take_away(1)
        copied = home.path / "copied"
        shutil.copytree(home.away(1), copied)
        await put(store, "b", b"2")
        writer = store.committer.state.writer
    home.bring_back(1)
    async with home.open() as store:  # a later life: its writer number is higher
        assert store.committer.state.writer == writer + 1
        home.take_away(0)
        entry = store.pool.entry(1)
        assert entry is not None
        home.take_away(1)
        home.away(1).rename(home.path / "ours")
        copied.rename(home.root(1))
        other = store.places.opener.open(entry, str(home.root(1)))
        other.start(writer + 5, store.runtime.randomness)
        other.close()
        await store.presence.look()
        assert store.pool.state(1) == "failed"
        assert "another daemon" in store.pool.reason(1)
        home.root(1).rename(home.path / "theirs")
        (home.path / "ours").rename(home.root(1))
        await home.return_to(store, 0)
        assert store.health == "ok"


async def test_a_shard_that_was_away_when_an_older_copy_of_the_store_was_put_back_is_refused(home: Home) -> None:
    """With the metastore two shards were put back, which know of nothing later. What the others have is for a rebuild."""
    async with home.open() as store:
        await put(store, "a", b"1")
    home.copy_metastore(home.path / "copy")
    for number in (0, 1):
        shutil.copytree(home.root(number), home.path / f"copy{number}")
    async with home.open() as store:
        for key in ("b", "c", "d"):
            await put(store, key, b"later")
    home.restore_metastore(home.path / "copy")
    for number in (0, 1):
        shutil.rmtree(home.root(number))
        (home.path / f"copy{number}").rename(home.root(number))
    for number in (2, 3):
        home.take_away(number)
    async with home.open() as store:
        assert store.read_only is None
        for number in (2, 3):
            await home.return_to(store, number)
            assert store.pool.state(number) == "failed"
            assert "the metastore is an older copy" in store.pool.reason(number)
    home.metastore.unlink()
    home.rebuild()
    async with home.open() as store:
        assert [await get(store, key) for key in "abcd"] == [b"1", b"later", b"later", b"later"]


def log_files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("log/*")}


async def test_a_shard_that_comes_back_when_nothing_is_committed_any_more_is_read_and_not_written(home: Home) -> None:
    def broken(transaction: Transaction) -> None:
        raise CommitUnknown("the disk of the metastore does not answer")

    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        home.engines.before_commit = broken
        with pytest.raises(OutcomeUnknown):
            await put(store, "a", content(2, 10_000))
        for number in (0, 1, 2):
            home.take_away(number)
        await store.presence.look()
        before = [log_files(home.away(number)) for number in (0, 1, 2)]
        for number in (0, 1, 2):
            await home.return_to(store, number)
        assert await get(store, "a") == content(1, 10_000)
        assert [log_files(home.root(number)) for number in (0, 1, 2)] == before


async def test_a_shard_that_comes_back_to_a_store_that_is_only_read_is_read_on(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
    home.copy_metastore(home.path / "copy")
    async with home.open() as store:
        await put(store, "b", b"later")
    home.restore_metastore(home.path / "copy")
    async with home.open() as store:
        assert store.health == "readonly"
        for number in (0, 1, 2):
            home.take_away(number)
        await store.presence.look()
        for number in (0, 1, 2):
            await home.return_to(store, number)
        assert await get(store, "a") == content(1, 10_000)


async def test_a_shard_that_could_not_be_begun_is_opened_again_at_the_next_look(home: Home) -> None:
    async with home.open() as store:
        home.take_away(0)
        await store.presence.look()
        home.files.fail("allocate", lambda path: "/shards/0/log/" in path, errno.EIO)
        await home.return_to(store, 0)
        assert store.pool.state(0) == "failed"
        await store.presence.look()
        assert store.health == "ok"


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_shard_that_can_only_be_read_is_read_on(home: Home, size: int) -> None:
    """A look finds that anew each time, and does not take it away."""
    async with home.open() as store:
        await put(store, "a", content(1, size))
    home.files.fail("*", lambda path: path.startswith(f"{home.root(0)}/"), errno.EROFS, times=None)
    async with home.open() as store:
        await put(store, "b", content(2, size))
        home.take_away(1)
        home.take_away(2)
        for _ in range(2):
            await store.presence.look()
            assert [store.pool.state(number) for number in range(4)] == ["readonly", "missing", "missing", "ok"]
            assert await get(store, "a") == content(1, size)
        home.files.heal()
        for number in (1, 2):
            await home.return_to(store, number)
        assert store.health == "ok"
        await store.mending.mend()
        await freed(store)
        assert store.metastore.debts_count() == 0


async def test_what_never_came_to_be_is_voided_before_a_returning_shard_is_written(home: Home) -> None:
    """The shard has the records of a group that was refused, and went away before it could be told so."""

    def refuse(transaction: Transaction) -> None:
        home.heal_commits()
        home.take_away(3)
        raise CommitRefused("refused", no_space=False)

    async with home.open() as store:
        await put(store, "a", b"old")
        home.engines.before_commit = refuse
        with pytest.raises(IoError):
            await put(store, "a", b"new")
        assert voided(store, 2)
        await home.return_to(store, 3)
        assert voided(store, 3) & voided(store, 2)
        assert await get(store, "a") == b"old"


async def test_what_was_refused_does_not_come_back_when_what_came_after_it_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards hold a refused version, and cannot be told so before the restart. The deletion after it went to other shards."""
    monkeypatch.setattr(pool, "SYNCFS_KINDS", frozenset())
    monkeypatch.setattr(limits, "SEGMENT_BYTES", 1 << 16)
    placements = [(0, 1, 2, 3), (4, 5, 6, 7)]
    monkeypatch.setattr(Placing, "place", lambda *_: (placements.pop(0), {}))
    home = Home(tmp_path, Policy(2, 4, chunk_size=CHUNK), shards=8)
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        home.files.fail("fdatasync", lambda path: "/4/log/" in path or "/5/log/" in path, errno.EIO, times=None)
        for number in (6, 7):
            home.take_away(number)
        with pytest.raises(OutcomeUnknown):
            await put(store, "a", content(2, 10_000))
        home.bring_back(6)
        await home.return_to(store, 7)
        await delete(store, "a")
        home.files.heal()
    for _ in range(3):
        async with home.open() as store:
            assert store.health == "ok"
            await store.mending.mend()
            await freed(store)
            await store.compaction.compact(unpaced, least=0.001)
    home.rebuild()
    async with home.open() as store:
        assert await keys(store) == []


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_version_whose_record_has_changed_while_its_shard_was_away_is_not_voided_there(home: Home, size: int) -> None:
    """If all other shards were lost before this one heard of the change, the object would still be there."""
    home.policy = Policy(1, 3, chunk_size=CHUNK)
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        home.take_away(0)
        await use(store).append(name("a"), ["reference"], None, Nobody())
        await home.return_to(store, 0)
        assert stored.envelope.sequence not in voided(store, 0)


@pytest.mark.parametrize(("error", "state"), [(MetastoreDamaged("damaged"), "ok"), (IoError("unreadable"), "failed")])
async def test_a_metastore_that_cannot_be_read_ends_no_look_at_the_shards(
    home: Home, monkeypatch: pytest.MonkeyPatch, error: ZstorError, state: str
) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 10_000))
        home.take_away(0)
        await store.presence.look()
        get_row = store.metastore.get

        def troubled(space: NamespaceId, key: str) -> Envelope | None:
            if key == "a":
                raise error
            return get_row(space, key)

        with monkeypatch.context() as patch:
            patch.setattr(store.metastore, "get", troubled)
            await home.return_to(store, 0)
            assert store.pool.state(0) == state
        await store.presence.look()
        assert store.health == "ok"
        assert stored.envelope.sequence not in voided(store, 0)


async def test_what_was_refused_is_told_though_the_daemon_is_killed_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any entry says that all before it is settled: so what is not has to be told in the first one."""
    monkeypatch.setattr(pool, "SYNCFS_KINDS", frozenset())
    home = Home(tmp_path, Policy(2, 5, chunk_size=CHUNK))
    async with home.open() as store:
        await store.rows.put("table", "name", b"before")
        home.files.fail("fdatasync", lambda path: "/0/log/" in path or "/1/log/" in path, errno.EIO, times=None)
        home.take_away(2)
        with pytest.raises(OutcomeUnknown):
            await store.rows.put("table", "name", b"refused")
        refused = voided(store, 3)
        assert len(refused) == 1
        await home.return_to(store, 2)
        await store.rows.put("table", "other", b"later")
        home.files.heal()

    def killed(presence: Presence, unsettled: Mapping[int, Sequence[int]]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Presence, "settle", killed)
        with pytest.raises(BaseExceptionGroup):
            async with home.open():
                pass
    async with home.open() as store:
        assert all(voided(store, number) >= refused for number in (0, 1))


def voided(store: Store, number: int) -> set[int]:
    """The sequences that a shard's log says never happened."""
    shard = store.pool.get(number)
    assert shard is not None
    voids = [scanned.entry.envelope for scanned in shard.scan() if scanned.entry.envelope.kind is Kind.VOID]
    records = [VoidRecord.decode(store.sealer.open(void)) for void in voids]
    return {sequence for record in records if record.last - record.first < 100 for sequence in range(record.first, record.last + 1)}


async def test_of_two_shards_with_one_identity_neither_is_used_until_one_goes(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
    home.take_away(2)
    shutil.copytree(home.root(3), home.root(2))
    async with home.open() as store:
        assert store.pool.states() == {"0": "ok", "1": "ok", "2": "missing", "3": "failed"}
        assert "one is a copy" in store.pool.reason(3)
        assert await get(store, "a") == content(1, 10_000)
        await store.presence.look()
        assert store.pool.state(3) == "failed"
        shutil.rmtree(home.root(2))
        await home.return_to(store, 2)
        assert store.health == "ok"


async def test_a_copied_store_does_not_take_the_originals_shards(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1")
    copied = Home(home.path / "copy", home.policy)
    shutil.copytree(home.store, copied.store)
    shutil.copytree(home.key_file.parent, copied.key_file.parent)
    shutil.rmtree(copied.root(1))  # the copy is not whole
    async with copied.open() as store:
        assert store.pool.states() == {"0": "ok", "1": "missing", "2": "ok", "3": "ok"}
        assert {shard.url for shard in store.shard_statuses()} == {str(copied.root(number)) for number in range(4)}
        assert await get(store, "a") == b"1"


async def test_a_disk_that_takes_its_file_system_along_ends_nothing_else(home: Home) -> None:
    """As one behind a program of its own (FUSE): whatever was open on it fails then, also when it is closed."""
    async with home.open() as store:
        await put(store, "small", content(1, 10_000))
        await put(store, "large", content(2, 700_000))
        for operation in ("*", "open", "close", "pread", "preadv", "preadv_nowait", "list", "path_status"):
            home.files.fail(operation, lambda path: "/shards/0/" in path, errno.ENOTCONN, times=None)
        assert await get(store, "small") == content(1, 10_000)
        await store.presence.look()
        assert store.pool.state(0) != "ok"
        await put(store, "large", content(3, 700_000))
        home.files.heal()
        await store.presence.look()
        await store.mending.mend()
        await freed(store)
        assert (store.health, store.metastore.debts_count(), store.metastore.garbage_count()) == ("ok", 0, 0)
        assert await get(store, "large") == content(3, 700_000)


async def test_a_look_tells_how_long_it_took(home: Home) -> None:
    async with home.open() as store:
        await store.presence.look()
        assert all(shard.latency_ms is not None and shard.latency_ms >= 0 for shard in store.shard_statuses())
        home.take_away(0)
        await store.presence.look()
        assert store.shard_statuses()[0].latency_ms is None
        assert "ENOENT" in (store.shard_statuses()[0].last_error or "")


async def test_while_a_shard_goes_and_comes_writers_go_on(home: Home) -> None:
    async with home.open() as store:
        for turn in range(5):
            home.take_away(turn % 4)
            await put(store, f"{turn}", content(turn, 10_000))
            await home.return_to(store, turn % 4)
            await put(store, f"{turn} again", content(turn, 10_000))
        await store.mending.mend()
        assert store.metastore.debts_count() == 0
    async with home.open() as store:
        for turn in range(5):
            assert await get(store, f"{turn}") == content(turn, 10_000)


async def test_a_shard_whose_log_cannot_be_read_is_looked_at_for_ever(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        home.take_away(0)
        await store.presence.look()
        home.bring_back(0)
        home.files.fail("pread", lambda path: "/shards/0/log/" in path, errno.EIO, times=None)
        await store.presence.look()
        before = open_descriptors()
        for _ in range(3):
            await store.presence.look()
        assert open_descriptors() == before


async def test_what_readers_of_a_server_were_not_told_they_are_told_at_a_start(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power loss kept the void in the log of the store's own space, and not the one in the namespace's."""
    monkeypatch.setattr("zstor_local.store.presence.has_readers", lambda shard: True)
    async with home.open() as store:
        envelope = (await put(store, "a", b"1")).envelope
        shard, publisher = store.pool.get(0), store.committer._publisher
        assert shard is not None
        failed = publisher._sealed_void(envelope.namespace, 1, 1).sequence
        wide, own = (publisher._sealed_void(space, failed, failed) for space in (STORE_WIDE, envelope.namespace))
        for told, untold in (([wide], {failed}), ([own], {failed}), ([wide, own], set[int]())):
            monkeypatch.setattr(shard, "unsettled", lambda told=told: [replace(envelope, sequence=failed), *told])
            assert {*store.presence.never_committed(shard).void} == untold


# --- What comes back is an older copy ---


async def put_older_back(home: Home, store: Store, number: int) -> None:
    """A shard goes, is found missing, and comes back as it was before something was written to it."""
    await put(store, "old", content(1, 10_000))
    shutil.copytree(home.root(number), home.path / "older")
    await put(store, "new", content(2, 10_000))
    await store.presence.look()
    home.take_away(number)
    await store.presence.look()
    await store.presence.look()
    assert store.pool.get(number) is None
    shutil.move(home.path / "older", home.root(number))
    await store.presence.look()
    assert store.pool.state(number) == "ok"


async def scrub_ended(store: Store) -> None:
    while store.scrub.status().state != "idle":
        await store.scrub.news().wait()


async def test_what_an_older_copy_lacks_is_looked_for_at_once(home: Home) -> None:
    async with home.open() as store:
        await put_older_back(home, store, 3)
        await scrub_ended(store)
        assert store.scrub.status().found.bad_shares == 1


async def test_and_not_while_the_scrub_is_paused(home: Home) -> None:
    async with home.open() as store:
        await store.scrub.pause()
        await put_older_back(home, store, 3)
        assert store.scrub.status().state == "paused"
        await store.scrub.resume()
        await scrub_ended(store)
        assert store.scrub.status().found.bad_shares == 1


@pytest.mark.parametrize("behind", ["the objects", "the shard"])
async def test_a_scrub_that_has_come_past_what_an_older_copy_lacks_begins_again(
    home: Home, monkeypatch: pytest.MonkeyPatch, behind: str
) -> None:
    objects, shard = Scrub._objects, Scrub._shard
    older: list[bool] = []

    async def meanwhile(store: Store) -> None:
        if not older:
            older.append(True)
            await put_older_back(home, store, 0)

    async def behind_the_objects(self: Scrub, row: ScrubRow) -> None:
        await objects(self, row)
        await meanwhile(store)

    async def behind_the_shard(self: Scrub, looked_at: Shard, found: Found) -> None:
        await shard(self, looked_at, found)
        if looked_at.number == 0:
            await meanwhile(store)

    if behind == "the objects":
        monkeypatch.setattr(Scrub, "_objects", behind_the_objects)
    else:
        monkeypatch.setattr(Scrub, "_shard", behind_the_shard)
    async with home.open() as store:
        await put(store, "before", b"")
        await store.scrub.start()
        await scrub_ended(store)
        assert store.scrub.status().found.bad_shares == 1
