"""JSON-RPC 2.0: from a parsed value to requests, from a request to a bound method, from its outcome to a reply line.

jsonrpcserver looks the method up and binds the parameters. Four things are done around it (docs/wire.md):

- It judges a batch as a whole and answers `[1]` with one object; so batches are split here, and each member's envelope is checked
  here, by the rules of the library's own schema. One member is added to them: `_meta`, for calls whose parameters are positional.
- Its asynchronous half is asyncio's; so the registered methods only leave a bound function on the call, which `run` awaits.
- Its errors hold the texts of exceptions; so they are translated here, once.
- Its way from a parsed request to a response object takes longer than a small call; so what it does inside, `dispatch_request`, is
  called: the version is pinned.
"""

from __future__ import annotations

import enum
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias, TypeVar, cast

import trio

from zstor_local import errors, limits
from zstor_local.errors import Cancelled, Internal, InvalidParams, InvalidRequest, MethodNotFound, NotSupported, TooLarge, ZstorError
from zstor_local.rpc.budget import Budget, Room
from zstor_local.rpc.call import Call
from zstor_local.rpc.descriptors import NO_DESCRIPTORS
from zstor_local.rpc.detached import JobConnection
from zstor_local.rpc.library import Left, LibraryRequest, Result, dispatch_request
from zstor_local.rpc.registry import Method, Registry, explain
from zstor_local.rpc.strict_json import Json, JsonObject, encode
from zstor_local.rpc.turns import Turns
from zstor_local.runtime import CLIENT, Randomness
from zstor_local.store.jobs import Job, Jobs
from zstor_local.store.later import Later
from zstor_local.value import value

T = TypeVar("T")
log = logging.getLogger("zstor.rpc")

_MEMBERS: Final = frozenset({"jsonrpc", "method", "params", "id", "_meta"})
_MESSAGES: Final = {
    errors.ParseError.code: "Parse error",
    errors.InvalidRequest.code: "Invalid Request",
    errors.MethodNotFound.code: "Method not found",
    errors.InvalidParams.code: "Invalid params",
    errors.Internal.code: "Internal error",
    errors.Cancelled.code: "Request cancelled",
}


class Missing(enum.Enum):
    """The id of a notification."""

    ID = enum.auto()


Id: TypeAlias = "str | int | float | Missing | None"


@value()
class Request:
    """A request whose envelope is sound."""

    method: str
    params: list[Json] | JsonObject
    id: Id
    meta: Json

    @property
    def wants_reply(self) -> bool:
        return self.id is not Missing.ID


def parse_request(value: Json) -> Request:
    """The request that a JSON value is, or InvalidRequest."""
    if not isinstance(value, dict):
        raise InvalidRequest("a request is an object")
    if value.get("jsonrpc") != "2.0":
        raise InvalidRequest('"jsonrpc" must be "2.0"')
    method = value.get("method")
    if not isinstance(method, str):
        raise InvalidRequest('"method" must be a string')
    params = value.get("params", _NONE_GIVEN)
    if not isinstance(params, (dict, list)):
        raise InvalidRequest('"params" must be an array or an object')
    identity = value.get("id", Missing.ID)
    if isinstance(identity, (bool, dict, list)):
        raise InvalidRequest('"id" must be a string, a number or null')
    if not value.keys() <= _MEMBERS:
        raise InvalidRequest("a request has the members jsonrpc, method, params, id and _meta, no others")
    meta = value.get("_meta", _NONE_GIVEN)
    if isinstance(params, dict) and "_meta" in params:
        params = dict(params)
        meta = params.pop("_meta")
    return Request(method, params, identity, meta)


_NONE_GIVEN: Final[JsonObject] = {}


def bind(registry: Registry, request: Request, call: Call) -> None:
    """Find the method, check its arguments, leave it on the call ready to run. Raises the error that the caller gets."""
    methods = cast("dict[str, Callable[..., Result]]", registry.bindings)
    _, result = dispatch_request(methods, call, LibraryRequest(request.method, request.params, None))
    if isinstance(result, Left):
        code = result._error.code
        if code == MethodNotFound.code:
            raise registry.unknown(request.method)
        if code == InvalidParams.code:
            raise explain(registry[request.method], request.params)
        raise RuntimeError(f"jsonrpcserver answered {code}")
    if call.refused is not None:
        raise call.refused
    if request.meta != {}:
        _read_meta(request.meta, call, registry[request.method])


