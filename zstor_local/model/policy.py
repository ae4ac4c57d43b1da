"""How a namespace's objects are stored: k of m, chunk size, compression, padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from zstor_local import limits
from zstor_local.errors import InvalidParams

Compression = Literal["zstd", "none"]
Padding = Literal["none", "padme"]
COMPRESSIONS: Final[tuple[Compression, ...]] = get_args(Compression)
PADDINGS: Final[tuple[Padding, ...]] = get_args(Padding)


@dataclass(frozen=True, slots=True)
class Policy:
    """Any k of the m shares give an object back. `chunk_size` in bytes, a power of two. Sealing is not optional."""

    k: int = 4
    m: int = 6
    chunk_size: int = limits.MIB
    compression: Compression = "zstd"
    padding: Padding = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.m <= limits.SHARES_MAX:
            raise InvalidParams(f"k = {self.k}, m = {self.m}: a policy needs 1 ≤ k ≤ m ≤ {limits.SHARES_MAX}")
        size = self.chunk_size
        if not limits.CHUNK_SIZE_MIN <= size <= limits.CHUNK_SIZE_MAX or size & (size - 1):
            raise InvalidParams(f"chunk_size = {size}: a power of two from {limits.CHUNK_SIZE_MIN} to {limits.CHUNK_SIZE_MAX}")
        if self.compression not in COMPRESSIONS:
            raise InvalidParams(f"compression is one of {', '.join(COMPRESSIONS)}")
        if self.padding not in PADDINGS:
            raise InvalidParams(f"padding is one of {', '.join(PADDINGS)}")

    @property
    def write_quorum(self) -> int:
        """Shares that must be durable before a write is acknowledged: one more than a read needs, where there is one more."""
        return min(self.k + 1, self.m)
