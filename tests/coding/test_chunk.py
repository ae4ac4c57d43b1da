"""A chunk comes back from any k of its blocks, a bad block is found before decoding, and a lost one is made again bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.coding.samples import DATA_KEY, binding, coder, codes, forged_shape, opened
from zstor_local.coding.block import BadBlock, Buffer, ChunkShape, block_width, padded_length, padme, public_shape
from zstor_local.coding.chunk import ChunkCoder, Packed, Scratch
from zstor_local.coding.erasure import erasure_code
from zstor_local.coding.seal import BlockSealer
from zstor_local.limits import CHUNK_SIZE_MAX, CHUNKS_MAX, KIB, MIB
from zstor_local.model.policy import Padding, Policy

SCRATCH = Scratch()
PADDING_CHOICES: list[Padding] = ["none", "padme"]
paddings = st.sampled_from(PADDING_CHOICES)


def plain_of(size: int, seed: int, compressible: bool) -> bytes:
    return (b"%d: the same again. " % seed * size)[:size] if compressible else Random(seed).randbytes(size)


@given(codes(), st.integers(1, 3000), st.booleans(), paddings, st.integers(0, CHUNKS_MAX - 1))
def test_any_k_blocks_give_the_chunk(code: tuple[int, int], size: int, compressible: bool, padding: Padding, seed: int) -> None:
    k, m = code
    chunks, random = coder(Policy(k, m, padding=padding)), Random(seed)
    plain = plain_of(size, seed, compressible)
    encoded = chunks.encode(SCRATCH, seed, plain)  # the seed is also the chunk's number
    assert len(encoded.blocks) == m
    assert {len(block) for block in encoded.blocks} == {block_width(encoded.shape.stored_length, k, padding) + 16}
    held = opened(chunks, seed, encoded, random.sample(range(m), k))
    assert b"".join(chunks.decode(SCRATCH, seed, encoded.shape, held)) == plain


@pytest.mark.parametrize("padding", ["none", "padme"])
@pytest.mark.parametrize("compressible", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 4 * KIB, 4 * KIB + 1, 256 * KIB, MIB - 1, MIB])
def test_sizes_at_the_edges(size: int, compressible: bool, padding: Padding) -> None:
    chunks = coder(Policy(padding=padding))
    plain = plain_of(size, size, compressible)
    encoded = chunks.encode(SCRATCH, 0, memoryview(plain))
    for indexes in ((0, 1, 2, 3), (2, 3, 4, 5), (5, 1, 0, 4)):
        assert b"".join(chunks.decode(SCRATCH, 0, encoded.shape, opened(chunks, 0, encoded, indexes))) == plain


@given(codes(), st.integers(1, 1000), st.integers(0, 2**32))
def test_a_repaired_block_is_bit_identical(code: tuple[int, int], size: int, seed: int) -> None:
    k, m = code
    chunks, random = coder(Policy(k, m)), Random(seed)
    encoded = chunks.encode(SCRATCH, 3, plain_of(size, seed, compressible=seed % 2 == 0))
    kept = random.sample(range(m), k)
    lost = [index for index in range(m) if index not in kept]
    remade = erasure_code(k, m).remake(opened(chunks, 3, encoded, kept), lost)
    sealer = BlockSealer(DATA_KEY, binding(k, m))
    assert {i: sealer.seal(3, i, encoded.shape, block) for i, block in remade.items()} == {i: encoded.blocks[i] for i in lost}


def test_uncompressed_data_blocks_are_neither_copied_nor_joined() -> None:
    chunks = coder(Policy())
    encoded = chunks.encode(SCRATCH, 0, Random(1).randbytes(4096))
    held = opened(chunks, 0, encoded, range(4))
    parts = chunks.decode(SCRATCH, 0, encoded.shape, held)
    assert all(part is held[index] for index, part in enumerate(parts))


def test_compression_is_kept_only_if_smaller_and_only_if_wanted() -> None:
    text, noise = b"text " * 200, Random(1).randbytes(1000)
    assert coder(Policy()).pack(SCRATCH, text).shape.compressed
    assert coder(Policy()).pack(SCRATCH, noise).shape == ChunkShape(1000, 1000, 0)
    assert coder(Policy(compression="none")).pack(SCRATCH, text).shape == ChunkShape(1000, 1000, 0)
    assert coder(Policy()).pack(SCRATCH, noise).body is noise


@pytest.mark.parametrize("size", [0, MIB + 1])
def test_a_chunk_is_never_empty_nor_larger_than_the_policys(size: int) -> None:
    with pytest.raises(ValueError):
        coder(Policy()).encode(SCRATCH, 0, bytes(size))


@pytest.mark.parametrize(
    "damage",
    [
        lambda blocks: blocks[1],
        lambda blocks: blocks[0][:-1],
        lambda blocks: blocks[0] + b"\0",
        lambda blocks: bytes([blocks[0][0] ^ 1]) + blocks[0][1:],
        lambda blocks: coder(Policy()).encode(SCRATCH, 8, bytes(range(200))).blocks[0],
        lambda blocks: ChunkCoder(Policy(), BlockSealer(bytes(32), binding())).encode(SCRATCH, 7, bytes(range(200))).blocks[0],
        lambda blocks: b"",
    ],
    ids=["swapped", "truncated", "extended", "flipped", "of another chunk", "of another version", "empty"],
)
def test_a_bad_block_is_found_before_decoding(damage: Callable[[list[bytes]], bytes]) -> None:
    chunks = coder(Policy())
    encoded = chunks.encode(SCRATCH, 7, bytes(range(200)))
    assert chunks.open_block(7, 0, encoded.shape, encoded.blocks[0])
    with pytest.raises(BadBlock):
        chunks.open_block(7, 0, encoded.shape, damage(encoded.blocks))


def test_a_block_of_another_width_is_no_block_of_this_chunk() -> None:
    """Sealed with the right key and place, but padded in another way."""
    padded = coder(Policy(padding="padme")).encode(SCRATCH, 0, Random(1).randbytes(1001))
    assert coder(Policy(padding="padme")).open_block(0, 0, padded.shape, padded.blocks[0])
    with pytest.raises(BadBlock):
        coder(Policy()).open_block(0, 0, padded.shape, padded.blocks[0])


def test_padding_must_be_zero() -> None:
    chunks = coder(Policy())
    shape = ChunkShape(6, 6, 0)  # two bytes in each of four blocks
    good: dict[int, Buffer] = {0: b"ab", 1: b"cd", 2: b"ef", 3: b"\0\0"}
    assert b"".join(chunks.decode(SCRATCH, 0, shape, good)) == b"abcdef"
    with pytest.raises(BadBlock):
        chunks.decode(SCRATCH, 0, shape, {**good, 3: b"\0\1"})
    odd = ChunkShape(5, 5, 0)
    assert b"".join(chunks.decode(SCRATCH, 0, odd, {**good, 2: b"e\0"})) == b"abcde"
    with pytest.raises(BadBlock):
        chunks.decode(SCRATCH, 0, odd, good)


def test_opened_blocks_must_have_the_width_of_the_shape() -> None:
    with pytest.raises(BadBlock):
        coder(Policy()).decode(SCRATCH, 0, ChunkShape(8, 8, 0), dict.fromkeys(range(4), b"abc"))


def test_a_sealed_bomb_is_refused() -> None:
    """Somebody with the data key sealed a frame that declares more than its chunk has."""
    chunks = coder(Policy())
    bomb = zstandard.compress(bytes(64 * MIB))
    shape = ChunkShape(MIB, len(bomb), 1)
    blocks = chunks.seal(SCRATCH, 0, Packed(shape, bomb))
    held = {i: chunks.open_block(0, i, shape, blocks[i]) for i in range(4)}
    with pytest.raises(BadBlock):
        chunks.decode(SCRATCH, 0, shape, held)


def test_no_nonce_meets_two_plaintexts() -> None:
    """In a run of whole versions with their tables, repairs included; every data key is another."""
    seen: dict[tuple[bytes, bytes], bytes] = {}

    class Recorder:
        def __init__(self, sealer: BlockSealer, key: bytes) -> None:
            self.aes, self.key = sealer._aes, key

        def encrypt(self, nonce: bytes, plain: Buffer, associated: bytes) -> bytes:
            assert seen.setdefault((self.key, nonce), bytes(plain)) == plain
            return self.aes.encrypt(nonce, plain, associated)

    for seed in range(20):
        key = Random(seed).randbytes(32)
        policy = Policy(1 + seed % 5, 3 + seed % 5)
        sealer = BlockSealer(key, binding(policy.k, policy.m))
        sealer._aes = Recorder(sealer, key)  # type: ignore[assignment]  # it has the one method that sealing calls
        chunks = ChunkCoder(policy, sealer)
        for chunk in range(20):
            packed = chunks.pack(SCRATCH, plain_of(100 + chunk, seed, compressible=chunk % 2 == 0))
            assert chunks.seal(SCRATCH, chunk, packed) == chunks.seal(SCRATCH, chunk, packed)
        sealer.seal_table(b"the table")
    assert len(seen) == sum(20 * (3 + seed % 5) + 1 for seed in range(20))


def test_sealed_blocks_do_not_change_with_the_scratch() -> None:
    """A writer may still be sending one chunk's blocks while its thread seals the next."""
    chunks, scratch = coder(Policy()), Scratch()
    view = scratch.plain(1001)
    view[:] = Random(1).randbytes(1001)
    first = chunks.encode(scratch, 0, view)
    before = [bytes(block) for block in first.blocks]
    scratch.plain(1001)[:] = bytes(1001)
    chunks.encode(scratch, 1, Random(2).randbytes(997))
    assert first.blocks == before


