"""A new master key: everything stays readable, the old key opens nothing new, and the new one alone brings the store back."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.store.home import CHUNK, Home, content, delete, get, name, put
from tests.store.test_rebuild import lose_metastore, rebuilt
from zstor_local import limits
from zstor_local.cli.backup_words import from_words, to_words
from zstor_local.coding.keys import KeyRing
from zstor_local.config import ShardConfig
from zstor_local.errors import Busy, CorruptRecord, IoError, NoSpace, NotEnoughShards, NotFound, OutcomeUnknown, Unavailable
from zstor_local.metastore.base import CommitRefused, Row, Transaction
from zstor_local.model.ids import NamespaceId
from zstor_local.model.masterkey import NEXT, MasterKey
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE, Envelope, Kind
from zstor_local.model.storewide import KeysRecord
from zstor_local.shards import pool
from zstor_local.shards.base import ScannedEntry
from zstor_local.store.caller import Nobody
from zstor_local.store.change import Committed
from zstor_local.store.faults import StoreFault
from zstor_local.store.later import Later
from zstor_local.store.metadata import describe
from zstor_local.store.publishing import built_on_failed
from zstor_local.store.renaming import Renaming
from zstor_local.store.rotation import Rotation
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.store import Store
from zstor_local.store.unlocking import KEYS_ROW
from zstor_local.store.writes import WriteOptions


def key_of(home: Home) -> MasterKey:
    return MasterKey.from_text(home.key_file.read_text())


async def rotate(store: Store) -> None:
    """Rotate, and wait until every record is sealed anew."""
    job, _ = await store.rotation.rotate()
    while job.running:
        await job.news().wait()
    assert job.state == "done", job.error


async def fill(store: Store) -> None:
    await put(store, "small", content(1, 5_000), WriteOptions(references=("r",), user={"a": "b"}))
    await put(store, "large", content(2, 700_000))
    await put(store, "other", content(3, 100), namespace="photos")
    await put(store, "gone", content(4, 100))
    await delete(store, "gone")
    await store.rows.put("table", "row", b"value")


async def check(store: Store) -> None:
    assert await get(store, "small") == content(1, 5_000)
    assert await get(store, "large") == content(2, 700_000)
    assert await store.objects.read(store.objects.find(name("other", "photos"))) == content(3, 100)
    with pytest.raises(NotFound):
        store.objects.find(name("gone"))
    row = store.rows.get("table", "row")
    assert row is not None
    assert row.value == b"value"


def newest_entries(store: Store) -> list[Envelope]:
    """Of each row the newest record in the logs."""
    newest: dict[tuple[bytes, bytes], Envelope] = {}
    for shard in store.pool.opened():
        scanned: ScannedEntry
        for scanned in shard.scan():
            envelope = scanned.entry.envelope
            at = envelope.namespace, envelope.key_hash
            if envelope.kind is not Kind.VOID and (at not in newest or newest[at].sequence < envelope.sequence):
                newest[at] = envelope
    return list(newest.values())


async def test_everything_is_sealed_anew_and_readable(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        before = key_of(home)
        await rotate(store)
        after = key_of(home)
        assert after.key != before.key
        assert home.key_file.stat().st_mode & 0o777 == 0o600
        await check(store)
        await put(store, "new", b"under the new key")
        only_new = RecordSealer(KeyRing(after.key, after.store_id), after.store_id, store.runtime.randomness)
        only_old = RecordSealer(KeyRing(before.key, before.store_id), before.store_id, store.runtime.randomness)
        entries = newest_entries(store)
        assert len(entries) > 6
        for envelope in entries:
            only_new.open(envelope)
            with pytest.raises(CorruptRecord):
                only_old.open(envelope)
        assert not store.rotation.pending
    async with home.open() as store:
        await check(store)
        assert await get(store, "new") == b"under the new key"
        assert store.health == "ok"


async def test_a_data_key_is_wrapped_under_the_new_key_alone(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        await rotate(store)
        stored = store.objects.find(name("large"))
        after = key_of(home)
        KeyRing(after.key, after.store_id).namespace(stored.envelope.namespace).unwrap(stored.record.wrapped_key)


@pytest.mark.parametrize("change", ["rename", "repair"])
async def test_so_is_that_of_a_record_that_is_changed_before_its_turn(home: Home, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """It is sealed with the new key by then; the data key in it is as it was."""
    renew = Rotation._renew
    changed = False

    async def beside(self: Rotation, space: NamespaceId, rows: Sequence[Row]) -> list[Row]:
        nonlocal changed
        if not changed:
            changed = True
            if change == "rename":
                renaming = Renaming(store.core, store.namespaces, store.freeing)
                await renaming.rename(name("large"), "renamed", None, Nobody(), exclusive=False)
            else:
                await store.shares_health.repair(store.objects.find(name("large")), Nobody(), leaving=1)
        return await renew(self, space, rows)

    async with home.open() as store:
        await fill(store)
        await store.membership.add(f"{home.path}/spare", None)
        monkeypatch.setattr(Rotation, "_renew", beside)
        await rotate(store)
        stored = store.objects.find(name("renamed" if change == "rename" else "large"))
        after = key_of(home)
        KeyRing(after.key, after.store_id).namespace(stored.envelope.namespace).unwrap(stored.record.wrapped_key)


async def test_a_rotation_ends_though_somebody_writes_all_the_time(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    renew = Rotation._renew
    looks = 0

    async def beside(self: Rotation, space: NamespaceId, rows: Sequence[Row]) -> list[Row]:
        nonlocal looks
        looks += 1
        await put(store, f"new {looks}", b"another one")
        return await renew(self, space, rows)

    async with home.open() as store:
        await fill(store)
        monkeypatch.setattr(Rotation, "_renew", beside)
        await rotate(store)
        assert looks <= 10


async def test_the_new_words_alone_bring_everything_back_elsewhere(home: Home, tmp_path: Path) -> None:
    async with home.open() as store:
        await fill(store)
        await rotate(store)
        await rotate(store)
        await put(store, "new", content(7, 300))
    words = " ".join(to_words(key_of(home)))
    other = Home(tmp_path / "other")
    other.key_file.parent.mkdir(parents=True)
    other.key_file.touch(0o600)
    other.key_file.write_text(from_words(words).to_text())
    shutil.copytree(Path(home.store) / "shards", Path(other.store) / "shards")
    shutil.rmtree(home.store)
    report = rebuilt(other.config())
    assert report.loss == []
    assert report.objects == 4
    async with other.open() as store:
        await check(store)
        assert await get(store, "new") == content(7, 300)
        assert not store.rotation.pending
        await rotate(store)
        await check(store)


async def test_a_rebuild_in_the_middle_of_a_rotation_finds_old_and_new_records(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await fill(store)
        await broken_off(store, monkeypatch)
        await put(store, "new", content(7, 300))
        assert store.rotation.pending
    lose_metastore(home)
    report = rebuilt(home.config())
    assert report.loss == []
    async with home.open() as store:
        while store.rotation.pending:
            await store.committer.news().wait()
        await check(store)
        assert await get(store, "new") == content(7, 300)


async def broken_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation whose job has ended before it sealed any record anew."""
    with monkeypatch.context() as patch:
        patch.setattr(store.rotation, "_renew", _break_off)
        job, _ = await store.rotation.rotate()
        while job.running:
            await job.news().wait()


