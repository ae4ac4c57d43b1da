"""Errors that many methods have in common: of whatever asks the metastore, commits a change, reads objects, or uses a client's file."""

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

METASTORE_ERRORS: Final[Failures] = [CorruptRecord, IoError]  # a part of it is damaged, or its disk does not read it
COMMIT_ERRORS: Final[Failures] = [NotEnoughShards, NoSpace, OutcomeUnknown, Unavailable, *METASTORE_ERRORS]
READ_ERRORS: Final[Failures] = [NotFound, Unreadable, *METASTORE_ERRORS]
FILE_ERRORS: Final[Failures] = [PathRefused, IoError, NoSpace, Busy]
