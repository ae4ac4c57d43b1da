"""A block opens as exactly what it was sealed as, and as nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from tests.coding.samples import DATA_KEY, NAMESPACE, STORE, VERSION, binding, forged_shape
from zstor_local.coding.block import BadBlock, ChunkShape
from zstor_local.coding.keys import commitment
from zstor_local.coding.seal import BlockBinding, BlockSealer
from zstor_local.limits import CHUNKS_MAX
from zstor_local.model.ids import NamespaceId, StoreId, Version

PLAIN = b"a block of 17 by."
CHUNK, INDEX = 7, 2
SHAPE = ChunkShape(100, 66, 1)
SEALER = BlockSealer(DATA_KEY, binding())
SEALED = SEALER.seal(CHUNK, INDEX, SHAPE, PLAIN)

# The associated data as the module's docstring has it, written out here a second time.
FIELDS: dict[str, tuple[str, bytes | int]] = {
    "kind": ("8s", b"ZSTBLOCK"),
    "format": ("B", 1),
    "k": ("B", 4),
    "m": ("B", 6),
    "zero": ("B", 0),
    "store": ("16s", STORE),
    "namespace": ("16s", NAMESPACE),
    "version": ("16s", VERSION),
    "commitment": ("16s", commitment(DATA_KEY)),
    "chunk": ("Q", CHUNK),
    "index": ("I", INDEX),
    "plain length": ("I", SHAPE.plain_length),
    "stored length": ("I", SHAPE.stored_length),
    "width": ("I", len(PLAIN)),
    "codec": ("I", SHAPE.codec),
}


def sealed_with(altered: str | None, *, nonce: bytes = struct.pack("<QI", CHUNK, INDEX)) -> bytes:
    """The block sealed by hand, with one field of the associated data altered."""
    values = {name: value for name, (_, value) in FIELDS.items()}
    if altered is not None:
        value = values[altered]
        values[altered] = value ^ 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
    associated = struct.pack("<" + "".join(code for code, _ in FIELDS.values()), *values.values())
    assert len(associated) == 104
    return AESGCM(DATA_KEY).encrypt(nonce, PLAIN, associated)


def test_a_block_sealed_by_hand_as_documented_opens() -> None:
    assert sealed_with(None) == SEALED
    assert SEALER.open(CHUNK, INDEX, SHAPE, sealed_with(None)) == PLAIN


@pytest.mark.parametrize("altered", FIELDS)
def test_each_field_altered_alone_is_refused(altered: str) -> None:
    with pytest.raises(BadBlock):
        SEALER.open(CHUNK, INDEX, SHAPE, sealed_with(altered))


@pytest.mark.parametrize("nonce", [struct.pack("<QI", CHUNK + 1, INDEX), struct.pack("<QI", CHUNK, INDEX + 1)])
def test_a_nonce_altered_alone_is_refused(nonce: bytes) -> None:
    with pytest.raises(BadBlock):
        SEALER.open(CHUNK, INDEX, SHAPE, sealed_with(None, nonce=nonce))


@pytest.mark.parametrize(
    "other",
    [
        binding(store=StoreId(b"another store id")),
        binding(namespace=NamespaceId(b"another namespac")),
        binding(version=Version(b"an older version")),
        binding(k=3),
        binding(m=7),
    ],
    ids=["store", "namespace", "version", "k", "m"],
)
def test_a_block_of_another_version_is_refused(other: BlockBinding) -> None:
    assert BlockSealer(DATA_KEY, binding()).open(CHUNK, INDEX, SHAPE, SEALED) == PLAIN
    with pytest.raises(BadBlock):
        BlockSealer(DATA_KEY, other).open(CHUNK, INDEX, SHAPE, SEALED)


@pytest.mark.parametrize(
    ("chunk", "index", "shape"),
    [
        (CHUNK + 1, INDEX, SHAPE),
        (CHUNK, INDEX + 1, SHAPE),
        (CHUNK, INDEX, ChunkShape(101, 66, 1)),
        (CHUNK, INDEX, ChunkShape(100, 65, 1)),
        (CHUNK, INDEX, forged_shape(100, 66, 0)),
    ],
    ids=["chunk", "swapped share", "plain length", "stored length", "codec"],
)
def test_a_block_in_another_place_is_refused(chunk: int, index: int, shape: ChunkShape) -> None:
    with pytest.raises(BadBlock):
        SEALER.open(chunk, index, shape, SEALED)


def test_another_data_key_is_refused() -> None:
    with pytest.raises(BadBlock):
        BlockSealer(bytes(32), binding()).open(CHUNK, INDEX, SHAPE, SEALED)


@given(st.integers(0, len(SEALED) * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    damaged = bytearray(SEALED)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadBlock):
        SEALER.open(CHUNK, INDEX, SHAPE, damaged)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b[1:], lambda b: b + b"\0", lambda b: b[:16], lambda b: b""])
def test_a_cut_or_longer_block_is_refused(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BadBlock):
        SEALER.open(CHUNK, INDEX, SHAPE, change(SEALED))


@pytest.mark.parametrize(("chunk", "index"), [(CHUNKS_MAX, 0), (-1, 0), (0, 6), (0, -1), (2**64, 0)])
def test_no_block_takes_a_place_outside_the_version(chunk: int, index: int) -> None:
    """Above all not chunk 2³² − 1, whose nonce is the chunk table's."""
    with pytest.raises(ValueError):
        SEALER.seal(chunk, index, SHAPE, PLAIN)
    with pytest.raises(ValueError):
        SEALER.open(chunk, index, SHAPE, SEALED)


