"""Namespaces: created, listed, changed, filled to their quota, deleted with all that is in them, and not brought back."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest
import trio

from tests.daemon.client import SAFETY_NET_SECONDS
from tests.store.home import CHUNK, SMALL_AND_LARGE, Home, content, delete, freed, get, keys, name, put, small_shares
from tests.store.test_past_damaged_rows import spoil_row
from tests.store.test_rebuild import lose_metastore, rebuilt
from zstor_local import limits
from zstor_local.errors import AlreadyExists, Conflict, InvalidParams, IoError, NoSpace, NotEmpty, NotEnoughShards, NotFound
from zstor_local.metastore.base import CommitRefused, Row, Transaction, Usage
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE, Kind
from zstor_local.model.storewide import NamespaceRecord
from zstor_local.store.caller import Nobody
from zstor_local.store.change import Decision
from zstor_local.store.namespaces import INVITED_TABLE, PERMISSIONS_TABLE, row_name
from zstor_local.store.removal import BATCH
from zstor_local.store.renaming import Renaming
from zstor_local.store.sources import FileSource
from zstor_local.store.store import Store
from zstor_local.store.writes import WriteOptions

OTHER = Policy(1, 2, chunk_size=2 * CHUNK, compression="none", padding="padme")


async def remove(store: Store, namespace: str) -> int:
    """Delete with everything in it, and free what that left."""
    count = await store.removal.remove(namespace, Nobody())
    await freed(store)
    return count


def listed(store: Store) -> list[str]:
    return [namespace.name for namespace in store.namespaces.in_order(None)]


def used(store: Store, namespace: str) -> tuple[int, int]:
    usage = store.namespaces.usage(store.namespaces.get(namespace))
    return usage.objects, usage.bytes


class Compared(bytes):
    """An id that counts how often it is compared."""

    times = 0
    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return super().__eq__(other)


# --- Many ---


async def test_each_of_many_ids_is_looked_for_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        for number in range(30):
            await put(store, "a", b"", namespace=f"n{number}")
        usages = {Compared(space): usage for space, usage in store.metastore.usages().items()}
        monkeypatch.setattr(Compared, "times", 0)
        monkeypatch.setattr(store.reading, "usages", lambda: usages)
        assert len(store.namespaces.ids()) == 30
        assert 0 < Compared.times <= 60


async def test_a_deletion_reads_no_other_namespace(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    decode = NamespaceRecord.decode

    def noted(plain: bytes) -> NamespaceRecord:
        record = decode(plain)
        read.append(record.name)
        return record

    async with home.open() as store:
        for name in ("photos", "films", "songs"):
            await put(store, "a", b"", namespace=name)
        monkeypatch.setattr(NamespaceRecord, "decode", noted)
        await remove(store, "photos")
        assert {*read} == {"photos"}


# --- Create, list, change ---


async def test_a_namespace_keeps_its_policy(home: Home) -> None:
    async with home.open() as store:
        await store.namespaces.create("photos", policy=OTHER, quota=5_000_000)
        for size in SMALL_AND_LARGE:
            stored = await put(store, f"{size}", content(size, size), namespace="photos")
            assert stored.record.policy == OTHER
            assert len(stored.record.placement) == 2
        await put(store, "other", b"")
    async with home.open() as store:
        namespace = store.namespaces.get("photos")
        assert (namespace.policy, namespace.gate.quota) == (OTHER, 5_000_000)
        for size in SMALL_AND_LARGE:
            assert await get(store, f"{size}", namespace="photos") == content(size, size)
        assert listed(store) == ["default", "photos"]


async def test_a_name_is_taken_once(home: Home) -> None:
    async with home.open() as store:
        await store.namespaces.create("photos")
        with pytest.raises(AlreadyExists):
            await store.namespaces.create("photos")
        await put(store, "key", b"", namespace="music")
        with pytest.raises(AlreadyExists):
            await store.namespaces.create("music")


async def test_of_many_who_create_one_wins(home: Home) -> None:
    won: list[str] = []

    async with home.open() as store:

        async def create(policy: Policy) -> None:
            try:
                won.append((await store.namespaces.create("photos", policy=policy)).policy.compression)
            except AlreadyExists:
                return

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(create, OTHER)
                nursery.start_soon(create, home.policy)
        assert won == [store.namespaces.get("photos").policy.compression]


async def test_they_are_listed_in_pages(home: Home) -> None:
    async with home.open() as store:
        for at in range(5):
            await store.namespaces.create(f"n{at}")
        assert [each.name for each in islice(store.namespaces.in_order("n1"), 2)] == ["n2", "n3"]


async def test_a_namespace_that_names_a_removed_shard_is_used_and_changed_as_far_as_it_can_be(home: Home) -> None:
    home.shards = 5
    async with home.open() as store:
        for name_, policy in (("photos", Policy(1, 3, chunk_size=CHUNK)), ("notes", Policy(2, 3, chunk_size=CHUNK))):
            await store.namespaces.create(name_, policy=policy, placement=("disk1", "disk2", "disk4"))
            await put(store, "a", content(1, 10_000), namespace=name_)
        await store.membership.remove("disk2", Nobody(), force=True)
        stored = await put(store, "a", content(2, 10_000), namespace="photos")
        assert {1, 4}.issubset(stored.record.placement)
        assert await get(store, "a", namespace="photos") == content(2, 10_000)
        with pytest.raises(NotEnoughShards):
            await put(store, "a", content(2, 10_000), namespace="notes")
        for name_ in ("photos", "notes"):
            await store.namespaces.change(name_, lambda record: replace(record, quota=20_000))
        await store.removal.remove("photos", Nobody())
        with pytest.raises(InvalidParams, match="2 shards are there for them"):
            await store.namespaces.change("notes", lambda record: replace(record, placement=("disk1", "disk4")))
        await store.namespaces.change("notes", lambda record: replace(record, placement=("disk0", "disk1", "disk4")))
        await put(store, "a", content(2, 10_000), namespace="notes")


@pytest.mark.parametrize(
    ("policy", "placement"), [(Policy(3, 4), ()), (Policy(1, 2), ("disk0",)), (Policy(1, 1), ("attic",))], ids=["m", "few", "unknown"]
)
async def test_a_policy_that_the_shards_cannot_hold_is_refused(home: Home, policy: Policy, placement: tuple[str, ...]) -> None:
    home.shards = 3
    async with home.open() as store:
        with pytest.raises(InvalidParams):
            await store.namespaces.create("photos", policy=policy, placement=placement)
        assert listed(store) == []


async def test_shares_go_where_the_namespace_says(home: Home) -> None:
    home.shards = 5
    async with home.open() as store:
        await store.namespaces.create("photos", policy=Policy(1, 2, chunk_size=CHUNK), placement=("disk1", "disk4"))
        for size in SMALL_AND_LARGE:
            for turn in range(5):
                stored = await put(store, f"{size} {turn}", content(size, size), namespace="photos")
                assert set(stored.record.placement) == {1, 4}


async def test_a_shard_that_comes_while_places_are_chosen_is_none_of_them_yet(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.shards = 4
    async with home.open() as store:
        await store.namespaces.create("notes", placement=("disk1", "disk2", "disk3"))
        monkeypatch.setattr(store.namespaces, "shards_of", lambda placement: [1, 2, 3, 4])
        assert sorted((await put(store, "a", b"a", namespace="notes")).record.placement) == [1, 2, 3]


async def test_a_change_counts_for_new_versions_and_is_kept(home: Home) -> None:
    async with home.open() as store:
        before = await put(store, "a", content(1, 10_000))
        await store.namespaces.change("default", lambda record: replace(record, policy=OTHER, quota=20_000))
        assert (await put(store, "b", content(2, 10_000))).record.policy == OTHER
        assert store.objects.find(name("a")).record.policy == before.record.policy
        assert await get(store, "a") == content(1, 10_000)
    async with home.open() as store:
        assert (await put(store, "a", content(3, 9_000))).record.policy == OTHER
        with pytest.raises(NoSpace):
            await put(store, "c", content(4, 2_000))
        with pytest.raises(NotFound):
            await store.namespaces.change("music", lambda record: record)


# --- Quota ---


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_quota_is_filled_to_its_last_byte(home: Home, size: int) -> None:
    async with home.open() as store:
        await store.namespaces.create("photos", quota=2 * size)
        await put(store, "a", content(1, size), namespace="photos")
        await put(store, "b", content(2, size), namespace="photos")
        with pytest.raises(NoSpace) as caught:
            await put(store, "c", b"x", namespace="photos")
        assert caught.value.data == {"namespace": "photos", "quota_bytes": 2 * size, "used_bytes": 2 * size, "wanted_bytes": 1}
        await put(store, "c", b"", namespace="photos")
        await put(store, "a", content(3, size), namespace="photos")
        with pytest.raises(NoSpace):
            await put(store, "a", content(3, size + 1), namespace="photos")
        assert await get(store, "a", namespace="photos") == content(3, size)
        await delete(store, "b", namespace="photos")
        await put(store, "d", content(4, size), namespace="photos")
        assert used(store, "photos") == (3, 2 * size)
        await freed(store)
        assert len(home.share_files()) == (2 * 3 if size > 100_000 else 0)
        await put(store, "elsewhere", content(5, size))


class Endless:
    """A stream that never ends; tells how much was read of it."""

    def __init__(self) -> None:
        self.read = 0

    async def read_into(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        self.read += len(buffer)
        assert self.read < 100 * CHUNK
        return len(buffer)


async def test_what_exceeds_it_is_refused_before_its_bytes_are_moved(home: Home) -> None:
    async with home.open() as store:
        await store.namespaces.create("photos", quota=10 * CHUNK)
        await put(store, "a", content(1, 2 * CHUNK), namespace="photos")
        for key, most in (("a", 10 * CHUNK), ("b", 8 * CHUNK)):
            announced, stream = Endless(), Endless()
            with pytest.raises(NoSpace):
                await put(store, key, announced, WriteOptions(expected_size=most + 1), namespace="photos")
            assert announced.read == 0
            with pytest.raises(NoSpace) as caught:
                await put(store, key, stream, namespace="photos")
            assert most < stream.read <= most + CHUNK
            assert caught.value.data["used_bytes"] == 2 * CHUNK
            with (home.path / "f").open("wb+") as file:
                file.truncate(most + 1)
                home.files.fail("preadv", lambda path: path.endswith("/f"), errno.EIO)
                with pytest.raises(NoSpace):
                    await put(store, key, FileSource(home.files, file.fileno()), namespace="photos")
                home.files.heal()
        await put(store, "a", content(3, 10 * CHUNK), namespace="photos")


async def test_a_copy_counts_too(home: Home) -> None:
    async with home.open() as store:
        await store.namespaces.create("photos", quota=15_000)
        await put(store, "a", content(1, 10_000), namespace="photos")
        renaming = Renaming(store.core, store.namespaces, store.freeing)
        with pytest.raises(NoSpace):
            await renaming.copy(name("a", "photos"), "b", None, Nobody(), exclusive=False)
        await renaming.rename(name("a", "photos"), "b", None, Nobody(), exclusive=False)
        assert used(store, "photos") == (1, 10_000)


async def test_many_at_once_never_exceed_it(home: Home) -> None:
    refused = 0

    async with home.open() as store:
        await store.namespaces.create("photos", quota=10 * 1_000)

        async def write(number: int) -> None:
            nonlocal refused
            try:
                await put(store, f"{number}", content(number, 1_000), namespace="photos")
            except NoSpace:
                refused += 1

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(write, number)
        assert used(store, "photos") == (10, 10_000)
        assert refused == 20


async def test_a_lowered_quota_keeps_what_is_there(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        await store.namespaces.change("default", lambda record: replace(record, quota=0))
        assert await get(store, "a") == content(1, 10_000)
        await put(store, "a", content(2, 9_000))
        with pytest.raises(NoSpace):
            await put(store, "a", content(3, 9_001))


# --- Delete ---


async def test_one_with_objects_is_not_deleted(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"", namespace="photos")
        with pytest.raises(NotEmpty):
            await store.namespaces.remove(store.namespaces.get("photos"))
        assert await get(store, "a", namespace="photos") == b""
        await put(store, "b", b"", namespace="photos")
        for key in ("a", "b"):
            await delete(store, key, namespace="photos")
        await store.namespaces.remove(store.namespaces.get("photos"))
        assert listed(store) == []
        assert await keys(store, namespace="photos") == []


@pytest.mark.parametrize("count", [0, 1, BATCH + 1])
async def test_with_force_everything_in_it_goes(home: Home, count: int) -> None:
    async with home.open() as store:
        await store.namespaces.create("photos")
        await put(store, "keep", content(9, 700_000))
        before = home.share_files(), small_shares(store), store.committer.state.bytes
        for number in range(count):
            await put(store, f"{number}", content(number, 700_000 if number == 0 else 10), namespace="photos")
        await store.rows.put(PERMISSIONS_TABLE, "photos", b"rights")
        assert await remove(store, "photos") == count
        assert (home.share_files(), small_shares(store), store.committer.state.bytes) == before
        assert store.rows.get(PERMISSIONS_TABLE, "photos") is None
        assert listed(store) == ["default"]
        assert store.committer.state.objects == 1
        with pytest.raises(NotFound):
            await store.removal.remove("photos", Nobody())
    async with home.open() as store:
        assert listed(store) == ["default"]
        assert await get(store, "keep") == content(9, 700_000)


async def test_the_same_name_again_is_another_namespace(home: Home) -> None:
    async with home.open() as store:
        await store.namespaces.create("photos", quota=100)
        stored = await put(store, "a", b"old", namespace="photos")
        first = store.namespaces.get("photos").id
        await remove(store, "photos")
        await put(store, "b", content(1, 1_000), namespace="photos")
        assert store.namespaces.get("photos").id != first
        assert await keys(store, namespace="photos") == ["b"]
        with pytest.raises(NotFound, match="deleted"):
            store.objects.from_seal(stored.envelope.pack())
        assert used(store, "photos") == (1, 1_000)
    lose_metastore(home)
    rebuilt(home.config())
    async with home.open() as store:
        assert await keys(store, namespace="photos") == ["b"]
        assert used(store, "photos") == (1, 1_000)


async def test_a_deleted_one_does_not_come_back_by_a_rebuild(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"", namespace="photos")
        await put(store, "a", b"", namespace="music")
        await remove(store, "photos")
    lose_metastore(home)
    rebuilt(home.config())
    async with home.open() as store:
        assert listed(store) == ["music"]
        assert await keys(store, namespace="photos") == []


async def test_a_crash_in_the_middle_only_delays_it(home: Home) -> None:
    """The disk of the metastore is full after the first batch; the next life goes on by itself."""
    async with home.open() as store:
        for number in range(BATCH + 20):
            await put(store, f"{number:04}", b"", namespace="photos")
        commits = 0

        def full(transaction: Transaction) -> None:
            nonlocal commits
            commits += any(row.envelope.kind is Kind.TOMBSTONE for row in transaction.rows)
            if commits > 1:
                raise CommitRefused("the disk is full", no_space=True)

        home.engines.before_commit = full
        with pytest.raises(NoSpace):
            await store.removal.remove("photos", Nobody())
        with pytest.raises(NotFound):
            store.objects.find(name("0210", "photos"))
        with pytest.raises(Conflict, match="being deleted"):
            await put(store, "new", b"", namespace="photos")
        assert len(store.metastore.scan(store.namespaces.half_deleted()[0].id, "", None, 1_000)) == 20
    home.heal_commits()
    async with home.open() as store:
        await until(lambda: store.metastore.get(STORE_WIDE, row_name("photos")) is None, store)
        assert listed(store) == []
        assert store.committer.state.objects == 0


async def test_one_whose_record_did_not_open_at_the_start_goes_when_that_is_brought_back(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"", namespace="photos")
        await store.namespaces.change("photos", lambda record: replace(record, deleting=True))
        spoil_row(store, STORE_WIDE, row_name("photos"))
    async with home.open() as store:
        await store.damaged_rows.mend_rows([(STORE_WIDE, row_name("photos"))])
        await until(lambda: store.metastore.get(STORE_WIDE, row_name("photos")) is None, store)
        assert store.committer.state.objects == 0


async def test_everybody_who_was_invited_goes_with_it(home: Home) -> None:
    """Also where they are more than a page of rows."""
    async with home.open() as store:
        await put(store, "a", b"", namespace="photos")
        photos = store.namespaces.get("photos")
        users = [f"{photos.id.hex()}/user{number:04}" for number in range(limits.LIST_ITEMS + 1)]

        def invite(_: object) -> Decision:
            return Decision(dict(row for user in users for row in store.rows.written(INVITED_TABLE, user, b"key").items()))

        await store.committer.commit(STORE_WIDE, "", invite)
        await store.removal.remove("photos", Nobody())
        assert store.rows.names(INVITED_TABLE) == []


async def test_what_was_found_before_its_namespace_was_made_anew_is_not_there(home: Home) -> None:
    """Its data key does not open with the new one's keys, which is no damage."""
    async with home.open() as store:
        stored = await put(store, "a", b"first", namespace="photos")
        await remove(store, "photos")
        await put(store, "a", b"second", namespace="photos")
        for look in (store.objects.read, lambda it: store.shares_health.check(it, Nobody())):
            with pytest.raises(NotFound):
                await look(stored)


