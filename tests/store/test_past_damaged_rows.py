"""Whatever goes over many rows of the store goes on past one that does not open."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.content.ground import DAY, ContentHome
from tests.store.home import CHUNK, Home, put
from tests.store.test_damaged_rows import spoil
from zstor_local.access.builtin import builtin_authority
from zstor_local.access.joining import Joining
from zstor_local.access.letters import Letters
from zstor_local.access.spaces import Spaces
from zstor_local.errors import AlreadyExists, CorruptRecord, NotFound
from zstor_local.metastore.base import Row
from zstor_local.model.fields import encode
from zstor_local.model.ids import NamespaceId
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE
from zstor_local.store import rewriterow
from zstor_local.store.namespaces import INVITED_TABLE, JOINED_TABLE, row_name
from zstor_local.store.retiring import TABLE as RETIRE_TABLE
from zstor_local.store.retiring import still_there
from zstor_local.store.sources import BytesSource
from zstor_local.store.store import Store

NO_SHARD = 99


def spoil_row(store: Store, space: NamespaceId, name: str) -> None:
    envelope = store.metastore.get(space, name)
    assert envelope is not None
    spoil(store, Row(space, name, envelope))


async def put_one_bad(store: Store, table: str, good: str, bad: str, value: bytes = b"value") -> None:
    """Two rows, the first of which does not open."""
    assert bad < good
    for name in (bad, good):
        await store.rows.put(table, name, value)
    spoil_row(store, STORE_WIDE, f"row/{table}/{bad}")
    with pytest.raises(CorruptRecord):
        store.rows.get(table, bad)


async def test_each_row_that_opens_is_there(home: Home) -> None:
    async with home.open() as store:
        await put_one_bad(store, "table", "b", "a")
        assert [row.name for row in store.rows.each("table")] == ["b"]
        assert store.rows.names("table") == ["a", "b"]


async def test_rewrites_go_on_at_a_start(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1")
        space = store.namespaces.get("default").id.hex()
        await put_one_bad(store, rewriterow.TABLE, space, "0" * 31)
        assert [namespace.name for namespace in store.rewriting.broken_off()] == ["default"]


async def test_deleted_namespaces_go_from_servers(home: Home) -> None:
    async with home.open() as store:
        bad, good = "00" * 16, "11" * 16
        await put_one_bad(store, RETIRE_TABLE, good, bad, still_there([NO_SHARD]))
        assert await store.retiring.retire()
        assert store.rows.names(RETIRE_TABLE) == [bad]


async def test_readers_get_their_letters(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1")
        space = store.namespaces.get("default").id.hex()
        await put_one_bad(store, INVITED_TABLE, f"{space}/bob", f"{space}/ann", encode({0: 1, 1: bytes(32)}))
        letters = Letters(store, builtin_authority(store))
        assert [user for _, user, _ in letters._invited()] == ["bob"]


async def test_joined_namespaces_are_followed(home: Home) -> None:
    async with home.open() as store, trio.open_nursery() as nursery:
        await put_one_bad(store, JOINED_TABLE, "b", "a")
        await nursery.start(Joining(store, builtin_authority(store), None).run)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()


async def test_a_joined_namespace_that_is_not_followed_can_be_left(home: Home) -> None:
    """Of one the row does not open, what the other has is no pass."""
    async with home.open() as store, trio.open_nursery() as nursery:
        await store.namespaces.create("photos")  # earlier versions could come to have both
        await put_one_bad(store, JOINED_TABLE, "photos", "mail")
        joining = Joining(store, builtin_authority(store), None)  # type: ignore[arg-type]
        await nursery.start(joining.run)
        assert [joining.joined(name) for name in ("mail", "photos", "phot")] == [True, False, False]
        await store.namespaces.remove(store.namespaces.get("photos"))
        for name in ("mail", "photos"):
            assert joining.joined(name)
            with pytest.raises(AlreadyExists):
                await store.namespaces.create(name)
            await joining.leave(name)
            assert not joining.joined(name)
            with pytest.raises(NotFound):
                await joining.leave(name)
        assert store.rows.names(JOINED_TABLE) == []
        nursery.cancel_scope.cancel()


async def test_permissions_are_listed_and_a_namespace_is_deleted_with_them(home: Home) -> None:
    async with home.open() as store:
        authority = builtin_authority(store)
        for name in ("photos", "mail"):
            await authority.create(name)
            await store.namespaces.create(name)
        photos = store.namespaces.get("photos")
        await put_one_bad(store, INVITED_TABLE, f"{photos.id.hex()}/bob", f"{photos.id.hex()}/ann")
        spoil_row(store, STORE_WIDE, "row/permission/mail")
        assert [*await authority.namespaces()] == ["mail", "photos"]
        await store.namespaces.remove(photos)
        assert store.rows.names(INVITED_TABLE) == []


async def test_a_name_is_taken_whose_namespace_does_not_open(home: Home) -> None:
    """Whether it is free is asked where changes are decided, where nobody may be told of a row to mend."""
    home.brings_back = True
    async with home.open() as store:
        await put(store, "a", b"1", namespace="photos")
        spoil_row(store, STORE_WIDE, row_name("photos"))
    async with home.open() as store:
        await wait_all_tasks_blocked()
        with pytest.raises(AlreadyExists):
            await Spaces(store, builtin_authority(store)).create("photos", policy=None, quota=None, placement=())
        await put(store, "a", b"1")
        assert store.health == "ok"


async def test_contents_are_collected(tmp_path: Path) -> None:
    home = ContentHome(tmp_path, Policy(2, 3, chunk_size=CHUNK))
    async with home.cas() as (store, cas):
        for value in (b"one", b"another"):
            await cas.upload(BytesSource(value))
        home.clock.skip(8 * DAY)
        space = store.namespaces.get("_cas").id
        first, _ = store.metastore.scan(space, "", None, 2)
        spoil_row(store, space, first.name)
        assert (await cas.keeping.collect()).contents == 1
        assert [row.name for row in store.metastore.scan(space, "", None, 2)] == [first.name]
