"""JSON-RPC 2.0 by its own examples, over a real socket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rpc.conftest import World
from zstor_local.rpc.strict_json import Json, JsonObject

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "jsonrpc_spec_cases.json").read_text())


def without_data(response: Json) -> Json:
    """A batch's members in an order of their own; our errors have `data`, the specification's examples do not."""
    if isinstance(response, list):
        return sorted((without_data(member) for member in response), key=json.dumps)
    if isinstance(response, dict) and isinstance(response.get("error"), dict):
        error: JsonObject = {name: value for name, value in response["error"].items() if name != "data"}  # type: ignore[union-attr]
        return {**response, "error": error}
    return response


@pytest.mark.parametrize("form", ["request_line", "request"])
@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
async def test_the_examples_of_the_specification(spec_methods: World, case: dict[str, str], form: str) -> None:
    async with spec_methods.serving(), spec_methods.client() as client:
        await client.send(case[form] + "\n")
        await client.half_close()
        answer = await client.rest()
    if case["response"] is None:
        assert answer == b""
    else:
        first = answer.split(b"\n")[0]
        assert answer.endswith(b"\n")
        assert without_data(json.loads(first)) == without_data(case["response"])
        expected_lines = 2 if form == "request" and "\n]" in case["request"] and b"-32700" in first else 1
        assert answer.count(b"\n") == expected_lines
