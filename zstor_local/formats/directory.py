"""Directories of UnixFS: one node of dag-pb, whose links have names, sorted by their bytes.

A directory over 256 KiB would become a HAMT under the profile unixfs-v1-2025; we make none so large. Sources as in formats/unixfs.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from zstor_local.formats.cid import DAG_PB, BadCid, Cid, from_binary
from zstor_local.formats.protobuf import LENGTH, FieldCount, Malformed, records
from zstor_local.formats.varint import packed as varint

DIRECTORY_BYTES_MAX: Final = 256 << 10

_DIRECTORY: Final = b"\x0a\x02\x08\x01"  # field 1: UnixFS {1 type: 1}


@dataclass(frozen=True, slots=True)
class Tree:
    """A file or directory as a directory sees it: the id of its root block, and the bytes of all its blocks."""

    cid: Cid
    size: int


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory's block and how its parent sees it."""

    tree: Tree
    block: bytes


def directory(members: Mapping[str, Tree]) -> Directory:
    """The directory of these members. ValueError for one that would have to be a HAMT."""
    block = bytearray()
    for name, tree in sorted((name.encode(), tree) for name, tree in members.items()):
        cid = tree.cid.binary
        link = b"\x0a" + varint(len(cid)) + cid + b"\x12" + varint(len(name)) + name + b"\x18" + varint(tree.size)
        block += b"\x12" + varint(len(link)) + link
    done = bytes(block) + _DIRECTORY
    if len(done) > DIRECTORY_BYTES_MAX:
        raise ValueError(f"a directory of {len(members)} members is too large")
    return Directory(Tree(Cid(DAG_PB, hashlib.sha256(done).digest()), len(done) + sum(tree.size for tree in members.values())), done)


def parse_directory(block: bytes) -> dict[str, Cid]:
    """The members of a directory's block; Malformed if it is none."""
    members: dict[str, Cid] = {}
    data, count = b"", FieldCount()
    for number, wire_type, value, _ in records(block, count):
        if wire_type == LENGTH and isinstance(value, bytes):
            if number == 2:
                name, cid = _link(value, count)
                members[name] = cid
            elif number == 1:
                data = value
    if not any(number == 1 and value == 1 for number, _, value, _ in records(data, count)):
        raise Malformed("a block is not a directory")
    return members


def _link(data: bytes, count: FieldCount) -> tuple[str, Cid]:
    name, cid = "", None
    for number, _, value, _ in records(data, count):
        if isinstance(value, bytes):
            try:
                if number == 1:
                    cid = from_binary(value)
                elif number == 2:
                    name = value.decode()
            except (BadCid, UnicodeDecodeError):
                raise Malformed("a link of a directory is malformed") from None
    if cid is None:
        raise Malformed("a link has no id")
    return name, cid
