"""`job.*`: long work that goes on without its caller. `_meta.detach: true` makes one of any long call."""

from __future__ import annotations

from typing import Annotated, NotRequired, TypedDict

import trio

from zstor_local import limits
from zstor_local.errors import Busy, NotFound, ShuttingDown
from zstor_local.rpc.call import Call
from zstor_local.rpc.dispatch import error_object
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.schema import Range
from zstor_local.store.jobs import Job, JobState
from zstor_local.store.store import Store

JobId = Annotated[str, "the id that the detached call answered"]


class JobError(TypedDict):
    """The error that the call would have answered."""

    code: int
    message: str
    data: object


class JobView(TypedDict):
    """A job. `progress` and `total` count what the method counts, `total` null if nobody knows; epochs in microseconds."""

    job: str
    method: str
    state: JobState
    progress: float
    total: float | None
    message: str
    started_epoch: int
    ended_epoch: int | None
    result: NotRequired[object]
    error: NotRequired[JobError]


class JobList(TypedDict):
    """Jobs without their results, the newest first."""

    items: list[JobView]


def register(registry: Registry, store: Store) -> None:
    """Add the methods."""
    jobs = store.jobs

    @registry.method("job.list")
    async def list_(call: Call, /) -> JobList:
        """List the jobs that run and the last that ended. A restart of the daemon forgets them."""
        return {"items": [_view(job, result=False) for job in jobs.list()]}

    @registry.method("job.status", errors=[NotFound])
    async def status(call: Call, /, job: JobId) -> JobView:
        """Tell how far a job is, or what it came to."""
        return _view(jobs.get(job))

    @registry.method("job.wait", errors=[NotFound, Busy, ShuttingDown])
    async def wait(
        call: Call,
        /,
        job: JobId,
        timeout_seconds: Annotated[float, "answer then, even if it still runs", Range(0, limits.LONG_POLL_SECONDS)] = 60,
    ) -> JobView:
        """Wait until a job has ended; with a progressToken its progress is passed on. A job that still runs is no error."""
        found = jobs.get(job)
        until = trio.current_time() + timeout_seconds
        while True:
            news = found.news()  # before looking, so that nothing is missed
            if not found.running or trio.current_time() >= until:
                return _view(found)
            call.progress(found.done, found.total, found.message or None)
            with call.long_poll(), trio.move_on_at(until):
                await news.wait()

    @registry.method("job.cancel", errors=[NotFound])
    async def cancel(call: Call, /, job: JobId) -> JobView:
        """Ask a job to end. What it has begun to commit is committed: `job.wait` tells what came of it."""
        found = jobs.get(job)
        found.cancel()
        return _view(found)


def _view(job: Job, *, result: bool = True) -> JobView:
    view: JobView = {
        "job": job.id,
        "method": job.method,
        "state": job.state,
        "progress": job.done,
        "total": job.total,
        "message": job.message,
        "started_epoch": job.started_epoch,
        "ended_epoch": job.ended_epoch,
    }
    if job.error is not None:
        error = error_object(job.error)
        view["error"] = {"code": job.error.code, "message": job.error.message, "data": error["data"]}
    elif result and job.state == "done":
        view["result"] = job.result
    return view
