"""Pages of remote logs, in both forms."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.formats.vectors import BY_NAME
from zstor_local.formats.cid import Cid, raw
from zstor_local.formats.messages import PAIR, REMOTE_LOG
from zstor_local.formats.protobuf import Field, Malformed, Schema, encoded_field
from zstor_local.formats.remotelog import ENCODINGS, Encoding, Entry, Page, parse_page

CIDS = st.binary(max_size=4).map(raw)


def entries(last: int, drawn: list[tuple[bytes, Cid | None, bytes]]) -> tuple[Entry, ...]:
    return tuple(Entry(last - index, *parts) for index, parts in enumerate(drawn))


PAGES = st.builds(
    lambda drawn, older, tail: Page(entries(len(drawn) + older, drawn), tail if older else None),
    st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.none() | CIDS, st.binary(max_size=20)), min_size=1, max_size=8),
    st.integers(0, 1 << 40),
    CIDS,
)


@given(PAGES, st.sampled_from(ENCODINGS))
def test_a_page_comes_back_from_its_bytes(page: Page, encoding: Encoding) -> None:
    page.check()
    assert parse_page(page.encode(encoding)) == page


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_empty_page_comes_back(encoding: Encoding) -> None:
    assert parse_page(Page().encode(encoding)) == Page()
    assert Page().encode("protobuf") == b""


def test_a_page_in_protobuf_is_a_remote_log_to_those_who_know_no_numbers() -> None:
    cid, other = raw(b"content"), raw(b"page")
    page = Page((Entry(2, b"\x02", cid, b"content"), Entry(1, b"\x01", None)), None)
    theirs = REMOTE_LOG.parse(page.encode("protobuf"))
    newest, scrubbed = theirs.messages("pair")
    assert (newest.blob("remoteHash"), newest.blob("localHash"), newest.blob("data")) == (cid.binary, b"\x02", b"content")
    assert (scrubbed.blob("remoteHash"), scrubbed.blob("localHash"), scrubbed.blob("data")) == (b"", b"\x01", b"")
    assert theirs.encode() == page.encode("protobuf")
    assert REMOTE_LOG.parse(Page(page.entries, other).encode("protobuf")).blob("tail") == other.binary


def test_the_json_form_is_the_seeds() -> None:
    page = Page((Entry(3, b"\xaa", raw(b"x")), Entry(2, b"\xbb", None), Entry(1, b"\xcc", raw(b"y"), b"y")), None)
    pairs, next_page, header = json.loads(page.encode("json"))
    assert pairs == [["aa", str(raw(b"x"))], ["bb", None], ["cc", str(raw(b"y")), "eQ=="]]
    assert (next_page, header) == (None, {"last": 3})
    assert page.view() == [[pair[:2] for pair in pairs], None]


def test_the_page_of_alice_and_bob_is_read() -> None:
    flow = BY_NAME["flow-alice-bob"]
    data = bytes.fromhex(flow["remote_log_hex"])
    page = parse_page(data)
    (entry,) = page.entries
    assert entry.local_hash.hex() == flow["local_hash_hex"]
    assert entry.cid == Cid(0x55, sha256(bytes.fromhex(flow["mvds_message_hex"])).digest())
    assert page.encode("protobuf") == data
    with pytest.raises(Malformed):  # its entries have no numbers, as no page of the specification's has
        page.check()


def test_fields_of_a_later_version_stay() -> None:
    later = bytes.fromhex("0a0b0a0012020102" + "2001" + "2a0137" + "1a0178")
    page = parse_page(later)
    assert (page.entries[0].unknown, page.unknown) == (bytes.fromhex("2a0137"), bytes.fromhex("1a0178"))
    assert parse_page(page.encode("protobuf")) == page


@pytest.mark.parametrize(
    "data",
    [
        b"[",
        b"[]",
        b"[[],null]",
        b"[[],null,{}]",
        b'[[],null,{"last":true}]',
        b'[[["aa"]],null,{"last":1}]',
        b'[[["a",null]],null,{"last":1}]',
        b'[[["aa","nothing"]],null,{"last":1}]',
        b'[[["aa",null,"%%"]],null,{"last":1}]',
        b'[[["aa",null,"",1]],null,{"last":1}]',
        b'[[],"nothing",{"last":1}]',
        b"[" * 100_000,
        b"\x0a\x05\x0a\x03abc",  # a remote hash that is no CID
        b"\x12\x03abc",  # a tail that is none
    ],
)
def test_what_is_no_page_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_page(data)


@pytest.mark.parametrize(
    "page",
    [
        Page((Entry(3, b"c", None), Entry(1, b"a", None))),
        Page((Entry(1, b"a", None), Entry(2, b"b", None)), raw(b"")),
        Page((Entry(2, b"b", None), Entry(2, b"b", None), Entry(1, b"a", None))),
        Page((Entry(2, b"b", None),)),
        Page((Entry(1, b"a", None),), raw(b"")),
        Page((Entry(0, b"a", None),)),
        Page((Entry(1, b"", None),)),
        Page((), raw(b"")),
    ],
)
def test_pages_that_break_the_rules_are_found(page: Page) -> None:
    with pytest.raises(Malformed):
        page.check()


@given(st.binary(max_size=100))
def test_any_bytes_are_a_page_or_refused(data: bytes) -> None:
    try:
        page = parse_page(data)
    except Malformed:
        return
    assert parse_page(page.encode("protobuf")) == page


@given(PAGES)
def test_pairs_written_by_hand_are_those_of_the_library(page: Page) -> None:
    schema = Schema("Pair", (*PAIR.fields, Field(4, "seqid", "uint64")))
    for entry in page.entries:
        remote = b"" if entry.cid is None else entry.cid.binary
        pair = schema.make(remoteHash=remote, localHash=entry.local_hash, data=entry.data, seqid=entry.seq)
        assert entry.pair() == encoded_field(1, pair)