async def _break_off(*args: object) -> None:
    raise NotEnoughShards("broken off by the test")


async def test_the_old_key_is_refused_after_the_rotation(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        old = home.key_file.read_text()
        await rotate(store)
        await put(store, "new", b"1")
    home.key_file.write_text(old)
    with pytest.raises(StoreFault, match="another master key since"):
        async with home.open():
            pass
    lose_metastore(home)
    with pytest.raises(StoreFault, match="the newer one opens more"):
        rebuilt(home.config())


async def test_the_old_key_forges_nothing_after_its_time(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        old = key_of(home)
        await rotate(store)
        forger = RecordSealer(KeyRing(old.key, old.store_id), old.store_id, store.runtime.randomness)
        stored = store.objects.find(name("small"))
        plain = store.sealer.open(stored.envelope)
        parts = (Kind.OBJECT, stored.envelope.namespace, stored.envelope.key_hash, stored.version)
        store.sealer.open(forger.seal(*parts, 1, plain))
        with pytest.raises(CorruptRecord):
            store.sealer.open(forger.seal(*parts, stored.envelope.sequence + 1, plain))


async def test_metadata_from_before_is_still_taken(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        seal = describe(store.objects.find(name("large")), store.pool)["seal"]
        envelope = store.objects.find(name("large")).envelope
        await rotate(store)
        assert len(seal) > 100
        assert await store.objects.read(store.objects.from_seal(envelope.pack())) == content(2, 700_000)


async def test_one_rotation_at_a_time(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await fill(store)
        monkeypatch.setattr(store.rotation, "_renew", _break_off)
        await store.rotation.rotate()
        key = key_of(home)
        with pytest.raises(Busy):
            await store.rotation.rotate()
        assert key_of(home) == key


async def test_a_rotation_that_the_metastore_refuses_never_happened(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        key = key_of(home)
        home.fail_commits(CommitRefused("full", no_space=True))
        with pytest.raises(NoSpace):
            await store.rotation.rotate()
        home.heal_commits()
        assert key_of(home) == key
        assert not home.key_file.with_name(home.key_file.name + NEXT).exists()
        await put(store, "after", b"1")
        assert store.sealer.is_sealed_anew(store.objects.find(name("after")).envelope)
        assert store.metastore.get(STORE_WIDE, "keys") is None
        await rotate(store)
        await check(store)
    async with home.open() as store:
        await check(store)


async def test_a_rotation_that_was_refused_is_void_also_where_that_is_told_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record opens with no key any more: a rebuild from those shards alone would ask for a key that never was."""
    monkeypatch.setattr(pool, "SYNCFS_KINDS", frozenset())
    home = Home(tmp_path, Policy(2, 5, chunk_size=CHUNK))
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        home.files.fail("fdatasync", lambda path: "/0/log/" in path or "/1/log/" in path, errno.EIO, times=None)
        home.take_away(2)
        with pytest.raises(NotEnoughShards):
            await store.rotation.rotate()
        await home.return_to(store, 2)
        await store.rows.put("table", "other", b"later")
        home.files.heal()
    async with home.open() as store:
        assert store.health == "ok"
    for number in (3, 4):
        home.take_away(number)
    lose_metastore(home)
    assert not rebuilt(home.config(), accept_loss=True).rotated
    async with home.open() as store:
        assert await get(store, "a") == content(1, 10_000)


async def test_a_rotation_that_nothing_follows_any_more_goes_on_at_the_next_start(home: Home) -> None:
    async with home.open() as store:
        await fill(store)

        def fail_afterwards(transaction: Transaction) -> None:
            if any(row.name == KEYS_ROW for row in transaction.rows):
                store.committer.failure = "broken off by the test"

        home.engines.before_commit = fail_afterwards
        job, _ = await store.rotation.rotate()
        while job.running:
            await job.news().wait()
        assert isinstance(job.error, Unavailable)
        await check(store)
    home.heal_commits()
    async with home.open() as store:
        while store.rotation.pending:
            await store.committer.news().wait()
        await check(store)
        assert all(store.sealer.is_sealed_anew(envelope) for envelope in newest_entries(store))


async def test_a_store_that_is_only_read_does_not_go_on_when_a_shard_comes_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await fill(store)
        await broken_off(store, monkeypatch)
    home.copy_metastore(home.path / "copy")
    async with home.open() as store:
        while store.rotation.pending:
            await store.committer.news().wait()
    home.restore_metastore(home.path / "copy")
    async with home.open() as store:
        assert (store.health, store.rotation.pending) == ("readonly", True)
        home.take_away(0)
        await store.presence.look()
        await home.return_to(store, 0)
        assert store.pool.state(0) == "ok"
        assert store.jobs.list() == []
        await check(store)


@pytest.mark.parametrize("what", ["the key's directory", "the metastore"])
async def test_where_it_cannot_be_seen_how_far_it_came_a_shard_comes_back_all_the_same(
    home: Home, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async with home.open() as store:
        await fill(store)
        await broken_off(store, monkeypatch)
        home.take_away(0)
        await store.presence.look()
        with monkeypatch.context() as patch:
            if what == "the metastore":
                patch.setattr(store.rotation, "record", _no_metastore)
            else:
                home.files.fail("path_status", lambda path: path.endswith(NEXT), errno.EACCES, None)
                with pytest.raises(IoError, match="EACCES"):
                    await store.rotation.retire()
            before = len(store.jobs.list())
            await home.return_to(store, 0)
            assert (store.pool.state(0), len(store.jobs.list())) == ("ok", before)
        home.files.heal()
        home.take_away(0)
        await store.presence.look()
        await home.return_to(store, 0)
        while store.rotation.pending:
            await store.committer.news().wait()
        await check(store)


def _no_metastore() -> None:
    raise IoError("the metastore cannot be read: SQLITE_IOERR_READ")


async def test_a_shard_that_was_away_is_told_later(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
    home.take_away(2)
    async with home.open() as store:
        await rotate(store)
    home.bring_back(2)
    async with home.open() as store:
        await check(store)
        while store.metastore.debts_count():
            await store.committer.news().wait()
        shard = store.pool.get(2)
        assert shard is not None
        assert Kind.KEYS in {scanned.entry.envelope.kind for scanned in shard.scan()}


async def test_a_rebuild_that_finds_only_a_shard_that_was_away_says_where_to_look(tmp_path: Path) -> None:
    home = Home(tmp_path, shards=3)
    async with home.open() as store:
        await put(store, "a", content(1, 100))
        for number in (1, 2):
            await store.membership.replace(f"disk{number}", str(tmp_path / f"new{number}"), Nobody())
        home.take_away(0)
        await store.presence.look()
        await rotate(store)
    home.bring_back(0)
    lose_metastore(home)
    with pytest.raises(StoreFault, match="shard disk0: its marker does not open with this master key") as refused:
        rebuilt(home.config(), accept_loss=True)
    assert "when the master key was last replaced" in refused.value.hint
    config = home.config()
    named = ShardConfig("another", f"file://{tmp_path}/new1")
    report = rebuilt(replace(config, shards=(*config.shards[:2], named)))
    assert (report.objects, report.loss) == (1, [])
    async with home.open() as store:
        assert await get(store, "a") == content(1, 100)


async def test_what_is_retired_stays_so(home: Home) -> None:
    async with home.open() as store:
        await store.rotation.retire()  # of a store that has had one key: nothing to do
        assert store.rotation.record() is None
        await rotate(store)
        await store.rotation.retire()
        sequence = store.rotation.dated()[1]
        await store.rotation.retire()
        assert store.rotation.dated()[1] == sequence
        await rotate(store)
    lose_metastore(home)
    rebuilt(home.config())
    async with home.open() as store:
        record = store.rotation.record()
        assert record is not None
        assert (len(record.older), record.retired, record.settled) == (2, 1, True)
        await store.rotation.retire()
        assert store.rotation.dated()[0] == replace(record, retired=2)


async def test_a_key_is_retired_while_records_are_sealed_anew(home: Home) -> None:
    """Both change one record, in one group of the committer's."""
    async with home.open() as store:
        await fill(store)
        await rotate(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.rotation.retire)
            nursery.start_soon(store.rotation._commit, lambda before: replace(store.rotation._kept(before), settled=False))
        record = store.rotation.record()
        assert record is not None
        assert (record.retired, record.settled) == (1, False)


async def test_nothing_is_retired_while_it_is_in_doubt_which_key_counts(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the older keys is sealed with the next one: a start that finds it so must find the present one there."""
    async with home.open() as store:
        await fill(store)
        await rotate(store)
        key = key_of(home)

        async def in_doubt(make: object) -> None:
            raise OutcomeUnknown("shards went away in the middle of the commit")

        with monkeypatch.context() as patch:
            patch.setattr(store.rotation, "_commit", in_doubt)
            with pytest.raises(OutcomeUnknown):
                await store.rotation.rotate()
        for attempt in (store.rotation.retire(), store.rotation.rotate()):
            with pytest.raises(Unavailable, match="in doubt"):
                await attempt
        store.rotation.go_on()
    async with home.open() as store:
        assert key_of(home) == key
        await check(store)
        await store.rotation.retire()
        await rotate(store)
        await check(store)


async def test_what_is_being_retired_is_not_sealed_with_a_key_that_may_not_come(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await fill(store)
        await rotate(store)
        begun, may_end = trio.Event(), trio.Event()
        commit = store.rotation._commit

        async def held(make: Callable[[KeysRecord | None], KeysRecord]) -> None:
            begun.set()
            await may_end.wait()
            await commit(make)

        async with trio.open_nursery() as nursery:
            with monkeypatch.context() as patch:
                patch.setattr(store.rotation, "_commit", held)
                nursery.start_soon(store.rotation.retire)
                await begun.wait()
            with pytest.raises(Busy):
                await store.rotation.rotate()
            may_end.set()
        await rotate(store)
        assert (record := store.rotation.record()) is not None
        assert record.retired == 1


async def test_a_key_that_could_not_be_written_is_gone_and_the_next_try_goes_well(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        key = key_of(home)
        home.files.fail("fsync", lambda path: path.endswith(NEXT), errno.EIO)
        with pytest.raises(IoError):
            await store.rotation.rotate()
        assert key_of(home) == key
        await rotate(store)
        await check(store)


async def test_a_failed_change_of_others_ends_no_rotation(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await fill(store)
        commit, space = store.committer.commit, store.namespaces.get("default").id
        refused: list[NamespaceId] = []

        def refuse_once(at: NamespaceId, *args: Any, **options: Any) -> Later[Committed]:
            if at != space or refused:
                return commit(at, *args, **options)
            refused.append(at)
            later: Later[Committed] = Later()
            later.settle(built_on_failed())
            return later

        monkeypatch.setattr(store.committer, "commit", refuse_once)
        await rotate(store)
        assert refused
        assert not store.rotation.pending


async def test_no_key_is_made_where_no_job_can_follow(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        key = key_of(home)
        monkeypatch.setattr(limits, "JOBS_RUNNING", 0)
        with pytest.raises(Busy):
            await store.rotation.rotate()
        assert key_of(home) == key


async def test_no_other_job_takes_the_place_of_the_one_that_follows(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Rotation._commit

    async def beside(self: Rotation, make: Callable[[KeysRecord | None], KeysRecord]) -> None:
        if store.rotation.record() is None:
            with pytest.raises(Busy):
                store.jobs.start("another", lambda job: trio.sleep_forever())
        await commit(self, make)

    async with home.open() as store:
        monkeypatch.setattr(limits, "JOBS_RUNNING", 1)
        monkeypatch.setattr(Rotation, "_commit", beside)
        await rotate(store)
