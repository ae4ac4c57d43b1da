"""The plain form of records: a CBOR map with small integers as keys, strictly read.

Maps are canonical in the length-first order (RFC 8949 §4.2.3) and leave out members that have their default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, NoReturn, TypeVar

import cbor2

from zstor_local.errors import CorruptRecord, InvalidParams
from zstor_local.model.policy import COMPRESSIONS, PADDINGS, Policy

CHUNK_SIZE_BITS_MAX: Final = 63

_INTEGER: Final = frozenset({int})

T = TypeVar("T")
Plain = Mapping[int, object]


class _Untagged(dict[int, Callable[..., NoReturn]]):
    """The answer for each tag there is: it is refused. No record has one, and cbor2 makes of them what none holds: patterns, numbers of
    any length, values that hold themselves.
    """

    def __missing__(self, tag: int) -> Callable[..., NoReturn]:
        return _refuse_tag


def _refuse_tag(*_: object) -> NoReturn:
    raise ValueError("a tag")


_UNTAGGED: Final = _Untagged()


def encode(plain: Plain) -> bytes:
    """Canonical CBOR of a map."""
    return cbor2.dumps(plain, canonical=True)


def decode(data: bytes) -> Plain:
    """A CBOR map with integer keys, strictly read; CorruptRecord for anything else."""
    try:
        plain = cbor2.loads(
            data, semantic_decoders=_UNTAGGED, max_depth=16, allow_indefinite=False, allow_duplicate_keys=False, str_errors="strict"
        )
    except (cbor2.CBORDecodeError, ValueError):
        raise CorruptRecord("a record is not CBOR") from None
    if type(plain) is not dict or not _INTEGER.issuperset(map(type, plain)):
        raise CorruptRecord("a record is not a map with integers as keys")
    return plain


def expect_schema(plain: Plain, newest: int) -> None:
    schema = plain.get(0)
    if schema != newest:
        raise CorruptRecord(
            f"a record has schema {schema!r}, this version reads schema {newest}", hint="use the newer zstor that wrote it"
        )


def take(plain: Plain, number: int, kind: type[T], default: T | None = None) -> T:
    """A field of exactly this type; numbers are never negative."""
    value = plain.get(number, default)
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise CorruptRecord(f"field {number} of a record is not {kind.__name__}")
    return value


def take_sized(plain: Plain, number: int, size: int) -> bytes:
    value = take(plain, number, bytes)
    if len(value) != size:
        raise CorruptRecord(f"field {number} of a record does not have {size} bytes")
    return value


def take_list(plain: Plain, number: int, kind: type[T], default: list[T] | None = None) -> list[T]:
    items: list[T] = take(plain, number, list, default)
    if not {kind}.issuperset(map(type, items)):
        raise CorruptRecord(f"field {number} of a record holds something that is not {kind.__name__}")
    return items


def take_texts(plain: Plain, number: int) -> dict[str, object]:
    members: dict[str, object] = take(plain, number, dict, {})
    if any(type(name) is not str for name in members):
        raise CorruptRecord(f"field {number} of a record has a name that is not text")
    return members


def policy_fields(policy: Policy) -> list[int]:
    return [
        policy.k,
        policy.m,
        policy.chunk_size.bit_length() - 1,
        COMPRESSIONS.index(policy.compression),
        PADDINGS.index(policy.padding),
    ]


def take_policy(plain: Plain, at: int = 6) -> Policy:
    return _policy_of(*take_list(plain, at, int))


@lru_cache(maxsize=64)
def _policy_of(*fields: int) -> Policy:
    """A store has few policies, and a record of each object."""
    try:
        k, m, chunk_bits, compression, padding = fields
        if min(fields) < 0 or chunk_bits > CHUNK_SIZE_BITS_MAX:
            raise ValueError
        return Policy(k, m, 1 << chunk_bits, COMPRESSIONS[compression], PADDINGS[padding])
    except (ValueError, IndexError, InvalidParams):
        raise CorruptRecord("the policy in a record is malformed") from None
