"""The bytes on disk, frozen: what was written once is written the same for ever, and read for ever.

`tests/vectors/coding.json` is never made anew for a format that was released; a new format gets vectors beside the old ones. For a
format still in the making: `python -m tests.coding.test_coding_vectors`.
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Final

import pytest

from tests.coding.samples import DATA_KEY, NAMESPACE, STORE, VERSION, binding
from zstor_local.coding.block import ChunkShape
from zstor_local.coding.chunk import ChunkCoder, Packed, Scratch
from zstor_local.coding.keys import KeyHasher, KeyRing, commitment
from zstor_local.coding.seal import BlockSealer
from zstor_local.coding.share import (
    ShareHeader,
    pack_block_header,
    pack_share_end,
    pack_share_header,
    parse_share_header,
)
from zstor_local.coding.table import ChunkTable, table_word
from zstor_local.limits import KIB
from zstor_local.model.policy import Padding, Policy

PATH: Final = Path(__file__).parents[1] / "vectors" / "coding.json"
MASTER: Final = bytes(range(100, 132))
SALT: Final = bytes(range(200, 232))
HASH_KEY: Final = bytes(range(50, 82))
PLAIN: Final = b"The same line, twice over.\n" * 4
ZSTD_FRAME: Final = bytes.fromhex(
    "28b52ffd206c150100d85468652073616d65206c696e652c207477696365206f7665722e0a0100bba3730c"
)  # libzstd 1.5.7
CHUNK_SIZE: Final = 256 * KIB

Vectors = dict[str, object]


def bodies() -> dict[str, tuple[bytes, int, int, Padding]]:
    """Name → the stored body of one chunk, k, m, padding. The frame is given: another libzstd may find another, as good a one."""
    return {
        "2 of 3, as is": (PLAIN, 2, 3, "none"),
        "4 of 6, zstd": (ZSTD_FRAME, 4, 6, "none"),
        "4 of 6, as is, padme": (PLAIN[:-1], 4, 6, "padme"),
        "1 of 3, one byte": (b"x", 1, 3, "none"),
    }


def keys() -> Vectors:
    ring = KeyRing(MASTER, STORE)
    namespace = ring.namespace(NAMESPACE)
    return {
        "record key": ring.record_keys(NAMESPACE)[0].hex(),
        "store record key": ring._record_key(MASTER, None).hex(),
        "wrapped data key": namespace.wrap(DATA_KEY).hex(),
        "sealed record": namespace.seal_record(SALT, b"associated", b"a record").hex(),
        "commitment": commitment(DATA_KEY).hex(),
        "key hash": KeyHasher(HASH_KEY).key_hash(NAMESPACE, "dir/ключ").hex(),
    }


def shares(body: bytes, k: int, m: int, padding: Padding) -> Vectors:
    """All m share files of an object of one chunk, whole, with a sealed chunk table."""
    shape = ChunkShape(len(PLAIN), len(body), 1) if body == ZSTD_FRAME else ChunkShape(len(body), len(body), 0)
    sealer = BlockSealer(DATA_KEY, binding(k, m))
    blocks = ChunkCoder(Policy(k, m, CHUNK_SIZE, padding=padding), sealer).seal(Scratch(), 0, Packed(shape, body))
    table = ChunkTable(array("I", [table_word(shape)]), shape.plain_length, CHUNK_SIZE, k=k, padding=padding)
    sealed_table = sealer.seal_table(table.pack())
    tail = sealed_table + pack_share_end(table, len(sealed_table))
    header = pack_block_header(0, shape, padding)
    files = [pack_share_header(ShareHeader(i, k, m, padding, VERSION, NAMESPACE)) + header + b + tail for i, b in enumerate(blocks)]
    return {
        "plain_length": shape.plain_length,
        "stored_length": shape.stored_length,
        "codec": shape.codec,
        "files": [f.hex() for f in files],
    }


def vectors() -> Vectors:
    return {"format": 1, "keys": keys(), "shares": {name: shares(*body) for name, body in bodies().items()}}


def test_the_bytes_are_those_of_the_vectors() -> None:
    assert vectors() == json.loads(PATH.read_text())


@pytest.mark.parametrize("name", bodies())
def test_the_vectors_are_readable(name: str) -> None:
    """By parsing alone, from the last k shares: parity does its work."""
    vector = json.loads(PATH.read_text())["shares"][name]
    shape = ChunkShape(vector["plain_length"], vector["stored_length"], vector["codec"])
    files = [bytes.fromhex(data) for data in vector["files"]]
    headers = [parse_share_header(data) for data in files]
    k, m, padding = headers[0].k, headers[0].m, headers[0].padding
    assert [header.index for header in headers] == list(range(m))
    chunks = ChunkCoder(Policy(k, m, CHUNK_SIZE, padding=padding), BlockSealer(DATA_KEY, binding(k, m)))
    end = 44 + 20  # index of one chunk and footer, sealed table
    held = {i: chunks.open_block(0, i, shape, files[i][80:-end]) for i in range(m - k, m)}
    body = bodies()[name][0]
    assert b"".join(chunks.decode(Scratch(), 0, shape, held)) == (PLAIN if body == ZSTD_FRAME else body)


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n")
