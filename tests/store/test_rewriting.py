"""Rewriting a namespace: new policy, new data keys, everything else as it was; goes on where it was broken off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import trio

from tests.store.home import CHUNK, SMALL_AND_LARGE, Home, content, delete, freed, freed_by_itself, get, keys, name, put, share_place
from tests.store.test_rotation import broken_off
from zstor_local import limits
from zstor_local.errors import Busy, IoError, NotEnoughShards, NotFound, Unreadable, ZstorError
from zstor_local.metastore.base import CommitRefused, Transaction
from zstor_local.model.fields import encode
from zstor_local.model.ids import Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import Kind
from zstor_local.store import rewriting
from zstor_local.store.caller import Nobody
from zstor_local.store.jobs import Job
from zstor_local.store.links import Previous
from zstor_local.store.namespaces import Namespace
from zstor_local.store.publishing import built_on_failed
from zstor_local.store.renaming import Renaming
from zstor_local.store.rewriterow import MOVED, TABLE, RewriteRow
from zstor_local.store.rewriting import LOOKS, Rewriting
from zstor_local.store.rotation import METHOD
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.storewide import StoredRow
from zstor_local.store.writes import WriteOptions

OTHER = Policy(1, 3, chunk_size=2 * CHUNK, compression="none", padding="padme")


async def change_policy(store: Store, policy: Policy = OTHER) -> None:
    await store.namespaces.change("default", lambda record: replace(record, policy=policy))


async def ended(job: Job) -> Job:
    while job.running:
        await job.news().wait()
    return job


async def rewritten(store: Store, name: str = "default") -> dict[str, object]:
    """What a rewrite comes to."""
    job = await ended(await store.rewriting.start(name))
    if job.error is not None:
        raise job.error
    assert isinstance(job.result, dict)
    return job.result


async def policies(store: Store) -> set[Policy]:
    return {store.objects.find(name(key)).record.policy for key in await keys(store)}


def is_noted(store: Store) -> bool:
    """Whether a rewrite is not at its end."""
    return store.rows.get(TABLE, store.namespaces.get("default").id.hex()) is not None


def step_by_step(monkeypatch: pytest.MonkeyPatch) -> trio.MemoryReceiveChannel[str]:
    """Each key once its object is written again; the next one is, and then it waits until that is taken."""
    again = Rewriting._again
    send, receive = trio.open_memory_channel[str](0)

    async def one_by_one(self: Rewriting, stored: Stored, namespace: Namespace, shared: set[Version]) -> None:
        await again(self, stored, namespace, shared)
        await send.send(stored.record.key)

    monkeypatch.setattr(Rewriting, "_again", one_by_one)
    return receive


async def go_on(steps: trio.MemoryReceiveChannel[str], job: Job) -> Job:
    """To its end."""
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            async for _ in steps:
                pass

        nursery.start_soon(take)
        await ended(job)
        nursery.cancel_scope.cancel()
    return job


@pytest.mark.parametrize("size", [0, *SMALL_AND_LARGE])
async def test_an_object_is_the_same_but_for_how_it_is_stored(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "before", b"")
        options = WriteOptions(references=["r"], user={"a": 1}, previous=Previous("before"))
        old = await put(store, "a", content(1, size), options)
        await put(store, "after", b"", WriteOptions(previous=Previous("a")))
        old = store.objects.find(name("a"))
        await change_policy(store)
        job = await ended(await store.rewriting.start("default"))
        assert (job.result, job.done, job.total) == ({"objects": 3, "unreadable": []}, 3, 3)
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
        await rewritten(store)
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
        assert (await rewritten(store))["objects"] == 4
        assert written == [store.objects.find(name("a")).version]
        await put(store, "c", content(2, 700_000))
        assert (await rewritten(store))["objects"] == 4
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
            await rewritten(store)
        first = store.objects.find(name("000")).version
    home.heal_commits()
    async with home.open() as store:
        (job,) = store.jobs.list()
        assert (await ended(job)).state == "done", job.error
        assert await policies(store) == {OTHER}
        assert store.objects.find(name("000")).version == first  # done before it was broken off
        assert not is_noted(store)
        assert await get(store, "149") == content(149, 10)


async def test_more_that_were_broken_off_than_may_run_keep_no_store_from_opening(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a person had many namespaces rewritten while too few shards were there. A rotation of the key goes before them."""
    names = [f"n{number:02}" for number in range(limits.JOBS_RUNNING + 1)]
    async with home.open() as store:
        for namespace in names:
            await put(store, "a", b"a", namespace=namespace)
            await store.rows.put(TABLE, store.namespaces.get(namespace).id.hex(), encode({0: 1, 1: None, 2: 0}))
        await broken_off(store, monkeypatch)
    async with home.open() as store:
        methods = [job.method for job in store.jobs.list()]
        assert sorted(methods) == [METHOD, *["namespace.rewrite"] * (limits.JOBS_RUNNING - 1)]
    told = [record.getMessage() for record in caplog.records if "is not gone on with yet" in record.getMessage()]
    assert len(told) == 2
    assert sum(namespace in line for namespace in names for line in told) == 2


