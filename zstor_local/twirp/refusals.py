"""Errors as Twirp has them: a code, a message, and the HTTP status that goes with the code (twitchtv.github.io/twirp/docs/errors)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from zstor_local.errors import ZstorError

STATUS: Final[Mapping[str, int]] = {
    "canceled": 408,
    "unknown": 500,
    "invalid_argument": 400,
    "malformed": 400,
    "deadline_exceeded": 408,
    "not_found": 404,
    "bad_route": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "unauthenticated": 401,
    "resource_exhausted": 429,
    "failed_precondition": 412,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
}

# Types of ours that are not spelled the same.
_CODES: Final[Mapping[str, str]] = {
    "conflict": "aborted",
    "invalid_params": "invalid_argument",
    "too_large": "resource_exhausted",
    "no_space": "resource_exhausted",
    "path_refused": "permission_denied",
    "timed_out": "deadline_exceeded",
    "cancelled": "canceled",
    "not_enough_shards": "unavailable",
    "busy": "unavailable",
    "shutting_down": "unavailable",
    "outcome_unknown": "unknown",
    "unreadable": "data_loss",
    "corrupt_record": "data_loss",
}


class Refusal(Exception):
    """What goes back instead of an answer."""

    def __init__(self, code: str, message: str, meta: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.meta = meta or {}

    @property
    def status(self) -> int:
        return STATUS[self.code]

    def to_json(self) -> dict[str, object]:
        """The body: `{"code", "msg"}`, and "meta" where there is any."""
        body: dict[str, object] = {"code": self.code, "msg": self.message}
        return {**body, "meta": dict(self.meta)} if self.meta else body


def refusal_of(error: ZstorError) -> Refusal:
    """The same error as Twirp would say it; its hint and type go along as meta."""
    code = error.type if error.type in STATUS else _CODES.get(error.type, "internal")
    meta = {"type": error.type, "retryable": "true" if error.retryable else "false"}
    return Refusal(code, error.message, {**meta, "hint": error.hint} if error.hint else meta)
