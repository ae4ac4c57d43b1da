"""Annotations to JSON schemas and to checks: one table of types, so that what is published is what is enforced.

A `Check` takes a JSON value and gives the argument, or raises `Mismatch`. Both are made once, when a method is registered.

| annotation | JSON |
|---|---|
| `str`, `bool`, `int`, `float` | string, boolean, integer within ±(2⁵³ − 1) and no boolean, number |
| `bytes` | standard base64 in a string |
| `Literal["a", "b"]`, `T \\| None`, unions | enum, null too, any of them |
| `list[T]`, `dict[str, T]` | array, object |
| a `TypedDict`, a dataclass (results only) | object with just these members, a named schema |
| `Json`, `object` | anything |

`Annotated[T, ...]` adds a description (a plain string), `Range`, `Length` and `Pattern`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, NotRequired, Required, TypeAlias, Union, get_args, get_origin

from zstor_local import limits
from zstor_local.rpc.strict_json import Base64, Json, JsonObject, decode_base64

Check: TypeAlias = "Callable[[Json], object]"


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a number, both allowed."""

    minimum: int | float | None = None
    maximum: int | float | None = None


@dataclass(frozen=True, slots=True)
class Length:
    """Bounds of the number of characters or items, both allowed."""

    minimum: int = 0
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that the whole text must match, anchored (`^…$`)."""

    expression: str


class Mismatch(Exception):
    """The value is not what the annotation says; the text ends a sentence that begins with the parameter's name."""


@dataclass(frozen=True, slots=True)
class Type:
    """One annotation, compiled."""

    schema: JsonObject
    check: Check
    description: str | None = None


class Schemas:
    """Compiles annotations; collects the named schemas (`TypedDict`s and dataclasses) that they mention."""

    def __init__(self) -> None:
        self.named: dict[str, JsonObject] = {}
        self._members: dict[type, Type] = {}

    def compile(self, annotation: object) -> Type:
        """The schema and check of an annotation. TypeError for one that has no place in JSON."""
        if annotation in _SCALARS:
            return _SCALARS[typing.cast(type, annotation)]
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return self._annotated(arguments[0], arguments[1:])
        if origin in (NotRequired, Required):
            return self.compile(arguments[0])
        if origin is Literal:
            return _literal(arguments)
        if origin in (Union, types.UnionType):
            return _is_json(annotation) or _union([self.compile(argument) for argument in arguments])
        if origin is list:
            return _list(self.compile(arguments[0]))
        if origin in (dict, Mapping) and arguments[0] is str:
            return _dict(self.compile(arguments[1]))
        if isinstance(annotation, type) and (typing.is_typeddict(annotation) or dataclasses.is_dataclass(annotation)):
            return self._named(annotation)
        raise TypeError(f"no JSON for the annotation {annotation!r}")

    def _annotated(self, annotation: object, notes: tuple[object, ...]) -> Type:
        compiled = self.compile(annotation)
        for note in notes:
            if isinstance(note, str):
                compiled = dataclasses.replace(compiled, description=note)
            elif isinstance(note, Range):
                compiled = _within(compiled, note)
            elif isinstance(note, Length):
                compiled = _measured(compiled, note)
            elif isinstance(note, Pattern):
                compiled = _matching(compiled, note)
        return compiled

    def _named(self, record: type) -> Type:
        if record in self._members:
            return self._members[record]
        name = record.__name__
        if name in self.named:
            raise TypeError(f"two types named {name}")
        reference: JsonObject = {"$ref": f"#/components/schemas/{name}"}
        members: dict[str, Type] = {}
        required: list[str] = []
        self.named[name] = {}
        self._members[record] = Type(reference, functools.partial(_check_members, members, required))
        for member, annotation in typing.get_type_hints(record, include_extras=True).items():
            members[member] = self.compile(annotation)
        required += sorted(getattr(record, "__required_keys__", members), key=list(members).index)
        properties: JsonObject = {member: described(compiled) for member, compiled in members.items()}
        self.named[name] = {"type": "object", "properties": properties, "additionalProperties": False}
        if required:
            self.named[name]["required"] = [*required]
        if typing.is_typeddict(record) and record.__doc__:
            self.named[name]["description"] = record.__doc__.splitlines()[0]
        return self._members[record]


def described(compiled: Type) -> JsonObject:
    """The schema with its description; beside a `$ref` draft 7 would ignore one."""
    if compiled.description is None:
        return compiled.schema
    if "$ref" in compiled.schema:
        return {"allOf": [compiled.schema], "description": compiled.description}
    return {**compiled.schema, "description": compiled.description}


# --- The table ---


def _string(value: Json) -> str:
    if type(value) is not str:
        raise Mismatch("must be a string")
    return value


def _boolean(value: Json) -> bool:
    if type(value) is not bool:
        raise Mismatch("must be true or false")
    return value


def _integer(value: Json) -> int:
    if type(value) is not int:
        raise Mismatch("must be an integer")
    if not -limits.SAFE_INTEGER <= value <= limits.SAFE_INTEGER:
        raise Mismatch("must be within ±(2^53 - 1)")
    return value


def _number(value: Json) -> float:
    if type(value) is not int and type(value) is not float:
        raise Mismatch("must be a number")
    return value


def _null(value: Json) -> None:
    if value is not None:
        raise Mismatch("must be null")


def _bytes(value: Json) -> bytes:
    try:
        return decode_base64(_string(value))
    except ValueError:
        raise Mismatch("must be standard base64 with padding") from None


def _anything(value: Json) -> Json:
    return value


