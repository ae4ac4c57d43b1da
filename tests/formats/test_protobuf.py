"""Protobuf: every vector of the remote log's messages, byte for byte, and what the encoding guide says beyond them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.formats.vectors import BY_NAME, SCHEMAS, VECTORS, message, of_kind, pattern
from zstor_local.formats import messages, protobuf, unixfs
from zstor_local.formats.cid import RAW, Cid
from zstor_local.formats.messages import CONTENT
from zstor_local.formats.protobuf import Malformed, encoded_field, read_varint, records
from zstor_local.formats.remotelog import parse_page
from zstor_local.formats.varint import packed as varint


def wire(vector: dict[str, Any], encoded: bytes) -> None:
    """Compare bytes with what a vector says of them."""
    if "wire_hex" in vector:
        assert encoded.hex() == vector["wire_hex"]
    else:
        assert len(encoded) == vector["wire_len"]
        assert encoded[: len(vector["wire_prefix_hex"]) // 2].hex() == vector["wire_prefix_hex"]
        assert sha256(encoded).hexdigest() == vector["wire_sha256"]


def test_every_vector_is_of_a_kind_that_is_tested() -> None:
    assert len(VECTORS) == 48
    assert {vector["kind"] for vector in VECTORS} == {"encode+decode", "decode", "json-decode", "flow"}


@pytest.mark.parametrize("name", of_kind("encode+decode"))
def test_a_message_has_the_bytes_and_the_json_of_its_vector(name: str) -> None:
    vector = BY_NAME[name]
    made, schema = message(vector), SCHEMAS[vector["type"]]
    encoded = made.encode()
    wire(vector, encoded)
    assert schema.parse(encoded).encode() == encoded
    if "proto3_json" in vector:
        assert made.to_json() == schema.parse(encoded).to_json() == vector["proto3_json"]
        assert schema.from_json(vector["proto3_json"]).encode() == encoded


@pytest.mark.parametrize("name", of_kind("decode"))
def test_bytes_are_read_as_google_reads_them(name: str) -> None:
    vector = BY_NAME[name]
    schema, data = SCHEMAS[vector["type"]], bytes.fromhex(vector["wire_hex"])
    if vector.get("expect_error"):
        with pytest.raises(Malformed):
            schema.parse(data)
        return
    parsed = schema.parse(data)
    assert parsed.to_json() == vector["expect_json"]
    assert parsed.encode().hex() == vector["reencoded_hex"]


@pytest.mark.parametrize("name", of_kind("json-decode"))
def test_json_is_read_generously(name: str) -> None:
    vector = BY_NAME[name]
    schema = SCHEMAS[vector["type"]]
    if vector.get("expect_error"):
        with pytest.raises(Malformed):
            schema.from_json(vector["json"])
        assert schema.from_json(vector["json"], ignore_unknown=True).encode() == b""
        return
    assert schema.from_json(vector["json"]).encode().hex() == vector["wire_hex"]


def test_base64_may_be_wrapped_as_old_nim_wraps_it() -> None:
    assert messages.CONTENT.from_json({"data": "Zm9v\r\nYmFy\n"}).blob("data") == b"foobar"


@pytest.mark.parametrize("value", ["x", True, 1.5, "1e3", [], {}, 1 << 63, str(-(1 << 63) - 1)])
def test_what_is_no_64_bit_integer_is_refused(value: Any) -> None:
    with pytest.raises(Malformed):
        messages.MESSAGE.from_json({"timestamp": value})


def test_integers_come_as_numbers_or_as_text() -> None:
    for value in (-5, -5.0, "-5"):
        assert messages.MESSAGE.from_json({"timestamp": value}).number("timestamp") == -5


@pytest.mark.parametrize(
    "data",
    [
        "0a",  # a tag without its length
        "08",  # a tag without its number
        "0d000000",  # three of four bytes
        "0900000000000000",  # seven of eight
        "0c",  # the end of a group that never began
        "0b08",  # a group without an end
        "0b0814",  # a group with the end of another
        "0f",  # wire type 7
        "ffffffffffffffffffff01",  # a tag of 11 bytes
        "80808080800a",  # a tag over 32 bits
        "12ffffffffffffffffff01",  # a length of 2⁶⁴ − 1
        "0b" * 200,  # groups in groups
    ],
)
def test_broken_bytes_are_refused(data: str) -> None:
    with pytest.raises(Malformed):
        messages.REMOTE_LOG.parse(bytes.fromhex(data))


@pytest.mark.parametrize("unknown", ["1d01020304", "190102030405060708", "1b08051c", "1b230524" + "1c"])
def test_fields_of_every_wire_type_survive(unknown: str) -> None:
    if unknown == "1b2305241c":  # a group in a group, whose content 05 24 is no field
        unknown = "1b230805241c"
    parsed = messages.REMOTE_LOG.parse(bytes.fromhex(unknown))
    assert parsed.values == {}
    assert parsed.encode().hex() == unknown


@pytest.mark.parametrize(
    "many",
    [
        lambda count: CONTENT.parse(count * b"\x10\x01"),
        lambda count: CONTENT.parse(b"\x13" + (count - 1) * b"\x10\x01" + b"\x14"),
        lambda count: parse_page((count // 50) * (b"\x0a\x62" + 49 * b"\x28\x01")),
        lambda count: parse_page(b"\x0a\x00" * count),
        lambda count: messages.MESSAGE.parse(encoded_field(6004, (count - 1) * b"\x0a\x00")),
    ],
    ids=["fields", "a group", "fields of pairs", "pairs", "parents"],
)
def test_a_message_of_too_many_fields_is_refused_before_it_takes_long(
    many: Callable[[int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protobuf, "FIELDS_MAX", 1_000)
    many(1_000)
    with pytest.raises(Malformed, match="more than 1000 fields"):
        many(1_050)


def test_so_is_a_block_of_links(monkeypatch: pytest.MonkeyPatch) -> None:
    links = 20 * [unixfs.Link(Cid(RAW, bytes(32)), 1, 1)]
    block = unixfs.node(links).block
    assert len(unixfs.parse_node(block)) == 20
    monkeypatch.setattr(protobuf, "FIELDS_MAX", 60)
    with pytest.raises(Malformed, match="more than 60 fields"):
        unixfs.parse_node(block)


def test_a_message_that_comes_twice_is_merged() -> None:
    once = encoded_field(6004, messages.METADATA.make(parents=(b"a",)))
    again = encoded_field(6004, messages.METADATA.make(parents=(b"b",), ephemeral=True))
    metadata = messages.MESSAGE.parse(once + again).message("metadata")
    assert metadata is not None
    assert (metadata.blobs("parents"), metadata.number("ephemeral")) == ((b"a", b"b"), 1)


def test_pieces_of_a_message_are_put_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 8 MiB may come in a million pieces: whoever adds each to those before it copies them a million times."""
    copied = 0

    class Piece(bytes):
        def __radd__(self, before: bytes) -> bytes:
            nonlocal copied
            copied += len(before)
            return b"".join((before, self))

    def in_pieces(data: bytes, count: protobuf.FieldCount) -> Iterator[tuple[int, int, int | bytes, bytes]]:
        for number, wire_type, value, raw in records(data, count):
            yield number, wire_type, Piece(value) if isinstance(value, bytes) else value, raw

    monkeypatch.setattr(protobuf, "records", in_pieces)
    once = encoded_field(6004, messages.METADATA.make(parents=(b"a" * 100,)))
    metadata = messages.MESSAGE.parse(once * 100).message("metadata")
    assert metadata is not None
    assert len(metadata.blobs("parents")) == 100
    assert copied <= len(once) * 100


