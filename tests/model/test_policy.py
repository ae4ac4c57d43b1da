"""Policies: which there can be, and how many shards a write needs."""

from __future__ import annotations

from typing import Any

import pytest

from zstor_local import limits
from zstor_local.errors import InvalidParams
from zstor_local.model.policy import Policy


def test_the_default_is_four_of_six_with_chunks_of_a_mebibyte() -> None:
    assert Policy() == Policy(4, 6, limits.MIB, "zstd", "none")


@pytest.mark.parametrize(("k", "m"), [(1, 1), (1, 255), (255, 255), (4, 6)])
def test_any_k_of_m_up_to_255(k: int, m: int) -> None:
    assert (Policy(k, m).k, Policy(k, m).m) == (k, m)


@pytest.mark.parametrize(("k", "m"), [(0, 0), (0, 1), (-1, 3), (3, 2), (1, 256), (256, 256)])
def test_no_other_k_and_m(k: int, m: int) -> None:
    with pytest.raises(InvalidParams, match="1 ≤ k ≤ m ≤ 255"):
        Policy(k, m)


@pytest.mark.parametrize("size", [limits.CHUNK_SIZE_MIN << shift for shift in range(5)])
def test_chunk_sizes_are_powers_of_two(size: int) -> None:
    assert Policy(chunk_size=size).chunk_size == size


@pytest.mark.parametrize(
    "size", [0, 1, limits.CHUNK_SIZE_MIN // 2, limits.CHUNK_SIZE_MIN + 1, 3 * limits.MIB, limits.CHUNK_SIZE_MAX * 2]
)
def test_no_other_chunk_size(size: int) -> None:
    with pytest.raises(InvalidParams, match="power of two"):
        Policy(chunk_size=size)


@pytest.mark.parametrize("fields", [{"compression": "gzip"}, {"padding": "random"}])
def test_no_other_compression_or_padding(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidParams):
        Policy(**fields)


@pytest.mark.parametrize(("k", "m", "quorum"), [(4, 6, 5), (1, 1, 1), (3, 3, 3), (1, 3, 2), (2, 3, 3), (254, 255, 255)])
def test_a_write_needs_one_share_more_than_a_read_where_there_is_one(k: int, m: int, quorum: int) -> None:
    assert Policy(k, m).write_quorum == quorum
