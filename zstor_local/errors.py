"""Every error a caller can see: one class each, with its code, its type and whether trying again helps.

The codes are a promise (`zstor call rpc.discover` lists them): positive ones are ours and never reused, negative ones those of JSON-RPC
2.0 and LSP. A message says what happened, to what; the hint says what to do now. Neither ever holds a secret or an exception's text.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import ClassVar, Final, Self


class ZstorError(Exception):
    """Base of all typed errors.

    `data` becomes the `data` member of the JSON-RPC error beside type, retryable and hint; its values are plain JSON.
    """

    code: ClassVar[int]
    type: ClassVar[str]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None, **data: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.data = data

    def bare(self) -> Self:
        """The same, for keeping: without the frames that it came through, for they hold what the call was given."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


class NotFound(ZstorError):
    """A key, namespace, id, name, log, stream or job that is not there."""

    code, type = 100, "not_found"


class AlreadyExists(ZstorError):
    """An exclusive write met an object, or a destination file is there in `exclusive` mode."""

    code, type = 101, "already_exists"


class Conflict(ZstorError):
    """`if_version` or `if_seq` is stale, or a version was left behind; `data.current` tells."""

    code, type = 102, "conflict"


class NotEmpty(ZstorError):
    """A namespace that still has objects."""

    code, type = 103, "not_empty"


class BadEncoding(ZstorError):
    """Bytes that are not what `encoding` asked for."""

    code, type = 104, "bad_encoding"


class PermissionDenied(ZstorError):
    """The token or permission lacks the right."""

    code, type = 200, "permission_denied"


class PathRefused(ZstorError):
    """A path or descriptor the daemon must not or cannot use, or a file that changed while it was read."""

    code, type = 201, "path_refused"


class Unauthenticated(ZstorError):
    """A shard refused the token."""

    code, type = 202, "unauthenticated"


class Incomplete(ZstorError):
    """Fewer or other bytes arrived than were announced."""

    code, type = 203, "incomplete"


class Unavailable(ZstorError):
    """A shard, the metastore or the authority is out of reach."""

    code, type, retryable = 300, "unavailable", True


class NotEnoughShards(ZstorError):
    """Fewer shards than the write quorum could store it; nothing visible changed."""

    code, type, retryable = 301, "not_enough_shards", True


class TimedOut(ZstorError):
    """The caller's deadline passed before a commit began."""

    code, type = 302, "timed_out"


class Busy(ZstorError):
    """A limit of requests, memory or streams."""

    code, type, retryable = 303, "busy", True


class ShuttingDown(ZstorError):
    """The daemon is stopping."""

    code, type, retryable = 304, "shutting_down", True


class OutcomeUnknown(ZstorError):
    """The metastore did not answer a commit or failed in it; `data.version` is what to look up."""

    code, type = 305, "outcome_unknown"


class Unreadable(ZstorError):
    """Fewer than k good shares; `data.shares` tells the state of each."""

    code, type = 400, "unreadable"


class CorruptRecord(ZstorError):
    """Metadata failed authentication."""

    code, type = 401, "corrupt_record"


DAMAGED_ROW_HINT: Final = (
    "a good copy is looked for on the shards: try again; else bring missing shards back, or stop the daemon and `zstor rebuild`"
)


class KeyMissing(ZstorError):
    """The master key for this record is not here."""

    code, type = 402, "key_missing"


class NoSpace(ZstorError):
    """A shard or a quota is full; `data.shard` names it."""

    code, type = 500, "no_space"


class TooLarge(ZstorError):
    """A value, message, key or list over its limit; `data.limit` is the limit."""

    code, type = 501, "too_large"


class IoError(ZstorError):
    """An error of the system, with errno's name."""

    code, type = 502, "io_error"


class NotSupported(ZstorError):
    """Descriptors or notifications over a transport that has none."""

    code, type = 503, "not_supported"


class ProtocolFault(ZstorError):
    """Base of the faults that JSON-RPC 2.0 itself names; their messages on the wire are those of the specification."""


class ParseError(ProtocolFault):
    """Not JSON, or JSON that this daemon refuses (docs/wire.md)."""

    code, type = -32700, "parse_error"


class InvalidRequest(ProtocolFault):
    """JSON, but not a request."""

    code, type = -32600, "invalid_request"


class MethodNotFound(ProtocolFault):
    """No such method."""

    code, type = -32601, "method_not_found"


class InvalidParams(ProtocolFault):
    """Missing, unknown or ill-typed parameters."""

    code, type = -32602, "invalid_params"


class Internal(ProtocolFault):
    """A fault of ours; `data.incident` is in the log."""

    code, type = -32603, "internal"


class Cancelled(ProtocolFault):
    """The caller cancelled the request."""

    code, type = -32800, "cancelled"


def errno_name(error: OSError) -> str:
    """The name of the system's error: that of its number, EIO where it bears none."""
    return errno.errorcode.get(error.errno or 0, "EIO")


def errno_text(error: OSError) -> str:
    """What the system says of it, for people: without the path or address that the error may name beside it."""
    code = error.errno or 0
    return os.strerror(code) if code > 0 else error.strerror or str(error)  # resolvers have numbers of their own, below 0


def typed_error(fault: object) -> ZstorError:
    """The error member of a reply as its class; a type that this version does not know keeps its code and name."""
    fault = fault if isinstance(fault, Mapping) else {}
    code, message, data = fault.get("code"), fault.get("message"), fault.get("data")
    data = dict(data) if isinstance(data, Mapping) else {}
    kind, retryable, hint = data.pop("type", None), data.pop("retryable", False), data.pop("hint", None)
    data.pop("message", None)
    if isinstance(detail := data.pop("detail", None), str):  # the message of a protocol fault is only its name
        message = detail
    for known in _classes(ZstorError):
        if known.type == kind:
            break
    else:
        known = type("RemoteError", (ZstorError,), {"code": code, "type": str(kind), "retryable": bool(retryable)})
    return known(str(message), hint=hint if isinstance(hint, str) else None, **data)


def _classes(base: type[ZstorError]) -> list[type[ZstorError]]:
    found = [known for known in base.__subclasses__() if "type" in vars(known)]
    return found + [deeper for known in base.__subclasses__() for deeper in _classes(known)]
