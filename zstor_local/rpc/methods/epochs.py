"""Times in calls: microseconds since 1970 UTC, or RFC 3339 text."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from zstor_local.errors import InvalidParams

Epoch = Annotated[int | str, "microseconds since 1970 UTC, or a time as 2026-01-31T12:00:00Z (RFC 3339)"]

_TEXT: Final = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(epoch: int | str | None, parameter: str) -> int | None:
    """The time as an integer; what text says beyond microseconds is cut off. InvalidParams if it is no time."""
    if not isinstance(epoch, str):
        return epoch
    matched = _TEXT.fullmatch(epoch)
    try:
        if matched is None:
            raise ValueError
        date, time, fraction, zone = matched.groups()
        moment = datetime.fromisoformat(f"{date}T{time}{'+00:00' if zone in 'Zz' else zone}")
        return (moment - _BEGINNING) // timedelta(microseconds=1) + int((fraction or "0")[:6].ljust(6, "0"))
    except (ValueError, OverflowError):
        raise InvalidParams(
            f"{parameter} is not a time", hint="microseconds since 1970, or 2026-01-31T12:00:00Z", parameter=parameter
        ) from None
