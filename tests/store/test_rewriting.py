"""Rewriting a namespace: new policy, new data keys, everything else as it was; goes on where it was broken off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from tests.store.home import CHUNK, SMALL_AND_LARGE, Home, content, delete, freed, freed_by_itself, get, keys, name, put
from tests.store.test_rotation import broken_off
from zstor_local import limits
from zstor_local.errors import Busy, NotFound, ZstorError
from zstor_local.metastore.base import CommitRefused, Transaction
from zstor_local.model.fields import encode
from zstor_local.model.ids import Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import Kind
from zstor_local.store import rewriting
from zstor_local.store.caller import Nobody
from zstor_local.store.links import Previous
from zstor_local.store.namespaces import REWRITE_TABLE, Namespace
from zstor_local.store.renaming import Renaming
from zstor_local.store.rewriting import LOOKS, Rewriting
from zstor_local.store.rotation import METHOD
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import WriteOptions

OTHER = Policy(1, 3, chunk_size=2 * CHUNK, compression="none", padding="padme")


class Told(Nobody):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None]] = []

    def progress(self, done: int, total: int | None) -> None:
        self.seen.append((done, total))


async def change_policy(store: Store) -> None:
    await store.namespaces.change("default", lambda record: replace(record, policy=OTHER))


@pytest.mark.parametrize("size", [0, *SMALL_AND_LARGE])
async def test_an_object_is_the_same_but_for_how_it_is_stored(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "before", b"")
        options = WriteOptions(references=["r"], user={"a": 1}, previous=Previous("before"))
        old = await put(store, "a", content(1, size), options)
        await put(store, "after", b"", WriteOptions(previous=Previous("a")))
        old = store.objects.find(name("a"))
        await change_policy(store)
        told = Told()
        assert (await store.rewriting.rewrite("default", told)).objects == 3
        assert told.seen[-1] == (3, 3)
        new = store.objects.find(name("a"))
        assert new.version != old.version
        assert new.record.wrapped_key != old.record.wrapped_key
        assert new.record.policy == OTHER
        same = replace(
            new.record,
            policy=old.record.policy,
            wrapped_key=old.record.wrapped_key,
            placement=old.record.placement,
            share_bytes=old.record.share_bytes,
            chunk_table=old.record.chunk_table,
        )
        assert same == old.record
        assert await get(store, "a") == content(1, size)
        await freed_by_itself(store)
        assert not any(old.version.hex() in path for path in home.share_files())
        assert store.namespaces.usage(store.namespaces.get("default")).bytes == size


async def test_keys_that_share_a_version_share_the_new_one(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        renaming = Renaming(store.core, store.namespaces, store.freeing)
        await renaming.copy(name("a"), "b", None, Nobody(), exclusive=False)
        await change_policy(store)
        await store.rewriting.rewrite("default", Told())
        await freed(store)
        assert store.objects.find(name("a")).version == store.objects.find(name("b")).version
        assert {store.objects.find(name(key)).record.policy for key in "ab"} == {OTHER}
        assert len(home.share_files()) == 3
        assert await get(store, "b") == await get(store, "a") == content(1, 700_000)


async def test_the_bytes_that_keys_share_are_written_once(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        for key in "bcd":
            await Renaming(store.core, store.namespaces, store.freeing).copy(name("a"), key, None, Nobody(), exclusive=False)
        written: list[Version] = []
        home.engines.before_commit = lambda transaction: written.extend(intent.version for intent in transaction.intents)
        assert (await store.rewriting.rewrite("default", Told())).objects == 4
        assert written == [store.objects.find(name("a")).version]
        await put(store, "c", content(2, 700_000))
        assert (await store.rewriting.rewrite("default", Told())).objects == 4
        assert len(written) == 1 + 1 + 2  # the first rewrite, c, the second one


async def test_it_goes_on_where_it_was_broken_off(home: Home) -> None:
    """The disk of the metastore is full for a while; the next life ends by itself what was begun."""
    async with home.open() as store:
        for number in range(150):
            await put(store, f"{number:03}", content(number, 10))
        await change_policy(store)
        commits = 0

        def full(transaction: Transaction) -> None:
            nonlocal commits
            commits += sum(row.envelope.kind is Kind.OBJECT for row in transaction.rows)
            if commits > 120:
                raise CommitRefused("the disk is full", no_space=True)

        home.engines.before_commit = full
        with pytest.raises(ZstorError):
            await store.rewriting.rewrite("default", Told())
        first = store.objects.find(name("000")).version
    home.heal_commits()
    async with home.open() as store:
        (job,) = store.jobs.list()
        while job.running:
            news = job.news()
            if job.running:
                await news.wait()
        assert job.state == "done", job.error
        assert {store.objects.find(name(key)).record.policy for key in await keys(store)} == {OTHER}
        assert store.objects.find(name("000")).version == first  # done before it was broken off
        assert store.rows.get(REWRITE_TABLE, store.namespaces.get("default").id.hex()) is None
        assert await get(store, "149") == content(149, 10)


async def test_more_that_were_broken_off_than_may_run_keep_no_store_from_opening(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a person had many namespaces rewritten while too few shards were there. A rotation of the key goes before them."""
    names = [f"n{number:02}" for number in range(limits.JOBS_RUNNING + 1)]
    async with home.open() as store:
        for namespace in names:
            await put(store, "a", b"a", namespace=namespace)
            await store.rows.put(REWRITE_TABLE, store.namespaces.get(namespace).id.hex(), encode({0: 1, 1: None, 2: 0}))
        await broken_off(store, monkeypatch)
    async with home.open() as store:
        methods = [job.method for job in store.jobs.list()]
        assert sorted(methods) == [METHOD, *["namespace.rewrite"] * (limits.JOBS_RUNNING - 1)]
    told = [record.getMessage() for record in caplog.records if "is not gone on with yet" in record.getMessage()]
    assert len(told) == 2
    assert sum(namespace in line for namespace in names for line in told) == 2