async def test_a_metastore_that_cannot_be_read_is_told_and_ends_nothing_else(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object) -> list[Row]:
        raise IoError("the metastore cannot be read")

    async with home.open() as store:
        await put(store, "a", b"", namespace="photos")
        with monkeypatch.context() as patch:
            patch.setattr(store.reading, "scan", unreadable)
            with pytest.raises(IoError):
                await store.removal.remove("photos", Nobody())
        store.removal.wake()
        await until(lambda: store.metastore.get(STORE_WIDE, row_name("photos")) is None, store)


async def test_a_crash_and_a_lost_metastore_only_delay_it(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"", namespace="photos")
        store.removal.run = trio.sleep_forever  # type: ignore[method-assign]
        namespace = store.namespaces.get("photos")
        await store.namespaces.change("photos", lambda record: replace(record, deleting=True))
        assert namespace.gate.closed
    lose_metastore(home)
    rebuilt(home.config())
    async with home.open() as store:
        await until(lambda: store.metastore.get(STORE_WIDE, row_name("photos")) is None, store)
        assert store.committer.state.objects == 0


async def test_a_write_on_its_way_does_not_slip_into_a_deleted_one(home: Home) -> None:
    async with home.open() as store:
        namespace = await store.namespaces.create("photos")

        class Late:
            """A stream that ends after the namespace is gone."""

            left = 700_000

            async def read_into(self, buffer: memoryview) -> int:
                count = min(self.left, len(buffer))
                self.left -= count
                if count == 0:
                    await store.namespaces.remove(namespace)
                return count

        with pytest.raises(Conflict, match="being deleted"):
            await put(store, "a", Late(), namespace="photos")
        await freed(store)
        assert home.share_files() == []
        assert listed(store) == []


