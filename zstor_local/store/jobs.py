"""Jobs: long work that goes on without a client. Each is told apart by a random id; what it came to is kept for whoever asks later.

Jobs live as long as this process: a stop cancels those that run. Work that has to survive a restart (a drain, a rotation) keeps its
own durable state and is started again, as a new job, by whoever owns that state.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

import trio

from zstor_local import limits
from zstor_local.errors import Busy, Cancelled, Internal, NotFound, ShuttingDown, ZstorError
from zstor_local.runtime import Runtime

JobState = Literal["running", "done", "failed", "cancelled"]
ID_BYTES: Final = 8

log = logging.getLogger("zstor.store")


class Job:
    """One piece of work. To that work it is a `Caller` that takes progress and never goes away, but may be cancelled between commits.

    `result` is plain JSON data of a done job, of about `result_bytes`; `error` of a failed one. Epochs in microseconds.
    """

    def __init__(self, identity: str, method: str, started_epoch: int) -> None:
        self.id: Final = identity
        self.method: Final = method
        self.started_epoch: Final = started_epoch
        self.ended_epoch: int | None = None
        self.state: JobState = "running"
        self.done: float = 0
        self.total: float | None = None
        self.message = ""
        self.result: object = None
        self.result_bytes = 0  # the work tells, where it may be large
        self.error: ZstorError | None = None
        self._scope = trio.CancelScope()
        self._cancel: Callable[[], object] = self._scope.cancel
        self._changed = trio.Event()

    # --- For the work ---

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """How far it is. Cheap: may be called for each small step."""
        self.done, self.total = done, total
        if message is not None:
            self.message = message
        self._tell()

    @property
    def has_reply_room(self) -> bool:
        """What a job that no call began has to tell is little."""
        return False

    def begin_commit(self) -> None:
        """One commit of the work's begins: a cancel that comes meanwhile waits for its end."""
        if trio.current_effective_deadline() == -float("inf"):
            raise Cancelled("the job was cancelled")

    # --- For those who wait ---

    @property
    def running(self) -> bool:
        return self.state == "running"

    def news(self) -> trio.Event:
        """Set at the next progress or end. Take it before looking, then nothing is missed."""
        return self._changed

    def cancel(self) -> None:
        """Ask it to end. What has begun to commit is committed; `state` tells what came of it."""
        if self.running:
            self._cancel()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _end(self, state: JobState, now: int) -> None:
        self.state, self.ended_epoch = state, now
        self._tell()


Work = Callable[[Job], Awaitable[object]]


class Jobs:
    """All jobs of a store. `run` is the task in which they live."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._jobs: dict[str, Job] = {}  # in the order in which they were started
        self._nursery: trio.Nursery | None = None
        self._kept = 0  # places of jobs that are still to begin

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is cancelled; the running jobs end with it."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def start(self, method: str, work: Work, *, cancel: Callable[[], object] | None = None) -> Job:
        """Begin a job, named after its method. `cancel` asks the work to end; without it the work is cancelled as a trio task.

        Busy if too many run, ShuttingDown at the end.
        """
        nursery = self._must_take_one_more()
        job = Job(self._runtime.randomness.bytes(ID_BYTES).hex(), method, self._runtime.clock.now())
        if cancel is not None:
            job._cancel = cancel
        self._jobs[job.id] = job
        self._forget_oldest()
        nursery.start_soon(self._run, job, work)
        return job

    @contextmanager
    def place_kept(self, behind: Job | None = None) -> Iterator[None]:
        """For what does something before its job begins: a place that no other job takes, be it that of one that runs, once that has
        ended. Busy or ShuttingDown as of `start`.
        """
        if behind is None or not behind.running:
            self._must_take_one_more()
        self._kept += 1
        try:
            yield
        finally:
            self._kept -= 1

    def _must_take_one_more(self) -> trio.Nursery:
        """Returns where jobs live."""
        if self._nursery is None:
            raise ShuttingDown("the daemon is stopping", hint="try again when it is back")
        if self._kept + sum(job.running for job in self._jobs.values()) >= limits.JOBS_RUNNING:
            raise Busy(
                f"{limits.JOBS_RUNNING} jobs run",
                hint="wait for one of `zstor call job.list`, or cancel one",
                limit=limits.JOBS_RUNNING,
            )
        return self._nursery

    def get(self, identity: str) -> Job:
        """The job with this id, or NotFound."""
        try:
            return self._jobs[identity]
        except KeyError:
            hint = f"`zstor call job.list` names those that run and the last {limits.JOBS_KEPT} that ended"
            raise NotFound(f"there is no job {identity[:64]!r}", hint=hint) from None

    def list(self) -> list[Job]:
        """Those that run and the last that ended, the newest first."""
        return [*self._jobs.values()][::-1]

    def _forget_oldest(self) -> None:
        ended = sorted((job for job in self._jobs.values() if not job.running), key=lambda job: job.ended_epoch or 0)
        held = sum(job.result_bytes for job in ended)
        for position, job in enumerate(ended[:-1]):
            if len(ended) - position <= limits.JOBS_KEPT and held <= limits.JOB_RESULTS_BYTES:
                return
            held -= job.result_bytes
            del self._jobs[job.id]

    async def _run(self, job: Job, work: Work) -> None:
        state: JobState = "cancelled"  # unless the work gets to its end
        try:
            with job._scope:
                job.result = await work(job)
                state = "done"
        except Cancelled as error:
            job.error = error.bare()
        except ZstorError as error:
            state, job.error = "failed", error.bare()
        except Exception:
            log.exception("job %s (%s) failed", job.id, job.method)
            state, job.error = "failed", Internal("a fault of the daemon", hint="its log has the details")
        finally:
            job._end(state, self._runtime.clock.now())
            self._forget_oldest()
