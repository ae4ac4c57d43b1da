"""`log.verify`, `log.scrub`, `log.export` and `log.import`: the care of whole logs."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Annotated, Final, Literal, TypedDict

from zstor_local.content.cas import Cas
from zstor_local.content.logs.exporting import Exporting
from zstor_local.content.logs.importing import Importing
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.policy import DEFAULT_LOG, check_log
from zstor_local.content.logs.reading import LogReading
from zstor_local.content.logs.scrubbing import Scrubbing
from zstor_local.content.logs.verifying import Problem, Verifying
from zstor_local.errors import AlreadyExists, Incomplete, InvalidParams, NotFound
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import FILE_ERRORS, METASTORE_ERRORS, Failures
from zstor_local.rpc.methods.handover import Handover
from zstor_local.rpc.methods.logs import CHANGE_ERRORS, LocalHash, LogIn, Seq
from zstor_local.rpc.methods.objects import Fd, Path
from zstor_local.rpc.methods.values import exactly_one
from zstor_local.rpc.registry import Registry
from zstor_local.store.paths import Mode, Paths
from zstor_local.store.sources import BytesSource, FileSource
from zstor_local.store.store import Store
from zstor_local.store.writes import Source

REMAINS: Final = "the entry's number and local hash; exported files; sealed copies on disks until their space is used again"

_PACK_ERRORS: Final[Failures] = [*FILE_ERRORS, *CHANGE_ERRORS]


class LogProblem(TypedDict):
    """Something wrong with a log: a `gap` in the numbers, a `fork`, a `bad_hash`, something `missing`, or a `malformed` page."""

    kind: Literal["gap", "fork", "bad_hash", "missing", "malformed"]
    message: str
    seq: int | None
    id: str | None


class LogVerified(TypedDict):
    """What a check found from the newest entry down. `problem` is the first of `problems` (at most 100), null if the log is whole."""

    log: str
    entries: int
    pages: int
    scrubbed: int
    contents: int
    problem: LogProblem | None
    problems: list[LogProblem]


class LogKept(TypedDict):
    """Content of a scrubbed entry that stays, and who keeps it."""

    id: str
    owners: list[str]


class LogScrubbed(TypedDict):
    """What a scrub came to: `gone` are the ids of content that is deleted, `kept` what others keep, `remains` what no scrub removes."""

    entries: int
    pages: int
    gone: list[str]
    kept: list[LogKept]
    remains: str


class LogExported(TypedDict):
    """What was written: `root` is the id of the directory that any IPFS tool finds in the file."""

    root: str
    entries: int
    pages: int
    bytes: int


class LogImported(TypedDict):
    """What an import came to: entries and pages that the log has more now, contents that were not stored before."""

    log: str
    entries: int
    pages: int
    stored: int
    state: Literal["created", "advanced", "unchanged"]


def register(registry: Registry, store: Store, paths: Paths, logs: Logs, cas: Cas) -> None:
    """Add the methods."""
    handover = Handover(store.runtime, paths)
    reading = LogReading(logs)
    verifying = Verifying(logs, cas)
    scrubbing = Scrubbing(logs)
    exporting = Exporting(logs, cas)
    importing = Importing(store.runtime, logs, cas)

    @registry.method("log.verify", errors=[NotFound, *METASTORE_ERRORS], long=True)
    async def verify(
        call: Call,
        /,
        log: LogIn = DEFAULT_LOG,
        contents: Annotated[bool, "read all content and compare it with its id"] = False,
        known_seq: Annotated[Seq | None, "an entry that you saw once: a log in which it is another one has forked"] = None,
        known_hash_b64: Annotated[LocalHash | None, "its local hash"] = None,
    ) -> LogVerified:
        """Check a whole log against its own hashes and rules, and name the first gap, fork or bad hash."""
        if (known_seq is None) != (known_hash_b64 is None):
            raise InvalidParams("known_seq and known_hash_b64 belong together", parameter="known_seq")
        known = None if known_seq is None or known_hash_b64 is None else (known_seq, known_hash_b64)
        found = await verifying.verify(log, call, contents=contents, known=known)
        problems = [_problem(each) for each in found.problems]
        return {
            "log": log,
            "entries": found.entries,
            "pages": found.pages,
            "scrubbed": found.scrubbed,
            "contents": found.contents,
            "problem": problems[0] if problems else None,
            "problems": problems,
        }

    @registry.method("log.scrub", errors=CHANGE_ERRORS, long=True)
    async def scrub(
        call: Call,
        /,
        log: LogIn = DEFAULT_LOG,
        seq: Annotated[Seq | None, "the entry to scrub"] = None,
        last_seq: Annotated[Seq | None, "the last of several entries"] = None,
        local_hash_b64: Annotated[LocalHash | None, "instead of seq: the entry's local hash"] = None,
    ) -> LogScrubbed:
        """Remove the content of entries from a log for good.

        It is unpinned and, unless others keep it, deleted at once. Every page from the entry's own on is written anew, and the old one
        deleted. The entry keeps its number and its local hash, and does not come back.
        """
        exactly_one(seq=seq, local_hash_b64=local_hash_b64)
        first = seq if seq is not None else await reading.number_of(log, local_hash_b64 or b"")
        found = await scrubbing.scrub(log, first, last_seq or first, call)
        return {
            "entries": found.entries,
            "pages": found.pages,
            "gone": [str(cid) for cid in found.gone],
            "kept": [{"id": str(each.cid), "owners": [*each.owners]} for each in found.kept],
            "remains": REMAINS,
        }

    @registry.method("log.export", errors=[AlreadyExists, *_PACK_ERRORS], long=True)
    async def export(
        call: Call,
        /,
        log: LogIn = DEFAULT_LOG,
        path: Path | None = None,
        fd: Annotated[Fd | None, "index of a descriptor sent with this message: a file, pipe or socket"] = None,
        mode: Annotated[Mode, "what to do with a file that is there"] = "exclusive",
    ) -> LogExported:
        """Write a whole log, pages and content, as one CAR file (CARv1) that any IPFS tool can read."""
        exactly_one(path=path, fd=fd)
        opened = handover.sink(call, fd) if fd is not None else handover.sink_at(call, path or "", mode)
        async with opened as sink:
            found = await exporting.export(log, sink, call)
        return {"root": str(found.root), "entries": found.entries, "pages": found.pages, "bytes": found.bytes}

    @registry.method("log.import", errors=[Incomplete, AlreadyExists, *_PACK_ERRORS], long=True)
    async def import_(
        call: Call,
        /,
        path: Path | None = None,
        fd: Annotated[Fd | None, "index of a regular file's descriptor, sent with this message"] = None,
        log: Annotated[str | None, "the log to make of it; left out, the one it was exported from"] = None,
    ) -> LogImported:
        """Make a log what a file of log.export says. Every block is checked; a log that is there may only grow by it.

        An import that was broken off goes on where it was when it is asked for again.
        """
        exactly_one(path=path, fd=fd)
        name = None if log is None else check_log(log)
        if fd is not None:
            opened: AbstractAsyncContextManager[Source] = handover.source(call, fd, stream=False)
        else:
            opened = handover.file(call, path or "")
        async with opened as source:
            if not isinstance(source, (BytesSource, FileSource)):
                raise AssertionError("a descriptor that need not be a stream is a file")
            found = await importing.import_(source, name, call)
        return {"log": found.log, "entries": found.entries, "pages": found.pages, "stored": found.stored, "state": found.state}


def _problem(problem: Problem) -> LogProblem:
    return {
        "kind": problem.kind,
        "message": problem.text,
        "seq": problem.seq,
        "id": None if problem.cid is None else str(problem.cid),
    }
