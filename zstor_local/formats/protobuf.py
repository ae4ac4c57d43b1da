"""Protocol Buffers (proto3): the wire format and its JSON, for the few messages that we speak.

A `Schema` is data; `Schema.parse` and `Message.encode` follow the encoding guide of protobuf.dev. What a schema does not know is kept
byte for byte and written behind what it knows, as Google's library does. An encoding is not canonical (over-long varints, any order
of fields): hash and store the bytes that were received, never those of a re-encoding.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypeVar

from zstor_local.formats.varint import packed as varint

T = TypeVar("T")
Scalar: TypeAlias = Literal["bytes", "string", "int64", "uint64", "bool"]
Value: TypeAlias = "bytes | str | int | bool | Message"
Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

VARINT: Final = 0
FIXED64: Final = 1
LENGTH: Final = 2
GROUP: Final = 3
GROUP_END: Final = 4
FIXED32: Final = 5

FIELDS_MAX: Final = 100_000  # of a message with all in it: a million, of two bytes each, took a second of everybody's time
_VARINT_BYTES: Final = 10
_TAG_LIMIT: Final = 1 << 32
_GROUP_DEPTH: Final = 100  # as Google's libraries
_UINT64: Final = (1 << 64) - 1
_DEFAULTS: Final[Mapping[str, Value]] = {"bytes": b"", "string": "", "int64": 0, "uint64": 0, "bool": False}


class Malformed(ValueError):
    """Bytes or JSON that are not the message they should be."""


class FieldCount:
    """How many fields a message may still have, with those of the messages and groups in it."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = FIELDS_MAX

    def take(self) -> None:
        """One more; Malformed."""
        self.left -= 1
        if self.left < 0:
            raise Malformed(f"more than {FIELDS_MAX} fields")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message. `name` is as in the .proto file; JSON has it in lowerCamelCase."""

    number: int
    name: str
    kind: Scalar | Schema
    repeated: bool = False

    @property
    def json_name(self) -> str:
        first, *others = self.name.split("_")
        return first + "".join(word.capitalize() for word in others)


@dataclass(frozen=True, slots=True)
class Schema:
    """A message type."""

    name: str
    fields: tuple[Field, ...]

    def parse(self, data: bytes, count: FieldCount | None = None) -> Message:
        """The message in these bytes, all of them; Malformed. `count`: of what it lies in."""
        count = count or FieldCount()
        scalars: dict[str, Value] = {}
        repeated: dict[str, list[Value]] = {}
        nested: dict[str, list[bytes]] = {}
        unknown = bytearray()
        known = {each.number: each for each in self.fields}
        for number, wire_type, value, raw in records(data, count):
            each = known.get(number)
            if each is None or wire_type != _wire_type(each.kind):
                unknown += raw
            elif each.repeated:
                repeated.setdefault(each.name, []).append(_parsed(each.kind, value, count))
            elif isinstance(each.kind, Schema):
                # A message that comes twice is merged, which is what its bytes in a row mean.
                nested.setdefault(each.name, []).append(_typed(bytes, value))
            else:
                scalars[each.name] = _parsed(each.kind, value, count)
        for name, pieces in nested.items():
            scalars[name] = _parsed(self[name].kind, b"".join(pieces), count)
        return Message(self, {**scalars, **{name: tuple(values) for name, values in repeated.items()}}, bytes(unknown))

    def make(self, **values: Value | tuple[Value, ...]) -> Message:
        """A message with these fields, by their names."""
        for name in values:
            self[name]
        return Message(self, values)

    def from_json(self, value: Json, *, ignore_unknown: bool = False) -> Message:
        """The message in this JSON (proto3's mapping, read generously: both spellings of names, any base64, numbers or strings)."""
        if not isinstance(value, Mapping):
            raise Malformed(f"{self.name} is an object")
        by_name = {name: each for each in self.fields for name in (each.name, each.json_name)}
        values: dict[str, Value | tuple[Value, ...]] = {}
        for name, member in value.items():
            each = by_name.get(name)
            if each is None:
                if not ignore_unknown:
                    raise Malformed(f"{self.name} has no field {name!r}")
            elif member is not None:
                values[each.name] = _from_json(each, member, ignore_unknown)
        return Message(self, values)

    def __getitem__(self, name: str) -> Field:
        for each in self.fields:
            if each.name == name:
                return each
        raise KeyError(f"{self.name} has no field {name}")


@dataclass(frozen=True, slots=True)
class Message:
    """A message: fields by name (a repeated one is a tuple; what is not there has its default) and the bytes of unknown ones."""

    schema: Schema
    values: Mapping[str, Value | tuple[Value, ...]]
    unknown: bytes = b""

    def encode(self) -> bytes:
        """Known fields in the order of their numbers, defaults left out, then the unknown ones."""
        out = bytearray()
        for each in sorted(self.schema.fields, key=lambda known: known.number):
            for value in self._present(each):
                out += encoded_field(each.number, value)
        return bytes(out) + self.unknown

    def to_json(self) -> dict[str, Json]:
        """proto3's JSON: defaults and unknown fields left out, bytes in base64, 64-bit integers as strings."""
        members: dict[str, Json] = {}
        for each in self.schema.fields:
            values = [_to_json(each.kind, value) for value in self._present(each)]
            if values:
                members[each.json_name] = values if each.repeated else values[0]
        return members

    def _present(self, each: Field) -> Iterator[Value]:
        value = self.values.get(each.name)
        if isinstance(value, tuple):
            yield from value
        elif value is not None and (isinstance(each.kind, Schema) or value != _DEFAULTS[each.kind]):
            yield value

    # --- Fields by their type; TypeError for one of another type ---

    def blob(self, name: str) -> bytes:
        return _typed(bytes, self.values.get(name, b""))

    def blobs(self, name: str) -> tuple[bytes, ...]:
        return tuple(_typed(bytes, each) for each in _typed(tuple, self.values.get(name, ())))

    def text(self, name: str) -> str:
        return _typed(str, self.values.get(name, ""))

    def number(self, name: str) -> int:
        """An integer; a bool as 0 or 1."""
        return _typed(int, self.values.get(name, 0))

    def message(self, name: str) -> Message | None:
        value = self.values.get(name)
        return None if value is None else _typed(Message, value)

    def messages(self, name: str) -> tuple[Message, ...]:
        return tuple(_typed(Message, each) for each in _typed(tuple, self.values.get(name, ())))


# --- The wire ---


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number there and where it ends; over-long forms and 10 bytes at most; Malformed."""
    value = shift = 0
    for position in range(at, at + _VARINT_BYTES):
        if position >= len(data):
            break
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _UINT64, position + 1
        shift += 7
    raise Malformed("a number runs past the end")


def encoded_field(number: int, value: Value) -> bytes:
    """One field with its tag."""
    if isinstance(value, int):  # a bool too
        return varint(number << 3 | VARINT) + varint(value & _UINT64)
    payload = value.encode() if isinstance(value, (Message, str)) else value
    return varint(number << 3 | LENGTH) + varint(len(payload)) + payload


def records(data: bytes, count: FieldCount | None = None) -> Iterator[tuple[int, int, int | bytes, bytes]]:
    """Each field in turn: its number, wire type, value (bytes for all but varints) and the raw bytes with the tag; Malformed."""
    at, count = 0, count or FieldCount()
    while at < len(data):
        count.take()
        start = at
        tag, at = read_varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if not number or tag >= _TAG_LIMIT:
            raise Malformed("an illegal field number")
        value, at = _value(data, at, number, wire_type, 0, count)
        yield number, wire_type, value, data[start:at]


def _value(data: bytes, at: int, number: int, wire_type: int, depth: int, count: FieldCount) -> tuple[int | bytes, int]:
    if wire_type == VARINT:
        return read_varint(data, at)
    if wire_type == GROUP:
        return _group(data, at, number, depth, count)
    if wire_type == LENGTH:
        length, at = read_varint(data, at)
    elif wire_type == FIXED64:
        length = 8
    elif wire_type == FIXED32:
        length = 4
    else:
        raise Malformed("an illegal wire type")
    if length > len(data) - at:
        raise Malformed("a field runs past the end")
    return data[at : at + length], at + length


def _group(data: bytes, at: int, number: int, depth: int, count: FieldCount) -> tuple[bytes, int]:
    """Skip a group, which proto3 has no more, up to its own end."""
    start = at
    if depth > _GROUP_DEPTH:
        raise Malformed("groups are nested too deeply")
    while True:
        end = at
        tag, at = read_varint(data, at)
        if tag & 7 == GROUP_END and tag >> 3 == number:
            return data[start:end], at
        if not tag >> 3 or tag >= _TAG_LIMIT:
            raise Malformed("an illegal field number")
        count.take()
        _, at = _value(data, at, tag >> 3, tag & 7, depth + 1, count)


def _wire_type(kind: Scalar | Schema) -> int:
    return VARINT if kind in ("int64", "uint64", "bool") else LENGTH


def _parsed(kind: Scalar | Schema, value: int | bytes, count: FieldCount) -> Value:
    if isinstance(value, int):
        if kind == "bool":
            return value != 0
        return value - (1 << 64) if kind == "int64" and value >> 63 else value
    if isinstance(kind, Schema):
        return kind.parse(value, count)
    if kind == "string":
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Malformed("a string is not UTF-8") from None
    return value


def _typed(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"a field is no {kind.__name__}")
    return value


# --- JSON ---


def _to_json(kind: Scalar | Schema, value: Value) -> Json:
    if isinstance(value, Message):
        return value.to_json()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value) if kind in ("int64", "uint64") else value


def _from_json(each: Field, value: Json, ignore_unknown: bool) -> Value | tuple[Value, ...]:
    if not each.repeated:
        return _one_from_json(each, value, ignore_unknown)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise Malformed(f"{each.name} is an array")
    return tuple(_one_from_json(each, item, ignore_unknown) for item in value)


def _one_from_json(each: Field, value: Json, ignore_unknown: bool) -> Value:
    kind = each.kind
    if isinstance(kind, Schema):
        return kind.from_json(value, ignore_unknown=ignore_unknown)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind in ("int64", "uint64"):
        return _integer(each, value)
    if isinstance(value, str) and kind == "bytes":
        return _base64(each, value)
    if isinstance(value, str) and kind == "string":
        return value
    raise Malformed(f"{each.name} is not {kind}")


def _integer(each: Field, value: Json) -> int:
    low, high = (-(1 << 63), (1 << 63) - 1) if each.kind == "int64" else (0, _UINT64)
    try:
        number = int(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or (isinstance(value, float) and number != value):
        raise Malformed(f"{each.name} is not an integer")
    if not low <= number <= high:
        raise Malformed(f"{each.name} is out of range")
    return number


def _base64(each: Field, text: str) -> bytes:
    """Standard or URL-safe, padded or not, wrapped or not."""
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"{each.name} is not base64") from None
