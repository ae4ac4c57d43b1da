"""Our check of a request's envelope is jsonrpcserver's own schema, but for what docs/wire.md names."""

from __future__ import annotations

import importlib.resources
import json

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rpc.test_framing import json_values
from zstor_local.errors import InvalidRequest
from zstor_local.rpc.dispatch import parse_request
from zstor_local.rpc.strict_json import Json, JsonObject

SCHEMA = json.loads(importlib.resources.files("jsonrpcserver").joinpath("request-schema.json").read_text())
VALIDATOR = jsonschema.Draft4Validator(SCHEMA)


def accepted(value: Json) -> bool:
    try:
        parse_request(value)
    except InvalidRequest:
        return False
    return True


envelopes = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | st.sampled_from(["1.0", 2.0, "2", None]) | json_values,
        "method": st.text() | json_values,
        "params": st.lists(json_values, max_size=3) | st.dictionaries(st.text(), json_values, max_size=3) | json_values,
        "id": st.integers() | st.text() | st.none() | json_values,
        "extra": json_values,
    },
)


@given(envelopes)
def test_the_envelope_is_judged_as_jsonrpcserver_judges_it(value: JsonObject) -> None:
    assert accepted(value) == VALIDATOR.is_valid(value)


@given(st.sampled_from(["jsonrpc", "method", "params", "id", "extra"]), st.booleans() | json_values)
def test_one_wrong_member_is_judged_alike(name: str, member: Json) -> None:
    value: JsonObject = {"jsonrpc": "2.0", "method": "m", "params": [], "id": 1, name: member}
    assert accepted(value) == VALIDATOR.is_valid(value)


@given(json_values.filter(lambda value: not isinstance(value, (dict, list))))
def test_what_is_no_object_is_no_request(value: Json) -> None:
    assert not accepted(value)
    assert not VALIDATOR.is_valid(value)


@given(st.lists(envelopes, min_size=1))
def test_members_of_a_batch_are_judged_one_by_one(values: list[JsonObject]) -> None:
    """The deviation: the library's schema judges the array as a whole."""
    assert all(accepted(value) for value in values) == VALIDATOR.is_valid(values)


def test_meta_beside_the_parameters_is_the_one_member_more() -> None:
    value: JsonObject = {"jsonrpc": "2.0", "method": "m", "id": 1, "params": [1], "_meta": {"progressToken": 1}}
    request = parse_request(value)
    assert request.meta == {"progressToken": 1}
    assert not VALIDATOR.is_valid(value)


def test_meta_is_taken_off_named_parameters() -> None:
    request = parse_request({"jsonrpc": "2.0", "method": "m", "params": {"a": 1, "_meta": {"x": 1}}})
    assert request.params == {"a": 1}
    assert request.meta == {"x": 1}
    assert not request.wants_reply


@pytest.mark.parametrize("identity", [None, 0, 1.5, "", "x"])
def test_any_id_wants_a_reply(identity: Json) -> None:
    assert parse_request({"jsonrpc": "2.0", "method": "m", "id": identity}).wants_reply
