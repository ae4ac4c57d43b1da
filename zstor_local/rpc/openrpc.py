"""The registry as an OpenRPC 1.4 document and as text for people."""

from __future__ import annotations

import textwrap
from typing import Final

from zstor_local import limits
from zstor_local.errors import ZstorError
from zstor_local.rpc.registry import Method, Parameter, Registry
from zstor_local.rpc.schema import described
from zstor_local.rpc.strict_json import JsonObject

OPENRPC_VERSION: Final = "1.4.1"

_LIMITS: Final[JsonObject] = {
    "message_bytes": limits.MESSAGE_BYTES,
    "message_values": limits.MESSAGE_VALUES,
    "json_depth": limits.JSON_DEPTH,
    "inline_value_bytes": limits.INLINE_VALUE_BYTES,
    "batch_items": limits.BATCH_ITEMS,
    "calls_per_connection": limits.CALLS_PER_CONNECTION,
    "long_polls_per_connection": limits.LONG_POLLS_PER_CONNECTION,
    "connections": limits.CONNECTIONS,
    "fds_per_call": limits.FDS_PER_CALL,
    "bad_messages_in_a_row": limits.BAD_MESSAGES_IN_A_ROW,
    "progress_per_second": limits.PROGRESS_PER_SECOND,
    "slow_reader_seconds": limits.SLOW_READER_SECONDS,
    "crowded_seconds": limits.CROWDED_SECONDS,
    "crowded_bytes_per_second": limits.CROWDED_BYTES_PER_SECOND,
    "idle_connection_seconds": limits.IDLE_CONNECTION_SECONDS,
    "stream_message_bytes": limits.STREAM_MESSAGE_BYTES,
    "stream_window": limits.STREAM_WINDOW,
    "streams_per_connection": limits.STREAMS_PER_CONNECTION,
    "stream_idle_seconds": limits.STREAM_IDLE_SECONDS,
    "safe_integer": limits.SAFE_INTEGER,
}


def wire_limits() -> JsonObject:
    """The limits that a client can meet, by name."""
    return dict(_LIMITS)


def document(registry: Registry, version: str) -> JsonObject:
    """The OpenRPC document."""
    return {
        "openrpc": OPENRPC_VERSION,
        "info": {
            "title": "zstor-local",
            "version": version,
            "description": "Local, private, self-healing storage over one Unix socket.",
        },
        "methods": [_method(method) for method in registry],
        "components": {"schemas": dict(sorted(registry.schemas.named.items()))},
        "x-limits": wire_limits(),
    }


def _method(method: Method) -> JsonObject:
    members: JsonObject = {
        "name": method.name,
        "summary": method.summary,
        "paramStructure": "either",
        "params": [_parameter(parameter) for parameter in method.parameters],
        "result": {"name": "result", "schema": described(method.result)},
    }
    if method.description:
        members["description"] = method.description
    if method.variadic is not None:
        members["x-rest"] = _parameter(method.variadic)
    if method.long:
        members["x-detach"] = True
    if method.errors:
        members["errors"] = [_error(error) for error in method.errors]
    return members


def _parameter(parameter: Parameter) -> JsonObject:
    members: JsonObject = {"name": parameter.name, "required": parameter.required, "schema": parameter.type.schema}
    if parameter.type.description:
        members["description"] = parameter.type.description
    return members


def _error(error: type[ZstorError]) -> JsonObject:
    return {"code": error.code, "message": error.type, "data": {"type": error.type, "retryable": error.retryable}}


def overview(registry: Registry) -> str:
    """One line per method."""
    methods = [*registry]
    width = max(len(method.name) for method in methods)
    return "\n".join(f"{method.name:{width}}  {method.summary}" for method in methods)


def manual(method: Method) -> str:
    """Everything about one method."""
    parts = [method.synopsis, method.summary]
    if method.description:
        parts.append(method.description)
    rows = [*method.parameters, *([method.variadic] if method.variadic else [])]
    if rows:
        parts.append("Parameters:\n" + "\n".join(_row(parameter) for parameter in rows))
    if method.long:
        parts.append("With `_meta.detach: true` it answers {job} at once and goes on as a job (job.wait).")
    if method.errors:
        parts.append("Errors:\n" + "\n".join(f"  {error.code} {error.type}: {_first_line(error)}" for error in method.errors))
    return "\n\n".join(parts)


def _row(parameter: Parameter) -> str:
    kind = kind_of(parameter.type.schema)
    text = f"  {parameter.name}: {kind}{'' if parameter.required else ' (optional)'}"
    return text + (textwrap.indent("\n" + parameter.type.description, "      ") if parameter.type.description else "")


def kind_of(schema: JsonObject) -> str:
    """A schema in a word or two."""
    if "enum" in schema and isinstance(schema["enum"], list):
        return " | ".join(f'"{value}"' for value in schema["enum"])
    if isinstance(options := schema.get("anyOf") or schema.get("allOf"), list):
        return " | ".join(kind_of(option) for option in options if isinstance(option, dict))
    if "contentEncoding" in schema:
        return "base64"
    if isinstance(reference := schema.get("$ref"), str):
        return reference.rpartition("/")[2]
    kind = schema.get("type", "anything")
    names = [str(name) for name in kind if name != "null"] if isinstance(kind, list) else [str(kind)]
    if names == ["array"] and isinstance(items := schema.get("items"), dict):
        return f"array of {kind_of(items)}"
    return " | ".join(names)


def _first_line(error: type[ZstorError]) -> str:
    return (error.__doc__ or "").partition("\n")[0]
