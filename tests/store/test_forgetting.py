"""A shard is forgotten while others change objects: whatever is committed meanwhile keeps the shares that it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.daemon.client import SAFETY_NET_SECONDS
from tests.store.home import CHUNK, Home, content, freed, get, name, put, share_place
from tests.store.test_renaming import rename
from zstor_local.errors import NotEnoughShards
from zstor_local.metastore.base import Debt, Owed, Row
from zstor_local.model.ids import NamespaceId
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE
from zstor_local.store import draining
from zstor_local.store.caller import Nobody
from zstor_local.store.change import Committed, Decision
from zstor_local.store.coding import Coded, LargeWrite
from zstor_local.store.create import SHARDS_ROW
from zstor_local.store.departures import Departures
from zstor_local.store.draining import Drain
from zstor_local.store.freeing import Freeing
from zstor_local.store.later import Later
from zstor_local.store.placing import NONE_REFUSED, Placing
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import WriteOptions

FORCE = pytest.mark.parametrize("force", [False, True], ids=["drained", "by force"])


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    """Every object needs each of its two shares; there are three shards."""
    return Home(tmp_path, Policy(2, 2, chunk_size=CHUNK), shards=3)


def placed_before(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """What is written from now on was placed on these shards before any was drained."""
    monkeypatch.setattr(Placing, "place", lambda *_: (numbers, NONE_REFUSED))


def meanwhile(monkeypatch: pytest.MonkeyPatch, change: Callable[[], Awaitable[object]]) -> None:
    """Have this happen once, between the last look at the objects and the commit of the list without the shard."""
    forget = Departures._forget
    changed = False

    async def late(self: Departures, *args: Any, **more: Any) -> None:
        nonlocal changed
        if not changed:
            changed = True
            await change()
        await forget(self, *args, **more)

    monkeypatch.setattr(Departures, "_forget", late)


def when_behind(monkeypatch: pytest.MonkeyPatch, store: Store, stored: Stored, change: Callable[[], Awaitable[object]]) -> None:
    """Have this happen once, when the look at all objects is behind that one, by its key or its sequence."""
    changed = False

    def looking(look: Callable[..., list[Row]], place: str | int) -> Callable[..., list[Row]]:
        def looked(space: NamespaceId, *args: Any) -> list[Row]:
            nonlocal changed
            if place in args and not changed:
                changed = True
                trio.from_thread.run(change)
            return look(space, *args)

        return looked

    monkeypatch.setattr(store.metastore, "scan", looking(store.metastore.scan, stored.record.key))
    monkeypatch.setattr(store.metastore, "changes", looking(store.metastore.changes, stored.envelope.sequence))


async def remove(store: Store, shard: str, *, force: bool) -> bool:
    """Whether it went."""
    with trio.fail_after(SAFETY_NET_SECONDS):
        try:
            await store.membership.remove(shard, Nobody(), force=force)
        except NotEnoughShards:
            return False
    return True


@FORCE
async def test_a_write_that_commits_after_the_last_look_is_looked_at(home: Home, monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    async with home.open() as store:
        placed_before(monkeypatch, 0, 2)
        meanwhile(monkeypatch, lambda: put(store, "a", content(1, 10_000)))
        assert await remove(store, "disk2", force=force) is not force  # a drain moves it, by force nothing is moved
        assert await get(store, "a") == content(1, 10_000)


@FORCE
async def test_what_is_renamed_behind_the_look_is_looked_at(home: Home, monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    monkeypatch.setattr(draining, "PAGE", 1)
    async with home.open() as store:
        with monkeypatch.context() as patch:
            placed_before(patch, 0, 1)
            await put(store, "m", b"x")
            placed_before(patch, 0, 2)
            await put(store, "z", content(1, 10_000))
        when_behind(monkeypatch, store, store.objects.find(name("m")), lambda: rename(store, "z", "a"))
        assert await remove(store, "disk2", force=force) is not force
        assert await get(store, "a") == content(1, 10_000)


async def test_what_is_renamed_while_all_is_made_whole_is_not_passed_over(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard is gone by then: what is passed over lacks a share until somebody looks."""
    home.policy = Policy(2, 3, chunk_size=CHUNK)
    monkeypatch.setattr(draining, "PAGE", 1)
    make_whole = Drain.make_whole
    async with home.open() as store:
        await put(store, "m", b"x")
        await put(store, "z", content(1, 10_000))
        await store.membership.add(str(home.path / "spare"), None)

        async def with_a_rename(self: Drain, *args: Any) -> int:
            when_behind(monkeypatch, store, store.objects.find(name("m")), lambda: rename(store, "z", "a"))
            return await make_whole(self, *args)

        monkeypatch.setattr(Drain, "make_whole", with_a_rename)
        with trio.fail_after(SAFETY_NET_SECONDS):
            removed = await store.membership.remove("disk2", Nobody(), force=True)
        assert (removed.lacking, 2 in store.objects.find(name("a")).record.placement) == (0, False)


