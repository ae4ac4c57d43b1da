"""What a shard server answers instead: a status, a type that programs match on, words for people."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final, Literal

from zstor_local.errors import errno_name

RefusalType = Literal[
    "bad_request",
    "unauthenticated",
    "forbidden",
    "no_space_here",
    "not_found",
    "method_not_allowed",
    "exists",
    "fenced",
    "unfinished",
    "gone",
    "too_large",
    "bad_digest",
    "bad_range",
    "busy",
    "failed",
    "readonly",
    "full",
    "quota",
]

_STATUS: Final[Mapping[RefusalType, int]] = {
    "bad_request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "no_space_here": 404,  # the shard itself is not here
    "not_found": 404,  # the shard is, the share is not
    "method_not_allowed": 405,
    "exists": 409,
    "fenced": 409,
    "unfinished": 409,
    "gone": 410,  # what a cursor was behind: begin again
    "too_large": 413,
    "bad_digest": 400,
    "bad_range": 416,
    "busy": 503,
    "failed": 500,
    "readonly": 500,
    "full": 507,
    "quota": 507,
}


class Refusal(Exception):
    """A request that is not done."""

    def __init__(self, kind: RefusalType, message: str) -> None:
        super().__init__(message)
        self.type: RefusalType = kind
        self.message = message

    @property
    def status(self) -> int:
        return _STATUS[self.type]


def of_system(error: OSError) -> Refusal:
    """The system's error, without a path."""
    name = errno_name(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refusal("full", f"the disk of the shard server is full ({name})")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return Refusal("readonly", f"the disk of the shard server cannot be written ({name})")
    return Refusal("failed", f"the shard server's disk failed ({name})")
