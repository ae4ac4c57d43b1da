"""What a rebuild makes of the copies of a record: one of them that opens is enough, whoever says something else."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest

from tests.store.home import CHUNK, SMALL_AND_LARGE, Home, content, delete, freed, get, keys, put
from tests.store.test_rebuild import lose_metastore, rebuilt
from zstor_local.model.ids import Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE, Envelope
from zstor_local.model.storewide import StoreRecord
from zstor_local.shards.directory import DirectoryShard
from zstor_local.store.create import STORE_ROW
from zstor_local.store.faults import StoreFault
from zstor_local.store.rebuild import gathering
from zstor_local.store.store import Store
from zstor_local.store.writes import WriteOptions

Say = Callable[[int, Envelope], Envelope]  # what a shard of this number says where that record lies

LIES = {
    "other bytes": lambda envelope: replace(envelope, sealed=bytes(len(envelope.sealed))),
    "another version": lambda envelope: replace(envelope, version=Version(bytes(16))),
    "nothing": lambda envelope: replace(envelope, sealed=b""),
    "cut short": lambda envelope: replace(envelope, sealed=envelope.sealed[:-1]),
}
WHO = {"the first": {0}, "the last": {5}, "five of six": {0, 1, 2, 3, 4}, "the others": {1, 2, 3, 4, 5}}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, Policy(4, 6, chunk_size=CHUNK))


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[Say], None]:
    """Have the shards say something else than what lies in their logs."""

    def lie(say: Say) -> None:
        records = DirectoryShard.records

        def lying(shard: DirectoryShard) -> Iterator[bytes]:
            return (say(shard.number, Envelope.parse(record)).pack() for record in records(shard))

        monkeypatch.setattr(DirectoryShard, "records", lying)

    return lie


def tables(home: Home) -> dict[str, object]:
    """All that a metastore holds, but for the counts that its life goes on with."""
    with closing(sqlite3.connect(home.metastore)) as db:
        names = [name for (name,) in db.execute("select name from sqlite_schema where type='table' order by name")]
        found: dict[str, object] = {name: sorted(db.execute(f"select * from {name}"), key=repr) for name in names if name != "store"}  # noqa: S608
        schema = db.execute("select name, sql from sqlite_schema where sql is not null order by name").fetchall()
        counts = db.execute("select format, store_id, sequence, objects, bytes from store").fetchall()
    return found | {"schema": schema, "counts": counts}


async def fill(store: Store) -> None:
    for number, size in enumerate([0, 1, *SMALL_AND_LARGE] * 3):
        await put(store, f"key {number}", content(number, size), WriteOptions(references=(f"reference {number}", "all")))
    for number in range(0, 12, 2):
        await put(store, f"key {number}", content(number, 300))
    for number in range(0, 12, 3):
        await delete(store, f"key {number}")
    await store.rows.change("table", "a", lambda row: b"1")
    await store.rows.change("table", "b", lambda row: b"2")
    await store.rows.change("table", "b", lambda row: None)


@pytest.mark.parametrize("kept", [None, 0], ids=["copies meet", "copies come too late"])
@pytest.mark.parametrize("in_turn", [256, 1])
async def test_the_metastore_comes_back_bit_by_bit(home: Home, monkeypatch: pytest.MonkeyPatch, kept: int | None, in_turn: int) -> None:
    async with home.open() as store:
        await fill(store)
        await put(store, "photo", content(1, 10), namespace="photos")
        await freed(store)
    before = tables(home)
    monkeypatch.setattr(gathering, "_IN_TURN", in_turn)
    if kept is not None:
        monkeypatch.setattr(gathering, "_KEPT_BYTES", kept)
    lose_metastore(home)
    assert rebuilt(home.config()).loss == []
    after = tables(home)
    assert after.keys() == before.keys()
    for table, found in after.items():
        assert found == before[table], table


@pytest.mark.parametrize("who", WHO.values(), ids=WHO)
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_record_comes_back_whoever_else_says_something_that_does_not_open(
    home: Home, says: Callable[[Say], None], lie: Callable[[Envelope], Envelope], who: set[int]
) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 5_000))
        await store.rows.change("table", "row", lambda row: b"value")
        sequences = {stored.envelope.sequence, store.committer.state.sequence}
    says(lambda shard, envelope: lie(envelope) if shard in who and envelope.sequence in sequences else envelope)
    lose_metastore(home)
    assert rebuilt(home.config()).loss == []
    async with home.open() as store:
        assert await get(store, "a") == content(1, 5_000)
        row = store.rows.get("table", "row")
        assert row is not None
        assert row.value == b"value"


@pytest.mark.parametrize("change", [{"user": {"a": b"x"}}, {"user": {"a": nan}}, {"size": 2**64 - 1}, {"created": 2**53}], ids=str)
async def test_what_no_daemon_writes_is_no_record(home: Home, says: Callable[[Say], None], change: Mapping[str, Any]) -> None:
    """Who has the record key of a namespace and operates a shard could plant it; nothing that lists it could be answered."""
    async with home.open() as store:
        await put(store, "a", content(1, 5_000))
        await put(store, "b", content(2, 5_000))
        stored = await put(store, "b", content(3, 5_000))
        plain = replace(stored.record, **change).encode()
        header = stored.envelope
        planted = store.sealer.seal(header.kind, header.namespace, header.key_hash, header.version, header.sequence, plain)
    says(lambda shard, envelope: planted if envelope.sequence == header.sequence else envelope)
    lose_metastore(home)
    assert rebuilt(home.config(), accept_loss=True).damaged == 1
    async with home.open() as store:
        assert await get(store, "a") == content(1, 5_000)


async def test_a_record_that_opens_nowhere_must_be_accepted(home: Home, says: Callable[[Say], None]) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 5_000))
        home.take_away(5)  # so that what it holds of the first version is not freed
        newer = (await put(store, "a", content(2, 5_000))).envelope
        home.bring_back(5)
    says(lambda shard, envelope: replace(envelope, sealed=bytes(40 + shard % 2)) if envelope.sequence == newer.sequence else envelope)
    lose_metastore(home)
    with pytest.raises(StoreFault, match="2 log entries hold a record that does not open"):
        rebuilt(home.config())
    assert not home.metastore.exists()


@pytest.mark.parametrize("late", [False, True], ids=["copies meet", "copies come too late"])
@pytest.mark.parametrize(("others", "kept"), [({5}, 1), ({0}, 1), ({0, 1, 2, 3, 4}, 2), ({3, 4, 5}, 1), ({0, 1, 2}, 2)])
async def test_of_two_records_with_one_sequence_that_on_more_shards_counts_and_it_is_told(
    home: Home, says: Callable[[Say], None], monkeypatch: pytest.MonkeyPatch, others: set[int], kept: int, late: bool
) -> None:
    """As after two lives that began from one copy of the metastore. Of as many the first shard's counts."""
    async with home.open() as store:
        first = (await put(store, "a", content(1, 5_000))).envelope
        await put(store, "b", b"well")
        plain = store.sealer.open((await put(store, "a", content(2, 5_000), WriteOptions(user={"life": 2}))).envelope)
        second = store.sealer.seal(first.kind, first.namespace, first.key_hash, first.version, first.sequence, plain)
        last = store.committer.state.sequence
    said = {first.sequence: second}

    def say(shard: int, envelope: Envelope) -> Envelope:
        if envelope.sequence == last:  # in this story the second write was never there
            return said[first.sequence] if shard in others else first
        return said.get(envelope.sequence, envelope) if shard in others else envelope

    says(say)
    if late:
        monkeypatch.setattr(gathering, "_KEPT_BYTES", 0)
    lose_metastore(home)
    with pytest.raises(StoreFault, match="1 key was written twice under one sequence number: 'a'"):
        rebuilt(home.config())
    report = rebuilt(home.config(), accept_loss=True)
    assert report.ambiguous == ["a"]
    assert report.damaged == 0
    async with home.open() as store:
        assert await keys(store) == ["a", "b"]
        row = store.metastore.get(first.namespace, "a")
        assert row == (first if kept == 1 else second)


async def test_an_init_that_was_taken_up_again_wrote_its_records_twice(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one, of the same sequence and another time, lies before it in some logs, or in all."""
    async with home.open() as store:
        await put(store, "a", b"value")
        found = store.metastore.get(STORE_WIDE, STORE_ROW)
        assert found is not None
        plain = replace(StoreRecord.decode(store.sealer.open(found)), created=1).encode()
        first = store.sealer.seal(found.kind, found.namespace, found.key_hash, found.version, found.sequence, plain)
    records = DirectoryShard.records
    for many in (1, 5, 6):

        def of_both(shard: DirectoryShard, many: int = many) -> Iterator[bytes]:
            if shard.number < many:
                yield first.pack()
            yield from records(shard)

        monkeypatch.setattr(DirectoryShard, "records", of_both)
        lose_metastore(home)
        assert rebuilt(home.config()).loss == []
        async with home.open() as store:
            assert store.metastore.get(STORE_WIDE, STORE_ROW) == found
