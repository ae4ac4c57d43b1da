"""One signature makes the binding, the checks and the schemas."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NotRequired, TypedDict

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rpc.conftest import World, error_type
from tests.rpc.test_framing import json_values
from zstor_local.errors import Conflict
from zstor_local.rpc.call import Call
from zstor_local.rpc.registry import NamedFirst, Registry
from zstor_local.rpc.schema import Length, Mismatch, Pattern, Range, Schemas, described
from zstor_local.rpc.strict_json import Base64, Json, JsonObject


class Inner(TypedDict):
    """A part of a record."""

    size: int
    note: NotRequired[str]


class Record(TypedDict, total=False):
    """A record with a part of its own kind."""

    inner: Inner
    more: "list[Record]"  # noqa: UP037 (resolved when it is registered)


@dataclass(frozen=True, slots=True)
class Point:
    """A dataclass as a result."""

    x: int
    data: Base64


ANNOTATIONS: list[object] = [
    str,
    bool,
    int,
    float,
    None,
    Json,
    object,
    Literal["a", "b"],
    str | None,
    int | str,
    int | str | None,
    Literal["a"] | None,
    list[int],
    list[str | None],
    dict[str, bool],
    Inner,
    Record,
    Annotated[int, Range(1, 10)],
    Annotated[float | None, Range(maximum=0.5)],
    Annotated[str, Length(1, 3)],
    Annotated[list[int] | None, Length(maximum=2)],
    Annotated[str, Pattern("^[a-z]+$")],
    Annotated[int | None, "with a description", Range(0)],
]


def without_whole_floats(value: Json) -> bool:
    """To a JSON schema 1.0 is an integer; to us it is none, as to most languages."""
    if isinstance(value, list):
        return all(without_whole_floats(item) for item in value)
    if isinstance(value, dict):
        return all(without_whole_floats(item) for item in value.values())
    return not (isinstance(value, float) and value.is_integer())


likely = st.one_of(
    json_values,
    st.sampled_from(["a", "b", "abcd", "", "Ab", 0, 1, 10, 11, 2**53 - 1, 2**53, -(2**53), True, False, None, 0.5, 0.75]),
    st.fixed_dictionaries({"size": st.integers(-3, 3)}, optional={"note": json_values, "x": json_values}),
    st.fixed_dictionaries({}, optional={"inner": st.just({"size": 1}), "more": st.just([{"more": []}, {}])}),
    st.lists(st.integers() | st.none() | st.text(max_size=2), max_size=3),
    st.dictionaries(st.text(max_size=2), st.booleans(), max_size=3),
)


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=str)
@given(value=likely.filter(without_whole_floats))
def test_what_is_checked_is_what_is_published(annotation: object, value: Json) -> None:
    schemas = Schemas()
    compiled = schemas.compile(annotation)
    schema = {**compiled.schema, "components": {"schemas": schemas.named}}
    jsonschema.Draft7Validator.check_schema(schema)
    try:
        compiled.check(value)
        fits = True
    except Mismatch:
        fits = False
    assert fits == jsonschema.Draft7Validator(schema).is_valid(value)


def test_numbers_keep_their_kind() -> None:
    schemas = Schemas()
    for value in (True, 1.0, "1", 2**53, -(2**53), None):
        with pytest.raises(Mismatch):
            schemas.compile(int).check(value)
    with pytest.raises(Mismatch):
        schemas.compile(float).check(True)
    assert schemas.compile(int).check(2**53 - 1) == 2**53 - 1


@pytest.mark.parametrize("annotation", [set[int], complex, dict[int, str], Literal[1], tuple[int, ...]])
def test_what_has_no_place_in_json_cannot_be_registered(annotation: object) -> None:
    with pytest.raises(TypeError):
        Schemas().compile(annotation)


def test_two_types_cannot_share_a_name() -> None:
    schemas = Schemas()
    schemas.compile(Inner)
    with pytest.raises(TypeError, match="Inner"):
        schemas.compile(dataclass(type("Inner", (), {})))


# --- Signatures ---


async def keyworded(call: Call, /, *, key: str, size: int | None = None) -> str:
    """Named parameters.

    They work by position too.
    """
    return f"{key} {size}"


async def decoding(call: Call, /, value_b64: bytes | None = None) -> str:
    """Bytes."""
    return repr(value_b64)


async def counted(call: Call, /, first: str, *rest: int) -> list[object]:
    """A tail."""
    return [first, *rest]


async def point(call: Call, /) -> Point:
    """A dataclass."""
    return Point(1, Base64(b"abc"))


@pytest.fixture
def methods(world: World) -> World:
    world.registry.method("keyworded", errors=[Conflict])(keyworded)
    world.registry.method("decoding")(decoding)
    world.registry.method("counted")(counted)
    world.registry.method("point")(point)
    return world


@pytest.mark.parametrize(
    ("method", "params", "result"),
    [
        ("keyworded", {"key": "a"}, "a None"),
        ("keyworded", {"size": 3, "key": "a"}, "a 3"),
        ("keyworded", {"size": None, "key": "a"}, "a None"),
        ("keyworded", ["a"], "a None"),
        ("keyworded", ["a", 3], "a 3"),
        ("decoding", {"value_b64": "AAE="}, repr(b"\x00\x01")),
        ("decoding", {}, "None"),
        ("counted", ["a"], ["a"]),
        ("counted", ["a", 1, 2], ["a", 1, 2]),
        ("point", [], {"x": 1, "data": "YWJj"}),
    ],
)
async def test_parameters_work_by_name_and_by_position(methods: World, method: str, params: Json, result: Json) -> None:
    async with methods.serving(), methods.client() as client:
        assert await client.result(method, params) == result


REFUSED: list[tuple[str, Json, str, str | None]] = [
    ("keyworded", {"kee": "a"}, 'keyworded has no parameter "kee"', 'did you mean "key"?'),
    ("keyworded", {"key": "a", "zzz": 1}, 'keyworded has no parameter "zzz"', "keyworded(key, size?)"),
    ("keyworded", {}, "keyworded needs key", "keyworded(key, size?)"),
    ("keyworded", [], "keyworded needs key", "keyworded(key, size?)"),
    ("keyworded", ["a", 1, 2], "keyworded takes at most 2 parameters, 3 given", "keyworded(key, size?)"),
    ("keyworded", {"key": 1}, "key must be a string", None),
    ("keyworded", {"key": None}, "key must be a string", None),
    ("keyworded", ["a", True], "size must be an integer", None),
    ("keyworded", ["a", 2**53], "size must be within ±(2^53 - 1)", None),
    ("decoding", {"value_b64": "A"}, "value_b64 must be standard base64 with padding", None),
    ("decoding", {"value_b64": 1}, "value_b64 must be a string", None),
    ("counted", {"first": "a", "rest": [1]}, 'counted has no parameter "rest"', 'did you mean "first"?'),
    ("counted", ["a", "b"], "rest must be an integer", None),
    ("counted", [], "counted needs first", "counted(first, rest...)"),
]


@pytest.mark.parametrize(("method", "params", "detail", "hint"), REFUSED)
async def test_refused_parameters_are_named(methods: World, method: str, params: Json, detail: str, hint: str | None) -> None:
    async with methods.serving(), methods.client() as client:
        error = await client.error(method, params)
        assert (error["code"], error["message"], error_type(error)) == (-32602, "Invalid params", "invalid_params")
        data = error["data"]
        assert isinstance(data, dict)
        assert data["detail"] == detail
        if detail.startswith("counted has"):
            assert "hint" in data
        else:
            assert data.get("hint") == hint
        checked = await client.error("rpc.check", {"method": method, "params": params})
        assert checked == error


async def test_a_wrong_method_name_is_answered_with_the_nearest(methods: World) -> None:
    async with methods.serving(), methods.client() as client:
        error = await client.error("rpc.pin")
        assert error["message"] == "Method not found"
        assert error["data"] == {
            "type": "method_not_found",
            "retryable": False,
            "detail": 'no method "rpc.pin"',
            "hint": 'did you mean "rpc.ping"?',
        }


def test_signatures_that_positions_could_not_fill_are_refused() -> None:
    registry = Registry()

    async def optional_first(call: Call, /, *, key: str | None = None, size: int) -> None:
        """Positions would mean nothing."""

    async def no_call(key: str) -> None:
        """Nobody gets the call."""

    async def nameless(call: Call, /, **rest: int) -> None:
        """Names are not known."""

    async def undocumented(call: Call, /) -> None:
        pass

    for function in (optional_first, no_call, nameless, undocumented):
        with pytest.raises(TypeError):
            registry.method("m")(function)
    registry.method("m")(point)
    with pytest.raises(ValueError, match="taken"):
        registry.method("m")(point)


def resolve(document: JsonObject, schema: JsonObject) -> JsonObject:
    return {**schema, "components": document["components"]}


async def test_discover_describes_what_is_registered(methods: World) -> None:
    async with methods.serving(), methods.client() as client:
        document = await client.result("rpc.discover")
    assert isinstance(document, dict)
    assert document["openrpc"] == "1.4.1"
    listed = document["methods"]
    assert isinstance(listed, list)
    by_name = {method["name"]: method for method in listed if isinstance(method, dict)}
    assert list(by_name) == [method.name for method in methods.registry]
    assert {"rpc.discover", "rpc.methods", "rpc.ping", "rpc.check", "help"} < by_name.keys()
    assert by_name["keyworded"] == {
        "name": "keyworded",
        "summary": "Named parameters.",
        "description": "They work by position too.",
        "paramStructure": "either",
        "params": [
            {"name": "key", "required": True, "schema": {"type": "string"}},
            {
                "name": "size",
                "required": False,
                "schema": {"type": ["integer", "null"], "minimum": -(2**53 - 1), "maximum": 2**53 - 1},
            },
        ],
        "result": {"name": "result", "schema": {"type": "string"}},
        "errors": [{"code": 102, "message": "conflict", "data": {"type": "conflict", "retryable": False}}],
    }


async def test_the_document_has_what_openrpc_asks_for(methods: World) -> None:
    async with methods.serving(), methods.client() as client:
        document = await client.result("rpc.discover")
        assert isinstance(document, dict)
        assert {"openrpc", "info", "methods", "components"} <= document.keys()
        assert {name for name in document if name not in ("openrpc", "info", "methods", "components")} == {"x-limits"}
        listed = document["methods"]
        assert isinstance(listed, list)
        for method in listed:
            assert isinstance(method, dict)
            parameters, result = method["params"], method["result"]
            assert isinstance(parameters, list)
            for descriptor in [*parameters, result]:
                assert isinstance(descriptor, dict)
                assert isinstance(descriptor["name"], str)
                assert isinstance(descriptor["schema"], dict)
                jsonschema.Draft7Validator.check_schema(resolve(document, descriptor["schema"]))
        # References lead somewhere, and real results fit their schemas.
        for name in ("rpc.methods", "rpc.ping", "rpc.discover", "help", "point"):
            schema = described(methods.registry[name].result)
            jsonschema.Draft7Validator(resolve(document, schema)).validate(await client.result(name))


async def test_help_is_for_people(methods: World) -> None:
    async with methods.serving(), methods.client() as client:
        overview = await client.result("help")
        assert isinstance(overview, str)
        assert [line.split()[0] for line in overview.splitlines()] == [method.name for method in methods.registry]
        assert "  Named parameters." in overview
        text = await client.result("help", ["keyworded"])
        assert isinstance(text, str)
        for part in ("keyworded(key, size?)", "key: string", "size: integer (optional)", "102 conflict"):
            assert part in text
        assert error_type(await client.error("help", ["keywordd"])) == "method_not_found"


async def test_check_runs_nothing(methods: World) -> None:
    ran: list[str] = []

    @methods.registry.method("effect")
    async def effect(call: Call, /, name: str) -> None:
        """An effect."""
        ran.append(name)

    async with methods.serving(), methods.client() as client:
        assert await client.result("rpc.check", {"method": "effect", "params": {"name": "x"}}) == {"ok": True}
        assert await client.result("rpc.check", {"method": "effect", "params": ["x"]}) == {"ok": True}
        assert error_type(await client.error("rpc.check", {"method": "nobody"})) == "method_not_found"
    assert ran == []


def _plain(call: object, /, key: str, size: int = 0, *, fd: int | None = None) -> None: ...


def _many(call: object, /, key: str = "", *rest: int) -> None: ...


@pytest.mark.parametrize("function", [_plain, _many], ids=["named", "variadic"])
@given(
    positional=st.lists(st.integers(), max_size=4),
    named=st.dictionaries(st.sampled_from(["key", "size", "fd", "rest", "call", "other"]), st.integers()),
)
def test_a_quick_signature_binds_just_what_the_library_would(
    function: Callable[..., None], positional: list[int], named: dict[str, int]
) -> None:
    signature = inspect.signature(function)

    def binds(candidate: inspect.Signature) -> bool:
        try:
            candidate.bind("call", *positional, **named)
        except TypeError:
            return False
        return True

    assert binds(NamedFirst.of(signature)) is binds(signature)
