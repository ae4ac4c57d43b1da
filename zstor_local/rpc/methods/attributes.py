"""What is kept with an object beside its bytes: references, and members of the caller's own. Both are as large as a record allows."""

from __future__ import annotations

from zstor_local import limits
from zstor_local.errors import InvalidParams, TooLarge
from zstor_local.rpc.strict_json import Json
from zstor_local.store.references import check_count


def checked_references(references: list[str]) -> tuple[str, ...]:
    """Each once, in their order; TooLarge if they are too many or one is too long."""
    for reference in references:
        if len(reference.encode()) > limits.REFERENCE_BYTES:
            raise TooLarge("a reference is too long", limit=limits.REFERENCE_BYTES, hint="at most 255 bytes of UTF-8 each")
    return check_count(tuple(dict.fromkeys(references)))


def checked_user(user: dict[str, Json]) -> dict[str, object]:
    """The members of the caller's own, small enough and with integers that every reader holds exactly."""
    weight = _weigh(user)
    if weight > limits.USER_METADATA_BYTES:
        raise TooLarge(f"user has about {weight} bytes", limit=limits.USER_METADATA_BYTES, hint="keep more in an object of its own")
    return {**user}


def _weigh(value: Json, depth: int = 0) -> int:
    """About the bytes that a value takes as CBOR."""
    if depth > 8:
        raise InvalidParams("user is nested too deeply", hint="at most 8 levels", parameter="user")
    if isinstance(value, str):
        return 3 + len(value.encode())
    if isinstance(value, dict):
        return 3 + sum(_weigh(name) + _weigh(member, depth + 1) for name, member in value.items())
    if isinstance(value, list):
        return 3 + sum(_weigh(member, depth + 1) for member in value)
    if isinstance(value, int) and abs(value) > limits.SAFE_INTEGER:
        raise InvalidParams("an integer in user is beyond ±(2^53 − 1)", hint="write it as text", parameter="user")
    return 9
