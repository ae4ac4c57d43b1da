"""Chunks get smaller or stay as they are, and no frame yields more than its chunk has."""

from __future__ import annotations

from random import Random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from zstor_local.coding.block import BadBlock
from zstor_local.coding.compress import Compressor
from zstor_local.limits import MIB

COMPRESSOR = Compressor()
TEXT = b"one line of many like it\n" * 100
FRAME = COMPRESSOR.shrink(TEXT) or b""


@given(st.binary(min_size=1, max_size=50), st.integers(1, 200))
def test_what_shrinks_comes_back(piece: bytes, times: int) -> None:
    plain = piece * times
    frame = COMPRESSOR.shrink(plain)
    if frame is not None:
        assert len(frame) < len(plain)
        assert COMPRESSOR.restore(frame, len(plain)) == plain


def test_what_does_not_shrink_is_left() -> None:
    assert COMPRESSOR.shrink(Random(1).randbytes(4096)) is None
    assert COMPRESSOR.shrink(b"x") is None


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zstandard.compress(bytes(64 * MIB))
    assert len(bomb) < 10_000
    unpacked: list[int] = []

    class Watched:
        def decompress(self, data: bytes, **options: object) -> bytes:
            unpacked.append(len(data))
            return zstandard.ZstdDecompressor().decompress(data)

    compressor = Compressor()
    monkeypatch.setattr(compressor, "_restore", Watched())
    assert compressor.restore(FRAME, len(TEXT)) == TEXT
    unpacked.clear()
    with pytest.raises(BadBlock):
        compressor.restore(bomb, MIB)
    assert unpacked == []


@pytest.mark.parametrize("length", [len(TEXT) - 1, len(TEXT) + 1, 1])
def test_a_frame_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(BadBlock):
        COMPRESSOR.restore(FRAME, length)


@pytest.mark.parametrize(
    "frame",
    [
        FRAME + b"\0",
        FRAME + FRAME,
        FRAME[:-1],
        FRAME[: len(FRAME) // 2],
        b"",
        b"no frame at all",
        bytes([FRAME[0] ^ 1]) + FRAME[1:],
        zstandard.ZstdCompressor(write_content_size=False).compress(TEXT),
        b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + FRAME,
    ],
    ids=["byte behind", "two frames", "cut", "half", "empty", "text", "magic", "no size declared", "skippable frame before"],
)
def test_anything_but_one_whole_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(BadBlock):
        COMPRESSOR.restore(frame, len(TEXT))
