"""The vectors of tests/vectors/remote_log.json, and what their fields mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from zstor_local.formats import messages
from zstor_local.formats.protobuf import Field, Message, Schema

VECTORS: Final[list[dict[str, Any]]] = json.loads((Path(__file__).parent.parent / "vectors" / "remote_log.json").read_text())["vectors"]
BY_NAME: Final = {vector["name"]: vector for vector in VECTORS}

_POC_PAIR: Final = Schema("vac.remotelog_poc.RemoteLog.Pair", messages.PAIR.fields[:2])
SCHEMAS: Final = {
    schema.name: schema
    for schema in (
        messages.CONTENT,
        messages.ADDRESS,
        messages.NAME_UPDATE,
        messages.QUERY,
        messages.NAME_CONTENT,
        messages.RESPONSE,
        messages.REMOTE_LOG,
        messages.MESSAGE,
        messages.PAYLOAD,
        Schema(
            "vac.remotelog_poc.RemoteLog",  # the proof of concept's, whose pairs have no data
            (Field(1, "pair", _POC_PAIR, repeated=True), messages.REMOTE_LOG.fields[1]),
        ),
    )
}


def of_kind(kind: str) -> list[str]:
    return [vector["name"] for vector in VECTORS if vector["kind"] == kind]


def pattern(count: int, seed: str) -> bytes:
    """sha256(seed ‖ uint32 big-endian i) for i = 0, 1, 2, … in a row, cut."""
    blocks = -(-count // 32)
    return b"".join(sha256(seed.encode() + number.to_bytes(4, "big")).digest() for number in range(blocks))[:count]


def message(vector: Mapping[str, Any]) -> Message:
    """The message that a vector's `fields` tell of."""
    fields, schema = vector["fields"], SCHEMAS[vector["type"]]
    if schema is messages.REMOTE_LOG:
        return _remote_log(vector["name"], fields)
    if schema is messages.PAYLOAD:
        lists = {name: tuple(bytes.fromhex(each) for each in fields[name]) for name in ("acks", "offers", "requests")}
        return schema.make(**lists, messages=tuple(message(BY_NAME[name]) for name in fields["messages"]))
    if vector["name"] == "mvds-message-metadata":
        simple = message(BY_NAME["mvds-message-simple"])
        group = simple.blob("group_id")
        parent = sha256(b"MESSAGE_ID" + group + bytes(8)).digest()
        return schema.make(**simple.values, metadata=messages.METADATA.make(parents=(parent,), ephemeral=True))
    return schema.make(**{name: value for each, given in fields.items() for name, value in [_scalar(each, given)]})


def _scalar(name: str, given: Any) -> tuple[str, bytes | str | int]:
    if name.endswith("_hex"):
        return name.removesuffix("_hex"), bytes.fromhex(given)
    if name.endswith("_pattern"):
        return name.removesuffix("_pattern"), pattern(*given)
    return name, given


def _remote_log(name: str, fields: Mapping[str, Any]) -> Message:
    def pair(remote: bytes, local: bytes, data: bytes = b"") -> Message:
        return messages.PAIR.make(remoteHash=remote, localHash=local, data=data)

    if name == "remotelog-1000-pairs":
        pairs = [pair(sha256(b"r%d" % number).digest(), sha256(b"l%d" % number).digest()) for number in range(1000)]
        return messages.REMOTE_LOG.make(pair=tuple(pairs), tail=sha256(b"t").digest())
    if name == "remotelog-large-data":
        return messages.REMOTE_LOG.make(pair=(pair(b"", sha256(b"local-1").digest(), pattern(*fields["data_pattern"])),))
    as_bytes = str.encode if name == "remotelog-node-nim-intended" else bytes.fromhex
    pairs = [pair(*(as_bytes(part) for part in parts)) for parts in fields["pair"]]
    return messages.REMOTE_LOG.make(pair=tuple(pairs), tail=bytes.fromhex(fields.get("tail_hex", "")))