async def test_nor_where_two_delete_it_at_once(home: Home) -> None:
    async with home.open() as store:
        namespace = await store.namespaces.create("photos")
        refused: list[NotFound] = []

        async def remove_once() -> None:
            try:
                await store.namespaces.remove(namespace)
            except NotFound as error:
                refused.append(error)

        class Late:
            left = 700_000

            async def read_into(self, buffer: memoryview) -> int:
                count = min(self.left, len(buffer))
                self.left -= count
                if count == 0:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(remove_once)
                        nursery.start_soon(remove_once)
                return count

        with pytest.raises(Conflict, match="being deleted"):
            await put(store, "a", Late(), namespace="photos")
        assert len(refused) == 1
        await put(store, "a", b"another", namespace="photos")
        assert await get(store, "a", namespace="photos") == b"another"


async def test_one_that_was_changed_while_it_was_deleted_can_be_made_anew(home: Home) -> None:
    async with home.open() as store:
        namespace = await store.namespaces.create("photos")
        await store.namespaces.change("photos", lambda record: replace(record, quota=1_000))  # by who comes first
        await store.namespaces.remove(namespace)
        await put(store, "a", b"another", namespace="photos")
        assert await get(store, "a", namespace="photos") == b"another"


async def test_names_of_rows_are_names_like_others(home: Home) -> None:
    """A namespace called like a record of the store's own must not take its place in a rebuild."""
    async with home.open() as store:
        for namespace in ("store", "shards", "row"):
            await put(store, "a", content(1, 100), namespace=namespace)
    lose_metastore(home)
    rebuilt(home.config())
    async with home.open() as store:
        assert listed(store) == ["row", "shards", "store"]
        assert await get(store, "a", namespace="shards") == content(1, 100)


