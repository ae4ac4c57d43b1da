"""What somebody can do who kept the metadata of an object whose key the metastore has lost."""

from __future__ import annotations

import pytest

from tests.store.home import SMALL_AND_LARGE, Home, content, delete, freed, get, keys, name, put, share_place, small_shares
from zstor_local.errors import Conflict, NotFound
from zstor_local.store.caller import Nobody
from zstor_local.store.links import Previous
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import WriteOptions


def forget(store: Store, key: str) -> None:
    """The metastore loses a key, as in a file that was damaged."""
    store.metastore._writer.execute("delete from record where name=?", (key.encode(),))  # type: ignore[attr-defined]


async def lost(store: Store, key: str, size: int) -> Stored:
    """An object as the metadata that its write returned names it, after the metastore has lost it."""
    stored = await put(store, key, content(1, size))
    forget(store, key)
    return store.objects.from_seal(stored.envelope.pack())


async def states(store: Store, stored: Stored) -> list[str]:
    return list((await store.shares_health.check(stored, Nobody())).states)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_it_can_be_read_and_checked(home: Home, size: int) -> None:
    async with home.open() as store:
        sealed = await lost(store, "a", size)
        assert await store.objects.read(sealed) == content(1, size)
        assert await states(store, sealed) == ["ok"] * 3


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_repair_mends_its_shares_and_makes_no_record(home: Home, size: int) -> None:
    async with home.open() as store:
        sealed = await lost(store, "a", size)
        place = share_place(store, sealed, 1)
        before = place.read()
        place.flip(50)
        assert await states(store, sealed) == ["ok", "corrupt", "ok"]
        await store.shares_health.repair(sealed, Nobody())
        assert await states(store, sealed) == ["ok"] * 3
        assert share_place(store, sealed, 1).read() == before
        assert await keys(store) == []
    async with home.open() as store:
        assert await keys(store) == []
        assert await states(store, sealed) == ["ok"] * 3


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_delete_buries_it_for_ever_and_frees_its_shares(home: Home, size: int) -> None:
    async with home.open() as store:
        sealed = await lost(store, "a", size)
        assert await store.writer.delete(name("a"), sealed.version, Nobody(), sealed) == 0
        await freed(store)
        assert len(home.share_files()) + small_shares(store) == 0
        namespace = store.namespaces.find("default")
        assert namespace is not None
        tombstone = store.metastore.tombstone(namespace.id, "a")
        assert tombstone is not None
        for shard in store.pool.opened():
            assert tombstone in [entry.entry.envelope for entry in shard.scan()]
        with pytest.raises(NotFound):
            await store.writer.delete(name("a"), sealed.version, Nobody(), sealed)
        with pytest.raises(Conflict):
            await store.shares_health.repair(sealed, Nobody())


async def test_its_neighbours_in_a_list_are_joined(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1")
        await put(store, "b", b"2", WriteOptions(previous=Previous("a")))
        await put(store, "c", b"3", WriteOptions(previous=Previous("b")))
        sealed = store.objects.from_seal(store.objects.find(name("b")).envelope.pack())
        forget(store, "b")
        await store.writer.delete(name("b"), sealed.version, Nobody(), sealed)
        assert store.objects.find(name("a")).record.next_key == "c"
        assert store.objects.find(name("c")).record.previous_key == "a"


async def test_a_copy_keeps_the_shares_of_what_is_buried(home: Home) -> None:
    async with home.open() as store:
        sealed = await lost(store, "a", 700_000)
        other = await put(store, "b", content(2, 700_000))
        store.metastore._writer.execute("update record set version=? where name=?", (sealed.version, b"b"))  # type: ignore[attr-defined]
        await store.writer.delete(name("a"), sealed.version, Nobody(), sealed)
        await freed(store)
        assert len(home.share_files()) == 6
        assert other.version != sealed.version


async def test_a_key_that_has_moved_on_is_not_taken_for_lost(home: Home) -> None:
    async with home.open() as store:
        old = await put(store, "a", content(1, 10_000))
        sealed = store.objects.from_seal(old.envelope.pack())
        await put(store, "a", content(2, 10_000))
        with pytest.raises(Conflict):
            await store.writer.delete(name("a"), sealed.version, Nobody(), sealed)
        with pytest.raises(Conflict):
            await store.shares_health.repair(sealed, Nobody())
        await delete(store, "a")
        with pytest.raises(NotFound):
            await store.writer.delete(name("a"), sealed.version, Nobody(), sealed)
        with pytest.raises(NotFound):
            await get(store, "a")