@pytest.mark.parametrize("at", [0, 1, 2, 3])
async def test_a_policy_that_is_changed_meanwhile_holds_for_all(home: Home, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Wherever it is, and also where the earlier one comes back: some were written again with the one between."""
    steps = step_by_step(monkeypatch)
    async with home.open() as store:
        for key in "abcd":
            await put(store, key, content(1, 10_000))
        job = await store.rewriting.start("default")
        for _ in range(at):
            await steps.receive()
        await change_policy(store)
        await steps.receive()
        await change_policy(store, home.policy)
        assert (await go_on(steps, job)).result == {"objects": 4, "unreadable": []}
        assert await policies(store) == {home.policy}
        assert not is_noted(store)


async def test_a_policy_that_is_changed_meanwhile_holds_for_all_over_a_restart(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        for key in "abc":
            await put(store, key, content(1, 10_000))
        monkeypatch.setattr(rewriting, "BATCH", 1)
        with monkeypatch.context() as patch:
            steps = step_by_step(patch)
            await store.rewriting.start("default")
            for _ in range(2):
                await steps.receive()
            await change_policy(store)
    async with home.open() as store:
        (job,) = store.jobs.list()
        assert (await ended(job)).result == {"objects": 3, "unreadable": []}
        assert await policies(store) == {OTHER}


async def test_one_that_is_asked_for_meanwhile_writes_everything_after_that(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may have been able to read what it had written before."""
    steps = step_by_step(monkeypatch)
    async with home.open() as store:
        for key in "abc":
            await put(store, key, content(1, 10_000))
        job = await store.rewriting.start("default")
        for _ in range(2):
            await steps.receive()
        known = {store.objects.find(name(key)).version for key in "abc"}
        assert await store.rewriting.start("default") is job
        assert (await go_on(steps, job)).result == {"objects": 3, "unreadable": []}
        assert known.isdisjoint({store.objects.find(name(key)).version for key in "abc"})


async def test_one_that_is_asked_for_at_the_end_of_another_is_carried_out(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end is committed already, and its job has yet to hear of it."""
    note = Rewriting._note
    asked: list[Job] = []

    async def late(self: Rewriting, namespace: Namespace, change: Callable[[RewriteRow], RewriteRow | None]) -> None:
        await note(self, namespace, change)
        if not asked and not is_noted(store):
            asked.append(await self.start("default"))

    monkeypatch.setattr(Rewriting, "_note", late)
    async with home.open() as store:
        old = await put(store, "a", content(1, 10_000))
        job = await store.rewriting.start("default")
        assert (await ended(job)).state == (await ended(*asked)).state == "done"
        assert store.objects.find(name("a")).version != old.version
        assert not is_noted(store)


async def test_one_that_is_asked_for_at_the_end_of_another_has_its_place(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many jobs run as may; what was asked for is on the disk already when there is none any more that carries it out."""
    steps = step_by_step(monkeypatch)

    async def forever(job: Job) -> None:
        await trio.sleep_forever()

    async with home.open() as store:
        old = await put(store, "a", content(1, 10_000))
        job = await store.rewriting.start("default")
        for _ in range(limits.JOBS_RUNNING - 1):
            store.jobs.start("another", forever)
        change = store.rows.change

        async def when_it_has_ended(*args: Any) -> StoredRow | None:
            monkeypatch.setattr(store.rows, "change", change)
            await go_on(steps, job)
            with suppress(Busy):
                store.jobs.start("another", forever)
            return await change(*args)

        monkeypatch.setattr(store.rows, "change", when_it_has_ended)
        assert (await go_on(steps, await store.rewriting.start("default"))).state == "done"
        assert store.objects.find(name("a")).version != old.version
        assert not is_noted(store)


@pytest.mark.parametrize("again", [False, True], ids=["to its end", "over a restart"])
@pytest.mark.parametrize("how", ["renamed", "renamed twice", "renamed and written anew", "copied and overwritten"])
async def test_what_gets_a_key_that_it_has_come_past_is_not_passed_over(
    home: Home, monkeypatch: pytest.MonkeyPatch, how: str, again: bool
) -> None:
    async with home.open() as store:
        for key in "mnoz":
            await put(store, key, content(1, 10_000))
        known = {store.objects.find(name(key)).version for key in "mnoz"}
        await change_policy(store)
        renaming = Renaming(store.core, store.namespaces, store.freeing)
        with monkeypatch.context() as patch:
            patch.setattr(rewriting, "BATCH", 1)
            steps = step_by_step(patch)
            job = await store.rewriting.start("default")
            for _ in range(2):
                await steps.receive()
            move = renaming.copy if how.startswith("copied") else renaming.rename
            await move(name("z"), "a", None, Nobody(), exclusive=False)
            if how == "renamed twice":
                await renaming.rename(name("a"), "mm", None, Nobody(), exclusive=False)
            elif how != "renamed":
                await put(store, "z", b"another")
            if not again:
                await go_on(steps, job)
    async with home.open() as store:
        for job in store.jobs.list():
            assert (await ended(job)).state == "done"
        assert known.isdisjoint({store.objects.find(name(key)).version for key in await keys(store)})
        assert await policies(store) == {OTHER}
        assert store.rows.names(MOVED) == store.rows.names(TABLE) == []


@pytest.mark.parametrize("how", ["rename", "copy"])
async def test_what_gets_a_later_key_that_nothing_had_is_not_passed_over(home: Home, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    steps = step_by_step(monkeypatch)
    async with home.open() as store:
        for key in "mnoz":
            await put(store, key, content(1, 10_000))
        known = {store.objects.find(name(key)).version for key in "mnoz"}
        await change_policy(store)
        renaming = Renaming(store.core, store.namespaces, store.freeing)
        job = await store.rewriting.start("default")
        await steps.receive()
        await getattr(renaming, how)(name("o"), "p", None, Nobody(), exclusive=False)
        if how == "copy":
            await put(store, "o", b"another")
        assert (await go_on(steps, job)).state == "done"
        assert known.isdisjoint({store.objects.find(name(key)).version for key in await keys(store)})
        assert await policies(store) == {OTHER}


async def test_once_it_has_come_past_all_keys_it_waits_for_no_end_of_what_others_rename(home: Home) -> None:
    async with home.open() as store:
        for key in "yz":
            await put(store, key, content(1, 10_000))
        space = store.namespaces.get("default").id.hex()
        renaming = Renaming(store.core, store.namespaces, store.freeing)
        await store.rows.put(TABLE, space, RewriteRow().encode())
        await renaming.rename(name("z"), "b", None, Nobody(), exclusive=False)
        await store.rows.put(TABLE, space, RewriteRow(past_all=True).encode())
        await renaming.rename(name("y"), "a", None, Nobody(), exclusive=False)
        assert store.rows.names(MOVED) == [f"{space}/b"]


async def test_what_was_noted_of_other_keys_goes_with_the_namespace(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        for key in "mz":
            await put(store, key, content(1, 10_000))
        step_by_step(monkeypatch)
        await store.rewriting.start("default")
        await Renaming(store.core, store.namespaces, store.freeing).rename(name("z"), "a", None, Nobody(), exclusive=False)
        assert len(store.rows.names(MOVED)) == 1
        await store.removal.remove("default", Nobody())
        assert store.rows.names(MOVED) == store.rows.names(TABLE) == []


async def test_it_goes_by_the_policy_that_is_committed(home: Home) -> None:
    """Who changed it may not have come to remember that when it begins."""
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        before = store.namespaces.get("default")
        await change_policy(store)
        store.namespaces._known["default"] = before
        await rewritten(store)
        assert await policies(store) == {OTHER}


async def test_nothing_is_left_of_it_where_the_namespace_is_deleted(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    note = Rewriting._note

    async def late(self: Rewriting, namespace: Namespace, change: Callable[[RewriteRow], RewriteRow | None]) -> None:
        await store.removal.remove("default", Nobody())
        await note(self, namespace, change)

    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        with monkeypatch.context() as patch:
            patch.setattr(Rewriting, "_note", late)
            with pytest.raises(NotFound):
                await rewritten(store)
        assert store.rows.names(TABLE) == []
        await put(store, "a", content(1, 10_000))
        assert (await rewritten(store))["objects"] == 1


async def test_it_goes_on_by_itself_when_shards_are_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = step_by_step(monkeypatch)
    async with home.open() as store:
        for key in "abc":
            await put(store, key, content(1, 10_000))
        known = {store.objects.find(name(key)).version for key in "abc"}
        job = await store.rewriting.start("default")
        await steps.receive()
        home.take_away(0)
        await store.presence.look()
        assert isinstance((await go_on(steps, job)).error, NotEnoughShards)
        await home.return_to(store, 0)
        assert (await go_on(steps, store.jobs.list()[0])).result == {"objects": 3, "unreadable": []}
        assert known.isdisjoint({store.objects.find(name(key)).version for key in "abc"})


async def test_where_it_cannot_be_seen_how_far_it_came_a_shard_comes_back_all_the_same(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(table: str) -> None:
        raise IoError("the metastore cannot be read: SQLITE_IOERR_READ")

    async with home.open() as store:
        home.take_away(0)
        await store.presence.look()
        monkeypatch.setattr(store.rows, "each", unread)
        await home.return_to(store, 0)
        assert store.pool.state(0) == "ok"


async def test_nothing_is_passed_over_that_can_be_read_when_shards_are_back(home: Home) -> None:
    home.write_quorum = 2
    async with home.open() as store:
        damaged = await put(store, "a", content(1, 10_000))
        share_place(store, damaged, 0).flip(100)
        away = damaged.record.placement[1]
        home.take_away(away)
        await store.presence.look()
        with pytest.raises(Unreadable):
            await rewritten(store)
        await home.return_to(store, away)
        assert (await ended(store.jobs.list()[0])).result == {"objects": 1, "unreadable": []}
        assert store.objects.find(name("a")).version != damaged.version


async def test_what_cannot_be_read_is_told_and_kept(home: Home) -> None:
    async with home.open() as store:
        await put(store, "bad", content(1, 700_000))
        await put(store, "good", content(2, 700_000))
        bad = store.objects.find(name("bad"))
        for path in home.path.rglob(f"{bad.version.hex()}.*"):
            path.write_bytes(b"")
        await change_policy(store)
        assert await rewritten(store) == {"objects": 1, "unreadable": ["bad"]}
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
            nursery.start_soon(rewritten, store)
            nursery.start_soon(write)
            nursery.start_soon(remove)
        for number in range(0, 40, 2):
            assert await get(store, f"{number:02}") == content(1_000 + number, 100)
        for number in range(3, 40, 4):
            assert await get(store, f"{number:02}") == content(number, 100)
        assert len(await keys(store)) == 30
        assert await policies(store) == {OTHER}


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
        assert (await rewritten(store))["objects"] == 1
        assert store.objects.find(name("a")).record.wrapped_key != old.record.wrapped_key


async def test_nothing_is_passed_over_for_changes_of_others_that_fail(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Rewriting._again
    tries = 0

    async def beside_a_failed_change(self: Rewriting, *args: Any) -> None:
        nonlocal tries
        tries += 1
        if tries <= 2 * LOOKS:
            raise built_on_failed()
        await again(self, *args)

    monkeypatch.setattr(Rewriting, "_again", beside_a_failed_change)
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        await change_policy(store)
        assert (await rewritten(store))["objects"] == 1
        assert await policies(store) == {OTHER}


async def test_there_must_be_such_a_namespace(home: Home) -> None:
    async with home.open() as store:
        with pytest.raises(NotFound):
            await store.rewriting.start("music")