def test_the_last_chunk_number_is_one_below_the_tables() -> None:
    sealed = SEALER.seal(CHUNKS_MAX - 1, 5, SHAPE, PLAIN)
    assert SEALER.open(CHUNKS_MAX - 1, 5, SHAPE, sealed) == PLAIN


@pytest.mark.parametrize("table", [b"", b"\1\0\0\0", bytes(40_000)])
def test_a_chunk_table_opens_and_only_whole(table: bytes) -> None:
    sealed = SEALER.seal_table(table)
    assert len(sealed) == len(table) + 16
    assert SEALER.open_table(sealed) == table
    for damaged in (sealed[:-1], sealed + b"\0", bytes([sealed[0] ^ 1]) + sealed[1:], b""):
        with pytest.raises(BadBlock):
            SEALER.open_table(damaged)


def test_a_chunk_table_is_bound_to_its_version_and_is_no_block() -> None:
    sealed = SEALER.seal_table(PLAIN)
    with pytest.raises(BadBlock):
        BlockSealer(DATA_KEY, binding(version=Version(b"an older version"))).open_table(sealed)
    length = len(PLAIN)
    associated = b"ZSTBLOCK" + struct.pack("<BBBx", 1, 4, 6) + STORE + NAMESPACE + VERSION + commitment(DATA_KEY)
    associated += struct.pack("<QIIIII", CHUNKS_MAX, 0, length, length, length, 0)
    nonce = struct.pack("<QI", CHUNKS_MAX, 0)
    with pytest.raises(BadBlock):
        SEALER.open_table(AESGCM(DATA_KEY).encrypt(nonce, PLAIN, associated))
    assert SEALER.open_table(AESGCM(DATA_KEY).encrypt(nonce, PLAIN, b"ZSTTABLE" + associated[8:])) == PLAIN


def test_a_binding_has_whole_ids_and_a_code() -> None:
    with pytest.raises(ValueError):
        binding(version=Version(b"short"))
    with pytest.raises(ValueError):
        binding(k=5, m=4)
    with pytest.raises(ValueError):
        BlockSealer(bytes(16), binding())  # AES-128 would take it


def test_nothing_shows_the_key() -> None:
    assert DATA_KEY.hex() not in repr(SEALER)
    assert repr(DATA_KEY)[2:-1] not in repr(SEALER)
