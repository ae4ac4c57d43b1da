"""Errors that many methods have in common: of whatever commits a change, reads an object's bytes, or uses a client's file."""

from __future__ import annotations

from typing import Final, TypeAlias

from zstor_local.errors import (
    Busy,
    CorruptRecord,
    IoError,
    NoSpace,
    NotEnoughShards,
    NotFound,
    OutcomeUnknown,
    PathRefused,
    Unavailable,
    Unreadable,
    ZstorError,
)

Failures: TypeAlias = list[type[ZstorError]]

COMMIT_ERRORS: Final[Failures] = [NotEnoughShards, NoSpace, OutcomeUnknown, Unavailable, IoError]
READ_ERRORS: Final[Failures] = [NotFound, Unreadable, CorruptRecord]
FILE_ERRORS: Final[Failures] = [PathRefused, IoError, NoSpace, Busy]
