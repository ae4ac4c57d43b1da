"""`stream.*`: the pieces of streams that were opened without a descriptor. None of them waits for its turn behind other calls."""

from __future__ import annotations

from typing import Annotated, TypedDict, cast

from zstor_local import limits
from zstor_local.errors import Cancelled, Conflict, NotFound, TimedOut
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import READ_ERRORS, Failures
from zstor_local.rpc.methods.objects import WRITE_ERRORS, Written
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.schema import Range
from zstor_local.rpc.streams import Incoming, Opened, Outgoing, OwnStreams

StreamId = Annotated[str, "the stream's id, as the method that opened it answered it"]
Seq = Annotated[int, "the piece's number: 0, 1, 2, …", Range(0)]


class Passed(TypedDict):
    """A piece that has been taken."""

    stream: str
    seq: int


def register(registry: Registry) -> None:
    """Add the methods."""
    errors: Failures = [NotFound, Conflict, Cancelled, TimedOut]
    failures: Failures = [*errors, *WRITE_ERRORS]

    @registry.method("stream.write", errors=failures, urgent=True)
    async def write(
        call: Call,
        /,
        stream: StreamId,
        seq: Seq,
        value_b64: Annotated[bytes, f"the next bytes in standard base64, at most {limits.STREAM_MESSAGE_BYTES} of them"],
    ) -> Passed:
        """Give a write the next piece. The answer means that it has been taken: wait for it before you send a fifth.

        A seq that is not due aborts the stream. `too_large` and `busy` do not: the same seq is due again.
        """
        await call.connection.state(OwnStreams).of(Incoming, stream).take(call, seq, value_b64)
        return {"stream": stream, "seq": seq}

    @registry.method("stream.close", errors=failures, urgent=True)
    async def close(call: Call, /, stream: StreamId) -> Written:
        """End a write: its bytes are complete. The reply means that they are durable."""
        return cast(Written, await call.connection.state(OwnStreams).of(Incoming, stream).close(call))

    @registry.method("stream.abort", errors=[NotFound, Conflict], urgent=True)
    async def abort(call: Call, /, stream: StreamId) -> Opened:
        """End a write or a read at once. Of a write nothing is left, the object is as it was before."""
        await call.connection.state(OwnStreams).any(stream).abort()
        return {"stream": stream}

    @registry.method("stream.ack", errors=[*errors, *READ_ERRORS], urgent=True)
    async def ack(call: Call, /, stream: StreamId, seq: Seq) -> Passed:
        """Tell that the piece of a read has been taken, so that more of them come. A seq that is not due aborts the stream."""
        await call.connection.state(OwnStreams).of(Outgoing, stream).acknowledge(seq)
        return {"stream": stream, "seq": seq}
