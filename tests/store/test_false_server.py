"""A shard server that makes up records and counts: nothing that was acknowledged is lost by it, and everything else goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.home import CHUNK, Home, content, get, put
from tests.store.test_presence import voided
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE, Envelope, Kind
from zstor_local.shards.directory import DirectoryShard

FALSE = 0  # the number of the shard that is taken for a server's


@pytest.fixture(autouse=True)
def server(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.policy = Policy(2, 4, chunk_size=CHUNK)
    monkeypatch.setattr(DirectoryShard, "on_disk", property(lambda shard: None if shard.number == FALSE else shard))


def made_up(envelope: Envelope, sequence: int) -> Envelope:
    return replace(envelope, sequence=sequence, sealed=bytes(len(envelope.sealed)))


async def test_what_a_server_makes_up_is_never_voided(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The void would be ours, and a rebuild would leave out what is acknowledged under that sequence later."""
    async with home.open() as store:
        stored = await put(store, "a", b"old")
        future = stored.envelope.sequence + 10
        unsettled = DirectoryShard.unsettled

        def lie(shard: DirectoryShard) -> Sequence[Envelope]:
            forged = [made_up(stored.envelope, future)] if shard.number == FALSE else []
            return [*unsettled(shard), *forged]

        monkeypatch.setattr(DirectoryShard, "unsettled", lie)
        home.take_away(FALSE)
        await store.presence.look()
        await home.return_to(store, FALSE)
        assert store.health == "ok"
        assert future not in voided(store, FALSE)
        for number in range(20):
            await put(store, f"{number}", content(number, 100))


@pytest.mark.parametrize("kind", [Kind.STORE, Kind.SHARDS, Kind.KEYS, Kind.OBJECT])
async def test_a_server_that_makes_up_a_record_has_nothing_voided_that_was_committed(
    home: Home, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """The sequence is a real one, of an object whose entry the server has seen; the record under it is not."""
    async with home.open() as store:
        stored = await put(store, "a", b"acknowledged")
        await put(store, "b", b"later")
        unsettled = DirectoryShard.unsettled

        def lie(shard: DirectoryShard) -> Sequence[Envelope]:
            forged = replace(made_up(stored.envelope, stored.envelope.sequence), kind=kind, namespace=STORE_WIDE)
            return [*unsettled(shard), *([forged] if shard.number == FALSE else [])]

        monkeypatch.setattr(DirectoryShard, "unsettled", lie)
        home.take_away(FALSE)
        await store.presence.look()
        await home.return_to(store, FALSE)
        assert stored.envelope.sequence not in voided(store, FALSE)
    home.metastore.unlink()
    home.rebuild()
    async with home.open() as store:
        assert await get(store, "a") == b"acknowledged"


async def test_a_server_that_tells_of_later_writes_and_shows_none_is_away(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await put(store, "a", b"old")
    honest = DirectoryShard.newest_committed
    monkeypatch.setattr(DirectoryShard, "newest_committed", lambda shard: 2**40 if shard.number == FALSE else honest(shard))
    async with home.open() as store:
        assert store.pool.states()[str(FALSE)] == "failed"
        assert store.read_only is None
        await put(store, "a", b"new")
        assert await get(store, "a") == b"new"


async def test_a_server_that_shows_later_writes_is_believed(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(DirectoryShard, "on_disk", None)
    async with home.open() as store:
        await put(store, "a", b"old")
    home.copy_metastore(tmp_path / "copy")
    async with home.open() as store:
        await put(store, "a", b"new")
    home.restore_metastore(tmp_path / "copy")
    async with home.open() as store:
        assert store.health == "readonly"


async def test_a_rebuild_takes_nothing_from_a_server_that_does_not_open(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        envelopes = [(await put(store, f"{number}", content(number, 100))).envelope for number in range(5)]
        before = store.committer.state
    records = DirectoryShard.records

    def lie(shard: DirectoryShard) -> Iterator[bytes]:
        if shard.number == FALSE:
            for envelope in envelopes:
                yield made_up(envelope, envelope.sequence).pack()
            yield made_up(envelopes[0], 2**61).pack()
        yield from records(shard)

    monkeypatch.setattr(DirectoryShard, "records", lie)
    home.metastore.unlink()
    report = home.rebuild(accept_loss=True)
    assert report.objects == 5
    monkeypatch.setattr(DirectoryShard, "records", records)
    async with home.open() as store:
        assert store.committer.state.sequence < before.reserved + 1_000_000
        for number in range(5):
            assert await get(store, f"{number}") == content(number, 100)
