"""Store-wide rows: set, compared, listed, removed; durable, copied to the shards, and brought back by a rebuild."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import trio

from tests.store.home import Home
from tests.store.test_rebuild import lose_metastore, rebuilt
from zstor_local import limits
from zstor_local.errors import Conflict, NotEnoughShards, OutcomeUnknown, TooLarge
from zstor_local.shards.base import Entry, ShardError
from zstor_local.store.storewide import StoredRow


async def test_a_row_is_what_was_put(home: Home) -> None:
    async with home.open() as store:
        assert store.rows.get("names", "a") is None
        put = await store.rows.put("names", "a", b"1")
        assert store.rows.get("names", "a") == put
        assert (put.name, put.value) == ("a", b"1")
        assert store.rows.get("other", "a") is None
    async with home.open() as store:
        assert store.rows.get("names", "a") == put


async def test_rows_are_listed_in_order_with_prefix_and_cursor(home: Home) -> None:
    async with home.open() as store:
        for name in ["b/2", "a", "b/1", "ü", ""]:
            await store.rows.put("names", name, name.encode())
        await store.rows.put("namesake", "b/0", b"")
        assert [row.name for row in store.rows.scan("names")] == ["", "a", "b/1", "b/2", "ü"]
        assert [row.name for row in store.rows.scan("names", "b/")] == ["b/1", "b/2"]
        assert [row.name for row in store.rows.scan("names", after="a", limit=2)] == ["b/1", "b/2"]


async def test_a_put_compares_the_sequence_if_asked(home: Home) -> None:
    async with home.open() as store:
        first = await store.rows.put("names", "a", b"1", if_sequence=0)
        second = await store.rows.put("names", "a", b"2", if_sequence=first.sequence)
        assert second.sequence > first.sequence
        with pytest.raises(Conflict) as refused:
            await store.rows.put("names", "a", b"3", if_sequence=first.sequence)
        assert refused.value.data["current"] == second.sequence
        assert store.rows.get("names", "a") == second


async def test_no_change_is_lost_among_many_at_once(home: Home) -> None:
    def add(row: StoredRow | None) -> bytes:
        return str(int(row.value if row else b"0") + 1).encode()

    async with home.open() as store:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(store.rows.change, "counters", "a", add)
        row = store.rows.get("counters", "a")
        assert row is not None
        assert row.value == b"20"


async def test_what_does_not_change_a_row_commits_nothing(home: Home) -> None:
    async with home.open() as store:
        first = await store.rows.put("names", "a", b"1")
        assert await store.rows.put("names", "a", b"1") == first
        await store.rows.remove("names", "never there")
        assert store.committer.state.sequence == first.sequence


async def test_a_removed_row_is_gone_and_a_new_one_goes_on_counting(home: Home) -> None:
    async with home.open() as store:
        first = await store.rows.put("names", "a", b"1")
        await store.rows.remove("names", "a")
        assert store.rows.get("names", "a") is None
        assert [*store.rows.scan("names")] == []
        assert (await store.rows.put("names", "a", b"1")).sequence > first.sequence + 1


async def test_a_rebuild_brings_rows_back_and_no_removed_one(home: Home) -> None:
    async with home.open() as store:
        kept = await store.rows.put("names", "kept", b"old")
        kept = await store.rows.put("names", "kept", b"new")
        await store.rows.put("names", "gone", b"1")
        await store.rows.remove("names", "gone")
    lose_metastore(home)
    assert rebuilt(home.config()).loss == []
    async with home.open() as store:
        assert [*store.rows.scan("names")] == [kept]


async def test_a_row_needs_a_majority_of_the_shards(home: Home) -> None:
    async with home.open() as store:
        await store.rows.put("names", "a", b"1")
    home.take_away(0)
    async with home.open() as store:
        await store.rows.put("names", "a", b"2")
        assert [debt.shard for debt in store.metastore.debts()] == [0]
    home.take_away(1)
    async with home.open() as store:
        with pytest.raises(NotEnoughShards):
            await store.rows.put("names", "a", b"3")
        row = store.rows.get("names", "a")
        assert row is not None
        assert row.value == b"2"


async def test_a_refused_row_that_one_log_may_still_hold_is_in_doubt(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebuild takes a row from a single log, so a void that did not reach that log is no refusal."""
    async with home.open() as store:
        append = store.pool.append
        calls: list[Mapping[int, Sequence[Entry]]] = []

        def one_takes_the_row_and_then_nothing(entries: Mapping[int, Sequence[Entry]], committed: int) -> dict[int, ShardError]:
            calls.append(entries)
            if len(calls) > 1:
                return {number: ShardError("failed", "it stopped") for number in entries}
            append({0: entries[0]}, committed)
            return {number: ShardError("missing", "it is away", untouched=True) for number in entries if number != 0}

        monkeypatch.setattr(store.pool, "append", one_takes_the_row_and_then_nothing)
        with pytest.raises(OutcomeUnknown):
            await store.rows.put("names", "a", b"1")
        assert store.rows.get("names", "a") is None


async def test_a_shard_that_comes_back_is_told(home: Home) -> None:
    async with home.open() as store:
        await store.rows.put("names", "a", b"1")
    home.take_away(0)
    async with home.open() as store:
        await store.rows.put("names", "a", b"2")
        await store.rows.put("names", "b", b"1")
        await store.rows.remove("names", "b")
    home.bring_back(0)
    async with home.open() as store:
        await store.mending.mend()
        assert store.metastore.debts() == []
    lose_metastore(home)
    for number in (1, 2):
        home.take_away(number)
    rebuilt(home.config(), accept_loss=True)
    home.bring_back(1)
    home.bring_back(2)
    async with home.open() as store:
        assert [(row.name, row.value) for row in store.rows.scan("names")] == [("a", b"2")]


async def test_a_value_over_the_limit_is_refused(home: Home) -> None:
    async with home.open() as store:
        await store.rows.put("names", "a", bytes(limits.ROW_BYTES))
        with pytest.raises(TooLarge):
            await store.rows.put("names", "a", bytes(limits.ROW_BYTES + 1))