async def test_a_drain_waits_for_no_end_of_what_others_free(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share that was moved is being read, and freed later: meanwhile others overwrite and delete on all other shards."""
    async with home.open() as store:
        with monkeypatch.context() as patch:
            placed_before(patch, 0, 2)
            moved = await put(store, "a", content(1, 10_000))
        free_some, others = Freeing.free_some, 0

        async def busy(self: Freeing) -> int:
            nonlocal others
            others += 1
            return await free_some(self) + 1

        monkeypatch.setattr(Freeing, "free_some", busy)
        with store.freeing.lease(moved.version), trio.fail_after(SAFETY_NET_SECONDS):
            assert (await store.membership.remove("disk2", Nobody())).moved == 1
        assert others
        assert await get(store, "a") == content(1, 10_000)


@FORCE
@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
async def test_a_write_that_would_come_into_one_group_with_the_list_is_safe_or_refused(
    home: Home, monkeypatch: pytest.MonkeyPatch, force: bool, before: bool
) -> None:
    async with home.open() as store:
        with monkeypatch.context() as patch:
            placed_before(patch, 0, 1)
            await put(store, "make the namespace", b"x")
        placed_before(monkeypatch, 0, 2)
        outcomes: list[Later[Stored]] = []
        commit = store.committer.commit

        def write() -> None:
            if not outcomes and store.pool.draining:
                later = store.writer.write_value(name("a"), content(1, 10_000), WriteOptions(), Nobody())
                assert later is not None
                outcomes.append(later)

        def with_a_write(space: NamespaceId, row: str, *args: Any, **more: Any) -> Later[Committed]:
            if row != SHARDS_ROW:
                return commit(space, row, *args, **more)
            if before:
                write()
            later = commit(space, row, *args, **more)
            write()
            return later

        monkeypatch.setattr(store.committer, "commit", with_a_write)
        gone = await remove(store, "disk2", force=force)
        try:
            await outcomes[0]
        except NotEnoughShards:
            assert gone
        else:
            assert await get(store, "a") == content(1, 10_000)


async def test_a_large_write_whose_shard_goes_by_force_is_refused_where_it_needs_each(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of its record on shards of the version that it replaces make up for nothing."""
    finish = LargeWrite.finish
    finished, go_on = trio.Event(), trio.Event()

    async def finish_and_wait(self: LargeWrite) -> Coded:
        coded = await finish(self)
        finished.set()
        await go_on.wait()
        return coded

    monkeypatch.setattr(LargeWrite, "finish", finish_and_wait)
    async with home.open() as store:
        placed_before(monkeypatch, 0, 1)
        await put(store, "a", b"old")
        placed_before(monkeypatch, 0, 2)
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                with pytest.raises(NotEnoughShards):
                    await put(store, "a", content(1, 700_000))

            nursery.start_soon(write)
            await finished.wait()
            assert await remove(store, "disk2", force=True)
            go_on.set()
        assert await get(store, "a") == b"old"


async def test_by_force_a_share_that_is_owed_counts_for_none(tmp_path: Path) -> None:
    """It may be seen, and be gone after a power loss."""
    home = Home(tmp_path, Policy(1, 2, chunk_size=CHUNK))
    async with home.open() as store:
        stored = await put(store, "a", content(1, 10_000))
        other, leaving = stored.record.placement
        debt = Debt(other, Owed.SHARE, stored.envelope.namespace, "a", stored.version, 0)
        await store.committer.commit(STORE_WIDE, "", lambda _: Decision(debts=[debt]))
        assert not await remove(store, str(leaving), force=True)


async def test_by_force_no_shard_goes_that_a_share_was_moved_from_which_is_bad_now(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Freeing, "run", lambda self: trio.sleep_forever())
    async with home.open() as store:
        placed_before(monkeypatch, 0, 1)
        stored = await put(store, "a", content(1, 10_000))
        moved = (await store.shares_health.repair(stored, Nobody(), leaving=1)).stored
        share_place(store, moved, 1).flip(100)
        assert not await remove(store, "disk1", force=True)
        await freed(store)  # of which the record names the old one again
        assert await get(store, "a") == content(1, 10_000)