class Dispatcher:
    """Runs bound calls and words their outcome."""

    def __init__(self, registry: Registry, randomness: Randomness, jobs: Jobs | None = None) -> None:
        self.registry: Final = registry
        self._randomness = randomness
        self._jobs = jobs
        self.turns: Final = Turns()
        self.inputs: Final = Budget(limits.INPUT_BUDGET_BYTES)
        self.replies: Final = Budget(limits.REPLY_BUDGET_BYTES, patience=limits.PASSED_BY_SECONDS)
        self.batches: Final = Budget(limits.BATCH_BUDGET_BYTES)

    def detach(self, request: Request, call: Call, size: int) -> None:
        """Have a bound call start a job that does its work, and answer {job} at once. `size` is what it takes of the input."""
        if self._jobs is None:
            raise NotSupported("_meta.detach: there are no jobs here", hint="call it without detach and ask for progress")
        connection = JobConnection(call.peer, Room(self.replies))
        inner = Call(call.method, connection, NO_DESCRIPTORS, trio.Event())
        bind(self.registry, request, inner)
        inner.follow_by_job()
        call.bound = functools.partial(self._start_job, self._jobs, call, inner, connection, size)

    async def _start_job(self, jobs: Jobs, call: Call, inner: Call, connection: JobConnection, size: int) -> object:
        inner.descriptors = call.descriptors.hand_over()
        given = Room(self.inputs)
        inner.let_go = given.close

        async def work(job: Job) -> object:
            connection.job = job
            try:
                outcome = await self.run(inner)
            finally:
                inner.descriptors.close()
                connection.reply_room.close()
                given.close()
            if isinstance(outcome, ZstorError):
                raise outcome
            job.result_bytes = len(self.reply(None, outcome))
            return outcome

        try:
            job = jobs.start(call.method, work, cancel=lambda: inner.cancel(Cancelled("the job was cancelled")))
        except ZstorError:
            inner.descriptors.close()
            raise
        given.hold(size)
        return {"job": job.id}

    def begin(self, call: Call) -> object:
        """Call a plain method: its result, the ZstorError that is its outcome, a `Later`, or what has to be awaited by `run`."""
        bound, call.bound = call.bound, None  # what it was given is kept no longer than the method wants it
        if bound is None or call.stopped:
            return call.why_stopped()
        try:
            return bound()
        except ZstorError as error:
            return error.bare()
        except Exception as error:
            return self._unexpected(error, call.method)

    async def run(self, call: Call, begun: Awaitable[object] | None = None) -> object:
        """The method's result, or the ZstorError that is the call's outcome. `begun` is what `begin` gave, if it was called.

        To be awaited in a task of the call's own.
        """
        CLIENT.set(call.peer.pid)
        if begun is None:
            outcome = self.begin(call)
            if not isinstance(outcome, Awaitable):
                return outcome
            begun = outcome
        try:
            with call.scope():
                return await begun
        except ZstorError as error:
            return error.bare()
        except Exception as error:
            return self._unexpected(error, call.method)
        return call.why_stopped()

    def outcome(self, call: Call, later: Later[object]) -> object:
        """What has come: the result, or the ZstorError."""
        try:
            return later.result()
        except ZstorError as error:
            return error.bare()
        except Exception as error:
            return self._unexpected(error, call.method)

    def reply(self, identity: Id, outcome: object) -> bytes:
        """The reply to a request, a line without its newline."""
        if isinstance(outcome, ZstorError):
            return error_reply(identity, outcome)
        try:
            line = encode({"jsonrpc": "2.0", "result": outcome, "id": identity})
        except (TypeError, ValueError, RecursionError) as error:
            return error_reply(identity, self.incident(error, "a result is not JSON"))
        if len(line) > limits.MESSAGE_BYTES:
            return error_reply(identity, reply_too_large())
        return line

    def incident(self, error: BaseException, where: str) -> Internal:
        """Log a fault of ours with its traceback; the caller gets an id to find it by, and nothing else."""
        incident = self._randomness.bytes(4).hex()
        log.error("incident %s: %s", incident, where, exc_info=error)
        return Internal("a fault of the daemon", hint=f"its log has the details under {incident}", incident=incident)

    def _unexpected(self, error: Exception, method: str) -> ZstorError:
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:  # a nursery's wrapping
            error = error.exceptions[0]
        return error.bare() if isinstance(error, ZstorError) else self.incident(error, method)


def error_reply(identity: Id, error: ZstorError) -> bytes:
    """The reply that tells an error. Notifications have none; what could not be read is answered with id null."""
    return encode({"jsonrpc": "2.0", "error": error_object(error), "id": None if identity is Missing.ID else identity})


def error_object(error: ZstorError) -> Mapping[str, object]:
    """The `error` member: the specification's own message for its codes, ours for ours."""
    data: dict[str, object] = {"type": error.type, "retryable": error.retryable}
    message = _MESSAGES.get(error.code)
    if message is None:
        message = error.message
    else:
        data["detail"] = error.message
    if error.hint is not None:
        data["hint"] = error.hint
    return {"code": error.code, "message": message, "data": {**data, **error.data}}


def reply_too_large() -> TooLarge:
    """For a reply over the limit of a message."""
    return TooLarge(
        f"the reply has more than {limits.MESSAGE_BYTES} bytes", hint="ask for less, or use a descriptor", limit=limits.MESSAGE_BYTES
    )


def _read_meta(meta: Json, call: Call, method: Method) -> None:
    """Take what `_meta` asks for; members that we do not know are somebody else's."""
    if not isinstance(meta, dict):
        raise InvalidParams("_meta must be an object", parameter="_meta")
    token = meta.get("progressToken")
    if isinstance(token, bool) or not isinstance(token, (str, int, type(None))):
        raise InvalidParams("_meta.progressToken must be a string or an integer", parameter="_meta")
    if token is not None:
        call.require_messages("progress")
    timeout = meta.get("timeoutSeconds")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float, type(None))) or (timeout is not None and timeout <= 0):
        raise InvalidParams("_meta.timeoutSeconds must be a number above 0", parameter="_meta")
    detach = meta.get("detach", False)
    if not isinstance(detach, bool):
        raise InvalidParams("_meta.detach must be true or false", parameter="_meta")
    if detach and not method.long:
        raise NotSupported(f"_meta.detach: {method.name} is not long work", hint="call it without detach")
    call.detach = detach
    call.configure(progress_token=token, timeout=cast("float | None", timeout))
