"""Bytes inside a message: how they come in, and how they go out as text."""

from __future__ import annotations

import re
from typing import Final

from zstor_local import limits
from zstor_local.errors import BadEncoding, InvalidParams, TooLarge

_CONTROLS: Final = re.compile(r"[\x00-\x1f]")


def exactly_one(**given: object) -> None:
    """InvalidParams unless just one of the parameters is there."""
    names = ", ".join(given)
    if sum(value is not None for value in given.values()) != 1:
        raise InvalidParams(f"give exactly one of {names}", parameter=next(iter(given)))


def inline(value: str | None, value_b64: bytes | None, *, hint: str) -> bytes:
    """The bytes of `value` (UTF-8) or `value_b64`, whichever is there; TooLarge, with the way for larger ones as the hint."""
    data = value.encode() if value is not None else value_b64 or b""
    if len(data) > limits.INLINE_VALUE_BYTES:
        raise TooLarge(f"the value has {len(data)} bytes", hint=hint, limit=limits.INLINE_VALUE_BYTES)
    return data


def text_of(data: bytes) -> str:
    """The bytes as text whose JSON form fits into a reply; BadEncoding."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise BadEncoding("the bytes are not UTF-8", hint="read them without `encoding`: value_b64") from None
    escaped = len(text) if text.isascii() else 6 * len(text)
    if escaped + 5 * len(_CONTROLS.findall(text)) > limits.MESSAGE_BYTES - limits.MIB:
        raise BadEncoding("the text is too large once escaped as JSON", hint="read it without `encoding`, or in stretches")
    return text
