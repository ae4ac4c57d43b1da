"""The DAG of a file under the profile unixfs-v1-2025 (IPIP-499): from bytes to the id that any IPFS tool computes for them.

Leaves are raw blocks of 1 MiB, the last one shorter; a node of dag-pb has up to 1,024 links; levels are added until one node is left,
and a lone node is never lifted past its level. A file of one leaf is that leaf; an empty one is the empty leaf.

A node, in the order of its bytes: for each link field 2 {1 the id, 2 an empty name, 3 the bytes of the whole tree below}, then field 1
holding UnixFS {1 type 2 (file), 3 size of the file, 4 plain bytes below each link, one unpacked number each}.
Sources: github.com/ipfs/specs src/unixfs.md and src/ipips/ipip-0499.md, github.com/ipld/ipld specs/codecs/dag-pb.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from zstor_local.formats.cid import DAG_PB, DIGEST_BYTES, RAW, BadCid, Cid, from_binary
from zstor_local.formats.protobuf import LENGTH, VARINT, FieldCount, Malformed, records
from zstor_local.formats.varint import packed as varint

PROFILE: Final = "unixfs-v1-2025"
LEAF_BYTES: Final = 1 << 20
WIDTH: Final = 1024
BLOCK_BYTES_MAX: Final = 2 << 20  # what IPFS tools take; a node of 1,024 links has some 52 KiB

_FILE: Final = 2
_RAW_TYPE: Final = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A tree as its parent sees it: the id of its root block, the plain bytes of the file below, the bytes of all its blocks."""

    cid: Cid
    file_size: int
    tree_size: int


@dataclass(frozen=True, slots=True)
class Node:
    """An inner block and what it says. `link` is how its parent names it."""

    link: Link
    block: bytes
    links: tuple[Link, ...]


class Builder:
    """The DAG of one file from its leaves, given in order. Keeps the links of one unfinished node a level, nothing else.

    `on_node` gets each inner block when it is complete, children before parents.
    """

    def __init__(self, on_node: Callable[[Node], None] = lambda node: None) -> None:
        self._on_node = on_node
        self._levels: list[list[Link]] = [[]]

    def add(self, digest: bytes, size: int) -> None:
        """The next leaf: the SHA-256 of its bytes and how many they are; 1 MiB for all but the last one."""
        self._put(0, Link(Cid(RAW, digest), size, size))

    def _put(self, level: int, link: Link) -> None:
        if level == len(self._levels):
            self._levels.append([])
        if len(self._levels[level]) == WIDTH:
            self._close(level)
        self._levels[level].append(link)

    def _close(self, level: int) -> None:
        """What is waiting on a level becomes one node of the level above."""
        made = node(self._levels[level])
        self._levels[level] = []
        self._on_node(made)
        self._put(level + 1, made.link)

    def finish(self) -> Link:
        """The whole file; ask once, after the last leaf."""
        if not self._levels[0]:
            self.add(hashlib.sha256().digest(), 0)
        level = 0
        # Each level is closed in its turn; the highest one that holds a single link is the root.
        while level + 1 < len(self._levels) or len(self._levels[level]) > 1:
            self._close(level)
            level += 1
        return self._levels[level][0]


def content_id(data: bytes | bytearray | memoryview) -> Cid:
    """The id of a file with these bytes."""
    return link_of(data).cid


def link_of(data: bytes | bytearray | memoryview) -> Link:
    """The tree of a file with these bytes."""
    builder = Builder()
    view = memoryview(data)
    for start in range(0, len(view), LEAF_BYTES):
        leaf = view[start : start + LEAF_BYTES]
        builder.add(hashlib.sha256(leaf).digest(), len(leaf))
    return builder.finish()


def from_digests(digests: bytes | bytearray | memoryview, size: int, on_node: Callable[[Node], None] = lambda node: None) -> Link:
    """The tree of a file of this size, from the SHA-256 of all its leaves one behind the other."""
    builder = Builder(on_node)
    for number in range(-(-size // LEAF_BYTES)):
        digest = bytes(digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES])
        builder.add(digest, min(LEAF_BYTES, size - number * LEAF_BYTES))
    return builder.finish()


def node(links: Iterable[Link]) -> Node:
    """The inner block above these trees."""
    links = tuple(links)
    block = bytearray()
    sizes = bytearray()
    for link in links:
        cid = link.cid.binary
        member = b"\x0a" + varint(len(cid)) + cid + b"\x12\x00\x18" + varint(link.tree_size)
        block += b"\x12" + varint(len(member)) + member
        sizes += b"\x20" + varint(link.file_size)
    size = sum(link.file_size for link in links)
    data = b"\x08\x02\x18" + varint(size) + sizes
    block += b"\x0a" + varint(len(data)) + data
    done = bytes(block)
    tree_size = len(done) + sum(link.tree_size for link in links)
    return Node(Link(Cid(DAG_PB, hashlib.sha256(done).digest()), size, tree_size), done, links)


def parse_node(block: bytes) -> tuple[Link, ...]:
    """The links of an inner block of a file, as it tells them; Malformed if it is not one (but a directory, say)."""
    ids: list[tuple[Cid, int]] = []
    sizes: list[int] = []
    count = FieldCount()
    for number, wire_type, value, _ in records(block, count):
        if (number, wire_type) == (2, LENGTH) and isinstance(value, bytes):
            ids.append(_link_fields(value, count))
        elif (number, wire_type) == (1, LENGTH) and isinstance(value, bytes):
            sizes = _file_sizes(value, count)
    if not ids or len(ids) != len(sizes):
        raise Malformed("a block is not an inner node of a file")
    return tuple(Link(cid, size, tree_size) for (cid, tree_size), size in zip(ids, sizes, strict=True))


def _link_fields(data: bytes, count: FieldCount) -> tuple[Cid, int]:
    cid: Cid | None = None
    tree_size = 0
    for number, _, value, _ in records(data, count):
        if number == 1 and isinstance(value, bytes):
            try:
                cid = from_binary(value)
            except BadCid as error:
                raise Malformed(str(error)) from None
        elif number == 3 and isinstance(value, int):
            tree_size = value
    if cid is None:
        raise Malformed("a link has no id")
    return cid, tree_size


def _file_sizes(data: bytes, count: FieldCount) -> list[int]:
    """The plain bytes below each link, from UnixFS's own message."""
    sizes: list[int] = []
    kind = _RAW_TYPE
    for number, wire_type, value, _ in records(data, count):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2:
            raise Malformed("a node holds bytes of its own; only leaves do in this profile")
        elif (number, wire_type) == (4, VARINT) and isinstance(value, int):
            sizes.append(value)
    if kind != _FILE:
        raise Malformed("a block is not an inner node of a file")
    return sizes
