"""The helpers of the seam, and the parts of the real world that differ from machine to machine."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.simulation.points import under
from tests.simulation.world import Mount, World
from zstor_local.runtime import CLIENT, read_exactly, read_full, sync_directory, write_all
from zstor_local.system import RealFiles, RealRandomness, real_runtime
from zstor_local.threads import STUCK_OF_ONE, STUCK_SECONDS, RealThreads, lending_place

NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR


@pytest.fixture
def world() -> World:
    return World(mounts=[Mount("/d")])


@pytest.mark.parametrize("at_most", [1, 2, 3, 7, 100])
def test_write_all_goes_on_after_short_writes(world: World, at_most: int) -> None:
    files = world.files
    fd = files.open("/d/a", NEW)
    files.shorten("pwritev", under("/d"), at_most)
    assert write_all(files, fd, [b"abc", b"", bytearray(b"defg"), memoryview(b"hij")], 5) == 10
    assert files.contents("/d/a") == bytes(5) + b"abcdefghij"


def test_write_all_takes_buffers_of_wider_items(world: World) -> None:
    fd = world.files.open("/d/a", NEW)
    assert write_all(world.files, fd, [memoryview(b"12345678").cast("I")], 0) == 8
    assert world.files.contents("/d/a") == b"12345678"


def test_write_all_of_nothing_is_nothing(world: World) -> None:
    fd = world.files.open("/d/a", NEW)
    assert write_all(world.files, fd, [], 3) == write_all(world.files, fd, [b""], 3) == 0
    assert world.files.contents("/d/a") == b""


def test_write_all_gives_up_when_nothing_is_taken(world: World) -> None:
    fd = world.files.open("/d/a", NEW)
    world.files.shorten("pwritev", under("/d"), 0)
    with pytest.raises(OSError) as caught:
        write_all(world.files, fd, [b"1"], 0)
    assert caught.value.errno == errno.EIO


def test_write_all_takes_more_buffers_than_the_kernel_does(tmp_path: Path) -> None:
    files = RealFiles()
    fd = files.open(f"{tmp_path}/a", NEW)
    assert write_all(files, fd, [b"%04d" % number for number in range(3_000)], 0) == 12_000
    assert (tmp_path / "a").read_bytes() == b"".join(b"%04d" % number for number in range(3_000))
    assert files.writev(fd, [b"x"] * 3_000) == 1_024
    files.close(fd)


@pytest.mark.parametrize("at_most", [1, 3, 100])
def test_read_full_goes_on_after_short_reads(world: World, at_most: int) -> None:
    files = world.files
    files.place("/d/a", b"0123456789")
    fd = files.open("/d/a", os.O_RDONLY)
    files.shorten("preadv", under("/d"), at_most)
    files.shorten("pread", under("/d"), at_most)
    buffer = bytearray(6)
    assert read_full(files, fd, buffer, 2) == 6
    assert buffer == b"234567"
    assert read_full(files, fd, memoryview(buffer)[:4], 8) == 2
    assert buffer == b"894567"
    assert read_exactly(files, fd, 100, 7) == b"789"
    assert read_exactly(files, fd, 3, 10) == b""


def test_sync_directory_closes_what_it_opened(world: World, tmp_path: Path) -> None:
    files = world.files
    files.fail("fsync_directory", under("/d"), errno.EIO)
    with pytest.raises(OSError):
        sync_directory(files, "/d")
    sync_directory(files, "/d")
    assert files.open_descriptors() == []
    before = os.listdir("/proc/self/fd")
    sync_directory(RealFiles(), str(tmp_path))
    with pytest.raises(NotADirectoryError):
        sync_directory(RealFiles(), __file__)
    assert os.listdir("/proc/self/fd") == before


# The real world


def test_syncfs_says_what_went_wrong(tmp_path: Path) -> None:
    files = RealFiles()
    fd = files.open(str(tmp_path), os.O_RDONLY | os.O_DIRECTORY)
    files.syncfs(fd)
    files.close(fd)
    with pytest.raises(OSError) as caught:
        files.syncfs(fd)
    assert caught.value.errno == errno.EBADF


def test_a_read_that_may_not_wait_says_so_where_the_file_system_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems refuse RWF_NOWAIT: that means "take a thread", not an error of the file."""

    def refuse(fd: int, buffers: Sequence[bytearray], offset: int, flags: int) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "preadv", refuse)
    with pytest.raises(BlockingIOError):
        RealFiles().preadv_nowait(0, [bytearray(1)], 0)


