"""Shards that go away and come back while the store is open: opened anew, fenced, told, filled."""

from __future__ import annotations

import shutil

import pytest

from tests.store.home import CHUNK, SMALL_AND_LARGE, Home, content, delete, freed, get, put, small_shares
from zstor_local.errors import IoError, NotFound
from zstor_local.metastore.base import CommitRefused, Transaction
from zstor_local.model.policy import Policy
from zstor_local.model.record import Kind, VoidRecord
from zstor_local.store.rebuild import rebuild
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
    report = rebuild(home.runtime(), home.engines, home.config(), accept_loss=False, progress=lambda what, count: None)
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


async def test_what_never_came_to_be_is_voided_before_a_returning_shard_is_written(home: Home) -> None:
    """The shard has the records of a group that was refused, and went away before it could be told so."""

    def refuse(transaction: Transaction) -> None:
        home.engines.before_commit = lambda transaction: None
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
