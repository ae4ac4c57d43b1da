"""Content ids: their bytes, their text in every base, and what is refused."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.formats.samples import SAMPLES, Sample
from zstor_local.formats import cid, varint
from zstor_local.formats.cid import BadCid, Cid

HELLO = cid.raw(b"hello\n")
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_the_samples_have_their_ids_as_one_block(sample: Sample) -> None:
    assert str(cid.raw(sample.data)) == sample.raw


@given(st.sampled_from([cid.RAW, cid.DAG_PB, 0x71, 0x0200]), st.binary(min_size=32, max_size=32))
def test_text_and_bytes_come_back(codec: int, digest: bytes) -> None:
    made = Cid(codec, digest)
    assert cid.parse(str(made)) == made
    assert cid.from_binary(made.binary) == made


def test_every_usual_base_is_read() -> None:
    binary = HELLO.binary
    base36, value = "", int.from_bytes(binary)
    while value:
        value, digit = divmod(value, 36)
        base36 = _BASE36[digit] + base36
    texts = [
        "B" + base64.b32encode(binary).decode().rstrip("="),
        "f" + binary.hex(),
        "F" + binary.hex().upper(),
        "k" + base36,
        "K" + base36.upper(),
        "m" + base64.b64encode(binary).decode().rstrip("="),
        "u" + base64.urlsafe_b64encode(binary).decode().rstrip("="),
    ]
    assert {cid.parse(text) for text in texts} == {HELLO}


def test_version_0_means_the_node_of_version_1() -> None:
    assert cid.parse("QmZULkCELmmk5XNfCgTnCyFgAVxBRBXyDHGGMVoLFLiXEN").codec == cid.DAG_PB
    digest = hashlib.sha256(b"node").digest()
    assert cid.from_binary(b"\x12\x20" + digest) == Cid(cid.DAG_PB, digest)


def test_content_inside_the_id() -> None:
    empty = cid.parse("bafkqaaa")
    assert empty == Cid(cid.RAW, b"", cid.IDENTITY)
    assert empty.names(b"")
    assert not empty.names(b"x")


def test_an_id_names_its_bytes_only() -> None:
    assert HELLO.names(b"hello\n")
    assert HELLO.names(memoryview(b"hello\n"))
    assert not HELLO.names(b"hello")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "x",
        "hello",
        "bafkrei",
        str(HELLO)[:-1],
        str(HELLO) + "a",
        "b" + str(HELLO)[1:].upper(),
        "z0OIl",
        "f" + HELLO.binary.hex()[:-1],
        "f" + (HELLO.binary + b"\0").hex(),
        "f" + (b"\x02" + HELLO.binary[1:]).hex(),
        "f" + (b"\x81\x00" + HELLO.binary[1:]).hex(),  # a padded number
        "f" + (b"\x01\x55\x13\x20" + bytes(32)).hex(),  # SHA-512
        "f" + (b"\x01\x55\x12\x10" + bytes(16)).hex(),  # half a hash
        "f0155" + "00" + "8101" + "00" * 129,  # too much content inside
        "mé" + "A" * 10,
        "b" + "a" * 600,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadCid):
        cid.parse(text)


@given(st.text(max_size=80))
def test_any_text_is_an_id_or_refused(text: str) -> None:
    try:
        found = cid.parse(text)
    except BadCid:
        return
    assert cid.parse(str(found)) == found


@given(st.binary(max_size=60))
def test_any_bytes_are_an_id_or_refused(data: bytes) -> None:
    try:
        found = cid.from_binary(data)
    except BadCid:
        return
    assert found.binary == data or data[:2] == b"\x12\x20"


@given(st.integers(0, 2**63 - 1))
def test_numbers_come_back_in_their_fewest_bytes(value: int) -> None:
    data = varint.packed(value)
    assert varint.read(data) == (value, len(data))
    assert all(varint.read(data[:cut]) is None for cut in range(len(data)))


@pytest.mark.parametrize("data", [b"\x80\x00", b"\x81\x80\x00", b"\x80" * 9 + b"\x01"])
def test_padded_and_endless_numbers_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="a number is"):
        varint.read(data)
