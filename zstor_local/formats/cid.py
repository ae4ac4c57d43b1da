"""Content ids (CIDs): what some bytes are called everywhere, computed from the bytes alone.

A CIDv1 is the version, the codec of the bytes and a multihash: `01 55 12 20` and 32 bytes of SHA-256 for raw bytes, `01 70 …` for a
node of a DAG (github.com/multiformats/cid, github.com/multiformats/multihash). As text it is multibase: `b` and base32 without padding,
in lower case. CIDv0 (`Qm…`, base58btc) is read too and means the CIDv1 of a DAG node.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from zstor_local.formats import varint

RAW: Final = 0x55
DAG_PB: Final = 0x70
SHA256: Final = 0x12
IDENTITY: Final = 0x00  # the digest is the bytes themselves

DIGEST_BYTES: Final = 32
IDENTITY_BYTES: Final = 128  # of content inside an id, as kubo accepts
TEXT_CHARACTERS: Final = 512  # an id in any base; longer text is not looked at

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE36: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


class BadCid(ValueError):
    """Not a content id, or one of a kind that is not read here."""


@dataclass(frozen=True, slots=True, order=True)
class Cid:
    """A CIDv1. `codec` tells what the bytes are; `digest` is their hash by the function `hashing`."""

    codec: int
    digest: bytes
    hashing: int = SHA256

    @property
    def binary(self) -> bytes:
        """The bytes that stand for it in other formats: 36 for SHA-256."""
        multihash = varint.packed(self.hashing) + varint.packed(len(self.digest)) + self.digest
        return b"\x01" + varint.packed(self.codec) + multihash

    def __str__(self) -> str:
        """Its text: 59 characters for SHA-256, `bafkrei…` of raw bytes and `bafybei…` of a node."""
        return "b" + base64.b32encode(self.binary).decode().rstrip("=").lower()

    def names(self, block: bytes | bytearray | memoryview) -> bool:
        """Whether these are the bytes that it is the id of."""
        return self.digest == (bytes(block) if self.hashing == IDENTITY else hashlib.sha256(block).digest())


def raw(data: bytes | bytearray | memoryview) -> Cid:
    """The id of one block of raw bytes."""
    return Cid(RAW, hashlib.sha256(data).digest())


def parse(text: str) -> Cid:
    """The id in this text, in base32, base36, base58btc, base64, base64url or base16; CIDv0 too. BadCid for anything else."""
    if len(text) > TEXT_CHARACTERS or not text.isascii():
        raise BadCid("that is not a content id")
    if len(text) == 46 and text.startswith("Qm"):
        return from_binary(_of_radix(text, _BASE58))
    try:
        return from_binary(_decoded(text[:1], text[1:]))
    except binascii.Error:
        raise BadCid("that is not a content id") from None


def from_binary(data: bytes) -> Cid:
    """The id in these bytes, all of them; BadCid."""
    cid, end = read(data)
    if end != len(data):
        raise BadCid("bytes follow the content id")
    return cid


def read(data: bytes | bytearray | memoryview, at: int = 0) -> tuple[Cid, int]:
    """The id at this place and where it ends; BadCid."""
    if bytes(data[at : at + 2]) == bytes((SHA256, DIGEST_BYTES)):  # CIDv0 is a bare multihash
        codec, start = DAG_PB, at
    else:
        version, start = _number(data, at)
        if version != 1:
            raise BadCid(f"a content id of version {version} is not read here")
        codec, start = _number(data, start)
    hashing, start = _number(data, start)
    length, start = _number(data, start)
    if hashing not in (SHA256, IDENTITY):
        raise BadCid(f"content ids by hash function {hashing:#x} are not read here, only by SHA-256")
    if length != DIGEST_BYTES if hashing == SHA256 else length > IDENTITY_BYTES:
        raise BadCid("the hash in the content id has a wrong length")
    digest = bytes(data[start : start + length])
    if len(digest) < length:
        raise BadCid("the content id is cut off")
    return Cid(codec, digest, hashing), start + length


def _number(data: bytes | bytearray | memoryview, at: int) -> tuple[int, int]:
    try:
        found = varint.read(data, at)
    except ValueError:
        found = None
    if found is None:
        raise BadCid("that is not a content id")
    return found


# --- Multibase (github.com/multiformats/multibase) ---


def _decoded(base: str, text: str) -> bytes:
    if base in ("b", "B"):
        if text != (text.lower() if base == "b" else text.upper()):
            raise BadCid("a content id in base32 is of one case")
        return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    if base == "z":
        return _of_radix(text, _BASE58)
    if base in ("k", "K"):
        return _of_radix(text.lower(), _BASE36)
    if base in ("f", "F"):
        return base64.b16decode(text.upper())
    if base == "m":
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    if base == "u":
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    raise BadCid("that is not a content id")


def _of_radix(text: str, digits: str) -> bytes:
    """A number in these digits as bytes; each leading zero digit is a zero byte."""
    value = 0
    for character in text:
        digit = digits.find(character)
        if digit < 0:
            raise BadCid("that is not a content id")
        value = value * len(digits) + digit
    zeros = len(text) - len(text.lstrip(digits[0]))
    return bytes(zeros) + value.to_bytes(-(-value.bit_length() // 8))