@given(st.integers(0, (1 << 64) - 1))
def test_a_number_comes_back(value: int) -> None:
    assert read_varint(varint(value), 0) == (value, len(varint(value)))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_and_reading_again_changes_nothing(data: bytes) -> None:
    for schema in SCHEMAS.values():
        try:
            parsed = schema.parse(data)
        except Malformed:
            continue
        again = parsed.encode()
        assert schema.parse(again).encode() == again
        assert schema.parse(again).to_json() == parsed.to_json()


def test_the_flow_of_alice_and_bob_has_the_bytes_of_its_vector() -> None:
    flow = BY_NAME["flow-alice-bob"]
    content = bytes.fromhex(flow["mvds_message_hex"])
    assert messages.CONTENT.make(data=content).encode().hex() == flow["cas_add_request_hex"]
    assert bytes.fromhex(flow["remote_hash_cidv1_hex"]) == bytes.fromhex("01551220") + sha256(content).digest()
    page = messages.REMOTE_LOG.parse(bytes.fromhex(flow["remote_log_hex"]))
    (pair,) = page.messages("pair")
    assert (pair.blob("remoteHash").hex(), pair.blob("localHash").hex()) == (flow["remote_hash_cidv1_hex"], flow["local_hash_hex"])
    assert pattern(3, "rl") == bytes.fromhex("66c97b")
