"""Jobs: work that goes on by itself, its progress, its end, and what is kept of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.troubled_files import TroubledFiles, troubled_runtime
from zstor_local import limits
from zstor_local.errors import Busy, Cancelled, NotFound, ShuttingDown, Unreadable
from zstor_local.store.jobs import Job, Jobs


@asynccontextmanager
async def running() -> AsyncIterator[Jobs]:
    jobs = Jobs(troubled_runtime(TroubledFiles()))
    async with trio.open_nursery() as nursery:
        await nursery.start(jobs.run)
        yield jobs
        nursery.cancel_scope.cancel()


async def ended(job: Job) -> Job:
    while job.running:
        await job.news().wait()
    return job


async def test_a_job_tells_its_progress_and_its_result() -> None:
    told = trio.Event()
    goes_on = trio.Event()

    async def work(job: Job) -> object:
        job.progress(3, 10, "looking")
        told.set()
        await goes_on.wait()
        return {"found": 7}

    async with running() as jobs:
        job = jobs.start("some.method", work)
        await told.wait()
        assert (job.state, job.done, job.total, job.message) == ("running", 3, 10, "looking")
        goes_on.set()
        await ended(job)
        assert (job.state, job.result, job.error) == ("done", {"found": 7}, None)
        assert job.ended_epoch is not None
        assert jobs.get(job.id) is job


async def test_an_error_is_kept_with_its_type() -> None:
    async def work(job: Job) -> object:
        raise Unreadable("gone", shares=[])

    async with running() as jobs:
        job = await ended(jobs.start("some.method", work))
        assert job.state == "failed"
        assert isinstance(job.error, Unreadable)


async def test_a_fault_of_ours_ends_one_job_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def faulty(job: Job) -> object:
        raise KeyError("secret")

    async def sound(job: Job) -> object:
        await trio.lowlevel.checkpoint()
        return "well"

    async with running() as jobs:
        first, second = jobs.start("a", faulty), jobs.start("b", sound)
        assert (await ended(first)).state == "failed"
        assert first.error is not None
        assert (first.error.type, "secret" in first.error.message) == ("internal", False)
        assert (await ended(second)).result == "well"


async def test_a_cancelled_job_ends_but_not_in_a_commit() -> None:
    committing, committed = trio.Event(), trio.Event()
    steps: list[str] = []

    async def work(job: Job) -> object:
        job.begin_commit()
        with trio.CancelScope(shield=True):
            committing.set()
            await committed.wait()
            steps.append("committed")
        await trio.lowlevel.checkpoint()
        steps.append("went on")
        return None

    async with running() as jobs:
        job = jobs.start("a", work)
        await committing.wait()
        job.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert job.running
        committed.set()
        assert (await ended(job)).state == "cancelled"
        assert steps == ["committed"]


async def test_a_job_cancelled_before_its_commit_does_not_begin_it() -> None:
    waiting, goes_on = trio.Event(), trio.Event()

    async def work(job: Job) -> object:
        waiting.set()
        with trio.CancelScope(shield=True):
            await goes_on.wait()
        job.begin_commit()
        raise AssertionError("it was cancelled")

    async with running() as jobs:
        job = jobs.start("a", work)
        await waiting.wait()
        job.cancel()
        goes_on.set()
        assert (await ended(job)).state == "cancelled"
        assert isinstance(job.error, Cancelled)


async def test_jobs_that_ended_are_forgotten_one_day_and_running_ones_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOBS_KEPT", 3)
    never = trio.Event()

    async def forever(job: Job) -> object:
        await never.wait()
        return None

    async def short(job: Job) -> object:
        return None

    async with running() as jobs:
        runs = jobs.start("long", forever)
        short_ones = [await ended(jobs.start("short", short)) for _ in range(8)]
        assert [job.id for job in jobs.list()] == [*(job.id for job in short_ones[:-4:-1]), runs.id]
        with pytest.raises(NotFound):
            jobs.get(short_ones[0].id)


async def test_too_many_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOBS_RUNNING", 2)

    async def forever(job: Job) -> object:
        await trio.sleep_forever()

    async with running() as jobs:
        first = jobs.start("long", forever)
        jobs.start("long", forever)
        with pytest.raises(Busy):
            jobs.start("long", forever)
        first.cancel()
        await ended(first)
        jobs.start("long", forever)


async def test_the_end_of_the_daemon_cancels_what_runs() -> None:
    async def forever(job: Job) -> object:
        await trio.sleep_forever()

    async with running() as jobs:
        job = jobs.start("long", forever)
        await trio.testing.wait_all_tasks_blocked()
    assert job.state == "cancelled"
    with pytest.raises(ShuttingDown):
        jobs.start("long", forever)


async def test_of_large_results_only_the_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOB_RESULTS_BYTES", 100)

    async def work(job: Job) -> object:
        job.result_bytes = size
        return "x" * size

    kept = []
    async with running() as jobs:
        for size in (10, 60, 40, 20, 300, 5):  # noqa: B007 (work reads it)
            await ended(jobs.start("some.method", work))
            kept.append([job.result_bytes for job in jobs.list()])
    assert kept == [[10], [60, 10], [40, 60], [20, 40], [300], [5]]