# --- Counts ---


async def test_counts_outlive_restarts_and_a_lost_metastore(home: Home) -> None:
    async def check(store: Store) -> None:
        assert used(store, "photos") == (2, 710_000)
        assert used(store, "default") == (1, 5)

    async with home.open() as store:
        for size in SMALL_AND_LARGE:
            await put(store, f"{size}", content(size, size), namespace="photos")
        await put(store, "gone", b"gone", namespace="photos")
        await delete(store, "gone", namespace="photos")
        await put(store, "a", b"12345")
        await check(store)
    async with home.open() as store:
        await check(store)
    lose_metastore(home)
    rebuilt(home.config())
    async with home.open() as store:
        await check(store)


async def test_a_store_of_before_is_counted_when_it_is_opened(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000), namespace="photos")
        await put(store, "b", content(2, 700_000))
    with sqlite3.connect(home.metastore) as db:
        db.execute("drop table usage")
    db.close()
    async with home.open() as store:
        assert used(store, "photos") == (1, 10_000)
        assert used(store, "default") == (1, 700_000)
        assert store.metastore.usage(STORE_WIDE) == Usage()


def test_the_record_of_before_reads_and_is_written_as_before() -> None:
    record = NamespaceRecord("a", b"namespace id 16b", 5, Policy())  # type: ignore[arg-type]
    assert record.encode()[:3] == b"\xa5\x00\x01"
    assert NamespaceRecord.decode(record.encode()) == record


async def until(true: Callable[[], bool], store: Store) -> None:
    """Wait for a commit after which it is true."""
    with trio.fail_after(SAFETY_NET_SECONDS):
        while not true():
            news = store.committer.news()
            if not true():
                await news.wait()
