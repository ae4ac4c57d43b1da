"""Freeing: what no record names is gone from every shard, and what somebody reads is not."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Sequence, Set
from contextlib import ExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from tests.daemon.client import SAFETY_NET_SECONDS
from tests.store.home import CHUNK, SMALL_AND_LARGE, Home, content, delete, freed, freed_by_itself, get, name, put, small_shares
from tests.store.test_past_damaged_rows import spoil_row
from zstor_local.errors import Incomplete, NoSpace, Unavailable
from zstor_local.metastore.base import CommitRefused, Garbage, Transaction
from zstor_local.model.ids import ShareId
from zstor_local.model.record import STORE_WIDE
from zstor_local.runtime import Buffer
from zstor_local.store.caller import Nobody
from zstor_local.store.change import Decision
from zstor_local.store.freeing import Freeing
from zstor_local.store.namespaces import row_name
from zstor_local.store.reading import whole
from zstor_local.store.sinks import PipeSink
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import WriteOptions
from zstor_local.system import RealFiles


def shares(home: Home, store: Store) -> int:
    """All shares on all shards, small and large ones."""
    return small_shares(store) + len(home.share_files())


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_after_an_overwrite_the_old_shares_are_gone(home: Home, size: int) -> None:
    async with home.open() as store:
        for number in range(5):
            await put(store, "a", content(number, size))
        await freed(store)
        assert shares(home, store) == 3
        assert store.metastore.garbage_count() == 0
        assert await get(store, "a") == content(4, size)
    async with home.open() as store:
        assert shares(home, store) == 3
        assert await get(store, "a") == content(4, size)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_after_a_delete_no_share_is_left(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, size))
        await delete(store, "a")
        await freed(store)
        assert shares(home, store) == 0
        assert store.metastore.garbage_count() == 0
    async with home.open() as store:
        assert shares(home, store) == 0


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_write_that_was_refused_at_its_end_leaves_no_share(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, size))
        with pytest.raises(Incomplete):
            await put(store, "a", content(2, size), WriteOptions(expected_size=size + 1))
        await freed(store)
        assert shares(home, store) == 3
        assert store.metastore.intents() == []


async def test_what_a_write_left_on_a_full_disk_is_freed_when_that_has_room(home: Home, autojump_clock: trio.testing.MockClock) -> None:
    """Nor does a drain wait for it for ever."""
    async with home.open() as store:
        await put(store, "a", content(1, 100))

        def full(transaction: Transaction) -> None:
            if (transaction.rows or transaction.garbage) and not transaction.intents:  # of a scrub that begins beside it too
                raise CommitRefused("the disk is full", no_space=True)

        home.engines.before_commit = full
        with pytest.raises(NoSpace):
            await put(store, "large", content(1, 700_000))
        await freed(store)
        assert home.share_files()
        home.heal_commits()
        await store.membership.add(f"{home.path}/spare", None)
        assert (await store.membership.remove("1", Nobody())).moved == 1
        assert home.share_files() == []


async def test_what_was_not_freed_in_one_life_is_freed_in_the_next(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        home.files.fail("unlink", lambda path: True, errno.EIO, times=None)
        await put(store, "a", content(2, 700_000))
        await freed(store)
        assert store.metastore.garbage_count() == 3
        assert len(home.share_files()) == 6
    home.files.heal()
    async with home.open() as store:
        await freed(store)
        assert store.metastore.garbage_count() == 0
        assert len(home.share_files()) == 3
        assert await get(store, "a") == content(2, 700_000)


async def test_shares_of_a_shard_that_is_away_wait_for_it(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        await put(store, "b", content(2, 700_000))
        home.take_away(1)
        await delete(store, "a")
        await freed(store)
        assert [garbage.shard for garbage in store.metastore.garbage(1, 10)] == [1]
        assert store.metastore.garbage_count() == 1
        await home.return_to(store, 1)
        await freed(store)
        assert store.metastore.garbage_count() == 0
        assert len(home.share_files()) == 3


async def test_a_row_goes_only_when_the_directory_was_synced(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        home.files.fail("fsync", lambda path: "/shares/" in path, errno.EIO, times=None)
        await delete(store, "a")
        await freed(store)
        assert home.share_files() == []
        assert store.metastore.garbage_count() == 3
        home.files.heal()
        await freed(store)
        assert store.metastore.garbage_count() == 3  # in this life no sync of it is believed
    async with home.open() as store:
        await freed(store)
        assert store.metastore.garbage_count() == 0


async def test_more_garbage_than_one_batch_is_freed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.store.freeing.BATCH", 3)
    async with home.open() as store:
        for number in range(10):
            await put(store, str(number), content(number, 1_000))
        for number in range(10):
            await delete(store, str(number))
        await freed(store)
        assert store.metastore.garbage_count() == 0
        assert small_shares(store) == 0


async def test_what_is_read_keeps_nothing_behind_it_waiting(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.store.freeing.BATCH", 3)
    async with home.open() as store:
        versions = sorted([(await put(store, str(number), content(number, 1_000))).version for number in range(10)])
        with ExitStack() as reading:
            for version in versions[:7]:
                reading.enter_context(store.freeing.lease(version))
            for number in range(10):
                await delete(store, str(number))
            await freed(store)
            assert {row.share.version for row in store.metastore.garbage(0)} == {*versions[:7]}
            assert small_shares(store) == 7 * 3
        await freed_by_itself(store)
        assert small_shares(store) == 0


async def test_what_is_freed_while_others_free_too_is_all_there_is(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls last does not end where the one before had come to."""
    monkeypatch.setattr("zstor_local.store.freeing.BATCH", 3)
    async with home.open() as store:
        monkeypatch.setattr(store.freeing, "wake", lambda: None)  # the test frees
        versions = {key: (await put(store, key, content(1, 1_000))).version for key in map(str, range(10))}
        later = sorted(versions, key=lambda key: versions[key])
        for key in later[7:]:
            await delete(store, key)
        await store.freeing.free_some()
        for key in later[:7]:
            await delete(store, key)
        await freed(store)
        assert store.metastore.garbage_count() == 0


