"""Fixed keys, ids and coders that the tests of this floor share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from hypothesis import strategies as st

from zstor_local.coding.block import Buffer, ChunkShape
from zstor_local.coding.chunk import ChunkCoder, EncodedChunk
from zstor_local.coding.seal import BlockBinding, BlockSealer
from zstor_local.model.ids import NamespaceId, StoreId, Version
from zstor_local.model.policy import Policy

DATA_KEY: Final = bytes(range(32))
STORE: Final = StoreId(b"store id 16bytes")
NAMESPACE: Final = NamespaceId(b"namespace id 16b")
VERSION: Final = Version(b"version 16 bytes")


def binding(
    k: int = 4, m: int = 6, *, store: StoreId = STORE, namespace: NamespaceId = NAMESPACE, version: Version = VERSION
) -> BlockBinding:
    return BlockBinding(store, namespace, version, k, m)


def coder(policy: Policy) -> ChunkCoder:
    return ChunkCoder(policy, BlockSealer(DATA_KEY, binding(policy.k, policy.m)))


def opened(coder: ChunkCoder, chunk: int, encoded: EncodedChunk, indexes: Sequence[int]) -> Mapping[int, Buffer]:
    """These blocks of the chunk, opened."""
    return {i: coder.open_block(chunk, i, encoded.shape, encoded.blocks[i]) for i in indexes}


def forged_shape(plain_length: int, stored_length: int, codec: int) -> ChunkShape:
    """A shape that ChunkShape itself would refuse to be."""
    shape = ChunkShape(1, 1, 0)
    for name, value in (("plain_length", plain_length), ("stored_length", stored_length), ("codec", codec)):
        object.__setattr__(shape, name, value)
    return shape


def codes() -> st.SearchStrategy[tuple[int, int]]:
    """Any (k, m) with 1 ≤ k ≤ m ≤ 255, small ones more often."""
    m = st.one_of(st.integers(1, 8), st.integers(1, 255))
    return m.flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m)))
