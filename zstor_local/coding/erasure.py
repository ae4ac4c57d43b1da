"""k-of-m erasure coding with zfec, behind the one gate that keeps its hazards out.

zfec checks almost nothing. Repeated block numbers make it loop for ever with the GIL held or give wrong bytes, as do numbers
outside the code; too many wanted numbers crash the process; it reorders the caller's tuples in place. So nothing else calls it,
every call passes `_gate`, and gets tuples of its own. A damaged block gives wrong bytes without an error: open every block before
it comes here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import zfec

from zstor_local.coding.block import Buffer
from zstor_local.limits import SHARES_MAX


class ErasureCode:
    """Any k of m equally long blocks give the k data blocks, 1 ≤ k ≤ m ≤ 255. Blocks 0 … k−1 are the data itself.

    Reusable and safe to share between threads; the GIL is free while zfec works.
    """

    __slots__ = ("_decoder", "_encoder", "k", "m")

    def __init__(self, k: int, m: int) -> None:
        if not 1 <= k <= m <= SHARES_MAX:
            raise ValueError(f"no code has k = {k}, m = {m}")
        self.k = k
        self.m = m
        self._encoder = zfec.Encoder(k, m)
        self._decoder = zfec.Decoder(k, m)

    def parity(self, blocks: Sequence[Buffer]) -> list[bytes]:
        """The m − k parity blocks of the k data blocks, in order. ValueError unless there are k of one length."""
        return self._encode(tuple(blocks), tuple(range(self.k, self.m)))

    def restore(self, blocks: Mapping[int, Buffer]) -> list[Buffer]:
        """The k data blocks, in order, from any k blocks by number; data blocks among them are returned as given.

        ValueError unless there are exactly k, numbered within the code, of one length.
        """
        k = self.k
        numbers = tuple(blocks)
        self._gate(tuple(blocks.values()), numbers)
        parities = iter([n for n in numbers if n >= k])
        placed = tuple([n if n in blocks else next(parities) for n in range(k)])  # primaries at their own positions: nothing is copied
        ordered = tuple([blocks[n] for n in placed])
        if max(placed) < k:
            return list(ordered)
        restored: list[Buffer] = self._decoder.decode(ordered, placed)
        return restored

    def remake(self, blocks: Mapping[int, Buffer], wanted: Sequence[int]) -> dict[int, bytes]:
        """The blocks numbered `wanted`, bit for bit as they were, from any k others. Errors as for `restore`."""
        numbers = tuple(wanted)
        if len(set(numbers)) != len(numbers) or not all(0 <= n < self.m for n in numbers):
            raise ValueError(f"wanted {list(numbers)} of a code with m = {self.m}")
        data = self.restore(blocks)
        lost_parities = tuple([n for n in numbers if n >= self.k])
        made = dict(zip(lost_parities, self._encode(tuple(data), lost_parities), strict=True))
        return {n: made[n] if n in made else bytes(data[n]) for n in numbers}

    def _encode(self, blocks: tuple[Buffer, ...], wanted: tuple[int, ...]) -> list[bytes]:
        """The parity blocks `wanted`, which the caller has checked to be distinct and within the code."""
        self._gate(blocks, range(self.k))
        if not wanted:
            return []
        parities: list[bytes] = self._encoder.encode(blocks, wanted)
        return parities

    def _gate(self, blocks: tuple[Buffer, ...], numbers: Sequence[int]) -> None:
        """ValueError unless these are exactly k blocks of one length with distinct numbers within the code."""
        k, m = self.k, self.m
        if len(blocks) != k or len(numbers) != k or len(set(numbers)) != k:
            raise ValueError(f"{len(blocks)} blocks, numbers {list(numbers)}: exactly {k} different ones are needed")
        if min(numbers) < 0 or max(numbers) >= m:
            raise ValueError(f"block numbers {list(numbers)} of a code with m = {m}")
        lengths = {block.nbytes if isinstance(block, memoryview) else len(block) for block in blocks}
        if len(lengths) != 1:
            raise ValueError(f"blocks of different lengths: {sorted(lengths)}")


@lru_cache(maxsize=64)
def erasure_code(k: int, m: int) -> ErasureCode:
    """The code for (k, m), made once: its matrix costs up to milliseconds."""
    return ErasureCode(k, m)