async def test_what_has_to_stay_keeps_nothing_behind_it_waiting(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the shares do that were made on a shard that is away now. Not many are looked at in one go: each is read for that."""
    monkeypatch.setattr("zstor_local.store.freeing.BATCH", 3)
    monkeypatch.setattr("zstor_local.store.freeing.AGAIN_SECONDS", 0.0)
    looks: list[int] = []
    free_some = Freeing.free_some

    async def stay(row: Garbage) -> bool:
        looks[-1] += 1
        return False

    async def watched(self: Freeing) -> int:
        looks.append(0)
        return await free_some(self)

    monkeypatch.setattr(Freeing, "free_some", watched)
    async with home.open() as store:
        monkeypatch.setattr(store.shares_health, "is_needless", stay)
        objects = sorted([await put(store, str(number), content(number, 1_000)) for number in range(10)], key=lambda each: each.version)
        staying = [Garbage(0, ShareId(each.version, each.record.placement.index(0)), small=True) for each in objects[:7]]
        await store.committer.commit(STORE_WIDE, "", lambda _: Decision(garbage=staying))
        for each in objects[7:]:
            await delete(store, each.record.key)
        with trio.fail_after(SAFETY_NET_SECONDS):
            while store.metastore.garbage_count() > len(staying):
                await store.committer.news().wait()
        assert store.metastore.garbage(0) == staying
        assert max(looks) <= 3


async def test_what_has_to_stay_is_not_freed_with_what_lies_before_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stay(row: Garbage) -> bool:
        return False

    async with home.open() as store:
        monkeypatch.setattr(store.freeing, "wake", lambda: None)  # the test frees
        monkeypatch.setattr(store.shares_health, "is_needless", stay)
        gone, kept = sorted([await put(store, key, content(1, 1_000)) for key in "ab"], key=lambda each: each.version)
        needed = Garbage(0, ShareId(kept.version, kept.record.placement.index(0)), small=True)
        await store.committer.commit(STORE_WIDE, "", lambda _: Decision(garbage=[needed]))
        await delete(store, gone.record.key)
        await freed(store)
        assert store.metastore.garbage(0) == [needed]
        assert small_shares(store) == 3


async def test_a_share_stays_as_long_as_nobody_can_look_at_the_one_that_was_made_elsewhere(home: Home) -> None:
    """The record of its namespace does not open, so nor does the object: the share that is to go may be the last."""
    async with home.open() as store:
        stored = await put(store, "a", content(1, 1_000))
        spoil_row(store, STORE_WIDE, row_name("default"))
        store.namespaces._known.clear()  # as at a start
        made_elsewhere = Garbage(0, ShareId(stored.version, stored.record.placement.index(1)), small=True)
        assert not await store.shares_health.is_needless(made_elsewhere)


async def test_who_begins_to_read_what_is_about_to_be_freed_keeps_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    free_batch, locked = Freeing._free_batch, list[bool]()
    async with home.open() as store:
        monkeypatch.setattr(store.freeing, "wake", lambda: None)  # the test frees
        stored = await put(store, "a", content(1, 700_000))
        await delete(store, "a")

        async def read_first(self: Freeing, needless: Set[Garbage]) -> int:
            locked.append(self.lock.locked())  # so a repair's lease holds for what is being freed, or comes after it
            with self.lease(stored.version):
                assert {row.share.version for row in needless} == {stored.version}
                return await free_batch(self, needless)

        monkeypatch.setattr(Freeing, "_free_batch", read_first)
        assert await store.freeing.free_some() == 0
        assert await store.objects.read(stored) == content(1, 700_000)
        assert locked == [True]


async def test_what_one_looks_at_nobody_else_frees_meanwhile(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at, go_on = list[Garbage](), trio.Event()

    async def needless(row: Garbage) -> bool:
        looked_at.append(row)
        await go_on.wait()
        return False

    async def named(rows: Sequence[Garbage]) -> set[Garbage]:
        return {*rows}

    async with home.open() as store:
        monkeypatch.setattr(store.freeing, "wake", lambda: None)  # the test frees
        monkeypatch.setattr(store.shares_health, "is_needless", needless)
        monkeypatch.setattr(store.freeing, "_named", named)
        stored = await put(store, "a", content(1, 1_000))
        row = Garbage(0, ShareId(stored.version, stored.record.placement.index(0)), small=True)
        await store.committer.commit(STORE_WIDE, "", lambda _: Decision(garbage=[row]))
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(store.freeing.free_some)
            await trio.testing.wait_all_tasks_blocked()
            assert looked_at == [row]
            go_on.set()


async def test_a_shard_that_refused_is_asked_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.store.freeing.AGAIN_SECONDS", 0.0)
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        refused, *_ = map(str, home.share_files())
        home.files.fail("unlink", lambda path: path == refused, errno.EIO, times=2)  # also when the others are gone
        await delete(store, "a")
        await freed_by_itself(store)
        assert home.share_files() == []


async def test_rows_that_could_not_be_struck_out_are_freed_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        monkeypatch.setattr(store.freeing, "wake", lambda: None)  # the test frees
        await put(store, "a", content(1, 700_000))
        await delete(store, "a")
        with monkeypatch.context() as patch:
            patch.setattr(store.committer, "commit", _refused)
            assert await store.freeing.free_some() == 0
        assert store.metastore.garbage_count() == 3
        await freed(store)
        assert store.metastore.garbage_count() == 0


async def _refused(*_: object) -> None:
    raise Unavailable("not now")


async def test_damaged_bookkeeping_stops_the_freeing_and_nothing_else(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 1_000))
        home.files.fail("unlink", lambda path: True, errno.EIO, times=None)
        garbage = [Garbage(0, ShareId(store.objects.find(name("a")).version, 9), small=False)]
        await store.committer.commit(STORE_WIDE, "", lambda _: Decision(garbage=garbage))
        store.metastore._writer.execute("update garbage set share='x'")  # type: ignore[attr-defined]
        assert await store.freeing.free_some() == 0
        await put(store, "a", content(2, 1_000))
        assert await get(store, "a") == content(2, 1_000)


# --- While somebody reads ---


class SlowPipe:
    """A pipe whose reader takes nothing until it is told to take everything."""

    def __init__(self, store: Store) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        os.set_blocking(self.writing, False)
        self.begun = trio.Event()
        self.sink = PipeSink(store.runtime, self.writing, self._send)

    def _send(self, fd: int, buffers: Sequence[Buffer]) -> int:
        self.begun.set()
        return RealFiles().writev(fd, buffers)

    def end(self) -> None:
        os.close(self.writing)

    async def take_everything(self) -> bytes:
        taken = b""
        while True:
            await trio.lowlevel.wait_readable(self.reading)
            part = os.read(self.reading, 65_536)
            if not part:
                os.close(self.reading)
                return taken
            taken += part


async def test_a_read_wakes_nothing_where_nothing_waited_for_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 6 * CHUNK))
        await put(store, "b", content(2, 6 * CHUNK))
        monkeypatch.setattr(store.freeing, "wake", pytest.fail)
        assert await get(store, "a") == content(1, 6 * CHUNK)


@asynccontextmanager
async def reading_slowly(store: Store, stored: Stored) -> AsyncIterator[SlowPipe]:
    """Somebody who has begun to read, and has taken nothing yet."""
    pipe = SlowPipe(store)

    async def read() -> None:
        await store.objects.read_to_stream(stored, pipe.sink, whole(stored.record), Nobody())
        pipe.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await pipe.begun.wait()
        yield pipe


@pytest.mark.parametrize("change", ["overwrite", "delete"])
async def test_a_reader_keeps_the_version_it_began_with(home: Home, change: str) -> None:
    old = content(1, 6 * CHUNK)
    async with home.open() as store:
        await put(store, "a", old)
        stored = store.objects.find(name("a"))
        async with reading_slowly(store, stored) as pipe:
            assert store.freeing.leased(stored.version)
            if change == "overwrite":
                await put(store, "a", b"new")
            else:
                await delete(store, "a")
            await freed(store)
            assert store.metastore.garbage_count() == 3
            assert len(home.share_files()) == 3
            assert await pipe.take_everything() == old
        assert not store.freeing.leased(stored.version)
        await freed_by_itself(store)
        assert home.share_files() == []


async def test_two_readers_both_keep_the_version(home: Home) -> None:
    old = content(1, 6 * CHUNK)
    async with home.open() as store:
        await put(store, "a", old)
        stored = store.objects.find(name("a"))
        async with reading_slowly(store, stored) as slow:
            assert await store.objects.read(stored) == old  # a second one, which ends first
            await delete(store, "a")
            await freed(store)
            assert len(home.share_files()) == 3
            assert await slow.take_everything() == old


async def test_a_reader_that_is_cancelled_lets_go(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 6 * CHUNK))
        stored = store.objects.find(name("a"))
        pipe = SlowPipe(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.objects.read_to_stream, stored, pipe.sink, whole(stored.record), Nobody())
            await pipe.begun.wait()
            nursery.cancel_scope.cancel()
        pipe.end()
        os.close(pipe.reading)
        assert not store.freeing.leased(stored.version)
        await delete(store, "a")
        await freed(store)
        assert home.share_files() == []