async def test_what_cannot_be_read_is_told_and_kept(home: Home) -> None:
    async with home.open() as store:
        await put(store, "bad", content(1, 700_000))
        await put(store, "good", content(2, 700_000))
        bad = store.objects.find(name("bad"))
        for path in home.path.rglob(f"{bad.version.hex()}.*"):
            path.write_bytes(b"")
        await change_policy(store)
        result = await store.rewriting.rewrite("default", Told())
        assert (result.objects, result.unreadable) == (1, ["bad"])
        assert store.objects.find(name("bad")).version == bad.version
        assert await get(store, "good") == content(2, 700_000)


async def test_writers_and_deleters_are_not_disturbed(home: Home) -> None:
    async with home.open() as store:
        for number in range(40):
            await put(store, f"{number:02}", content(number, 100))
        await change_policy(store)

        async def write() -> None:
            for number in range(0, 40, 2):
                await put(store, f"{number:02}", content(1_000 + number, 100))

        async def remove() -> None:
            for number in range(1, 40, 4):
                await delete(store, f"{number:02}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.rewriting.rewrite, "default", Told())
            nursery.start_soon(write)
            nursery.start_soon(remove)
        for number in range(0, 40, 2):
            assert await get(store, f"{number:02}") == content(1_000 + number, 100)
        for number in range(3, 40, 4):
            assert await get(store, f"{number:02}") == content(number, 100)
        assert len(await keys(store)) == 30
        assert {store.objects.find(name(key)).record.policy for key in await keys(store)} == {OTHER}


async def test_nothing_is_passed_over_while_clients_have_the_memory_for_streams(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Rewriting._again
    tries = 0

    async def crowded(self: Rewriting, stored: Stored, namespace: Namespace, shared: set[Version]) -> None:
        nonlocal tries
        tries += 1
        if tries <= 2 * LOOKS:
            raise Busy("too many streams are running")
        await again(self, stored, namespace, shared)

    monkeypatch.setattr(rewriting, "BUSY_SECONDS", 0)
    monkeypatch.setattr(Rewriting, "_again", crowded)
    async with home.open() as store:
        old = await put(store, "a", content(1, 700_000))
        assert (await store.rewriting.rewrite("default", Told())).objects == 1
        assert store.objects.find(name("a")).record.wrapped_key != old.record.wrapped_key


async def test_there_must_be_such_a_namespace(home: Home) -> None:
    async with home.open() as store:
        with pytest.raises(NotFound):
            await store.rewriting.rewrite("music", Told())
