"""Variable-length numbers: seven bits a byte, the lowest first. Protobuf's, and in the fewest bytes multiformats' (unsigned-varint)."""

from __future__ import annotations

from typing import Final

_BYTES_MAX: Final = 9  # 2⁶³ − 1, the specification's limit


def packed(value: int) -> bytes:
    """A number from 0 on, in the fewest bytes."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read(data: bytes | bytearray | memoryview, at: int = 0) -> tuple[int, int] | None:
    """The number there and where it ends; None if more bytes are needed; ValueError for a number that is too long or padded."""
    value = 0
    for count in range(_BYTES_MAX):
        if at + count == len(data):
            return None
        byte = data[at + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            if not byte and count:
                raise ValueError("a number is longer than it must be")
            return value, at + count + 1
    raise ValueError("a number is too long")
