"""Who keeps a content, as its record says it: each owner is a reference of the object, so that the contents of an owner are found.

The record's `user` member holds what belongs to it: why and since when for each owner, and until when the content is kept without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from zstor_local import limits
from zstor_local.errors import InvalidParams, TooLarge
from zstor_local.model.record import ObjectRecord
from zstor_local.runtime import SECOND_US

USER: Final = "user"  # the owner where none is named

_PINS: Final = "pins"
_PROMISED: Final = "promised"
_LEFT: Final = "left"
_KEPT: Final = limits.UNPINNED_KEPT_SECONDS * SECOND_US


@dataclass(frozen=True, slots=True)
class Owner:
    """Whoever pins a content, and why. An owner pins a content once, for the reason given last."""

    name: str = USER
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pin:
    """An owner's pin; `since` in microseconds since 1970 UTC."""

    owner: str
    reason: str
    since: int


def pins(record: ObjectRecord) -> tuple[Pin, ...]:
    """All pins of a content, in the order in which they came."""
    about = _about(record)
    return tuple(Pin(owner, *about.get(owner, ("", record.created))) for owner in record.references)


def kept_until(record: ObjectRecord) -> int:
    """The epoch up to which a content is kept though nobody pins it."""
    return max(promised_until(record), _epoch(record, _LEFT) + _KEPT)


def promised_until(record: ObjectRecord) -> int:
    """The epoch up to which whoever uploaded it without a pin may rely on it."""
    return _epoch(record, _PROMISED)


def pinned(record: ObjectRecord, owner: Owner, now: int) -> ObjectRecord:
    """With the owner's pin. The same pin again changes nothing; TooLarge for too many owners."""
    about = _about(record)
    if owner.name in record.references and about.get(owner.name, ("", 0))[0] == owner.reason:
        return record
    references = tuple(dict.fromkeys((*record.references, owner.name)))
    if len(references) > limits.PINS:
        raise TooLarge(f"{limits.PINS} owners pin this content already", limit=limits.PINS, hint="pin it for a group of them")
    return replace(record, references=references, user={**record.user, _PINS: {**about, owner.name: (owner.reason, now)}})


def unpinned(record: ObjectRecord, owner: str, now: int) -> ObjectRecord:
    """Without the owner's pin; kept for a while if that was the last one."""
    if owner not in record.references:
        return record
    references = tuple(each for each in record.references if each != owner)
    about = {name: pin for name, pin in _about(record).items() if name != owner}
    left = {} if references else {_LEFT: now}
    return replace(record, references=references, user={**record.user, _PINS: about, **left})


def promised(record: ObjectRecord, now: int) -> ObjectRecord:
    """Kept without a pin for a while from now on."""
    return replace(record, user={**record.user, _PROMISED: max(promised_until(record), now + _KEPT)})


def check_owner(owner: Owner) -> Owner:
    """The owner itself, or InvalidParams or TooLarge."""
    size = len(owner.name.encode())
    if not 0 < size <= limits.REFERENCE_BYTES:
        raise InvalidParams(f"an owner's name has {size} bytes", hint="1 to 255 bytes of UTF-8", parameter="owner")
    if len(owner.reason.encode()) > limits.PIN_REASON_BYTES:
        raise TooLarge("the reason is too long", limit=limits.PIN_REASON_BYTES, hint="at most 255 bytes of UTF-8")
    return owner


def _about(record: ObjectRecord) -> Mapping[str, tuple[str, int]]:
    plain = record.user.get(_PINS)
    return {name: (str(pin[0]), int(pin[1])) for name, pin in plain.items()} if isinstance(plain, dict) else {}


def _epoch(record: ObjectRecord, member: str) -> int:
    value = record.user.get(member)
    return value if isinstance(value, int) else 0
