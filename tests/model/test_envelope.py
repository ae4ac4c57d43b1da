"""Envelopes: the clear header of a sealed record, and what the seal is bound to."""

from __future__ import annotations

import pytest

from tests.model.samples import ENVELOPE, NAMESPACE, VERSION
from zstor_local.errors import CorruptRecord
from zstor_local.model.ids import KeyHash, NamespaceId, StoreId, Version
from zstor_local.model.record import Envelope, Kind, associated_data


def test_an_envelope_is_read_back() -> None:
    assert Envelope.parse(ENVELOPE.pack()) == ENVELOPE


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_is_read_back(kind: Kind) -> None:
    envelope = Envelope(kind, NAMESPACE, KeyHash(bytes(16)), VERSION, 0, b"")
    assert Envelope.parse(envelope.pack()) == envelope


@pytest.mark.parametrize("length", [0, 1, 56])
def test_one_that_is_cut_short_is_corrupt(length: int) -> None:
    assert len(ENVELOPE.pack()) > 57
    with pytest.raises(CorruptRecord):
        Envelope.parse(ENVELOPE.pack()[:length])


@pytest.mark.parametrize("kind", [0, 9, 255])
def test_an_unknown_kind_is_corrupt(kind: int) -> None:
    with pytest.raises(CorruptRecord):
        Envelope.parse(bytes([kind]) + ENVELOPE.pack()[1:])


def test_the_associated_data_bind_every_field() -> None:
    store = StoreId(b"store id 16bytes")
    base = (store, Kind.OBJECT, NAMESPACE, KeyHash(b"a hashed key 16b"), VERSION, 7)
    others: list[object] = [
        StoreId(bytes(16)), Kind.TOMBSTONE, NamespaceId(bytes(16)), KeyHash(bytes(16)), Version(bytes(16)), 8,
    ]  # fmt: skip
    seen = {associated_data(*base)}
    for at, other in enumerate(others):
        fields = [*base[:at], other, *base[at + 1 :]]
        seen.add(associated_data(*fields))  # type: ignore[arg-type]
    assert len(seen) == 7
    assert len({len(data) for data in seen}) == 1
