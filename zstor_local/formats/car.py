"""CAR files, version 1: content-addressed blocks in a row, as IPFS tools exchange them (ipld.io/specs/transport/car/carv1).

A number (varint) and so many bytes, again and again: first a header in dag-cbor, `{"roots": […], "version": 1}`, then for each block
its id and its bytes. There is no index and no end mark, so a file that was cut between two blocks is found only by whoever follows the
links. Bytes in, blocks out; no input and output here. `Reader` checks every block against its id before it hands it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import cbor2

from zstor_local.formats import varint
from zstor_local.formats.cid import IDENTITY_BYTES, BadCid, Cid, from_binary
from zstor_local.formats.cid import read as read_cid
from zstor_local.formats.unixfs import BLOCK_BYTES_MAX

HEADER_BYTES_MAX: Final = 1 << 20  # some 20,000 roots
SECTION_BYTES_MAX: Final = BLOCK_BYTES_MAX + 512  # the id is in it

_CID_BYTES_MAX: Final = 3 * 10 + 10 + IDENTITY_BYTES

_CID_TAG: Final = 42  # dag-cbor's tag of a link, whose bytes begin with a zero (multibase identity)


class BadCar(ValueError):
    """Not a CAR file of version 1, or one with a block that is not what its id says. `offset` is where in the file."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} (at byte {offset})")
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Block:
    """A block and where its bytes lie in the file."""

    cid: Cid
    data: bytes
    offset: int


def header(roots: Sequence[Cid]) -> bytes:
    """The beginning of a file: 59 bytes for one root of SHA-256."""
    links = [cbor2.CBORTag(_CID_TAG, b"\x00" + root.binary) for root in roots]
    encoded = cbor2.dumps({"roots": links, "version": 1})
    return varint.packed(len(encoded)) + encoded


def section(cid: Cid, length: int) -> bytes:
    """What goes before a block of this many bytes."""
    binary = cid.binary
    return varint.packed(len(binary) + length) + binary


class Reader:
    """A file, fed in pieces of any size. `blocks` gives those that are complete; call `finish` at the end."""

    def __init__(self) -> None:
        self.roots: tuple[Cid, ...] | None = None  # known when the first block is
        self._buffer = bytearray()
        self._offset = 0  # of the buffer's first byte in the file

    def blocks(self, data: bytes | bytearray | memoryview) -> Iterator[Block]:
        """Take more bytes of the file, and give every block that they complete; exhaust it before the next. BadCar."""
        self._buffer += data
        at = 0
        try:
            while (found := self._section(at)) is not None:
                start, end = found
                if self.roots is None:
                    self.roots = self._header(start, end)
                else:
                    yield self._block(start, end)
                at = end
        finally:
            del self._buffer[:at]
            self._offset += at

    def finish(self) -> None:
        """BadCar if the file ends within something."""
        if self.roots is None or self._buffer:
            raise BadCar("the file is cut off", self._offset + len(self._buffer))

    def _section(self, at: int) -> tuple[int, int] | None:
        """Where the next section's content begins and ends, if all of it is here."""
        try:
            found = varint.read(self._buffer, at)
        except ValueError as error:
            raise BadCar(str(error), self._offset + at) from None
        if found is None:
            return None
        length, start = found
        limit = HEADER_BYTES_MAX if self.roots is None else SECTION_BYTES_MAX
        if not 0 < length <= limit:
            raise BadCar(f"a section of {length} bytes, from 1 to {limit} are read here", self._offset + at)
        return (start, start + length) if start + length <= len(self._buffer) else None

    def _header(self, start: int, end: int) -> tuple[Cid, ...]:
        place = self._offset + start
        try:
            plain = cbor2.loads(bytes(self._buffer[start:end]), max_depth=8, allow_indefinite=False, allow_duplicate_keys=False)
        except (cbor2.CBORDecodeError, ValueError):
            raise BadCar("that is not a CAR file", place) from None
        if type(plain) is not dict or plain.get("version") != 1 or not isinstance(plain.get("roots"), (list, tuple)):
            raise BadCar("that is not a CAR file of version 1", place)
        return tuple(_root(link, place) for link in plain["roots"])

    def _block(self, start: int, end: int) -> Block:
        place = self._offset + start
        try:
            cid, length = read_cid(self._buffer[start : min(end, start + _CID_BYTES_MAX)])
        except BadCid as error:
            raise BadCar(str(error), place) from None
        data = bytes(memoryview(self._buffer)[start + length : end])
        if not cid.names(data):
            raise BadCar(f"the bytes under {cid} are not its own", place)
        return Block(cid, data, place + length)


def _root(link: object, place: int) -> Cid:
    if isinstance(link, cbor2.CBORTag) and link.tag == _CID_TAG and isinstance(link.value, bytes) and link.value[:1] == b"\x00":
        try:
            return from_binary(link.value[1:])
        except BadCid:
            pass
    raise BadCar("a root is not a content id", place)
