"""CAR files: byte for byte what the profile's samples have, read in pieces of any size, and damage found where it is."""

from __future__ import annotations

import hashlib

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.formats.samples import SAMPLES, Sample, pattern
from zstor_local.formats import car, cid, unixfs, varint
from zstor_local.formats.car import BadCar, Block, Reader
from zstor_local.formats.unixfs import LEAF_BYTES, Node


def archive(data: bytes) -> bytes:
    """One content: its root, then depth first."""
    nodes: dict[cid.Cid, Node] = {}
    leaves = {cid.raw(leaf): leaf for start in range(0, len(data) or 1, LEAF_BYTES) for leaf in [data[start : start + LEAF_BYTES]]}
    digests = b"".join(hashlib.sha256(data[start : start + LEAF_BYTES]).digest() for start in range(0, len(data), LEAF_BYTES))
    root = unixfs.from_digests(digests, len(data), lambda node: nodes.update({node.link.cid: node})).cid

    def walk(at: cid.Cid) -> bytes:
        found = nodes.get(at)
        if found is None:
            return car.section(at, len(leaves[at])) + leaves[at]
        return car.section(at, len(found.block)) + found.block + b"".join(walk(link.cid) for link in found.links)

    return car.header([root]) + walk(root)


def read(data: bytes, pieces: int) -> tuple[Reader, list[Block]]:
    reader = Reader()
    found = [block for start in range(0, len(data), pieces) for block in reader.blocks(data[start : start + pieces])]
    reader.finish()
    return reader, found


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_the_samples_have_their_files(sample: Sample) -> None:
    made = archive(sample.data)
    assert len(made) == sample.car_bytes
    assert hashlib.sha256(made).hexdigest() == sample.car_sha256


def test_the_header_has_the_known_bytes() -> None:
    root = cid.raw(b"hello\n")
    assert car.header([root]).hex() == "3a" + "a265726f6f747381d82a582500" + root.binary.hex() + "6776657273696f6e01"


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 200))
def test_blocks_come_back_from_pieces_of_any_size(contents: list[bytes], pieces: int) -> None:
    roots = [cid.raw(data) for data in contents]
    whole = car.header(roots) + b"".join(car.section(cid.raw(data), len(data)) + data for data in contents)
    reader, found = read(whole, pieces)
    assert reader.roots == tuple(roots)
    assert [block.data for block in found] == contents
    assert all(whole[block.offset : block.offset + len(block.data)] == block.data for block in found)


def test_no_flipped_bit_gives_other_bytes_under_the_same_id() -> None:
    whole = archive(b"hello\n")
    start = len(car.header([cid.raw(b"")])) + 1
    for position in range(start, len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            try:
                _, found = read(bytes(damaged), len(damaged))
            except BadCar:
                continue
            # What is left is another codec: the same bytes under an id that nothing links to.
            assert [(block.data, block.cid.codec == cid.RAW) for block in found] == [(b"hello\n", False)]


def test_a_file_that_is_cut_within_something_is_found() -> None:
    whole = archive(b"hello\n")
    for length in range(len(whole)):
        if length == len(car.header([cid.raw(b"")])):
            continue  # between two sections: only whoever follows the links misses the block
        with pytest.raises(BadCar, match="cut off"):
            read(whole[:length], 7)


def header_of(value: object) -> bytes:
    encoded = cbor2.dumps(value)
    return varint.packed(len(encoded)) + encoded


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\xff" * 12,
        varint.packed(car.HEADER_BYTES_MAX + 1),
        header_of([]),
        header_of({"version": 1}),
        header_of({"roots": [], "version": 2}),
        header_of({"roots": ["text"], "version": 1}),
        header_of({"roots": [cbor2.CBORTag(42, b"\x00nonsense")], "version": 1}),
        header_of({"roots": [cbor2.CBORTag(42, cid.raw(b"").binary)], "version": 1}),
        b"\x03not",
        car.header([]) + varint.packed(car.SECTION_BYTES_MAX + 1),
        car.header([]) + b"\x04none",
        car.header([]) + car.section(cid.raw(b"a"), 1) + b"b",
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(BadCar):
        read(data, 5)


def test_a_long_length_is_refused_before_its_bytes_come() -> None:
    reader = Reader()
    with pytest.raises(BadCar, match="a section of"):
        list(reader.blocks(car.header([]) + varint.packed(1 << 40)))


def test_pieces_of_a_large_file_cost_no_more_than_their_bytes() -> None:
    data = pattern(LEAF_BYTES)
    reader = Reader()
    whole = archive(data)
    found = sum(len(block.data) for start in range(0, len(whole), 4096) for block in reader.blocks(whole[start : start + 4096]))
    assert found == len(data)
