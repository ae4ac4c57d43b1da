"""Any k of m give the data back, lost blocks come back bit for bit, and nothing that zfec mishandles reaches it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import zfec
from hypothesis import given
from hypothesis import strategies as st

from tests.coding.samples import codes
from zstor_local.coding.block import Buffer
from zstor_local.coding.erasure import ErasureCode, erasure_code


class WatchedZfec:
    """zfec's encoder and decoder, failing the test instead of looping, crashing or reading outside their matrix."""

    def __init__(self, k: int, m: int) -> None:
        self.k, self.m = k, m

    def encode(self, blocks: tuple[Buffer, ...], wanted: tuple[int, ...]) -> list[bytes]:
        self._watch(blocks, range(self.k))
        assert len(set(wanted)) == len(wanted)
        assert all(self.k <= n < self.m for n in wanted)
        made: list[bytes] = zfec.Encoder(self.k, self.m).encode(blocks, wanted)
        return made

    def decode(self, blocks: tuple[Buffer, ...], numbers: tuple[int, ...]) -> list[Buffer]:
        self._watch(blocks, numbers)
        assert all(n == place for place, n in enumerate(numbers) if n < self.k), "zfec would move this block, in our tuple"
        restored: list[Buffer] = zfec.Decoder(self.k, self.m).decode(blocks, numbers)
        return restored

    def _watch(self, blocks: Sequence[Buffer], numbers: Sequence[int]) -> None:
        assert len(blocks) == len(numbers) == self.k
        assert len(set(numbers)) == self.k
        assert all(0 <= n < self.m for n in numbers)
        assert len({memoryview(block).nbytes for block in blocks}) == 1


def watched(k: int, m: int) -> ErasureCode:
    code = ErasureCode(k, m)
    code._encoder = code._decoder = WatchedZfec(k, m)
    return code


@given(codes(), st.integers(0, 65), st.integers(0, 2**32))
def test_any_k_blocks_give_the_data_and_every_lost_block(code: tuple[int, int], width: int, seed: int) -> None:
    k, m = code
    random = Random(seed)
    erasure = watched(k, m)
    data = [random.randbytes(width) for _ in range(k)]
    blocks = [*data, *erasure.parity(data)]
    assert len(blocks) == m

    held = {n: blocks[n] for n in random.sample(range(m), k)}
    restored = erasure.restore(held)
    assert restored == data
    assert all(restored[n] is blocks[n] for n in held if n < k), "a data block at hand is returned as given"

    wanted = random.sample(range(m), random.randint(0, m))
    assert erasure.remake(held, wanted) == {n: blocks[n] for n in wanted}


@given(st.dictionaries(st.integers(-2, 9), st.integers(0, 3), max_size=6), st.integers(1, 4), st.integers(0, 3))
def test_the_gate_lets_no_hazard_through(widths: dict[int, int], k: int, parities: int) -> None:
    m = k + parities
    blocks = {n: bytes(width) for n, width in widths.items()}
    sound = len(blocks) == k and all(0 <= n < m for n in blocks) and len(set(widths.values())) == 1
    if sound:
        assert len(watched(k, m).restore(blocks)) == k
    else:
        with pytest.raises(ValueError):
            watched(k, m).restore(blocks)


@pytest.mark.parametrize("numbers", [(0, 1, 2, 6), (0, 1, 2, -1), (0, 1, 2), (0, 1, 2, 3, 4), (6, 7, 8, 9), ()])
def test_only_k_blocks_of_the_code_are_taken(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        watched(4, 6).restore(dict.fromkeys(numbers, b"block"))


@pytest.mark.parametrize(
    "wanted",
    [(4, 4), (6,), (-1,), (0, 1, 0), tuple(range(4000))],
    ids=["repeated", "past the code", "negative", "data twice", "thousands: zfec would crash"],
)
def test_only_blocks_of_the_code_are_made(wanted: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        watched(4, 6).remake(dict.fromkeys(range(4), b"block"), wanted)


@pytest.mark.parametrize("blocks", [[b"ab"] * 3, [b"ab"] * 5, [b"", b"ab", b"ab", b"ab"], [b"ab", b"ab", b"ab", b"a"]])
def test_parity_needs_k_blocks_of_one_length(blocks: list[bytes]) -> None:
    with pytest.raises(ValueError):
        watched(4, 6).parity(blocks)


def test_lengths_are_bytes_whatever_the_view() -> None:
    wide = memoryview(bytes(8)).cast("I")  # 2 items, 8 bytes
    with pytest.raises(ValueError):
        watched(2, 3).parity([wide, b"ab"])


def test_the_callers_mapping_stays_as_it_was() -> None:
    code = watched(3, 5)
    data = [b"one", b"two", b"six"]
    parity = code.parity(data)
    held = {4: parity[1], 1: data[1], 0: data[0]}
    before = list(held.items())
    assert code.restore(held) == data
    assert list(held.items()) == before


def test_without_parity_blocks_are_the_data() -> None:
    code = watched(3, 3)
    assert code.parity([b"a", b"b", b"c"]) == []
    assert code.restore({2: b"c", 0: b"a", 1: b"b"}) == [b"a", b"b", b"c"]


@pytest.mark.parametrize(("k", "m"), [(0, 1), (2, 1), (1, 256), (-1, 3)])
def test_no_such_code(k: int, m: int) -> None:
    with pytest.raises(ValueError):
        ErasureCode(k, m)


def test_a_code_is_made_once() -> None:
    assert erasure_code(4, 6) is erasure_code(4, 6)