_BASE64: Final[JsonObject] = {"type": "string", "contentEncoding": "base64"}
_ANYTHING: Final = Type({}, _anything)
_SCALARS: Final[dict[object, Type]] = {
    str: Type({"type": "string"}, _string),
    bool: Type({"type": "boolean"}, _boolean),
    int: Type({"type": "integer", "minimum": -limits.SAFE_INTEGER, "maximum": limits.SAFE_INTEGER}, _integer),
    float: Type({"type": "number"}, _number),
    type(None): Type({"type": "null"}, _null),
    None: Type({"type": "null"}, _null),
    bytes: Type(_BASE64, _bytes),
    Base64: Type(_BASE64, _bytes),
    object: _ANYTHING,
    Json: _ANYTHING,  # as written; resolved it is the union that `_is_json` knows
}


def _is_json(annotation: object) -> Type | None:
    """`Json` resolves to a union that mentions itself; it means anything."""
    recursive = any("Json" in str(argument) for argument in get_args(annotation))
    return _ANYTHING if recursive and str in get_args(annotation) else None


def _literal(values: tuple[object, ...]) -> Type:
    if not all(type(value) is str for value in values):
        raise TypeError("a Literal of anything but strings")
    allowed = typing.cast("tuple[str, ...]", values)

    def check(value: Json) -> str:
        if type(value) is not str or value not in allowed:
            raise Mismatch("must be " + " or ".join(f'"{option}"' for option in allowed))
        return value

    return Type({"type": "string", "enum": [*allowed]}, check)


def _union(options: list[Type]) -> Type:
    def check(value: Json) -> object:
        problems = []
        for option in options:
            try:
                return option.check(value)
            except Mismatch as mismatch:
                problems.append(str(mismatch))
        raise Mismatch(" or ".join([problems[0], *(problem.removeprefix("must be ") for problem in problems[1:])]))

    null = _SCALARS[None]
    others = [option for option in options if option != null]
    description = next((option.description for option in options if option.description), None)
    if len(others) == 1 and len(options) == 2:
        inner = others[0].check

        def check_optional(value: Json) -> object:
            return None if value is None else inner(value)

        return Type(_any_of(options), check_optional, description)
    return Type(_any_of(options), check, description)


def _any_of(options: list[Type]) -> JsonObject:
    """`{"type": [...]}` where one option only adds null, anyOf elsewhere."""
    schemas = [option.schema for option in options]
    kinds = [schema.get("type") for schema in schemas]
    plain = [schema for schema in schemas if schema != {"type": "null"}]
    if len(plain) == 1 and isinstance(plain[0].get("type"), str) and "enum" not in plain[0]:
        return {**plain[0], "type": [*kinds]}
    return {"anyOf": [*schemas]}


def _list(item: Type) -> Type:
    def check(value: Json) -> list[object]:
        if type(value) is not list:
            raise Mismatch("must be an array")
        return [_inside(f"item {index}", item, member) for index, member in enumerate(value)]

    return Type({"type": "array", "items": described(item)}, check)


def _dict(item: Type) -> Type:
    def check(value: Json) -> dict[str, object]:
        if type(value) is not dict:
            raise Mismatch("must be an object")
        return {name: _inside(f'"{name}"', item, member) for name, member in value.items()}

    return Type({"type": "object", "additionalProperties": described(item)}, check)


def _check_members(members: Mapping[str, Type], required: list[str], value: Json) -> dict[str, object]:
    if type(value) is not dict:
        raise Mismatch("must be an object")
    for name in value:
        if name not in members:
            raise Mismatch(f'must not have a member "{name[:64]}"')
    for name in required:
        if name not in value:
            raise Mismatch(f'lacks the member "{name}"')
    return {name: _inside(f'"{name}"', members[name], member) for name, member in value.items()}


def _inside(where: str, item: Type, value: Json) -> object:
    try:
        return item.check(value)
    except Mismatch as mismatch:
        raise Mismatch(f"{mismatch} ({where})") from None


def _within(compiled: Type, bounds: Range) -> Type:
    inner, low, high = compiled.check, bounds.minimum, bounds.maximum

    def check(value: Json) -> object:
        number = inner(value)
        if isinstance(number, (int, float)):
            if low is not None and number < low:
                raise Mismatch(f"must be at least {low}")
            if high is not None and number > high:
                raise Mismatch(f"must be at most {high}")
        return number

    schema = dict(compiled.schema)
    if low is not None:
        schema["minimum"] = low
    if high is not None:
        schema["maximum"] = high
    return dataclasses.replace(compiled, schema=schema, check=check)


def _measured(compiled: Type, bounds: Length) -> Type:
    inner, low, high = compiled.check, bounds.minimum, bounds.maximum
    kind = compiled.schema.get("type")
    array = kind == "array" or (isinstance(kind, list) and "array" in kind)
    unit = "item" if array else "character"

    def check(value: Json) -> object:
        result = inner(value)
        if isinstance(value, (str, list)):
            if len(value) < low:
                raise Mismatch(f"must have at least {low} {unit}" + "s" * (low != 1))
            if high is not None and len(value) > high:
                raise Mismatch(f"must have at most {high} {unit}" + "s" * (high != 1))
        return result

    schema = dict(compiled.schema)
    if low:
        schema["minItems" if array else "minLength"] = low
    if high is not None:
        schema["maxItems" if array else "maxLength"] = high
    return dataclasses.replace(compiled, schema=schema, check=check)


def _matching(compiled: Type, pattern: Pattern) -> Type:
    inner, matches = compiled.check, re.compile(pattern.expression).fullmatch

    def check(value: Json) -> object:
        text = inner(value)
        if isinstance(text, str) and not matches(text):
            raise Mismatch(f"must match {pattern.expression}")
        return text

    return dataclasses.replace(compiled, schema={**compiled.schema, "pattern": pattern.expression}, check=check)
