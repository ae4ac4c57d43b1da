"""The DAG of a file: the ids that other tools compute, however the leaves come, at every edge of the profile."""

from __future__ import annotations

import hashlib

import pytest

from tests.formats.samples import SAMPLES, Sample, pattern
from zstor_local.formats import cid, unixfs
from zstor_local.formats.protobuf import Malformed
from zstor_local.formats.unixfs import LEAF_BYTES, WIDTH, Builder, Link, Node
from zstor_local.formats.varint import packed as varint


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_the_samples_have_their_ids(sample: Sample) -> None:
    assert str(unixfs.content_id(sample.data)) == sample.cid


def test_the_root_blocks_have_the_known_sizes() -> None:
    nodes: list[Node] = []
    for size in (1048577, 5242880):
        data = pattern(size)
        digests = b"".join(hashlib.sha256(data[start : start + LEAF_BYTES]).digest() for start in range(0, size, LEAF_BYTES))
        assert unixfs.from_digests(digests, size, nodes.append) == unixfs.link_of(data)
    assert [len(node.block) for node in nodes] == [104, 259]


def leaves(count: int) -> tuple[Link, list[Node]]:
    """A file of so many whole leaves, all of them zeros."""
    nodes: list[Node] = []
    builder = Builder(nodes.append)
    digest = hashlib.sha256(bytes(LEAF_BYTES)).digest()
    for _ in range(count):
        builder.add(digest, LEAF_BYTES)
    return builder.finish(), nodes


@pytest.mark.parametrize(
    ("count", "shape"),
    [
        (1, []),
        (2, [2]),
        (WIDTH, [WIDTH]),
        (WIDTH + 1, [WIDTH, 1, 2]),  # a lone leaf gets a node of its own: all leaves lie at one depth
        (2 * WIDTH, [WIDTH, WIDTH, 2]),
        (2 * WIDTH + 1, [WIDTH, WIDTH, 1, 3]),
    ],
)
def test_the_tree_is_balanced(count: int, shape: list[int]) -> None:
    root, nodes = leaves(count)
    assert [len(node.links) for node in nodes] == shape
    assert root.file_size == count * LEAF_BYTES
    assert root.tree_size == root.file_size + sum(len(node.block) for node in nodes)
    assert not nodes or nodes[-1].link == root


def test_three_levels_above_the_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the real width this takes a terabyte."""
    monkeypatch.setattr(unixfs, "WIDTH", 4)
    root, nodes = leaves(17)
    assert sorted(len(node.links) for node in nodes) == [1, 1, 2, 4, 4, 4, 4, 4]
    assert len(nodes[-1].links) == 2
    assert root.file_size == 17 * LEAF_BYTES


def test_a_node_tells_its_links() -> None:
    _, nodes = leaves(3)
    assert unixfs.parse_node(nodes[0].block) == nodes[0].links
    assert nodes[0].link.cid.names(nodes[0].block)


def test_blocks_stay_below_what_other_tools_take() -> None:
    big = Link(cid.Cid(cid.DAG_PB, bytes(32)), 1 << 60, 1 << 60)
    assert len(unixfs.node([big] * WIDTH).block) < unixfs.BLOCK_BYTES_MAX


def directory() -> bytes:
    return b"\x0a\x02\x08\x01"


def with_bytes_of_its_own() -> bytes:
    data = b"\x08\x02\x12\x01x\x18\x01"
    return b"\x0a" + varint(len(data)) + data


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"hello\n",
        directory(),
        with_bytes_of_its_own(),
        b"\x12\x02\x18\x05",  # a link without an id
        unixfs.node([Link(cid.raw(b"a"), 1, 1)]).block[:-2] + b"\x20",
        b"\x12\x26\x0a\x24" + cid.raw(b"a").binary + b"\x0a\x02\x08\x02",  # a link without a size
    ],
)
def test_other_blocks_are_refused(block: bytes) -> None:
    with pytest.raises(Malformed):
        unixfs.parse_node(block)
