"""An index of the metastore in which a bit has flipped does not lead to a row any more, and SQLite does not say so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.store.home import SMALL_AND_LARGE, Home, content, delete, freed, get, keys, name, put
from tests.store.test_collect import collect
from tests.store.test_renaming import copy
from tests.store.test_scrub import scrubbed
from zstor_local.errors import Unavailable
from zstor_local.store.caller import Nobody
from zstor_local.store.stored import Stored


def flip_in_the_index_of_versions(home: Home, stored: Stored) -> None:
    """One bit of the entry by which a version's record is found: there the version stands right before the namespace's id."""
    _flip(home, stored.version + stored.envelope.namespace, 0)


def flip_in_the_index_of_sequences(home: Home, stored: Stored) -> None:
    """One bit of the entry by which a record is found by its place: there that stands between the namespace's id and the key."""
    space, sequence = stored.envelope.namespace, stored.envelope.sequence
    _flip(home, space + sequence.to_bytes((sequence.bit_length() + 8) // 8) + stored.record.key.encode(), len(space))


def _flip(home: Home, entry: bytes, at: int) -> None:
    data = bytearray(home.metastore.read_bytes())
    assert data.count(entry) == 1
    data[data.index(entry) + at] ^= 0x10
    home.metastore.write_bytes(data)


def spoil_the_page_of(home: Home, stored: Stored) -> None:
    """The page of a row: its first byte says of what kind it is."""
    data = bytearray(home.metastore.read_bytes())
    size = int.from_bytes(data[16:18], "big")
    data[data.index(stored.envelope.sealed[:20]) // size * size] = 0
    home.metastore.write_bytes(data)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
@pytest.mark.parametrize("accept_loss", [False, True])
async def test_no_share_is_freed_of_a_record_that_is_not_found_by_its_version(home: Home, size: int, accept_loss: bool) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
    flip_in_the_index_of_versions(home, stored)
    async with home.open() as store:
        assert not store.metastore.named(stored.version)
        report = await collect(store, accept_loss=accept_loss)
        assert (report.left_behind, report.kept, report.waiting) == (0, 0, 0)
        await freed(store)
        assert (await store.shares_health.check(store.objects.find(name("a")), Nobody())).status == "optimal"
        assert await get(store, "a") == content(1, size)


@pytest.mark.parametrize("change", ["overwrite", "delete"])
async def test_a_change_of_such_a_row_goes_well(home: Home, change: str) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 10_000))
    flip_in_the_index_of_versions(home, stored)
    async with home.open() as store:
        if change == "delete":
            await delete(store, "a")
        else:
            await put(store, "a", b"new")
            assert await get(store, "a") == b"new"
        await put(store, "b", b"life goes on")
        assert not store.metastore.named(stored.version)
    async with home.open() as store:
        assert await keys(store) == (["b"] if change == "delete" else ["a", "b"])


@pytest.mark.parametrize("flip", [flip_in_the_index_of_versions, flip_in_the_index_of_sequences])
async def test_a_scrub_makes_indexes_anew_that_do_not_lead_to_an_object(home: Home, flip: Callable[[Home, Stored], None]) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 10_000))
        await put(store, "b", content(2, 10_000))
    flip(home, stored)
    async with home.open() as store:
        await scrubbed(store)
        assert [key for _, key in store.metastore.named(stored.version)] == ["a"]
        assert (store.scrub.status().found.records_mended, store.scrub.status().found.damage) == (1, False)
        await copy(store, "a", "c")
        await delete(store, "c")
        await freed(store)
        assert await get(store, "a") == content(1, 10_000)
        await scrubbed(store)
        assert store.scrub.status().found.records_mended == 0


async def test_more_damage_than_in_the_indexes_ends_no_writes(home: Home) -> None:
    """Indexes are made from all rows: also from a page that nobody asked for, and cannot be read."""
    async with home.open() as store:
        stored = await put(store, "a", content(1, 10_000))
        others = [await put(store, f"b{number:03}", b"small") for number in range(100)]
    flip_in_the_index_of_versions(home, stored)
    spoil_the_page_of(home, others[50])
    async with home.open() as store:
        with pytest.raises(Unavailable, match="not made anew") as refused:
            await store.core.committer.mend_indexes()
        assert "zstor rebuild" in (refused.value.hint or "")
        await put(store, "c", b"life goes on")
        assert await get(store, "c") == b"life goes on"
        assert await get(store, "a") == content(1, 10_000)