def test_other_errors_of_a_read_that_may_not_wait_are_errors() -> None:
    files = RealFiles()
    with tempfile.TemporaryFile() as file:
        number = file.fileno()
    with pytest.raises(OSError) as caught:
        files.preadv_nowait(number, [bytearray(1)], 0)
    assert caught.value.errno == errno.EBADF


def test_a_pipe_is_reopened_with_flags_of_our_own() -> None:
    files = RealFiles()
    reading, writing = os.pipe()
    ours = files.reopen(reading, os.O_RDONLY | os.O_NONBLOCK)
    assert files.open_flags(ours) & os.O_NONBLOCK
    assert not files.open_flags(reading) & os.O_NONBLOCK
    assert fcntl.fcntl(ours, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.write(writing, b"123")
    buffer = bytearray(5)
    assert files.readv(ours, [buffer]) == 3
    with pytest.raises(BlockingIOError):
        files.readv(ours, [buffer])
    assert not files.status(ours).is_regular
    for fd in (ours, reading, writing):
        files.close(fd)


def test_descriptors_are_not_passed_on(tmp_path: Path) -> None:
    files = RealFiles()
    fd = files.open(f"{tmp_path}/a", NEW)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    files.close(fd)


def test_the_kind_of_a_file_system_is_its_name_or_its_number() -> None:
    files = RealFiles()
    fd = files.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    assert files.file_system(fd).kind == "proc"
    files.close(fd)


def test_real_randomness_does_not_repeat() -> None:
    assert len({RealRandomness().bytes(16) for _ in range(100)}) == 100


async def test_what_hangs_keeps_its_place_from_others_for_a_while_only(mock_clock: trio.testing.MockClock) -> None:
    threads, release = RealThreads(workers=1), threading.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(threads.run, lambda: release.wait())
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(threads.run, release.set)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            assert not release.is_set()
            mock_clock.jump(STUCK_SECONDS)
    at_once: list[int] = []
    running = 0

    def count() -> None:
        nonlocal running
        running += 1
        at_once.append(running)
        os.sched_yield()
        running -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(threads.run, count)
    assert at_once == [1] * 20


async def test_whose_files_hang_keeps_others_waiting_once(mock_clock: trio.testing.MockClock) -> None:
    threads, release, done = RealThreads(workers=2), threading.Event(), trio.Event()

    async def hang() -> None:
        CLIENT.set("hanging")
        await threads.run(release.wait)

    async def work(client: str) -> None:
        CLIENT.set(client)
        for _ in range(20):
            await threads.run(lambda: None)
        if client == "another":
            done.set()

    async with trio.open_nursery() as nursery:
        for _ in range(2 * STUCK_OF_ONE):
            nursery.start_soon(hang)
        nursery.start_soon(work, "hanging")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(work, "another")
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        mock_clock.jump(STUCK_SECONDS)
        try:
            while not done.is_set():
                await trio.testing.wait_all_tasks_blocked()
            for _ in range(2 * STUCK_OF_ONE):
                mock_clock.jump(STUCK_SECONDS)
                await trio.testing.wait_all_tasks_blocked()
            assert threads._places._taken["hanging"] == STUCK_OF_ONE
        finally:
            release.set()


async def test_who_lent_a_place_gets_one_back_where_all_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.threads.STUCK_SECONDS", 0.01)
    threads, taken, hanging, over = RealThreads(workers=1), threading.Event(), threading.Event(), trio.Event()

    def lend() -> None:
        with lending_place():
            taken.wait()

    def hang() -> None:
        taken.set()
        hanging.wait()

    async def lender() -> None:
        await threads.run(lend)
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lender)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(threads.run, hang)
        try:
            with trio.fail_after(20):
                await over.wait()
        finally:
            hanging.set()


async def test_who_lent_a_place_gets_one_back_before_those_that_wait_for_it_end(mock_clock: trio.testing.MockClock) -> None:
    """A client's threads pass a section in order, say: the first of them wrote to a slow disk."""
    threads, taken, hanging, over = RealThreads(workers=1), threading.Event(), threading.Event(), trio.Event()

    def lend() -> None:
        with lending_place():
            taken.wait()

    def hang() -> None:
        taken.set()
        hanging.wait()

    async def lender() -> None:
        await threads.run(lend)
        over.set()

    async def of(client: str, work: Callable[[], Awaitable[object]]) -> None:
        CLIENT.set(client)
        await work()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(of, "one", lender)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(of, "one", partial(threads.run, hang))
        while not threads._places.wanted:
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(of, "another", partial(threads.run, lambda: None))
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(STUCK_SECONDS)
        try:
            while not over.is_set():
                await trio.testing.wait_all_tasks_blocked()
        finally:
            hanging.set()


