"""Records: read back as they were written, refused when anything in them is not what it must be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.samples import FULL, MANY_SHARDS, RECORDS, SHORTEST
from zstor_local import limits
from zstor_local.errors import CorruptRecord
from zstor_local.model.fields import decode, encode
from zstor_local.model.policy import Policy
from zstor_local.model.record import ObjectRecord, is_small
from zstor_local.model.storewide import Record, ShardsRecord

NAMES = list(RECORDS)


@pytest.mark.parametrize("name", NAMES)
def test_a_record_is_read_back(name: str) -> None:
    record = RECORDS[name]
    assert type(record).decode(record.encode()) == record


@pytest.mark.parametrize("name", NAMES)
def test_a_later_schema_is_refused_with_what_to_do(name: str) -> None:
    record = RECORDS[name]
    newest = 2 if name.startswith("namespace") else 1
    with pytest.raises(CorruptRecord, match=f"schema {newest + 1}, this version reads schema {newest}") as caught:
        type(record).decode(changed(record, {0: newest + 1}))
    assert "newer zstor" in (caught.value.hint or "")


@pytest.mark.parametrize("schema", [None, 0, "1", 1.5, [1]])
def test_a_record_without_a_schema_known_here_is_refused(schema: object) -> None:
    with pytest.raises(CorruptRecord):
        ObjectRecord.decode(changed(FULL, {0: schema}))


def changed(record: Record, fields: dict[int, Any]) -> bytes:
    """The record's bytes with other fields; None leaves one out."""
    plain = {**decode(record.encode()), **fields}
    return encode({number: value for number, value in plain.items() if value is not None})


WRONG: list[object] = [7, -1, "text", b"bytes", True, [], {}, 1.5, [7], ["x"], [[]], {1: 2}, cbor2.undefined]
RIGHT: dict[str, dict[int, Callable[[object], bool]]] = {
    "object, every field": {
        1: lambda value: isinstance(value, str),
        2: lambda value: value == 7,
        3: lambda value: False,
        4: lambda value: value == 7,
        5: lambda value: value == 7,
        6: lambda value: False,
        7: lambda value: isinstance(value, bytes),
        8: lambda value: value == b"bytes",  # five shards, of a store that had no more
        9: lambda value: value == 7,
        10: lambda value: isinstance(value, bytes),
        11: lambda value: value is True,
        12: lambda value: value in ([], ["x"]),
        13: lambda value: value == {},
        14: lambda value: isinstance(value, str),
        15: lambda value: isinstance(value, str),
    },
    "tombstone": {1: lambda value: isinstance(value, str), 4: lambda value: value == 7},
    "namespace": {
        1: lambda value: isinstance(value, str),
        2: lambda value: False,
        4: lambda value: value == 7,
        6: lambda value: False,
    },
    "store": {1: lambda value: False, 4: lambda value: value == 7},
    "shards": {1: lambda value: value == []},
    "void": {1: lambda value: value == 7, 2: lambda value: value == 7},
}
FIELDS = [(name, number) for name, fields in RIGHT.items() for number in fields]


@pytest.mark.parametrize(("name", "number"), FIELDS)
def test_a_field_of_another_type_is_corrupt(name: str, number: int) -> None:
    record = RECORDS[name]
    for value in WRONG:
        data = changed(record, {number: value})
        if RIGHT[name][number](value):
            type(record).decode(data)
        else:
            with pytest.raises(CorruptRecord):
                type(record).decode(data)


OPTIONAL = {"object, every field": {5, 10, 11, 12, 13, 14, 15}}


@pytest.mark.parametrize(("name", "number"), FIELDS)
def test_a_field_that_is_needed_cannot_be_left_out(name: str, number: int) -> None:
    record = RECORDS[name]
    data = changed(record, {number: None})
    if number in OPTIONAL.get(name, ()):
        type(record).decode(data)
    else:
        with pytest.raises(CorruptRecord):
            type(record).decode(data)


@pytest.mark.parametrize(
    "policy",
    [
        [4, 6, 20, 0],
        [4, 6, 20, 0, 0, 0],
        [0, 6, 20, 0, 0],
        [7, 6, 20, 0, 0],
        [4, 256, 20, 0, 0],
        [4, 6, 17, 0, 0],
        [4, 6, 23, 0, 0],
        [4, 6, 2**40, 0, 0],
        [4, 6, -1, 0, 0],
        [4, 6, 20, 2, 0],
        [4, 6, 20, -1, 0],
        [4, 6, 20, 0, 2],
        [4, 6, 20, 0, -1],
        [4.0, 6, 20, 0, 0],
        [True, 6, 20, 0, 0],
        ["4", 6, 20, 0, 0],
    ],
)
def test_a_policy_that_cannot_be_is_corrupt(policy: list[object]) -> None:
    with pytest.raises(CorruptRecord):
        ObjectRecord.decode(changed(FULL, {6: policy}))


@pytest.mark.parametrize("number", [2, 4, 5, 9])
def test_a_number_that_not_everybody_can_hold_is_corrupt(number: int) -> None:
    ObjectRecord.decode(changed(FULL, {number: limits.SAFE_INTEGER}))
    for beyond in (limits.SAFE_INTEGER + 1, 2**63, 2**64 - 1, -limits.SAFE_INTEGER):
        with pytest.raises(CorruptRecord):
            ObjectRecord.decode(changed(FULL, {number: beyond}))


