"""Large writes that do not come to their end: nothing of them is left, and the old version stays."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.store.home import CHUNK, Home, content, freed, get, put, share_place
from zstor_local.errors import Busy, Cancelled, IoError, NotEnoughShards, PathRefused
from zstor_local.metastore.base import CommitRefused, Owed
from zstor_local.model.policy import Policy
from zstor_local.shards.base import ShardError
from zstor_local.shards.share_files import TEMPORARY
from zstor_local.store.caller import Nobody
from zstor_local.store.coding import LargeWrite, ScratchPool
from zstor_local.store.sources import FileSource
from zstor_local.store.store import Store
from zstor_local.store.stream_budget import STREAM_BUFFERS
from zstor_local.system import RealFiles
from zstor_local.threads import RealThreads

OLD = content(1, 700_000)


async def check_nothing_changed(home: Home, store: Store) -> None:
    """The old version is there and nothing else is."""
    await freed(store)
    assert store.metastore.intents() == []
    assert store.metastore.garbage_count() == 0
    assert len(home.share_files()) == 3
    assert await get(store, "a") == OLD
    assert not store.pool._large_writes


class EndlessStream:
    """A source that never ends; `reached` is set after a few chunks."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.read = 0
        self.reached = trio.Event()
        self._then = then

    async def read_into(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        self.read += len(buffer)
        buffer[:] = bytes(len(buffer))
        if self.read > 5 * CHUNK:
            self._then()
            self.reached.set()
        return len(buffer)


# --- Cancelled ---


async def test_a_stream_that_is_cancelled_midway_leaves_nothing(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", OLD)
        source = EndlessStream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, store, "a", source)
            await source.reached.wait()
            assert len(home.share_files()) == 6
            nursery.cancel_scope.cancel()
        await check_nothing_changed(home, store)


class LeavingCaller(Nobody):
    """A caller that goes away: when there is progress, or at the moment of the commit."""

    def __init__(self, scope: trio.CancelScope | None = None) -> None:
        self._scope = scope

    def progress(self, done: int, total: int | None) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def begin_commit(self) -> None:
        if self._scope is None:
            raise Cancelled("cancelled")


async def test_a_file_that_is_cancelled_midway_leaves_nothing(home: Home) -> None:
    given = home.path / "given"
    given.write_bytes(content(2, 40 * CHUNK))
    async with home.open() as store:
        await put(store, "a", OLD)
        with trio.CancelScope() as scope, given.open("rb") as file:
            await put(store, "a", FileSource(RealFiles(), file.fileno()), caller=LeavingCaller(scope))
        assert scope.cancelled_caught
        await check_nothing_changed(home, store)


@pytest.mark.parametrize("size", [1_000, 700_000])
async def test_a_caller_that_cancelled_before_the_commit_changes_nothing(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "a", OLD)
        with pytest.raises(Cancelled):
            await put(store, "a", content(2, size), caller=LeavingCaller())
        await check_nothing_changed(home, store)


# --- Sources that fail ---


class FailingStream(EndlessStream):
    """A source whose reading end fails after a few chunks."""

    def __init__(self) -> None:
        super().__init__(self._fail)

    def _fail(self) -> None:
        raise IoError("reading failed: EIO")


async def test_a_stream_that_fails_leaves_nothing_and_its_error_is_told(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", OLD)
        with pytest.raises(IoError, match="reading failed"):
            await put(store, "a", FailingStream())
        await check_nothing_changed(home, store)


class ChangingFiles(RealFiles):
    """Files during whose reading something happens to them, once."""

    def __init__(self, path: Path, happen: Callable[[Path], object]) -> None:
        self._path = path
        self._happen: Callable[[Path], object] | None = happen

    def preadv(self, fd: int, buffers: object, offset: int) -> int:
        if self._happen is not None:
            happen, self._happen = self._happen, None
            happen(self._path)
        return super().preadv(fd, buffers, offset)  # type: ignore[arg-type]


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def touch(path: Path) -> None:
    """Other bytes of the same length, later."""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("size", [10_000, 700_000, 20 * CHUNK])
@pytest.mark.parametrize("change", [shrink, empty, grow, touch], ids=lambda change: change.__name__)
async def test_a_file_that_changes_while_it_is_read_is_refused(home: Home, change: Callable[[Path], None], size: int) -> None:
    given = home.path / "given"
    given.write_bytes(content(2, size))
    async with home.open() as store:
        await put(store, "a", OLD)
        how = "shorter" if change in (shrink, empty) else "changed"
        with given.open("rb") as file, pytest.raises(PathRefused, match=how):
            await put(store, "a", FileSource(ChangingFiles(given, change), file.fileno()))
        await check_nothing_changed(home, store)


async def test_a_file_that_the_disk_does_not_give_is_an_io_error(home: Home) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "EIO")

    given = home.path / "given"
    given.write_bytes(content(2, 700_000))
    async with home.open() as store:
        await put(store, "a", OLD)
        with given.open("rb") as file, pytest.raises(IoError, match="EIO"):
            await put(store, "a", FileSource(ChangingFiles(given, fail), file.fileno()))
        await check_nothing_changed(home, store)


# --- Shards that fail ---


def is_unfinished(number: int) -> Callable[[str], bool]:
    return lambda path: f"/shards/{number}/{TEMPORARY}/" in path


@pytest.mark.parametrize("operation", ["pwritev", "fsync", "rename"])
async def test_a_shard_that_fails_midway_is_dropped_and_owed(home: Home, operation: str) -> None:
    home.policy = Policy(2, 4, chunk_size=CHUNK)
    value = content(2, 6 * CHUNK)
    async with home.open() as store:
        where = is_unfinished(1) if operation != "rename" else (lambda path: "/shards/1/shares/" in path)
        home.files.fail(operation, where, errno.EIO, times=None)
        stored = await put(store, "a", value)
        index = stored.record.placement.index(1)
        assert (stored.owed, stored.shares_owed) == (1, 1)
        debts = store.metastore.debts_of(stored.version)
        assert [(debt.shard, debt.kind, debt.index) for debt in debts] == [(1, Owed.SHARE, index)]
        assert len(home.share_files()) == 3
        home.files.heal()
        assert await get(store, "a") == value
        share_place(store, stored, (index + 1) % 4).path.unlink()
        assert await get(store, "a") == value


async def test_when_too_many_shards_fail_midway_nothing_is_left(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", OLD)
        for number in (0, 1):
            home.files.fail("fsync", is_unfinished(number), errno.EIO)
        with pytest.raises(NotEnoughShards) as caught:
            await put(store, "a", content(2, 6 * CHUNK))
        shards = caught.value.data["shards"]
        assert isinstance(shards, dict)
        assert set(shards) == {"0", "1"}
        await check_nothing_changed(home, store)


async def test_a_shard_that_is_emptied_midway_is_dropped(home: Home) -> None:
    home.policy = Policy(2, 4, chunk_size=CHUNK)

    async with home.open() as store:
        await put(store, "before", b"")
        source = EndingStream(20 * CHUNK, lambda: home.take_away(1))
        stored = await put(store, "a", source)
        assert stored.owed == 1
        assert await get(store, "a") == bytes(20 * CHUNK)


class EndingStream:
    """Zeros, with something that happens in the middle."""

    def __init__(self, size: int, then: Callable[[], None]) -> None:
        self._left = size
        self._middle = size // 2
        self._then: Callable[[], None] | None = then

    async def read_into(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        count = min(len(buffer), self._left)
        self._left -= count
        if self._left < self._middle and self._then is not None:
            then, self._then = self._then, None
            then()
        return count


# --- What a killed daemon left ---


async def test_a_large_write_that_was_killed_is_freed_by_the_next_start(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", OLD)
        source = EndlessStream()
        home.files.fail("unlink", lambda path: True, errno.EIO, times=None)  # so that the end of the test cleans nothing up
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, store, "a", source)
            await source.reached.wait()
            home.fail_commits(CommitRefused("the disk of the metastore is full", no_space=True))
            nursery.cancel_scope.cancel()
        assert len(store.metastore.intents()) == 1
    home.files.heal()
    home.heal_commits()
    assert len(home.share_files()) == 6
    async with home.open() as store:
        await check_nothing_changed(home, store)


# --- Memory ---


async def test_more_streams_than_there_is_memory_for_are_refused_at_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.store.stream_budget.STREAM_BUDGET_BYTES", 7 * CHUNK)
    async with home.open() as store:
        await put(store, "a", OLD)
        sources = [EndlessStream(), EndlessStream()]
        async with trio.open_nursery() as nursery:
            for source in sources:
                nursery.start_soon(put, store, "b", source)
                await source.reached.wait()
            with pytest.raises(Busy) as caught:
                await put(store, "c", EndingStream(3 * CHUNK, lambda: None))
            assert caught.value.retryable
            nursery.cancel_scope.cancel()
        await put(store, "c", EndingStream(3 * CHUNK, lambda: None))
        assert await get(store, "c") == bytes(3 * CHUNK)


async def test_a_stream_keeps_few_chunks_in_memory(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the coding is, no more is read than there are buffers."""
    go_on, all_taken = trio.Event(), trio.Event()
    waiting = 0
    original = RealThreads.run

    async def run(self: RealThreads, work: Callable[..., object], *args: object) -> object:
        nonlocal waiting
        if work.__name__ == "code_next":
            waiting += 1
            if waiting == STREAM_BUFFERS:
                all_taken.set()
            await go_on.wait()
        return await original(self, work, *args)

    monkeypatch.setattr(RealThreads, "run", run)
    async with home.open() as store:
        source = EndingStream(30 * CHUNK, lambda: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, store, "a", source)
            await all_taken.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert waiting == STREAM_BUFFERS
            assert 30 * CHUNK - source._left == STREAM_BUFFERS * CHUNK
            go_on.set()
        assert await get(store, "a") == bytes(30 * CHUNK)


async def test_shards_that_fail_while_others_are_told_of_are_no_fault_of_ours(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a disk with several shards fails, and each thread meets another one of them."""
    async with home.open() as store:
        namespace = await store.namespaces.find_or_create("default")
        write = LargeWrite(store.runtime, store.pool, ScratchPool(), store.writer._plan(namespace))
        write.begin()
        write._drop(0, ShardError("failed", "its disk failed"))

        def name(number: int) -> str:
            write._drop(1, ShardError("failed", "its disk failed"))  # as another thread does just then
            return str(number)

        monkeypatch.setattr(store.pool, "name", name)
        with pytest.raises(NotEnoughShards):
            write._check_quorum()
        write.abort()
        assert home.share_files() == []


async def test_a_disk_that_goes_away_midway_says_so_of_closing_too(home: Home) -> None:
    def unplug() -> None:
        for operation in ("pwritev", "close"):
            home.files.fail(operation, lambda path: "/shards/0/tmp/" in path, errno.ENOTCONN, times=None)

    async with home.open() as store:
        await put(store, "a", OLD)
        with pytest.raises(NotEnoughShards):
            await put(store, "a", EndlessStream(unplug))
        home.files.heal()
        await check_nothing_changed(home, store)
