"""The marker of a shard: authentic, of this store and this format, or refused with the reason."""

from __future__ import annotations

import pytest

from tests.shards.ground import STORE, Ground, keys, uid
from zstor_local.model.ids import StoreId
from zstor_local.shards.base import ShardError
from zstor_local.shards.marker import BadMarker, Marker, claimed_store

MARKER = Marker(STORE, uid(4), 4, 1_700_000_000_000_000)
PACKED = MARKER.pack(keys(), bytes(32))
OTHER = StoreId(b"another store 16")


def test_a_marker_is_read_back() -> None:
    assert Marker.parse(PACKED, keys(), STORE) == MARKER
    assert claimed_store(PACKED) == STORE


def test_every_flipped_bit_is_refused() -> None:
    padding = range(9, 16)
    for bit in range(len(PACKED) * 8):
        damaged = bytearray(PACKED)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadMarker):
            Marker.parse(bytes(damaged), keys(), STORE)
    assert all(PACKED[at] == 0 for at in padding)


@pytest.mark.parametrize("length", [0, 1, 47, 48, 60, len(PACKED) - 1])
def test_a_marker_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(BadMarker):
        Marker.parse(PACKED[:length], keys(), STORE)


def test_another_stores_marker_is_named_as_such() -> None:
    with pytest.raises(BadMarker, match=f"another store, {OTHER.hex()}"):
        Marker.parse(Marker(OTHER, uid(4), 4, 1).pack(keys(), bytes(32)), keys(), STORE)


def test_a_marker_sealed_with_another_key_is_refused() -> None:
    with pytest.raises(BadMarker, match="does not open with this master key"):
        Marker.parse(MARKER.pack(keys(b"x" * 32), bytes(32)), keys(), STORE)


def test_a_newer_format_is_refused_by_name() -> None:
    with pytest.raises(BadMarker, match="format is 2, this version reads 1"):
        Marker.parse(PACKED[:8] + b"\x02" + PACKED[9:], keys(), STORE)


def test_something_else_claims_no_store() -> None:
    assert claimed_store(b"") is None
    assert claimed_store(b"x" * 100) is None
    assert claimed_store(PACKED[:40]) is None


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [(0, b"X", "damaged"), (8, b"\x02", "format is 2"), (16, b"X", "another store"), (60, b"X" * 8, "does not open")],
)
def test_a_shard_with_a_bad_marker_is_missing_and_left_as_it_is(real: Ground, offset: int, data: bytes, reason: str) -> None:
    real.create()
    real.overwrite(f"{real.root()}/marker", offset, data)
    before = real.content(f"{real.root()}/marker")
    with pytest.raises(ShardError, match=reason) as caught:
        real.open()
    assert caught.value.state == "missing"
    assert real.content(f"{real.root()}/marker") == before
    assert real.names(f"{real.root()}/log") == []