@pytest.mark.parametrize("placement", [bytes(3), bytes(7), [0, 1, 2, 3, 4, -5], [0, 1, 2], [0, 1, 2, 3, 4, "5"], b""])
def test_a_placement_names_one_shard_for_each_share(placement: object) -> None:
    with pytest.raises(CorruptRecord):
        ObjectRecord.decode(changed(FULL, {8: placement}))


@pytest.mark.parametrize("placement", [bytes([4, 5, 0, 2]), bytes([4, 5, 0, 2, 3]), [4, 5, 0, 2, 300]])
def test_shares_for_which_a_store_had_no_shard_lie_on_none_that_has_another(placement: bytes | list[int]) -> None:
    read = ObjectRecord.decode(changed(FULL, {8: placement})).placement
    assert (len(set(read)), read[: len(placement)]) == (6, tuple(placement))


@pytest.mark.parametrize("entry", [[], [0, b"", "a", "b"], [0, b"", "a", "b", "c", "d"], ["0", b"", "a", "b", "c"], "abcde"])
def test_a_malformed_list_of_shards_is_corrupt(entry: object) -> None:
    with pytest.raises(CorruptRecord):
        ShardsRecord.decode(changed(RECORDS["shards"], {1: [entry]}))


def test_defaults_take_no_room() -> None:
    assert set(decode(SHORTEST.encode())) == {0, 1, 2, 3, 4, 6, 7, 8, 9}


def test_shard_numbers_over_255_are_a_list() -> None:
    assert decode(MANY_SHARDS.encode())[8] == [255, 256, 65_535]
    assert decode(FULL.encode())[8] == bytes(FULL.placement)


# --- CBOR ---


@pytest.mark.parametrize(
    "data",
    [
        "",  # nothing
        "a1",  # a map that is cut short
        "80",  # a list
        "00",  # a number
        "f6",  # null
        "a200010002",  # a key twice
        "bf0001ff",  # of indefinite length
        "a1616101",  # a name as key
        "a1f401",  # false as key
        "a1810102",  # a list as key
        "a10161ff",  # text that is not UTF-8
        "a101" + "81" * 40 + "00",  # too deep
        "a101bbffffffffffffffff",  # a map of 2⁶⁴ members
        "a1015b000000ffffffffff",  # a terabyte of bytes
        "c1" * 100,  # tags of tags
        "a101d9010480",  # a tag with nonsense in it
    ],
)
def test_what_is_no_record_is_corrupt(data: str) -> None:
    with pytest.raises(CorruptRecord):
        decode(bytes.fromhex(data))


TAGS = [*range(300), 1_004, 43_000, 55_799, 2**64 - 1]  # all that mean something to some reader, and some that do not


@pytest.mark.parametrize("value", [None, 0, "1", "a", b"", b"1", [], [1, 2], {}])
def test_a_tag_is_corrupt_whatever_it_means(value: object) -> None:
    """Times, fractions, patterns, numbers of any length, references to what holds them: no record has one."""
    for tag in TAGS:
        tagged = cbor2.dumps(cbor2.CBORTag(tag, value))
        for data in (b"\xa1\x01" + tagged, b"\xa1\x01\x81" + tagged, b"\xa1" + tagged + b"\x01", tagged):
            with pytest.raises(CorruptRecord):
                decode(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_corrupt(data: bytes) -> None:
    for record in RECORDS.values():
        with contextlib.suppress(CorruptRecord):
            type(record).decode(data)


@given(st.sampled_from(NAMES), st.integers(0, 2_000), st.binary(min_size=1, max_size=4))
def test_a_record_with_other_bytes_in_it_is_a_record_or_corrupt(name: str, at: int, data: bytes) -> None:
    record = RECORDS[name]
    packed = record.encode()
    at %= len(packed)
    with contextlib.suppress(CorruptRecord):
        type(record).decode(packed[:at] + data + packed[at + len(data) :])


def test_encoding_is_canonical_shorter_keys_first() -> None:
    assert encode({300: 1, 2: 1, 30: 1, 1: {"bb": 1, "a": 2}}) == bytes.fromhex("a4 01 a2 6161 02 626262 01 02 01 181e 01 19012c 01")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.lists(st.text(), max_size=4).map(tuple), st.text(min_size=1))
def test_user_metadata_references_and_keys_come_back(user: dict[str, object], references: tuple[str, ...], key: str) -> None:
    record = replace(FULL, user=user, references=references, key=key)
    assert ObjectRecord.decode(record.encode()) == record


# --- Small or large ---


@pytest.mark.parametrize("policy", [Policy(1, 1), Policy(4, 6), Policy(2, 3, chunk_size=1 << 18), Policy(255, 255)])
def test_small_is_what_fits_into_the_log_whatever_compression_does(policy: Policy) -> None:
    low, high = 0, 255 * limits.MIB
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_small(middle, policy) else (low, middle)
    for size, fits in ((low, True), (high, False)):
        chunks = -(-size // policy.chunk_size)
        assert (-(-size // policy.k) + 32 * chunks <= limits.SMALL_SHARE_BYTES) is fits
    assert is_small(0, policy)
