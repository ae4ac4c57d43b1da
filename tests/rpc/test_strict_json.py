"""JSON that two readers could understand differently is refused; what is written any reader takes."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rpc.test_framing import json_values
from zstor_local import limits
from zstor_local.errors import ParseError
from zstor_local.rpc.strict_json import REASONS, Base64, Json, decode, decode_base64, encode

REFUSED = [
    (b"{", "syntax"),
    (b"", "syntax"),
    (b"[1] x", "syntax"),
    (b"{'a': 1}", "syntax"),
    (b'["a\tb"]', "syntax"),
    (b"[01]", "syntax"),
    (b'{"a":1,"a":1}', "duplicate_name"),
    (b'[{"b":{"a":1,"\\u0061":2}}]', "duplicate_name"),
    (b"[NaN]", "not_finite"),
    (b"[Infinity]", "not_finite"),
    (b"[-Infinity]", "not_finite"),
    (b"[1e400]", "not_finite"),
    (b'["\\ud800"]', "lone_surrogate"),
    (b'{"\\uDC00":1}', "lone_surrogate"),
    (b'["\xff"]', "encoding"),
    (b'["\xed\xa0\x80"]', "encoding"),
    (b'\xef\xbb\xbf{"a":1}', "byte_order_mark"),
    ('{"a":1}'.encode("utf-16"), "byte_order_mark"),
    ('{"a":1}'.encode("utf-32"), "byte_order_mark"),
    ('{"a":1}'.encode("utf-16-le"), "syntax"),
    (b"[" * 65 + b"]" * 65, "too_deep"),
    (b'{"a":' * 65 + b"1" + b"}" * 65, "too_deep"),
    (b"[" * 100_000, "too_deep"),
    (b"[" + b"1" * 4301 + b"]", "integer_too_long"),
    (b"[" + b"1," * 100_000 + b"1]", "too_many_values"),
    (b"[" + b"[]," * 99_999 + b"[]]", "too_many_values"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=lambda value: repr(value[:20]))
def test_what_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(ParseError) as caught:
        decode(text)
    assert caught.value.data == {"reason": reason}


def test_every_reason_has_a_case() -> None:
    assert {reason for _, reason in REFUSED} == set(REASONS)


def test_what_is_just_within_the_limits() -> None:
    assert decode(b"[" * 64 + b"]" * 64) is not None
    assert decode(b"[" + b"1" * 4300 + b"]") == [int("1" * 4300)]
    values = decode(b"[" + b"1," * (limits.MESSAGE_VALUES - 2) + b"1]")
    assert isinstance(values, list)
    assert len(values) == limits.MESSAGE_VALUES - 1
    assert decode(b'["\\ud83d\\ude00"]') == ["😀"]


def test_commas_and_brackets_in_text_are_no_values() -> None:
    text = ',[{"\\' * 100_000
    assert decode(json.dumps([text]).encode()) == [text]


def test_a_string_without_an_end_is_looked_at_once() -> None:
    with pytest.raises(ParseError):  # each quote in it may look like the beginning of another one
        decode(b"[" + b"[]," * 100 + b'"' + b'\\"' * 1_000_000)


@given(json_values)
def test_what_is_written_reads_back_and_is_one_line_of_ascii(value: Json) -> None:
    line = encode(value)
    assert line.isascii()
    assert b"\n" not in line
    assert decode(line) == value


@given(st.binary(max_size=64))
def test_the_decoder_refuses_or_agrees_with_the_standard_library(text: bytes) -> None:
    try:
        value = decode(text)
    except ParseError:
        return
    assert value == json.loads(text)


@given(st.lists(st.binary() | st.text() | st.just("\0base64\0"), max_size=6))
def test_bytes_are_written_as_base64_wherever_they_stand(items: list[bytes | str]) -> None:
    written = encode({"items": [Base64(item) if isinstance(item, bytes) else item for item in items]})
    expected = [base64.b64encode(item).decode() if isinstance(item, bytes) else item for item in items]
    assert decode(written) == {"items": expected}


def test_a_dataclass_is_written_as_an_object() -> None:
    @dataclass
    class Point:
        x: int
        y: Base64

    assert encode([Point(1, Base64(b"abc"))]) == b'[{"x":1,"y":"YWJj"}]'
    assert encode(Point(1, Base64(b""))) == b'{"x":1,"y":""}'


def test_a_number_that_is_none_is_written_as_null() -> None:
    assert encode([float("nan"), float("inf"), 1e300]) == b"[null,null,1e300]"


@pytest.mark.parametrize("value", [object(), "\udcff", {"\udcff": 1}, 1j])
def test_what_is_not_json_is_not_written(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode([value])


@given(st.binary())
def test_base64_is_taken_in_its_one_spelling(data: bytes) -> None:
    assert decode_base64(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize("text", ["YQ", "YQ=", "YR==", "YWJ=", "YQ==\n", " YQ==", "Y Q==", "YQ==YQ==", "-_-_", "====", "é"])
def test_ill_formed_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="base64"):
        decode_base64(text)
