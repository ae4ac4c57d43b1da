"""JSON in and out, strictly: what two readers could understand differently is refused, what is written any reader takes.

`decode` raises `ParseError` with `data.reason` (one of `REASONS`) for everything that RFC 8259 leaves open or that costs more memory
than its length suggests. `encode` writes one compact line of ASCII.
"""

from __future__ import annotations

import binascii
import json
import re
from typing import Final, TypeAlias

import msgspec
import pybase64

from zstor_local import limits
from zstor_local.errors import ParseError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"

REASONS: Final = {
    "syntax": "not JSON",
    "encoding": "not UTF-8",
    "byte_order_mark": "begins with a byte order mark",
    "duplicate_name": "an object has the same name twice",
    "not_finite": "NaN, Infinity or a number too large for a double",
    "lone_surrogate": "a \\u escape that is half of a surrogate pair",
    "integer_too_long": "an integer of more than 4,300 digits",
    "too_deep": f"nested deeper than {limits.JSON_DEPTH}",
    "too_many_values": f"more than {limits.MESSAGE_VALUES:,} values",
}

_HINTS: Final = {
    "encoding": "text is UTF-8; send other bytes as value_b64, or by a path or descriptor",
    "lone_surrogate": "text is UTF-8; send other bytes as value_b64, or by a path or descriptor",
    "not_finite": "send null, or a string",
}

_BYTE_ORDER_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")
# A string goes to its end, or to that of the text: else what follows each quote in one without an end would be searched again.
_STRUCTURE: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)


class Base64:
    """Bytes in a result: written as base64. No dataclass, which would be written as an object."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data: Final = data


def parse_error(reason: str, detail: str | None = None) -> ParseError:
    """The error for text that is refused for one of `REASONS`."""
    return ParseError(detail or REASONS[reason], hint=_HINTS.get(reason), reason=reason)


def decode(text: bytes | bytearray, start: int = 0, end: int | None = None) -> Json:
    """The value of the JSON text in `text[start:end]`, or ParseError. Time and memory are bounded before anything is built."""
    if end is None:
        end = len(text)
    brackets = text.count(b"[", start, end) + text.count(b"{", start, end)
    crowded = end - start > limits.MESSAGE_VALUES and brackets + text.count(b",", start, end) >= limits.MESSAGE_VALUES
    if crowded or brackets > limits.JSON_DEPTH:
        _check_structure(text, start, end)
    try:
        characters = text[start:end].decode("utf-8")
    except UnicodeDecodeError:
        marked = text.startswith(_BYTE_ORDER_MARKS, start, end)
        raise parse_error("byte_order_mark" if marked else "encoding") from None
    try:
        value: Json = _DECODER.decode(characters)
    except json.JSONDecodeError as error:
        if characters.startswith("\ufeff"):
            raise parse_error("byte_order_mark") from None
        raise parse_error("syntax", f"{error.msg} at character {error.pos}") from None
    except ValueError:  # int() limits its digits, sys.get_int_max_str_digits
        raise parse_error("integer_too_long") from None
    if "\\" in characters and _SURROGATE_ESCAPE.search(characters):
        _check_surrogates(value)
    return value


def encode(value: object) -> bytes:
    """One line of compact ASCII JSON, without its newline. Dataclasses become objects; a number that is none becomes null.

    Raises TypeError or ValueError for what is not JSON, lone surrogates too.
    """
    line = _ENCODER.encode(value)
    return line if line.isascii() else json.dumps(json.loads(line), separators=(",", ":")).encode("ascii")


def _as_text(value: object) -> str:
    if isinstance(value, Base64):
        return pybase64.b64encode_as_string(value.data)
    raise TypeError(f"a {type(value).__name__} is not JSON")


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_as_text)


def decode_base64(text: str) -> bytes:
    """The bytes of standard base64 with its padding; ValueError for anything else."""
    try:
        data = pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not standard base64") from None
    # Bits that no byte needs must be zero, so that one value has one spelling.
    if text.endswith("=") and not text.endswith(pybase64.b64encode(data[-(len(data) % 3) :]).decode("ascii")):
        raise ValueError("not standard base64")
    return data


def _check_structure(text: bytes | bytearray, start: int, end: int) -> None:
    """Depth and number of values, commas and brackets in strings not counted. Malformed text is left to the parser."""
    depth, values = 0, 1
    for match in _STRUCTURE.finditer(text, start, end):
        mark = text[match.start()]
        if mark == 0x2C:  # ,
            values += 1
        elif mark in b"[{":
            depth += 1
            values += 1
            if depth > limits.JSON_DEPTH:
                raise parse_error("too_deep")
        elif mark in b"]}":
            depth -= 1
        if values > limits.MESSAGE_VALUES:
            raise parse_error("too_many_values")


def _check_surrogates(value: Json) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise parse_error("lone_surrogate") from None


def _unique(pairs: list[tuple[str, Json]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise parse_error("duplicate_name")
    return members


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise parse_error("not_finite")
    return number


def _refuse_constant(_name: str) -> float:
    raise parse_error("not_finite")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant)
