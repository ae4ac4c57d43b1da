"""The world as a whole: one seed, one history."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import pytest
import trio

from tests.simulation.outcomes import ALL, NOTHING, outcomes
from tests.simulation.points import PowerLoss
from tests.simulation.world import START, Mount, World, run, run_until_power_loss
from zstor_local.runtime import Runtime, sync_directory, write_all


def save(runtime: Runtime, name: str, data: bytes) -> None:
    files = runtime.files
    fd = files.open(f"/d/{name}.tmp", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    try:
        write_all(files, fd, [data], 0)
        files.fsync(fd)
    finally:
        files.close(fd)
    files.rename(f"/d/{name}.tmp", f"/d/{name}")
    sync_directory(files, "/d")


async def busy(runtime: Runtime) -> None:
    """Several tasks that meet on one disk, with deadlines and random bytes."""

    async def writer(number: int) -> None:
        for turn in range(5):
            await trio.sleep(runtime.randomness.bytes(1)[0] / 100)
            await runtime.threads.run(save, runtime, f"{number}-{turn}", runtime.randomness.bytes(20))
            await runtime.threads.run_commit(save, runtime, "last", f"{number} {runtime.clock.now()}".encode())

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(writer, number)


def history(seed: int) -> tuple[str, str]:
    world = World(seed, [Mount("/d")])
    run(world, busy, world.runtime)
    return world.files.history(), world.files.digest()


def test_the_same_seed_gives_the_same_history() -> None:
    assert history(1) == history(1)


def test_other_seeds_give_other_histories() -> None:
    assert len({history(seed) for seed in range(10)}) == 10


def test_the_scheduler_alone_follows_the_seed() -> None:
    """No randomness of ours in it: only trio decides who goes first."""

    def order(seed: int) -> str:
        seen: list[int] = []

        async def race() -> None:
            async def runner(number: int) -> None:
                for _ in range(5):
                    await trio.lowlevel.checkpoint()
                    seen.append(number)

            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(runner, number)

        run(World(seed), race)
        return repr(seen)

    assert order(1) == order(1)
    assert len({order(seed) for seed in range(10)}) > 1


def test_the_scheduler_of_other_tests_is_left_alone() -> None:
    import trio._core._run as core

    before = (core._ALLOW_DETERMINISTIC_SCHEDULING, core._r.getstate())
    history(3)
    assert (core._ALLOW_DETERMINISTIC_SCHEDULING, core._r.getstate()) == before


def test_waiting_costs_no_time() -> None:
    begin = time.monotonic()
    run(World(), trio.sleep, 86_400)
    assert time.monotonic() - begin < 10


def test_power_loss_comes_out_of_its_groups_alone() -> None:
    world = World(0, [Mount("/d")])
    world.files.crash_at(20)
    with pytest.raises(PowerLoss):
        run(world, busy, world.runtime)
    assert run_until_power_loss(world, busy, world.runtime)
    after = world.crash(NOTHING)
    assert not run_until_power_loss(after, busy, after.runtime)


def test_other_errors_come_out_as_they_are() -> None:
    async def fails() -> None:
        async with trio.open_nursery():
            raise ValueError("no")

    with pytest.raises(ExceptionGroup) as caught:
        run(World(), fails)
    assert caught.group_contains(ValueError)


def test_every_crash_of_a_careful_program_leaves_old_or_new() -> None:
    """The pattern of all sweeps, and its proof that it has teeth: without the fsync it finds lost data."""
    base = World(0, [Mount("/d")])
    base.files.place("/d/a", b"old" * 500)

    def sweep(skip: str | None) -> tuple[int, set[bytes]]:
        number, lost, seen = 0, True, set()
        while lost:
            number += 1
            trial = base.copy()
            if skip:
                trial.files.skip(skip)
            trial.files.crash_at(number, torn=True)
            lost = run_until_power_loss(trial, trial.threads.run, save, trial.runtime, "a", b"new" * 500)
            for outcome in outcomes(trial.files.unpinned()):
                seen.add((trial.crash(outcome).files.contents("/d/a"), lost))
        return number, {content for content, _ in seen} if skip else {content for content, before in seen if before}

    assert sweep(None) == (6, {b"old" * 500, b"new" * 500})
    assert b"" in sweep(f"{__name__}.save:fsync")[1]


def test_one_watched_run_shows_what_a_power_loss_at_each_point_leaves() -> None:
    base = World(0, [Mount("/d")])
    base.files.place("/d/a", b"old" * 500)
    watched = base.copy()
    moments: list[tuple[int, bool, World]] = []
    watched.files.watch(lambda files, torn: moments.append((watched.files.points, torn, watched.moment(files))))
    run(watched, watched.threads.run, save, watched.runtime, "a", b"new" * 500)
    assert [(number, torn) for number, torn, _ in moments] == [(1, False), (2, False), (2, True), (3, False), (4, False), (5, False)]
    for number, torn, moment in moments:
        trial = base.copy()
        trial.files.crash_at(number, torn=torn)
        assert run_until_power_loss(trial, trial.threads.run, save, trial.runtime, "a", b"new" * 500)
        assert moment.files.unpinned() == trial.files.unpinned()
        assert moment.copy().files.digest() == trial.copy().files.digest()
        for outcome in outcomes(trial.files.unpinned()):
            assert moment.crash(outcome).files.digest() == trial.crash(outcome).files.digest()


def test_the_clock_goes_by_reading_and_by_hand() -> None:
    clock = World().clock
    assert (clock.now(), clock.now()) == (START + 1_000, START + 2_000)
    clock.advance(-10_000_000)
    assert clock.now() == START + 3_000 - 10_000_000
    assert clock.nanoseconds() == clock.time * 1_000


def test_randomness_follows_from_the_seed_and_never_repeats() -> None:
    world = World(5)
    first = world.randomness.bytes(32)
    assert first == World(5).randomness.bytes(32) != World(6).randomness.bytes(32)
    assert (len(first), len(world.randomness.bytes(1_000))) == (32, 1_000)
    after = world.crash(NOTHING)
    assert after.randomness.bytes(32) not in (first, World(5).randomness.bytes(32))


def test_threads_end_their_work_though_cancelled() -> None:
    world = World()
    done: list[int] = []

    async def cancelled() -> None:
        assert world.runtime.threads.workers == 2
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.runtime.threads.run, done.append, 1)
                await trio.lowlevel.checkpoint()
                nursery.start_soon(world.runtime.readiness.readable, 0)
                nursery.start_soon(world.runtime.readiness.writable, 0)
                scope.cancel()
        with trio.CancelScope() as scope:
            scope.cancel()
            await world.runtime.threads.run(done.append, 2)

    run(world, cancelled)
    assert done == [1]


@dataclass
class Committed:
    """The plainest survivor: a number."""

    value: int

    def copy(self) -> Committed:
        return Committed(self.value)


def commit(world: World, value: int) -> None:
    committed = world.survivors["metastore"]
    assert isinstance(committed, Committed)
    world.point("metastore:commit")
    committed.value = value


def test_survivors_are_carried_along() -> None:
    world = World()
    world.survivors["metastore"] = Committed(1)
    copied = world.copy()
    commit(copied, 5)
    world.files.crash_at(1)
    with pytest.raises(PowerLoss):
        commit(world, 2)
    after = world.crash(ALL)
    assert [each.survivors["metastore"] for each in (copied, world, after)] == [Committed(5), Committed(1), Committed(1)]


def test_a_world_is_copied_fast_enough_to_try_thousands() -> None:
    """200 small files and six preallocated logs: the budget is 5 ms, the bound leaves room for a busy machine."""
    world = World(0, [Mount("/d")])
    files = world.files
    for number in range(200):
        files.place(f"/d/{number}", bytes(5_000))
    for number in range(6):
        fd = files.open(f"/d/log-{number}", os.O_CREAT | os.O_RDWR)
        files.allocate(fd, 0, 8 << 20)
        files.fsync(fd)
        for entry in range(200):
            files.pwritev(fd, [b"entry" * 100], entry * 512)
    begin = time.process_time()
    for _ in range(10):
        world.copy()
    assert (time.process_time() - begin) / 10 < 0.02