async def test_real_threads_run_elsewhere_and_no_more_than_there_are_workers() -> None:
    threads = RealThreads(workers=3)
    assert threads.workers == 3
    running, most = 0, 0
    gate = threading.Lock()
    meet = threading.Barrier(3)

    def work() -> int:
        nonlocal running, most
        with gate:
            running += 1
            most = max(most, running)
        meet.wait(10)
        with gate:
            running -= 1
        return threading.get_ident()

    idents: list[int] = []

    async def one() -> None:
        idents.append(await threads.run(work))

    async with trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(one)
    assert most == 3
    assert threading.get_ident() not in idents


async def test_a_commit_does_not_queue_behind_other_work() -> None:
    threads = RealThreads(workers=1)
    release = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, release.wait, 10)
        await trio.testing.wait_all_tasks_blocked()
        assert await threads.run_commit(threading.get_ident) != threading.get_ident()
        release.set()


async def test_the_real_runtime_waits_for_pipes_and_tells_the_time() -> None:
    runtime = real_runtime()
    assert runtime.threads.workers >= 2
    assert runtime.clock.now() > 1_700_000_000_000_000
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    await runtime.readiness.writable(writing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runtime.readiness.readable, reading)
        await trio.testing.wait_all_tasks_blocked()
        os.write(writing, b"1")
    assert os.read(reading, 5) == b"1"
    os.close(reading)
    os.close(writing)


async def test_work_on_the_logs_ends_is_done_one_at_a_time() -> None:
    """The committer, freeing and compaction append to the same logs."""
    threads = RealThreads()
    release, done = threading.Event(), []

    def first() -> None:
        release.wait(60)
        done.append("first")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run_commit, first)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(threads.run_commit, done.append, "another")
        for _ in range(100):  # turns in which other threads come and go, and one that did not wait would have been done
            await threads.run(lambda: None)
        assert done == []
        release.set()
    assert done == ["first", *["another"] * 3]


async def test_a_thread_that_the_system_does_not_give_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing has begun, so nothing need fail: a commit that did took all later ones with it, any other work its task."""
    threads, refused, done = RealThreads(), list[str](), list[str]()

    def no_thread(self: threading.Thread) -> None:
        refused.append(self.name)
        raise RuntimeError("can't start new thread")

    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as patched:
            patched.setattr(trio._core._thread_cache, "THREAD_CACHE", trio._core._thread_cache.ThreadCache())  # without idle ones
            patched.setattr(threading.Thread, "start", no_thread)
            for run in (threads.run, threads.run_commit, threads.run_commit):
                nursery.start_soon(run, done.append, run.__name__)
            await trio.sleep(1)
            assert len(refused) > 10
            assert done == []
        with trio.fail_after(60):
            await threads.run_commit(lambda: None)
    assert sorted(done) == ["run", "run_commit", "run_commit"]


async def test_an_error_of_the_work_is_the_works(autojump_clock: trio.testing.MockClock) -> None:
    def fail() -> None:
        begun.append(1)
        raise RuntimeError("can't start new thread")

    begun: list[int] = []
    for run in (RealThreads().run, RealThreads().run_commit):
        with pytest.raises(RuntimeError, match="thread"):
            await run(fail)
    assert begun == [1, 1]


def test_places_are_watched_in_each_run_of_trio() -> None:
    """One that ended while somebody had just waited in vain left nobody to look: in the next one all work might wait for good."""
    threads, clock = RealThreads(workers=1), trio.testing.MockClock()

    async def ended_while_somebody_looked() -> None:
        release = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(threads.run, release.wait, 20)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0):
                await threads.take_place(None)
            release.set()

    async def another_one() -> None:
        release = threading.Event()
        came: list[bool] = []

        async def hang() -> None:
            came.append(await threads.run(release.wait, 20))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(threads.run, release.set)
            await trio.testing.wait_all_tasks_blocked()
            clock.jump(STUCK_SECONDS)
        assert came == [True]

    trio.run(ended_while_somebody_looked)
    trio.run(another_one, clock=clock)