def test_zeros_are_padded_over_what_the_scratch_held_before() -> None:
    chunks, scratch = coder(Policy()), Scratch()
    chunks.encode(scratch, 0, b"\xff" * 7)
    encoded = chunks.encode(scratch, 1, b"x")
    assert b"".join(chunks.decode(scratch, 1, encoded.shape, opened(chunks, 1, encoded, range(4)))) == b"x"


def test_threads_share_a_coder_each_with_its_scratch() -> None:
    chunks = coder(Policy())
    plains = [plain_of(300 * KIB + n, n, compressible=n % 2 == 0) for n in range(8)]
    alone = [chunks.encode(SCRATCH, n, plain) for n, plain in enumerate(plains)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda item: chunks.encode(Scratch(), *item), enumerate(plains)))
    assert together == alone


def test_policy_and_sealer_must_speak_of_one_code() -> None:
    with pytest.raises(ValueError):
        ChunkCoder(Policy(4, 7), BlockSealer(DATA_KEY, binding(4, 6)))


@pytest.mark.parametrize(("plain", "stored", "codec"), [(0, 0, 0), (5, 4, 0), (5, 5, 1), (5, 6, 1), (5, 0, 1), (5, 4, 2), (5, -1, 1)])
def test_a_shape_that_no_writer_makes_cannot_be(plain: int, stored: int, codec: int) -> None:
    assert forged_shape(plain, stored, codec).plain_length == plain
    with pytest.raises(BadBlock):
        ChunkShape(plain, stored, codec)


@pytest.mark.parametrize(("length", "padded"), [(1, 1), (2, 2), (3, 3), (8, 8), (9, 10), (100, 104), (1000, 1024), (65537, 67584)])
def test_padme_by_hand(length: int, padded: int) -> None:
    """9: E = 3, S = 2, so the last E − S = 1 bit is zero. 65,537: E = 16, S = 5, 11 bits."""
    assert padme(length) == padded


@given(st.integers(1, CHUNK_SIZE_MAX), st.integers(1, 255))
def test_padme_is_small_monotone_and_stable(length: int, k: int) -> None:
    padded = padme(length)
    assert length <= padded <= length * 1.12
    assert padme(padded) == padded == padded_length(length, "padme")
    assert padme(length + 1) >= padded
    assert padded_length(length, "none") == length
    shape = ChunkShape(length + 1, length, 1)
    assert block_width(public_shape(shape, "padme").stored_length, k, "padme") == block_width(length, k, "padme")
    assert public_shape(shape, "none") is shape
